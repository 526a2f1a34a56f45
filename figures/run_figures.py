"""Pictures of a run: what it learned, where it looks and where it errs (needs matplotlib).

    python figures/run_figures.py curves model/PSP_fully.jsonl      # of several seeds: mean and standard deviation
    python figures/run_figures.py video model/PSP_fully.pt --data_dir data --video 17        # a row of the files
    python figures/run_figures.py categories model/PSP_fully.pt --data_dir data
"""
import sys
from pathlib import Path

import torch
from drawing import BLUE, DARK, PANELS, draw_logs, picture_path, pyplot, save_figure
from run_results import read_log
from video_figure import Recording, draw_video, read_recording_file, read_recording_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset import (AVE_FILES, SPLITS, AVEDataset, find_files, network_inputs, open_h5,  # noqa: E402
                     read_one_hot, read_order, read_rows, required_files)
from model.avel import AVELNetwork  # noqa: E402
from model.checkpoint import load_checkpoint, rebuild  # noqa: E402
from model.data import has_labels  # noqa: E402
from model.evaluate import match_labels, predict  # noqa: E402
from psp_model import PSPNetwork  # noqa: E402
from utils import OptionParser, UserError, bounded, one_line_errors, wrap_for_training  # noqa: E402

NETWORK_CLASSES = {"PSP": PSPNetwork, "AVEL": AVELNetwork}


def read_seeds(paths):
    """The logs of the seeds of one training; UserError if they are of different ones."""
    logs = [read_log(path) for path in paths]
    first = logs[0].training
    for path, log in zip(paths, logs):
        names = [name for name in {**first, **log.training} if first.get(name) != log.training.get(name)]
        if names:
            raise UserError(f"{paths[0]} and {path}: are not seeds of one training (they differ in "
                            f"{', '.join(names)}); draw them one by one")
    return logs


@torch.inference_mode()
def draw_chosen_video(args, files, dataset, network, names, ids):
    """The picture of the video in row args.video of the files; its position in the dataset is the row."""
    row, sizes = args.video, dataset.sizes
    if row >= sizes.num_rows:
        raise UserError(f"--video {row}: {args.data_dir} has the rows 0 to {sizes.num_rows - 1}")
    video, title, true_cells, recording = dataset[[row]], f"video row {row}", None, Recording([])
    true = video["labels"][0] if "labels" in video else None
    if true is not None:
        title += "".join(f" ({split})" for split in SPLITS if f"order_{split}" in files
                         and row in read_order(files, f"order_{split}", sizes.num_rows).tolist())
    title += f", {ids[row]}" if ids else ""
    cells_path = args.data_dir / "true_cells.h5"      # of synthetic videos
    if cells_path.is_file():
        with open_h5(cells_path) as cells:
            if cells.shape[:2] == (sizes.num_rows, sizes.num_segments):
                true_cells = read_rows(cells_path, cells, slice(row, row + 1))[0].astype(bool)
                title += "; orange: cells in which the source is seen"
    if args.video_file is not None:
        recording = read_recording_file(args.video_file, sizes.num_segments)
    if args.frames is not None:
        recording = read_recording_folder(args.frames, sizes.num_segments)
    return draw_video(network(*network_inputs(video)), names, title, true, true_cells, recording)


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


def options():
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("figure", choices=["curves", "video", "categories"])
    add("files", type=Path, nargs="+", metavar="FILE", help="logs (for curves) or a checkpoint")
    add("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    add("--annotations", type=Path, metavar="FILE", help="for names (default: DATA_DIR/Annotations.txt, if there)")
    add("--split", choices=SPLITS, default="test", help="(default: %(default)s)")
    add("--video", type=bounded(int, 0), default=0, metavar="ROW", help="row of `video` (default: %(default)s)")
    source = parser.add_mutually_exclusive_group().add_argument
    source("--frames", type=Path, metavar="DIR", help="for `video`: a picture of each segment, to put under the maps")
    source("--video_file", type=Path, metavar="FILE", help="for `video`: the video, for frames and sound (needs PyAV)")
    add("--output", type=picture_path, metavar="FILE", help=".png, .pdf or .svg (default: <figure>.png here)")
    return parser


def main():
    parser = options()
    args = parser.parse_args()
    args.output = args.output or Path(f"{args.figure}.png")
    if args.figure == "curves":
        draw_logs([""], [read_seeds(args.files)], PANELS, args.output)
        return
    if len(args.files) > 1:
        parser.error(f"{args.figure} takes one checkpoint; only curves are drawn from several files")
    path, = args.files
    checkpoint = load_checkpoint(path)
    if checkpoint["model_name"] not in NETWORK_CLASSES:
        raise UserError(f"{path}: is of {checkpoint['model_name']}; only {', '.join(NETWORK_CLASSES)} can be drawn")
    splits = [args.split]
    if args.figure == "video":
        known = [split for split in SPLITS if (args.data_dir / AVE_FILES[f"order_{split}"].names[0]).is_file()]
        splits = (known or ["all"]) if has_labels(args.data_dir) else [None]
    files = find_files(args.data_dir, required_files(splits))
    dataset = AVEDataset(files, None if args.figure == "video" else args.split, features="disk")
    if args.figure == "video" and "labels" in files:
        dataset.tensors["labels"] = read_one_hot(files, "labels")
    network = rebuild(checkpoint, path, NETWORK_CLASSES[checkpoint["model_name"]], dataset.sizes).eval()
    names, ids = match_labels(checkpoint, path, {args.split: dataset}, args.data_dir, args.annotations)
    if args.figure == "video":
        figure = draw_chosen_video(args, files, dataset, network, names, ids)
    else:
        result = predict(wrap_for_training(network, "fp32"), dataset, batch_size=64)
        figure = draw_categories(args.split, result, names)
    save_figure(figure, args.output)


if __name__ == "__main__":
    with one_line_errors():
        main()
