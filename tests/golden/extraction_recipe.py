"""Weights and inputs behind extraction.json, rebuilt from numpy's frozen legacy generator, the same on any machine.

Names and shapes of the weights are those of the published files; VGGish's are seeded with `vggish/` before the name.
"""
import zlib

import numpy as np


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
