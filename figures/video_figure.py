"""The picture of one video: labels, similarities before and after pruning, attention, and frames and sound if given.

Letters: T segments of one second, h x w the attention map.
"""
import sys
import textwrap
from itertools import groupby
from pathlib import Path

import numpy as np
from drawing import DARK, GREY, LIGHT_BLUE, LIGHT_ORANGE, ORANGE, SMALL, pyplot, save_figure
from matplotlib.patches import Rectangle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.video import FRAMES_OF_A_SEGMENT, VideoError, read_clip  # noqa: E402
from utils import UserError  # noqa: E402

COLOURS = "cividis"      # of matrices and maps
WIDTH = 6.2              # of the T seconds, in inches
LETTERS = 105            # of SMALL text in that width


def draw_video(path, output, names, title, true=None, true_cells=None, frames=None, loudness=None):
    """The picture of the first video in a network's output; leaves out what is None, or was not computed.

    true: list of T true labels; true_cells: bool [T, h, w], the cells in which the source is seen; frames and loudness:
    see `read_recording`.
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
        grey = frames.mean(axis=-1)
        draw_strip(axes["attention"], "", grey, cmap="gray", vmin=-100, vmax=255)      # pale, so that the map shows
    image = draw_strip(axes["attention"], "attention", attention, cmap=COLOURS, vmin=0, vmax=attention.max(),
                       alpha=1 if frames is None else 0.6)
    figure.colorbar(image, cax=axes["weight"], label="weight")
    if true_cells is not None:
        _, rows, columns = true_cells.shape
        for t, y, x in np.argwhere(true_cells):
            corner = t + 0.03 + 0.94 * x / columns, 1 - (y + 1) / rows
            axes["attention"].add_patch(Rectangle(corner, 0.94 / columns, 1 / rows, fill=False, edgecolor=ORANGE))
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
        image = axes.imshow(matrix[0].numpy(), cmap=COLOURS, vmin=0, vmax=highest, aspect="auto",
                            extent=(0, segments, segments, 0))
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


def read_recording(path, segments):
    """(frames, loudness) of a video file; the last frame and silence fill what is missing at the end, with a note.

    frames: the middle one of each segment, uint8 [T, 224, 224, 3]; loudness: 120 a second, in 0..1, None without sound.
    """
    try:
        clip = read_clip(path, segments, pad=True)
    except VideoError as error:
        raise UserError(f"--video_file {path}: {error}") from error
    for note in clip.notes:
        print(f"--video_file {path}: {note}", file=sys.stderr)
    frames = clip.frames[:, FRAMES_OF_A_SEGMENT // 2]
    if clip.sound is None:
        return frames, None
    samples = np.abs(clip.sound / 32768).max(axis=1)
    starts = np.linspace(0, len(samples), 120 * segments, endpoint=False).astype(int)
    return frames, np.maximum.reduceat(samples, starts)
