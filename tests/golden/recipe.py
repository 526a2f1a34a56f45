"""Weights and inputs behind the numbers in this folder, rebuilt from numpy's frozen legacy generator.

Parameter names are those of the released checkpoints; everything is float64, so any machine gets the same bits.
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
