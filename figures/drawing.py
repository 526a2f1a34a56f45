"""Draws all pictures, in colours that the colour-blind tell apart."""
import os
import sys
import textwrap
from itertools import groupby
from pathlib import Path

import numpy as np

from utils import UserError, one_line

os.environ["MPLBACKEND"] = "Agg"      # a notebook sets another one
try:
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle
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
    "image.cmap": "cividis", "text.parse_math": False})      # names may hold a $

STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"), (DARK, "-."))      # of curves side by side
WIDTH = 6.2        # of the seconds of a video, in inches
LETTERS = 105      # of SMALL text in that width
PANELS = {"loss": "training loss", "val": "validation accuracy, %", "test": "test accuracy, %"}


def common_curve(curves, logarithmic=False):
    """(epochs that all have, mean, mean -/+ one sample standard deviation) of several {epoch: value}."""
    epochs = sorted(set.intersection(*map(set, curves)))
    scale, unscale = (np.log, np.exp) if logarithmic else (np.array, np.array)
    values = scale([[curve[epoch] for epoch in epochs] for curve in curves])
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=1) if len(curves) > 1 else 0
    return epochs, *unscale([mean, mean - std, mean + std])


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
    """Test accuracy over an option, of which the paper has one value; curves: {name: [(value, mean, low, high)]}."""
    figure, axes = pyplot.subplots(figsize=(4.5, 3), layout="constrained")
    for (name, points), colour, style in zip(curves.items(), (BLUE, ORANGE), ("o-", "s--")):
        values, mean, low, high = zip(*points)
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


def draw_video(path, output, names, title, true=None, true_cells=None, frames=None, loudness=None):
    """The picture of the first video in a network's output; leaves out what is None, or was not computed.

    true: [T] labels; true_cells: [T, h, w], whether the source is seen there; frames, loudness: see `read_recording`.
    """
    probability, predicted = (values[0].tolist() for values in output.logits.softmax(-1).max(-1))
    attention = output.attention[0].numpy()
    segments, height, width = attention.shape
    labels = {"predicted": predicted} if true is None else {"predicted": predicted, "true": true}
    strip = WIDTH / segments * (height / width if frames is None else 1)      # frames are square
    heights = {"labels": 0.4 * len(labels), "matrices": 1.4 * (output.psp is not None),      # inches
               "frames": strip * (frames is not None), "attention": strip, "sound": 0.45 * (loudness is not None)}
    heights = {row: height for row, height in heights.items() if height > 0}
    # Four columns for the matrices, which all else spans, and a narrow one for the colour bars.
    mosaic = [[*range(4), "similarity"] if row == "matrices" else [row] * 4 + ["weight" if row == "attention" else "."]
              for row in heights]
    figure, axes = pyplot.subplot_mosaic(
        mosaic, height_ratios=list(heights.values()), width_ratios=[1, 1, 1, 1, 0.06], layout="constrained",
        figsize=(WIDTH + 1.4, sum(heights.values()) + 0.35 * len(heights) + 0.4))
    figure.suptitle(title)

    draw_labels(axes["labels"], names, labels, probability)
    if output.psp is not None:
        image = draw_matrices([axes[i] for i in range(4)], output.psp)
        figure.colorbar(image, cax=axes["similarity"], label="similarity")
    if frames is not None:
        draw_strip(axes["frames"], "frames", frames)
        draw_strip(axes["attention"], "", frames.mean(axis=-1), cmap="gray", vmin=-100, vmax=255)      # pale
    image = draw_strip(axes["attention"], "attention", attention, vmin=0, vmax=attention.max(),
                       alpha=1 if frames is None else 0.6)
    figure.colorbar(image, cax=axes["weight"], label="weight")
    if true_cells is not None:
        for t, y, x in np.argwhere(true_cells):
            corner = t + 0.03 + 0.94 * x / width, 1 - (y + 1) / height
            axes["attention"].add_patch(Rectangle(corner, 0.94 / width, 1 / height, fill=False, edgecolor=ORANGE))
    if loudness is not None:
        times = np.linspace(0, segments, len(loudness))
        axes["sound"].fill_between(times, -loudness, loudness, color=DARK)
        axes["sound"].set_yticks([0], ["sound"])
    for row in heights.keys() - {"matrices"}:
        axes[row].set_xlim(0, segments)
        axes[row].tick_params(axis="y", length=0)
        axes[row].spines[:].set_visible(False)
        show_seconds(axes[row].xaxis, segments, " s")
    save_figure(figure, path)


def show_seconds(axis, segments, unit):
    """Names each second, of many only some."""
    seconds = range(0, segments, -(-segments // 12))
    axis.set_ticks([second + 0.5 for second in seconds], [f"{second}{unit}" for second in seconds])


def draw_labels(axes, names, labels, probability):
    """One row for each of {name: [T] labels}, with a box for each run; the predicted one with its probabilities."""
    segments, true = len(probability), labels.get("true", labels["predicted"])
    for y, row_labels in enumerate(labels.values()):
        start = 0
        for (label, is_right), run in groupby((a, a == b) for a, b in zip(row_labels, true)):
            length = len(list(run))
            colour = GREY if label == len(names) - 1 else LIGHT_BLUE
            axes.add_patch(Rectangle((start, y), length, 1, facecolor=colour if is_right else LIGHT_ORANGE,
                                     edgecolor="white", linewidth=1.5, hatch="" if is_right else "//"))
            text = textwrap.fill(names[label].split(",")[0], max(4, LETTERS * length // segments))
            axes.text(start + length / 2, y + 0.6, text, ha="center", va="center", fontsize=SMALL, linespacing=0.95)
            start += length
    for t, value in enumerate(probability):
        axes.text(t + 0.5, 0.07, f"{100 * value:.0f} %", ha="center", va="bottom", fontsize=SMALL)
    axes.set_ylim(0, len(labels))
    predicted = "predicted" if labels["predicted"] == true else "predicted\nhatched:\nwrong"
    axes.set_yticks([y + 0.5 for y in range(len(labels))], [predicted, "true"][:len(labels)])


def draw_matrices(row, psp):
    """The similarities of a `Propagation` on four axes, on one scale; returns the last image."""
    panels = [(r"$\beta^{va}$, before pruning", psp.beta_va), (r"$\gamma^{va}$, after pruning", psp.gamma_va),
              (r"$\beta^{av}$, before pruning", psp.beta_av), (r"$\gamma^{av}$, after pruning", psp.gamma_av)]
    highest = max(matrix[0].max().item() for _, matrix in panels)
    for axes, (title, matrix) in zip(row, panels):
        segments = matrix.shape[-1]
        image = axes.imshow(matrix[0].numpy(), vmin=0, vmax=highest, aspect="auto", extent=(0, segments, segments, 0))
        axes.set_title(title, parse_math=True)
        ylabel, xlabel = ("visual, s", "audio, s") if "va" in title else ("audio, s", "visual, s")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        show_seconds(axes.xaxis, segments, "")
        show_seconds(axes.yaxis, segments, "")
    return image


def draw_strip(axes, name, pictures, **options):
    """T pictures in a row, each in its second; returns the last image."""
    for t, picture in enumerate(pictures):
        image = axes.imshow(picture, extent=(t + 0.03, t + 0.97, 0, 1), aspect="auto", **options)
    axes.set_yticks([0.5], [name])
    return image


def save_figure(figure, path):
    """Writes the picture in the format of its suffix, and prints its path; UserError for an unknown format."""
    try:
        figure.savefig(path, dpi=200)
    except ValueError as error:
        raise UserError(f"--output {path}: {one_line(error)}") from error
    pyplot.close(figure)
    print(path)
