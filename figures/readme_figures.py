"""Draws the two figures of the README: the task (figure1_task.png) and the network (figure2_framework.png).

    python figures/readme_figures.py
"""
from pathlib import Path

import numpy as np
from drawing import pyplot as plt
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

FOLDER = Path(__file__).parent
AUDIO, VISUAL, EVENT, GREY = "#D55E00", "#0072B2", "#009E73", "#B8B8B8"   # Okabe-Ito: safe for colour-blind readers


def draw_task(path):
    """Ten segments of a video with what is seen, what is heard, and the label of each."""
    seen = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], bool)
    heard = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0], bool)
    figure, axes = plt.subplots(figsize=(11, 3.7))
    generator = np.random.default_rng(4)
    for t in range(10):
        axes.add_patch(Rectangle((t + 0.05, 2.15), 0.9, 0.9, facecolor="#F3F3F3", edgecolor=VISUAL, linewidth=1.2))
        draw_scene(axes, t + 0.05, 2.15, seen[t])
        x = np.linspace(0, 0.9, 160)
        loud = 0.36 * np.exp(-3 * (x % 0.45)) if heard[t] else 0.04
        axes.fill_between(t + 0.05 + x, 1.6 - loud * generator.random(160), 1.6 + loud * generator.random(160),
                          color=AUDIO, linewidth=0)
        event = seen[t] and heard[t]
        axes.add_patch(Rectangle((t + 0.05, 0.35), 0.9, 0.5, facecolor=EVENT if event else GREY, edgecolor="none"))
        axes.text(t + 0.5, 0.6, "Church bell" if event else "background", ha="center", va="center", fontsize=7.6,
                  color="white" if event else "black")
        axes.text(t + 0.5, 0.12, f"{t}-{t + 1} s", ha="center", va="center", fontsize=8, color="#555555")
    for y, text, color in ((2.6, "seen", VISUAL), (1.6, "heard", AUDIO), (0.6, "label", "black")):
        axes.text(-0.1, y, text, ha="right", va="center", fontsize=12, color=color, weight="bold")
    for t, text in ((2, "seen, silent"), (8, "heard, not seen")):
        axes.text(t + 0.5, 1.04, text, ha="center", va="center", fontsize=8.5, style="italic")
    axes.set(xlim=(-0.8, 10.1), ylim=(0, 3.15))
    axes.axis("off")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def draw_scene(axes, x, y, with_bell):
    """A church tower in a frame of width 0.9; its bell hangs there or not."""
    tower = [(0.25, 0), (0.25, 0.6), (0.45, 0.84), (0.65, 0.6), (0.65, 0)]
    axes.add_patch(Polygon([(x + a, y + b) for a, b in tower], facecolor="#DDDDDD", edgecolor="#777777", linewidth=0.8))
    axes.add_patch(Rectangle((x + 0.33, y + 0.25), 0.24, 0.33, facecolor="#555555", edgecolor="none"))
    if with_bell:
        bell = [(0.36, 0.32), (0.40, 0.38), (0.41, 0.50), (0.45, 0.55), (0.49, 0.50), (0.50, 0.38), (0.54, 0.32)]
        axes.add_patch(Polygon([(x + a, y + b) for a, b in bell], facecolor="#F0E442", edgecolor="black",
                               linewidth=0.6))
        axes.add_patch(Circle((x + 0.45, y + 0.30), 0.025, facecolor="black"))


def draw_framework(path):
    """The network from features to labels; the dashed parts stand in one of the two settings only."""
    figure, axes = plt.subplots(figsize=(13, 5.2))

    def box(x, y, width, text, color, dashed=False, height=0.9):
        axes.add_patch(FancyBboxPatch((x, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.08",
                                      facecolor=color + "22", edgecolor=color, linewidth=1.6,
                                      linestyle="--" if dashed else "-"))
        axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=8.6)

    def arrow(start, end, color="black"):
        axes.annotate("", end, start,
                      arrowprops=dict(arrowstyle="-|>", color=color, linewidth=1.3, shrinkA=0, shrinkB=0))

    top, bottom = 3.4, 1.0
    box(0.0, top, 1.7, "visual features\n$T\\times 7\\times 7\\times 512$", VISUAL)
    box(0.0, bottom, 1.7, "audio features\n$T\\times 128$", AUDIO)
    box(2.2, bottom, 1.4, "2 linear maps\n(fully)", AUDIO, dashed=True)
    box(2.5, top, 1.6, "AVGA\nattention over\nthe regions", EVENT, height=1.2)
    box(4.6, top, 1.4, "linear maps", VISUAL)
    box(6.5, top, 1.3, "Bi-LSTM", VISUAL)
    box(6.5, bottom, 1.3, "Bi-LSTM", AUDIO)
    axes.add_patch(FancyBboxPatch((8.15, 0.25), 3.6, 3.9, boxstyle="round,pad=0.02,rounding_size=0.1",
                                  facecolor="#FAFAFA", edgecolor=EVENT, linewidth=1.8))
    axes.text(9.95, 3.98, "positive sample propagation (PSP)", ha="center", va="center", fontsize=9.2, weight="bold")
    draw_matrices(axes)
    box(8.35, 0.95, 3.2, "$v' = v + \\gamma^{va} a_2$,   $a' = a + \\gamma^{av} v_1$\n"
        "($a_2$, $v_1$: one layer each of $a$ and $v$)\n(fully: one more layer)\nLayerNorm", EVENT, height=1.15)
    box(12.2, 3.4, 1.5, "\u00d7 segment\nweights (weakly)", "#555555", dashed=True)
    box(12.2, 2.2, 1.5, "mean of $v'$, $a'$\n\u2192 classifier", "#555555")
    box(12.2, bottom, 1.5, "cosine of $v'$, $a'$\n\u2192 $L_{avps}$ (fully)", "#555555", dashed=True)
    arrow((1.7, top), (2.5, top), VISUAL)
    arrow((1.7, bottom), (2.2, bottom), AUDIO)
    arrow((2.95, bottom + 0.45), (3.2, top - 0.6), AUDIO)
    arrow((3.6, bottom), (6.5, bottom), AUDIO)
    arrow((4.1, top), (4.6, top), VISUAL)
    arrow((6.0, top), (6.5, top), VISUAL)
    arrow((7.8, top), (8.15, top), VISUAL)
    arrow((7.8, bottom), (8.15, bottom), AUDIO)
    arrow((11.75, 2.2), (12.2, 2.2))
    arrow((12.95, 2.65), (12.95, top - 0.45))
    arrow((11.75, bottom), (12.2, bottom))
    arrow((12.95, top + 0.45), (12.95, 4.15))
    axes.text(12.95, 4.22, "$T \\times 29$ logits", ha="center", fontsize=9.5)
    axes.text(0.0, 0.2, "dashed: in one of the two settings only", ha="left", va="center", fontsize=8.6, style="italic")
    axes.text(7.95, top + 0.17, "$v$", ha="center", fontsize=11)
    axes.text(7.95, bottom + 0.17, "$a$", ha="center", fontsize=11)
    axes.set(xlim=(-0.1, 13.9), ylim=(0.1, 4.5))
    axes.axis("off")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def draw_matrices(axes):
    """All-pair similarities and what is left of them after pruning."""
    generator = np.random.default_rng(0)
    event = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 0])
    similarity = generator.random((10, 10)) * 0.35 + np.outer(event, event) * (0.4 + 0.25 * generator.random((10, 10)))
    pruned = np.where(similarity > 0.36, similarity, 0)
    for x, matrix, title in ((8.4, similarity, "all pairs $\\beta^{va}$"), (10.3, pruned, "pruned: $\\gamma^{va}$")):
        axes.imshow(matrix, extent=(x, x + 1.3, 1.95, 3.25), cmap="Greens", vmin=0, vmax=1, aspect="auto", zorder=3)
        axes.add_patch(Rectangle((x, 1.95), 1.3, 1.3, fill=False, edgecolor="#555555", linewidth=0.8, zorder=4))
        axes.text(x + 0.65, 3.48, title, ha="center", va="center", fontsize=9.5)
        axes.text(x + 0.65, 1.78, "audio segments", ha="center", va="center", fontsize=7.5, color=AUDIO)
        axes.text(x - 0.09, 2.6, "visual segments", ha="center", va="center", fontsize=7.5, color=VISUAL, rotation=90)
    axes.annotate("", (10.12, 2.6), (9.75, 2.6), arrowprops=dict(arrowstyle="-|>", color="black", linewidth=1.3))
    axes.text(9.93, 2.75, "$>\\tau$", ha="center", fontsize=9.5)


if __name__ == "__main__":
    draw_task(FOLDER / "figure1_task.png")
    draw_framework(FOLDER / "figure2_framework.png")
