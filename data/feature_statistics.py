"""What features look like: zeros, mean, spread, tail and correlations, beside those of real ones.

The real ones were measured by this code on all that could be had: the picture of one clip and the sounds of the 178
background videos of AVE. They are an orientation.
"""
import numpy as np

REAL_AUDIO = {"zeros": 0.653, "mean": 0.122, "standard deviation": 0.262, "median of the non-zeros": 0.251,
              "99 % of the non-zeros": 1.60, "correlation between seconds": 0.707}
REAL_VISUAL = {"zeros": 0.663, "mean": 2.01, "standard deviation": 6.34, "median of the non-zeros": 1.99,
               "99 % of the non-zeros": 46.9, "correlation between seconds": 0.780,
               "correlation between cells side by side": 0.680, "correlation between cells one below the other": 0.485,
               "correlation between far corners": 0.140}
REAL = {"audio": REAL_AUDIO, "visual": REAL_VISUAL}


def correlation(x, y):
    """Mean of Pearson's correlation over all pairs of vectors (the last axis) of which none is constant."""
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    spread = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    products = (x * y).sum(axis=-1)
    return float((products[spread > 0] / spread[spread > 0]).mean()) if (spread > 0).any() else float("nan")


def statistics(features):
    """{name: value} of features [videos, T, channels] or, of the picture, [videos, T, height, width, channels].

    - Zeros: share of all values. Mean and standard deviation are those of all values, zeros too.
    - Between seconds: all values of a second with those of the next.
    - Between cells: all channels of a cell with those of its right or its lower neighbour in the same second.
    - Between far corners: all channels of a corner cell with those of the opposite one, both diagonals.
    """
    seconds = features.reshape(*features.shape[:2], -1)
    positive = features[features > 0]
    values = {"zeros": float((features == 0).mean()), "mean": float(features.mean(dtype=np.float64)),
              "standard deviation": float(features.std(dtype=np.float64)),
              "median of the non-zeros": float(np.median(positive)) if positive.size else float("nan"),
              "99 % of the non-zeros": float(np.percentile(positive, 99)) if positive.size else float("nan"),
              "correlation between seconds": correlation(seconds[:, 1:], seconds[:, :-1])}
    if features.ndim == 5:
        corners, opposite = features[:, :, [0, 0], [0, -1]], features[:, :, [-1, -1], [-1, 0]]
        values |= {
            "correlation between cells side by side": correlation(features[:, :, :, 1:], features[:, :, :, :-1]),
            "correlation between cells one below the other": correlation(features[:, :, 1:], features[:, :, :-1]),
            "correlation between far corners": correlation(corners, opposite)}
    return values


def statistics_table(samples):
    """Text: the statistics of {'audio', 'visual': features} beside those of real ones."""
    lines = [f"{'':44}{'real':>10}{'this set':>10}{'ratio':>8}"]
    for name, features in samples.items():
        lines.append({"audio": "sound (real: 178 background videos)", "visual": "picture (real: one clip)"}[name])
        for title, value in statistics(features).items():
            real = REAL[name][title]
            lines.append(f"  {title:42}{real:10.3f}{value:10.3f}{value / real:8.2f}")
    return "\n".join(lines)
