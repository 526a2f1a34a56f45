"""What all pictures share: colours that the colour-blind tell apart, text sizes, curves, and how a picture is saved."""
import argparse
import os
import sys
import textwrap
from pathlib import Path

import numpy as np

os.environ["MPLBACKEND"] = "Agg"      # a notebook sets another one
try:
    from matplotlib import pyplot
except ModuleNotFoundError:
    print(f"{Path(sys.argv[0]).name}: error: the package matplotlib is missing; pip install matplotlib==3.11.2",
          file=sys.stderr)
    sys.exit(2)

BLUE, ORANGE, GREEN, DARK = "#0072b2", "#d55e00", "#009e73", "0.3"      # the first three are Okabe and Ito's
LIGHT_BLUE, LIGHT_ORANGE, GREY = "#a6d0e8", "#f2b690", "0.87"           # backgrounds of text
SMALL = 7      # points: the smallest text that can be read in print

pyplot.rcParams.update({
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "figure.titlesize": 8, "legend.fontsize": SMALL,
    "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "axes.linewidth": 0.6, "lines.linewidth": 1.2,
    "text.parse_math": False})      # names may hold a $

STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"), (DARK, "-."))      # of curves side by side
PANELS = {"loss": "training loss", "val": "validation accuracy, %", "test": "test accuracy, %"}


def common_curve(curves, logarithmic=False):
    """(epochs that all have, mean, mean -/+ one sample standard deviation) of several {epoch: value}."""
    epochs = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[epoch] for epoch in epochs] for curve in curves], float)
    values = np.log(values) if logarithmic else values
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=1) if len(curves) > 1 else 0
    band = mean, mean - std, mean + std
    return epochs, *(np.exp(band) if logarithmic else band)


def draw_logs(names, logs, panels, path):
    """Curves of the named trainings over their seeds; logs: the `Log` of each seed of each; panels: which of PANELS."""
    figure, row = pyplot.subplots(1, len(panels), figsize=(3 * len(panels), 2.8), layout="constrained")
    for axes, value in zip(row, panels):
        logarithmic = value == "loss"
        for name, seed_logs, (colour, style) in zip(names, logs, STYLES):
            epochs, mean, low, high = common_curve([getattr(log, value) for log in seed_logs], logarithmic)
            axes.plot(epochs, mean, style, color=colour, label=name)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
            for log in seed_logs:
                if value == "val" and log.kept is not None:
                    axes.plot(log.kept, log.val[log.kept], "o", color=colour, markersize=4, clip_on=False)
        axes.set(xlabel="epoch", ylabel=PANELS[value])
        axes.xaxis.get_major_locator().set_params(integer=True)
        if logarithmic:
            axes.set_yscale("log", subs=(2, 5))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
    row[-1].sharey(row[-2])      # both accuracies
    seeds = f"mean ± standard deviation of {len(logs[0])} seeds; " if len(logs[0]) > 1 else ""
    figure.suptitle(f"{seeds}dots: checkpoints kept")
    if len(names) > 1:
        figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    save_figure(figure, path)


def draw_sweep(path, label, paper, curves, data):
    """Test accuracy over the option that a table sweeps; paper: the paper's value; curves: {name: [(value, estimate)]}."""
    figure, axes = pyplot.subplots(figsize=(4.5, 3), layout="constrained")
    for (name, points), colour, style in zip(curves.items(), (BLUE, ORANGE), ("o-", "s--")):
        values, estimates = zip(*points)
        mean, low, high = ([found[key] for found in estimates] for key in ("mean", "low", "high"))
        axes.plot(values, mean, style, color=colour, markersize=4, clip_on=False, label=name)
        axes.fill_between(values, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.axvline(paper, color=DARK, linestyle=":", label=f"the paper's {paper}")
    if paper > 1:
        axes.set_xscale("symlog")
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=label, ylabel="test accuracy, % (band: 95 % interval)", title=textwrap.fill(data, 60))
    axes.legend()
    save_figure(figure, path)


def picture_path(text):
    """An argparse type: a path whose suffix is the format."""
    if Path(text).suffix not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png, .pdf or .svg")
    return Path(text)


def save_figure(figure, path):
    """Writes the picture in the format of its suffix, and prints its path."""
    figure.savefig(path, dpi=200)
    pyplot.close(figure)
    print(path)
