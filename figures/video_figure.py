"""The picture of one video: labels, similarities before and after pruning, attention, and frames and sound where given.

Letters: T segments of one second, h x w the attention map. All lengths are in inches.
"""
import sys
import textwrap
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from drawing import GREY, LIGHT_BLUE, LIGHT_ORANGE, ORANGE, SMALL, pyplot
from matplotlib.patches import Rectangle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.files import UserError, one_line  # noqa: E402

COLOURS = "cividis"                       # of matrices and maps
LEFT, WIDTH, RIGHT = 0.75, 6.2, 0.65      # names of the rows, the T seconds, colour bars
MATRIX_GAP = 0.5
LABEL_HEIGHT, SOUND_HEIGHT = 0.42, 0.45
LETTERS = 17                              # of SMALL text in an inch


class Recording(NamedTuple):
    """What is seen and heard in a video."""
    frames: list                  # T pictures, uint8 [height, width, 3]
    sound: np.ndarray = None      # [parts, 2] lowest and highest sample in equal parts of the T seconds, in -1..1


# --------------------------------------------------------------------------------------------- drawing

def draw_video(output, names, title, true=None, true_cells=None, recording=None):
    """The figure of the first video in the output of a network.

    true: [T] true labels; true_cells: bool [T, h, w], where the source is seen; recording: a `Recording`. What is None
    is left out, and so are the matrices of a network without propagation.
    """
    probability, predicted = (values[0].tolist() for values in output.logits.softmax(-1).max(-1))
    attention = output.attention[0].float().numpy()
    segments, height, width = attention.shape
    if recording is not None:
        height, width = recording.frames[0].shape[:2]
    strip = WIDTH / segments * height / width
    labels = {"predicted": predicted} if true is None else {"true": true.tolist(), "predicted": predicted}
    matrices = matrices_of(output)

    # Height of each row, and what is needed above and below it for its title and its seconds.
    rows = {"labels": (LABEL_HEIGHT * len(labels), 0.22, 0.2)}
    if matrices:
        rows["matrices"] = ((WIDTH - 3 * MATRIX_GAP) / 4, 0.22, 0.38)
    if recording is not None:
        rows["frames"] = (strip, 0.06, 0.2)
    rows["attention"] = (strip, 0.06, 0.2)
    if recording is not None and recording.sound is not None:
        rows["sound"] = (SOUND_HEIGHT, 0.06, 0.2)
    figure, axes = figure_of_rows(rows)
    figure.text(LEFT / figure.get_figwidth(), 1 - 0.06 / figure.get_figheight(), title, va="top", fontsize=8)

    draw_labels(axes["labels"], names, labels, probability)
    if matrices:
        draw_matrices(axes["matrices"], matrices)
    if recording is not None:
        draw_strip(axes["frames"], "frames", recording.frames)
        grey = [frame.mean(axis=-1) for frame in recording.frames]
        draw_strip(axes["attention"], "", grey, cmap="gray", vmin=-100, vmax=255)      # pale, so that the map shows
    image = draw_strip(axes["attention"], "attention", attention, cmap=COLOURS, vmin=0, vmax=attention.max(),
                       alpha=1 if recording is None else 0.6)
    add_bar(axes["attention"], image, "weight")
    if true_cells is not None:
        frame_cells(axes["attention"], true_cells)
    if "sound" in axes:
        draw_sound(axes["sound"], recording.sound, segments)
    return figure


def figure_of_rows(rows):
    """A figure, and axes of width WIDTH for each of {name: (height, space above, space below)}, from top to bottom."""
    size = np.array([LEFT + WIDTH + RIGHT, sum(map(sum, rows.values()))])
    figure = pyplot.figure(figsize=size)
    axes, bottom = {}, size[1]
    for name, (height, above, below) in rows.items():
        bottom -= above + height
        axes[name] = figure.add_axes((LEFT / size[0], bottom / size[1], WIDTH / size[0], height / size[1]))
        bottom -= below
    return figure, axes


def show_seconds(axis, segments, unit=" s"):
    """Names each second, of many only some."""
    seconds = range(0, segments, -(-segments // 12))
    axis.set_ticks([second + 0.5 for second in seconds], [f"{second}{unit}" for second in seconds])
    axis.set_tick_params(length=2, pad=2)


def matrices_of(output):
    """(title, name of the rows, name of the columns, [T, T]) of the similarities; none without propagation."""
    found = output.psp
    if found is None:
        return []
    return [(rf"${symbol}^{{{rows[0]}{columns[0]}}}$, {when} pruning", rows, columns, matrix[0].float().numpy())
            for rows, columns, pair in (("visual", "audio", (found.beta_va, found.gamma_va)),
                                        ("audio", "visual", (found.beta_av, found.gamma_av)))
            for symbol, when, matrix in zip((r"\beta", r"\gamma"), ("before", "after"), pair)]


def draw_labels(axes, names, labels, probability):
    """One row for each of {name: [T] labels}, with a box for each run; the predicted one with its probabilities."""
    background, predicted, true = len(names) - 1, labels["predicted"], labels.get("true", labels["predicted"])
    for y, (row, of_row) in enumerate(reversed(labels.items())):
        boxes = list(zip(of_row, [row == "true" or a == b for a, b in zip(predicted, true)]))
        start = 0
        for (label, right), run in groupby(boxes):
            end = start + len(list(run))
            colour = GREY if label == background else LIGHT_BLUE
            axes.add_patch(Rectangle((start, y), end - start, 1, facecolor=colour if right else LIGHT_ORANGE,
                                     edgecolor="white", linewidth=1.5, hatch="" if right else "//"))
            text = textwrap.fill(names[label].split(",")[0], max(4, int(LETTERS * WIDTH * (end - start) / len(of_row))))
            axes.text((start + end) / 2, y + (0.5 if row == "true" else 0.62), text, ha="center", va="center",
                      fontsize=SMALL, linespacing=0.95)
            start = end
    for t, value in enumerate(probability):
        axes.text(t + 0.5, 0.07, f"{100 * value:.0f} %", ha="center", va="bottom", fontsize=SMALL)
    wrong = "\nhatched:\nwrong" if predicted != true else ""
    axes.set(xlim=(0, len(predicted)), ylim=(0, len(labels)))
    axes.set_yticks([y + 0.5 for y in range(len(labels))], [f"predicted{wrong}", "true"][:len(labels)])
    axes.tick_params(axis="y", length=0)
    show_seconds(axes.xaxis, len(predicted))
    axes.spines[:].set_visible(False)


def draw_matrices(row, matrices):
    """The matrices side by side on one scale, in place of the axes `row`."""
    box, (whole, high) = row.get_position(), row.figure.get_size_inches()
    side = (WIDTH - 3 * MATRIX_GAP) / 4
    highest = max(matrix.max() for *_, matrix in matrices)
    for i, (title, rows, columns, matrix) in enumerate(matrices):
        left = LEFT + i * (side + MATRIX_GAP)
        axes = row.figure.add_axes((left / whole, box.y0, side / whole, side / high))
        segments = len(matrix)
        image = axes.imshow(matrix, cmap=COLOURS, vmin=0, vmax=highest, extent=(0, segments, segments, 0),
                            aspect="auto")
        axes.set_title(title, pad=3)
        axes.set_xlabel(f"{columns}, s", labelpad=1)
        axes.set_ylabel(f"{rows}, s", labelpad=2)
        show_seconds(axes.xaxis, segments, unit="")
        show_seconds(axes.yaxis, segments, unit="")
    add_bar(row, image, "similarity")
    row.axis("off")


def draw_strip(axes, name, pictures, **options):
    """T pictures in a row, each in its second; returns the last image."""
    for t, picture in enumerate(pictures):
        image = axes.imshow(picture, extent=(t + 0.03, t + 0.97, 0, 1), aspect="auto", **options)
    axes.set(xlim=(0, len(pictures)), ylim=(0, 1))
    axes.set_yticks([0.5], [name])
    axes.tick_params(axis="y", length=0)
    show_seconds(axes.xaxis, len(pictures))
    axes.spines[:].set_visible(False)
    return image


def frame_cells(axes, cells):
    """Frames the true ones of cells [T, h, w] on a strip of maps."""
    height, width = 1 / cells.shape[1], 0.94 / cells.shape[2]
    for t, y, x in np.argwhere(cells):
        axes.add_patch(Rectangle((t + 0.03 + x * width, 1 - (y + 1) * height), width, height, fill=False,
                                 edgecolor=ORANGE, linewidth=1))


def draw_sound(axes, sound, segments):
    """The sound's waveform, on a scale of its own loudest sample."""
    seconds = np.linspace(0, segments, len(sound))
    axes.fill_between(seconds, *sound.T, color="0.25", linewidth=0.3)
    loudest = max(np.abs(sound).max(), 1e-3)
    axes.set(xlim=(0, segments), ylim=(-1.05 * loudest, 1.05 * loudest))
    axes.set_yticks([0], ["sound"])
    axes.tick_params(axis="y", length=0)
    axes.set_xticks(range(segments + 1), minor=True)
    axes.tick_params(axis="x", which="minor", length=0)
    axes.grid(axis="x", which="minor", linewidth=0.3)
    show_seconds(axes.xaxis, segments)
    axes.spines[["top", "right", "left"]].set_visible(False)


def add_bar(axes, image, label):
    """A colour bar right of the axes."""
    box, (whole, _) = axes.get_position(), axes.figure.get_size_inches()
    place = axes.figure.add_axes(((LEFT + WIDTH + 0.08) / whole, box.y0, 0.09 / whole, box.height))
    bar = axes.figure.colorbar(image, cax=place)
    bar.locator = pyplot.MaxNLocator(4 if box.height * axes.figure.get_figheight() > 1 else 2)
    bar.set_label(label, fontsize=SMALL, labelpad=2)
    bar.ax.tick_params(length=2, pad=2)
    bar.outline.set_linewidth(0.4)


# ------------------------------------------------------------------------------------- frames and sound

def recording_of_folder(folder, segments):
    """The silent `Recording` of a folder that holds one picture for each segment, in the order of their names."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if len(paths) != segments:
        raise UserError(f"--frames {folder}: holds {len(paths)} PNG or JPEG files; one for each of the {segments} "
                        "segments is needed")
    frames = []
    for path in paths:
        try:
            frames.append(as_bytes(pyplot.imread(path)))
        except Exception as error:      # of a broken picture, its reader raises nearly all of them
            raise UserError(f"--frames: {path} cannot be read ({error})") from error
    return Recording(frames)


def as_bytes(picture):
    """A grey, RGB or RGBA picture, uint8 or float in 0..1, as uint8 [height, width, 3]."""
    if picture.dtype != np.uint8:
        picture = (255 * picture).astype(np.uint8)
    return np.repeat(picture[..., None], 3, axis=-1) if picture.ndim == 2 else picture[..., :3]


def recording_of_file(path, segments):
    """The `Recording` of a video file: the frame in the middle of each segment, and the sound.

    Frames are squares, as the network sees them. What is missing at the end is filled with the last frame and silence;
    that and whatever else is odd about the file is printed.
    """
    try:
        from data.video import FRAMES_OF_A_SEGMENT, VideoError, read_clip
    except ImportError as error:
        raise UserError(f"--video_file: {one_line(error)}; "
                        "pip install av==18.1.0 opencv-python-headless==4.14.0.94") from error
    try:
        clip = read_clip(path, segments, pad=True)
    except VideoError as error:
        raise UserError(f"--video_file {path}: {error}") from error
    for note in clip.notes:
        print(f"--video_file {path}: {note}", file=sys.stderr)
    return Recording(list(clip.frames[:, FRAMES_OF_A_SEGMENT // 2]),
                     None if clip.sound is None else waveform(clip.sound, segments))


def waveform(sound, segments, parts_of_second=120):
    """int16 [samples, channels] -> [parts, 2]: lowest and highest sample (-1..1) of equal parts, channels averaged."""
    samples = (sound / 32768).mean(axis=1)
    edges = np.linspace(0, len(samples), segments * parts_of_second, endpoint=False).astype(int)
    return np.stack([np.minimum.reduceat(samples, edges), np.maximum.reduceat(samples, edges)], axis=1)
