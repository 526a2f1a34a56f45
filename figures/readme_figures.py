"""Draws the two figures of the README: the task (figure1_task.png) and the networks (figure2_framework.png).

    python figures/readme_figures.py
"""
import sys
from pathlib import Path

import numpy as np
from drawing import BLUE, DARK, GREEN, GREY, ORANGE, pyplot, save
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import OptionParser, one_line_errors  # noqa: E402

AUDIO, VISUAL, BOTH = ORANGE, BLUE, GREEN
CENTRED = dict(ha="center", va="center")
BELL = [(0.2, 0.2), (0.3, 0.3), (0.35, 0.65), (0.45, 0.78), (0.55, 0.78), (0.65, 0.65), (0.7, 0.3), (0.8, 0.2)]


def draw_task():
    """Ten segments of a video with what is seen, what is heard, and the label of each."""
    figure, rows = pyplot.subplots(2, 10, figsize=(7.75, 1.9), layout="constrained", sharey="row")
    generator = np.random.default_rng(4)
    times = np.linspace(0, 1, 160)
    for t, (frame, wave) in enumerate(rows.T):
        seen, heard = 2 <= t <= 7, 3 <= t <= 8
        frame.set(facecolor="0.95", xlim=(0, 1), ylim=(0, 1), title=f"{t}-{t + 1} s")
        frame.add_patch(Polygon(BELL, facecolor="#e69f00", visible=seen))
        loud = np.exp(-3 * (times % 0.5)) if heard else 0.05
        wave.fill_between(times, -loud * generator.random(160), loud * generator.random(160), color=AUDIO, linewidth=0)
        wave.set_title({2: "silent", 8: "unseen"}.get(t, ""), style="italic")
        wave.spines[:].set_visible(False)
        wave.set_xlabel("Church bell" if seen and heard else "background", fontsize=7,
                        backgroundcolor="#8fd5c0" if seen and heard else GREY)
        for axes in (frame, wave):
            axes.set(xticks=[], yticks=[])
    for axes, text, colour in zip(rows[:, 0], ("seen", "heard"), (VISUAL, AUDIO)):
        axes.set_ylabel(text, fontsize=10, color=colour, weight="bold")
    return figure


def draw_framework():
    """The networks of both settings, from features to labels and losses."""
    figure = pyplot.figure(figsize=(13.05, 5.3))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 13.05), ylim=(0, 5.3))      # in inches
    axes.axis("off")
    top, middle, bottom, low = 3.6, 2.45, 1.3, 1.05      # heights of the rows of boxes
    draw_box(axes, 8.7, 2.65, 4.5, "", BOTH, height=4.9)
    draw_matrices(axes, left=6.85, bottom=2.3)
    draw_row(axes, top, (0.8, 1.4, "visual features\n$T\\times 7\\times 7\\times 512$", VISUAL),
             (2.45, 1.3, "AVGA: attention\nover the regions", BOTH),
             (4.15, 1.5, "fully: 2 linear maps\nweakly: 1 linear map", VISUAL),
             (5.6, 0.8, "Bi-LSTM", VISUAL), (6.45, 0))      # up to the left side of PSP
    draw_row(axes, bottom, (0.8, 1.4, "audio features\n$T\\times 128$", AUDIO),
             (2.45, 1.3, "2 linear maps\n(fully)", AUDIO), (5.6, 0.8, "Bi-LSTM", AUDIO), (6.45, 0))
    draw_row(axes, low, (7.5, 1.8, "$v' = v + \\gamma^{va} a_2$\n$a' = a + \\gamma^{av} v_1$", BOTH),
             (9.25, 1.1, "output layer\n(fully)", BOTH), (10.4, 0.8, "Layer-\nNorm", BOTH),
             (12.1, 1.6, "cosine of $v'$, $a'$:\n$L_{avps}$ (fully)", DARK))
    draw_box(axes, 12.1, middle, 1.6, "mean of $v'$, $a'$;\nclassifier", DARK)
    draw_box(axes, 12.1, top, 1.6, "$\\times$ segment\nweights (weakly)", DARK)
    draw_box(axes, 12.1, 4.9, 1.6, "mean over time:\nvideo label (weakly)", DARK)
    for x, y, end_x, end_y in ((2.45, bottom + 0.35, 2.45, top - 0.35), (10.95, middle, 11.3, middle),
                               (12.1, middle + 0.35, 12.1, top - 0.35), (12.1, top + 0.35, 12.1, 4.15),
                               (12.1, 4.37, 12.1, 4.55)):
        draw_arrow(axes, x, y, end_x, end_y)
    for x, y, size, text in ((8.7, 4.88, 10, "positive sample propagation (PSP)"),
                             (8.7, 4.58, 9, "$v_1, v_2$ of $v$ and $a_1, a_2$ of $a$: one layer each"),
                             (8.7, 0.42, 9, "$\\gamma^{av}$: likewise, from the transposed similarities"),
                             (6.2, top + 0.15, 11, "$v$"), (6.2, bottom + 0.15, 11, "$a$"),
                             (12.1, 4.25, 10, "$T \\times 29$ logits"), (1, 0.35, 9, "dashed: in that setting only")):
        axes.text(x, y, text, fontsize=size, **CENTRED)
    return figure


def draw_row(axes, y, *boxes):
    """Boxes (centre, width, text, colour) at height y, with arrows between them; the last may be (x, 0), an end."""
    for (x, width, *text), (next_x, next_width, *_) in zip(boxes, [*boxes[1:], (None, 0)]):
        if text:
            draw_box(axes, x, y, width, *text)
        if next_x is not None:
            draw_arrow(axes, x + width / 2, y, next_x - next_width / 2, y)


def draw_box(axes, x, y, width, text, colour, height=0.7):
    """A box around (x, y), dashed if its text ends with the name of a setting."""
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, edgecolor=colour, linewidth=1.6,
                                  facecolor=(colour, 0.12 if text else 0.03), boxstyle="round,pad=0,rounding_size=0.08",
                                  linestyle="--" if text.endswith(("(fully)", "(weakly)")) else "-"))
    axes.text(x, y, text, fontsize=9, **CENTRED)


def draw_arrow(axes, x, y, end_x, end_y):
    axes.annotate("", (end_x, end_y), (x, y), arrowprops=dict(arrowstyle="-|>", color="black", shrinkA=0, shrinkB=0))


def draw_matrices(axes, left, bottom):
    """Similarities before and after pruning and after the second normalisation, with made-up numbers."""
    event = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 0])
    generator = np.random.default_rng(0)
    similarity = 0.5 + generator.random((10, 10)) + np.outer(event, event) * (0.7 + generator.random((10, 10)))
    beta = similarity / similarity.sum(axis=1, keepdims=True)
    pruned = beta * (beta > 0.099)
    gamma = pruned / pruned.sum(axis=1, keepdims=True)
    for number, (matrix, style, title) in enumerate((
            (beta, "-", "relu$(v_2 a_1^\\top / \\sqrt{d})$,\nrows divided\nby their sum: $\\beta^{va}$"),
            (pruned, "-", "$\\beta^{va}$ if above $\\tau$,\nelse 0\nweakly: $\\gamma^{va}$"),
            (gamma, "--", "rows divided by\ntheir sum again\nfully: $\\gamma^{va}$"))):
        x = left + 1.5 * number
        axes.imshow(matrix, extent=(x, x + 1, bottom, bottom + 1), cmap="Greens", vmin=0, vmax=0.3, aspect="auto")
        axes.add_patch(Rectangle((x, bottom), 1, 1, fill=False, edgecolor=DARK, linewidth=1.3, linestyle=style))
        axes.text(x + 0.5, bottom + 1.45, title, fontsize=9, linespacing=1.3, **CENTRED)
        axes.text(x + 0.5, bottom - 0.13, "audio segments", fontsize=8, color=AUDIO, **CENTRED)
        axes.text(x - 0.12, bottom + 0.5, "visual segments", fontsize=8, color=VISUAL, rotation=90, **CENTRED)
        if number:
            draw_arrow(axes, x - 0.45, bottom + 0.5, x - 0.22, bottom + 0.5)


def main():
    parser = OptionParser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent, metavar="DIR",
                        help="(default: the folder of this script)")
    args = parser.parse_args()
    pyplot.rcParams["text.parse_math"] = True
    save(draw_task(), args.output_dir / "figure1_task.png")
    save(draw_framework(), args.output_dir / "figure2_framework.png")


if __name__ == "__main__":
    with one_line_errors():
        main()
