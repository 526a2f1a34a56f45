"""Weights and inputs behind the numbers in this folder, rebuilt from numpy's frozen legacy generator.

Parameter names are those of the released checkpoints; everything is float64, so any machine gets the same bits. For
extraction.json, names and shapes are those of the published files; VGGish's are seeded with `vggish/` before the name.
"""
import zlib

import numpy as np


def parameter(seed, name, shape):
    """Value of the released parameter `name`: scaled normal for matrices, else 0.1 x normal (+ 1 for a LayerNorm)."""
    generator = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    value = generator.standard_normal(shape)
    if len(shape) > 1:
        return value * (2.0 / sum(shape)) ** 0.5
    return value * 0.1 + (1.0 if name.endswith("layer_norm.weight") else 0.0)


def inputs(seed, batch):
    """audio [B,10,128], visual [B,10,7,7,512], labels [B,10] in 0..28 (28 = background)."""
    generator = np.random.RandomState(seed)
    audio = np.maximum(generator.standard_normal((batch, 10, 128)) * 0.5 - 0.1, 0)
    visual = np.maximum(generator.standard_normal((batch, 10, 7, 7, 512)) * 0.9 - 0.3, 0)
    labels = np.full((batch, 10), 28)
    for row in labels:
        start = generator.randint(0, 8)
        row[start:generator.randint(start + 1, 11)] = generator.randint(0, 28)
    return audio, visual, labels


def weight(name, shape, fan_in):
    """float64 of `shape`: kernels scaled as He et al. do, biases 0.05 x normal."""
    value = np.random.RandomState(zlib.crc32(name.encode()) % 2**32).standard_normal(shape)
    return value * (2 / fan_in) ** 0.5 if len(shape) > 1 else value * 0.05


def picture(seed, height, width):
    """RGB uint8 [height, width, 3]: waves that differ between the channels, and noise."""
    generator = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    channels = []
    for c in range(3):
        waves = np.sin(x / (7 + 3 * c) + c) * np.cos(y / (11 - 2 * c))
        channels.append(127 + 80 * waves + generator.standard_normal((height, width)) * 12)
    return np.clip(np.round(np.stack(channels, -1)), 0, 255).astype(np.uint8)


def sound(seed, rate, seconds, channels):
    """int16 [rate * seconds, channels]: three tones that come and go, and noise."""
    generator = np.random.RandomState(seed)
    t = np.arange(int(rate * seconds)) / rate
    tones = sum(np.sin(2 * np.pi * hertz * t) * (0.5 + 0.5 * np.sin(2 * np.pi * t / (1 + k)))
                for k, hertz in enumerate((220.0, 1310.0, 4100.0)))
    wave = 0.15 * tones[:, None] + 0.02 * generator.standard_normal((len(t), channels))
    return np.clip(np.round(wave * 32767), -32768, 32767).astype(np.int16)
