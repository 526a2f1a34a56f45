"""Pictures of a run: what it learned, where it looks and where it errs. Each command writes one PNG (needs matplotlib).

    python figures/run_figures.py curves model/PSP_fully.jsonl      # of several logs, mean and standard deviation
    python figures/run_figures.py video model/PSP_fully.pt --data_dir data --video 17        # a row of the files
    python figures/run_figures.py categories model/PSP_fully.pt --data_dir data      # also: confusion, boundaries
"""
import sys
from pathlib import Path

import numpy as np
import torch
from drawing import BLUE, DARK, ORANGE, PANELS, SMALL, draw_logs, pyplot, save
from run_results import read_log
from video_figure import Recording, draw_video, recording_of_file, recording_of_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset import (AVE_FILES, SPLITS, AVEDataset, UserError, find_files, has_labels, open_h5,  # noqa: E402
                     read_finite_rows, read_order, read_sizes, required_files)
from model.avel import AVELNetwork  # noqa: E402
from model.checkpoint import load, rebuild  # noqa: E402
from model.metrics import events_of  # noqa: E402
from psp_model import PSPNetwork  # noqa: E402
from utils import OptionParser, bounded, checkpoint_names, one_line_errors, predict  # noqa: E402

NETWORKS = {"PSP": PSPNetwork, "AVEL": AVELNetwork}


@torch.inference_mode()
def draw_row(args, files, sizes, network, names, ids):
    """The picture of the video in row args.video of the files."""
    if args.video >= sizes.num_rows:
        raise UserError(f"--video {args.video}: {args.data_dir} has the rows 0 to {sizes.num_rows - 1}")
    title, true, true_cells, recording = f"video row {args.video}", None, None, Recording([])
    if "labels" in files:
        true = read_row(files["labels"], args.video, AVE_FILES["labels"].key)[0].argmax(dim=-1)
        title += "".join(f" ({split})" for split in SPLITS
                         if args.video in read_order(files, f"order_{split}", sizes.num_rows).tolist())
    title += f", {ids[args.video]}" if ids else ""
    cells_path = args.data_dir / "true_cells.h5"      # of synthetic videos
    if cells_path.is_file():
        true_cells = read_row(cells_path, args.video)[0].bool().numpy()
        title += "; orange: cells in which the source is seen"
    if args.video_file is not None:
        recording = recording_of_file(args.video_file, sizes.num_segments)
    if args.frames is not None:
        recording = recording_of_folder(args.frames, sizes.num_segments)
    audio, visual = (read_row(files[name], args.video, AVE_FILES[name].key) for name in ("audio", "visual"))
    return draw_video(network(audio, visual), names, title, true, true_cells, recording)


def read_row(path, row, key="avadataset"):
    """float32 [1, ...]: a row of an HDF5 file."""
    with open_h5(path, key) as file:
        return torch.from_numpy(read_finite_rows(path, file, slice(row, row + 1)).astype(np.float32))


def draw_categories(split, result, names):
    """Accuracy of each label, with its number of segments."""
    accuracies, counts = zip(*map(result.label_accuracy, range(len(names))))
    figure, axes = pyplot.subplots(figsize=(5.5, 0.17 * len(names) + 0.8), layout="constrained")
    axes.barh([f"{name} ({count})" for name, count in zip(names, counts)],
              [100 * (accuracy or 0) for accuracy in accuracies], color=BLUE)
    axes.axvline(100 * result.accuracy, color=DARK, linestyle="--")
    axes.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6), xlabel=f"accuracy, % of the {split} segments (number)",
             title=f"dashed: all, {100 * result.accuracy:.1f} %")
    return figure


def draw_confusion(split, result, names):
    """What the segments of each true label are called, in % of them."""
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (result.labels.ravel(), result.predicted.ravel()), 1)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 0.24 * len(names)
    figure, axes = pyplot.subplots(figsize=(size + 2.6, size + 1.7), layout="constrained")
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=100)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    for true, predicted in np.argwhere(share >= 10):
        axes.text(predicted, true, f"{share[true, predicted]:.0f}", ha="center", va="center", fontsize=SMALL,
                  color="black" if share[true, predicted] > 50 else "white")
    figure.colorbar(image, ax=axes, shrink=0.7, label=f"% of the {split} segments of the true label")
    return figure


def boundary_errors(result, background):
    """(start errors, end errors, missed): predicted minus true, in segments, of the true events that are overlapped.

    An event is missed if no predicted event of its category overlaps it; of several, the largest overlap counts.
    """
    starts, ends, missed = [], [], 0
    for labels, predicted in zip(result.labels, result.predicted):
        candidates = events_of(predicted, background)
        for category, start, end in events_of(labels, background):
            overlaps = [(min(end, b) - max(start, a), a, b) for c, a, b in candidates if c == category]
            overlap, a, b = max(overlaps, default=(0, 0, 0))
            if overlap > 0:
                starts.append(a - start)
                ends.append(b - end)
            else:
                missed += 1
    return starts, ends, missed


def draw_boundaries(split, result, names):
    """By how many segments events begin and end too early or too late."""
    starts, ends, missed = boundary_errors(result, len(names) - 1)
    segments = result.labels.shape[1]
    values = np.arange(-segments + 1, segments)
    figure, axes = pyplot.subplots(figsize=(6, 2.8), layout="constrained")
    for errors, colour, shift, hatch, name in ((starts, BLUE, -0.2, "", "start"), (ends, ORANGE, 0.2, "//", "end")):
        counts = [errors.count(value) for value in values]
        axes.bar(values + shift, counts, width=0.4, color=colour, hatch=hatch, edgecolor="white", label=name)
    axes.set(xlabel="predicted minus true boundary, segments (left: too early)", ylabel=f"{split} events",
             yscale="symlog", xticks=values, title=f"{len(starts)} events found, {missed} missed")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend()
    return figure


OF_SPLIT = {"categories": draw_categories, "confusion": draw_confusion, "boundaries": draw_boundaries}


def options():
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("figure", choices=["curves", "video", *OF_SPLIT])
    add("files", type=Path, nargs="+", metavar="FILE", help="logs (for curves) or a checkpoint (for all others)")
    add("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    add("--annotations", type=Path, metavar="FILE", help="for names (default: DATA_DIR/Annotations.txt, if there)")
    add("--split", choices=SPLITS, default="test", help="(default: %(default)s)")
    add("--video", type=bounded(int, 0), default=0, metavar="ROW", help="row of `video` (default: %(default)s)")
    source = parser.add_mutually_exclusive_group().add_argument
    source("--frames", type=Path, metavar="DIR", help="for `video`: a picture of each segment, to put under the maps")
    source("--video_file", type=Path, metavar="FILE", help="for `video`: the video, for frames and sound (needs PyAV)")
    add("--output", type=Path, metavar="FILE", help="the PNG (default: <figure>.png here)")
    args = parser.parse_args()
    if args.figure != "curves" and len(args.files) > 1:
        parser.error(f"{args.figure} takes one checkpoint; only curves are drawn from several files")
    args.output = args.output or Path(f"{args.figure}.png")
    return args


def main():
    args = options()
    if args.figure == "curves":
        draw_logs([""], [[read_log(path) for path in args.files]], PANELS, args.output)
        return
    path, = args.files
    checkpoint = load(path)
    splits = [args.split] if args.figure != "video" else SPLITS if has_labels(args.data_dir) else [None]
    files = find_files(args.data_dir, required_files(splits))
    sizes = read_sizes(files)
    network = rebuild(checkpoint, path, NETWORKS[checkpoint["model_name"]], sizes).eval()
    names, ids = checkpoint_names(checkpoint, args.data_dir, args.annotations, sizes)
    if args.figure == "video":
        figure = draw_row(args, files, sizes, network, names, ids)
    else:
        result = predict(network, AVEDataset(files, args.split), batch_size=64)
        figure = OF_SPLIT[args.figure](args.split, result, names)
    save(figure, args.output)


if __name__ == "__main__":
    with one_line_errors():
        main()
