"""Pictures of a run: what it learned, where it looks and where it errs. Each command writes one PNG (needs matplotlib).

    python figures/run_figures.py curves model/PSP_fully.jsonl      # of several logs, mean and standard deviation
    python figures/run_figures.py video model/PSP_fully.pt --data_dir data --video 17        # a row of the files
    python figures/run_figures.py categories model/PSP_fully.pt --data_dir data
    python figures/run_figures.py confusion model/PSP_fully.pt --data_dir data
    python figures/run_figures.py boundaries model/PSP_fully.pt --data_dir data
    python figures/run_figures.py attention model/PSP_fully.pt --data_dir data/synthetic      # needs its true_cells.h5
"""
import sys
from pathlib import Path

import numpy as np
import torch
from drawing import BLUE, GREEN, ORANGE, SMALL, draw_band, pyplot, save
from run_logs import read_log
from video_figure import draw_video, recording_of_file, recording_of_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.annotations import names_and_ids  # noqa: E402
from data.files import UserError  # noqa: E402
from data.hdf5 import open_h5, read_rows  # noqa: E402
from dataset import SPLITS, AVEDataset, find_files, has_labels, required_files  # noqa: E402
from model.checkpoint import load, rebuild  # noqa: E402
from model.metrics import events_of  # noqa: E402
from utils import OptionParser, bounded, one_line_errors, predict  # noqa: E402


# --------------------------------------------------------------------------------------------- the run

def draw_curves(args):
    """Training loss of each epoch and the accuracies of the checks; of several logs, mean and standard deviation."""
    logs = [read_log(path) for path in args.files]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7, 2.7), constrained_layout=True)
    for axes, name, label, colour, style in ((left, "loss", "training", BLUE, "-"),
                                             (right, "val", "validation", ORANGE, "o-"),
                                             (right, "test", "test", GREEN, "s--")):
        draw_band(axes, [getattr(log, name) for log in logs], style, colour, label, logarithmic=axes is left)
    kept = [log.kept for log in logs if log.kept is not None]
    for i, epoch in enumerate(kept):
        right.axvline(epoch, color="0.5", linestyle=":", linewidth=0.8,
                      label="" if i else "checkpoint kept" if len(logs) == 1 else "checkpoints kept")
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="segment accuracy, %")
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    if len(logs) > 1:
        left.set_title(f"mean ± standard deviation of {len(logs)} runs (loss: of its logarithm)", loc="left")
    save(figure, args.output)


# ------------------------------------------------------------------------------------------- one video

def draw_row(args, checkpoint):
    """The picture of the video in row --video of the files."""
    splits = SPLITS if has_labels(args.data_dir) else [None]
    files = find_files(args.data_dir, required_files(splits))
    for split in splits:
        dataset = AVEDataset(files, split, features="disk")
        position = (dataset.values["video"] == args.video).nonzero().flatten().tolist()
        if position:
            break
    else:
        raise UserError(f"--video {args.video}: is in none of the splits of {args.data_dir}, whose rows are 0 to "
                        f"{dataset.sizes.num_videos - 1}")
    network = rebuild(checkpoint, args.files[0], dataset.sizes).eval()
    names, ids = names_of(args, dataset, checkpoint)
    recording = None
    if args.video_file is not None:
        recording = recording_of_file(args.video_file, dataset.sizes.num_segments)
    elif args.frames is not None:
        recording = recording_of_folder(args.frames, dataset.sizes.num_segments)
    batch = dataset[position]
    with torch.inference_mode():
        output = network(batch["audio"], batch["visual"])
    cells_path = args.data_dir / "true_cells.h5"      # of synthetic videos
    true_cells = read_true_cells(cells_path, dataset.sizes)[args.video] if cells_path.is_file() else None
    title = (f"video row {args.video}" + (f" ({split})" if split else "") + (f", {ids[args.video]}" if ids else "")
             + ("; orange: cells in which the source is seen" if true_cells is not None else ""))
    save(draw_video(output, names, title, batch["labels"][0] if split else None, true_cells, recording), args.output)


def read_true_cells(path, sizes):
    """[videos, T, h, w] bool of true_cells.h5, which data/synthetic.py writes."""
    if not path.is_file():
        raise UserError(f"{path}: does not exist; only synthetic data says where the source is seen")
    with open_h5(path, "avadataset", "true cells, such as data/synthetic.py writes") as file:
        cells = read_rows(path, file, slice(None)).astype(bool)
    expected = (sizes.num_videos, sizes.num_segments, *sizes.map_size)
    if cells.shape != expected:
        raise UserError(f"{path}: has shape {cells.shape}, but the data asks for {expected}; "
                        "the two are not of the same data")
    return cells


# ------------------------------------------------------------------------------------------- all videos

def draw_categories(args, result, names):
    """Accuracy of each label, with its number of segments."""
    figure, axes = figure_of_bars(names, f"accuracy on {args.split} segments, % (right: their number)")
    for y in range(len(names)):
        accuracy, count = result.label_accuracy(y)
        axes.barh(y, 100 * (accuracy or 0), color=ORANGE if y == len(names) - 1 else BLUE)
        axes.text(101, y, f"{count}", va="center", fontsize=SMALL)
    axes.axvline(100 * result.accuracy, color="0.3", linestyle="--", label=f"all: {100 * result.accuracy:.1f} %")
    figure.legend(loc="outside upper right", ncols=2)
    save(figure, args.output)


def figure_of_bars(names, xlabel):
    """A figure for one bar for each name, of 0 to 100 %, the first one on top."""
    figure, axes = pyplot.subplots(figsize=(5.5, 0.17 * len(names) + 0.8), constrained_layout=True)
    axes.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6), xlabel=xlabel)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def draw_confusion(args, result, names):
    """What the segments of each true label are called, in % of them."""
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (result.labels.ravel(), result.predicted.ravel()), 1)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 0.24 * len(names)
    figure, axes = pyplot.subplots(figsize=(size + 2.6, size + 1.7), constrained_layout=True)
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=100)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    for true, predicted in np.argwhere(share >= 10):
        axes.text(predicted, true, f"{share[true, predicted]:.0f}", ha="center", va="center", fontsize=SMALL,
                  color="black" if share[true, predicted] > 50 else "white")
    figure.colorbar(image, ax=axes, shrink=0.7, label=f"% of the {args.split} segments of the true label")
    save(figure, args.output)


def boundary_errors(result, background):
    """(start errors, end errors, missed): predicted minus true, in segments, of the true events that are overlapped.

    Those that no predicted event of their category overlaps are missed; of several that do, the largest overlap counts.
    """
    starts, ends, missed = [], [], 0
    for labels, predicted in zip(result.labels, result.predicted):
        candidates = events_of(predicted, background)
        for category, start, end in events_of(labels, background):
            overlaps = [(min(end, b) - max(start, a), a, b) for c, a, b in candidates if c == category]
            overlap, a, b = max(overlaps, default=(0, 0, 0))
            if overlap <= 0:
                missed += 1
                continue
            starts.append(a - start)
            ends.append(b - end)
    return starts, ends, missed


def draw_boundaries(args, result, names):
    """By how many segments events begin and end too early or too late."""
    starts, ends, missed = boundary_errors(result, len(names) - 1)
    segments = result.labels.shape[1]
    figure, axes = pyplot.subplots(figsize=(6, 2.8), constrained_layout=True)
    values = np.arange(-segments + 1, segments)
    for errors, color, shift, hatch, name in ((starts, BLUE, -0.2, "", "start"), (ends, ORANGE, 0.2, "//", "end")):
        counts = [errors.count(value) for value in values]
        axes.bar(values + shift, counts, width=0.4, color=color, hatch=hatch, edgecolor="white", label=name)
    axes.set(xlabel="predicted minus true boundary, segments (left: too early)", ylabel=f"{args.split} events",
             yscale="symlog", xticks=values, title=f"{len(starts)} events found, {missed} missed")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend()
    save(figure, args.output)


# ------------------------------------------------------------------------------------------- attention

def attention_hits(network, dataset, cells_path):
    """(label, hit, chance) of all event segments of a split of synthetic data, [segments] each.

    hit: whether the region of the largest attention is one of the true ones; chance: the share of true ones in the map.
    """
    videos = dataset[:]
    true_cells = read_true_cells(cells_path, dataset.sizes)[videos["video"].numpy()]
    true_cells = true_cells.reshape(*true_cells.shape[:2], -1)      # [videos, T, R]
    with torch.inference_mode():
        looked_at = network(videos["audio"], videos["visual"]).attention.flatten(2).argmax(-1)      # [videos, T]
    hit = np.take_along_axis(true_cells, looked_at.numpy()[..., None], axis=2)[..., 0]
    event = (videos["labels"] != dataset.sizes.background).numpy()
    if not event.any():
        raise UserError(f"{cells_path}: the videos asked for hold no event to look at; choose another --split")
    return videos["labels"].numpy()[event], hit[event], true_cells.mean(axis=2)[event]


def draw_attention(args, network, dataset, names):
    """Share of each category's event segments in which attention is largest where the event truly is."""
    labels, hits, chance = attention_hits(network, dataset, args.data_dir / "true_cells.h5")
    print(f"{args.split}: attention is largest in a true cell in {100 * hits.mean():.1f} % of {len(hits)} event "
          f"segments (by chance: {100 * chance.mean():.1f} %)")
    categories = np.unique(labels)
    figure, axes = figure_of_bars([names[category] for category in categories],
                                  f"{args.split} event segments with the largest attention in a true cell, %")
    axes.barh(range(len(categories)), [100 * hits[labels == category].mean() for category in categories], color=BLUE)
    axes.axvline(100 * hits.mean(), color="0.3", linestyle="--", label=f"all: {100 * hits.mean():.1f} %")
    axes.axvline(100 * chance.mean(), color=ORANGE, linestyle=":", label=f"chance: {100 * chance.mean():.1f} %")
    figure.legend(loc="outside upper right", ncols=2)
    save(figure, args.output)


# ---------------------------------------------------------------------------------------------- options

OF_SPLIT = {"categories": draw_categories, "confusion": draw_confusion, "boundaries": draw_boundaries}


def options():
    parser = OptionParser(__doc__)
    parser.add_argument("figure", choices=["curves", "video", "attention", *OF_SPLIT])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE",
                        help="logs (for curves) or a checkpoint (for all others)")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--annotations", type=Path, metavar="FILE",
                        help="for names and ids (default: DATA_DIR/Annotations.txt, if there)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="(default: %(default)s)")
    parser.add_argument("--video", type=bounded(int, 0), default=0, metavar="ROW",
                        help="row of `video` (default: %(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--frames", type=Path, metavar="DIR",
                        help="for `video`: pictures to put under the maps, one for each segment")
    source.add_argument("--video_file", type=Path, metavar="FILE",
                        help="for `video`: the video itself, for frames under the maps and for its sound (needs PyAV "
                             "and OpenCV)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the PNG (default: <figure>.png here)")
    args = parser.parse_args()
    if args.figure != "curves" and len(args.files) > 1:
        parser.error(f"{args.figure} takes one checkpoint; only curves are drawn from several files")
    args.output = args.output or Path(f"{args.figure}.png")
    return args


def names_of(args, dataset, checkpoint):
    """Names of the classes and of the videos, without the $ that matplotlib would take for a formula."""
    names, ids = names_and_ids(args.data_dir, args.annotations, dataset.sizes.num_videos,
                               checkpoint["network"]["num_classes"])
    return [[name.replace("$", r"\$") for name in listed] if listed else None for listed in (names, ids)]


def main():
    args = options()
    if args.figure == "curves":
        draw_curves(args)
        return
    path, = args.files
    checkpoint = load(path)
    if args.figure == "video":
        draw_row(args, checkpoint)
        return
    dataset = AVEDataset(find_files(args.data_dir, required_files([args.split])), args.split, features="disk")
    network = rebuild(checkpoint, path, dataset.sizes).eval()
    names, _ = names_of(args, dataset, checkpoint)
    if args.figure == "attention":
        draw_attention(args, network, dataset, names)
    else:
        OF_SPLIT[args.figure](args, predict(network, dataset, batch_size=64), names)


if __name__ == "__main__":
    with one_line_errors():
        main()
