"""Pictures of a run: what it learned and where it looks (needs matplotlib).

    python figures/run_figures.py curves model/PSP_fully.jsonl      # of several seeds: mean and standard deviation
    python figures/run_figures.py video model/PSP_fully.pt --data_dir data --video 17        # a row of the files
"""
import sys
from pathlib import Path

import torch
from drawing import PANELS, draw_logs, picture_path
from run_results import read_log
from video_figure import draw_video, read_recording

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset import (AVE_FILES, SPLITS, AVEDataset, find_files, network_inputs, open_h5, read_order,  # noqa: E402
                     read_rows, required_files)
from model.avel import AVELNetwork  # noqa: E402
from model.checkpoint import load_checkpoint, rebuild  # noqa: E402
from model.data import has_labels  # noqa: E402
from model.evaluate import match_labels  # noqa: E402
from psp_model import PSPNetwork  # noqa: E402
from utils import OptionParser, UserError, bounded, one_line_errors  # noqa: E402

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
def draw_row(output, path, row, data_dir, annotations, video_file):
    """Writes the picture of the video in this row of the files; path: of the checkpoint."""
    checkpoint = load_checkpoint(path)
    if checkpoint["model_name"] not in NETWORK_CLASSES:
        raise UserError(f"{path}: is of {checkpoint['model_name']}; only {', '.join(NETWORK_CLASSES)} can be drawn")
    split = "all" if has_labels(data_dir) else None      # of both, the position is the row
    dataset = AVEDataset(find_files(data_dir, required_files([split])), split, features="disk")
    network = rebuild(checkpoint, path, NETWORK_CLASSES[checkpoint["model_name"]], dataset.sizes).eval()
    names, ids = match_labels(checkpoint, path, {split: dataset}, data_dir, annotations)
    num_rows, num_segments = dataset.sizes[:2]
    if row >= num_rows:
        raise UserError(f"--video {row}: {data_dir} has the rows 0 to {num_rows - 1}")
    video, title, true_cells, recording = dataset[[row]], f"video row {row}", None, (None, None)
    for name in SPLITS:
        order = f"order_{name}"
        order_path = data_dir / AVE_FILES[order].names[0]
        if order_path.is_file() and row in read_order({order: order_path}, order, num_rows):
            title += f" ({name})"
    title += f", {ids[row]}" if ids else ""
    cells_path = data_dir / "true_cells.h5"      # of synthetic videos
    if cells_path.is_file():
        with open_h5(cells_path) as cells:
            if cells.shape[:2] == (num_rows, num_segments):
                true_cells = read_rows(cells_path, cells, slice(row, row + 1))[0].astype(bool)
                title += "; orange: cells in which the source is seen"
    if video_file is not None:
        recording = read_recording(video_file, num_segments)
    true = video["labels"][0].tolist() if "labels" in video else None
    draw_video(output, network(*network_inputs(video)), names, title, true, true_cells, *recording)


def main():
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("figure", choices=["curves", "video"])
    add("files", type=Path, nargs="+", metavar="FILE", help="logs (for curves) or a checkpoint")
    add("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    add("--annotations", type=Path, metavar="FILE", help="for names (default: DATA_DIR/Annotations.txt, if there)")
    add("--video", type=bounded(int, 0), default=0, metavar="ROW", help="row of `video` (default: %(default)s)")
    add("--video_file", type=Path, metavar="FILE", help="for `video`: the video, for frames and sound (needs PyAV)")
    add("--output", type=picture_path, metavar="FILE", help=".png, .pdf or .svg (default: <figure>.png here)")
    args = parser.parse_args()
    output = args.output or Path(f"{args.figure}.png")
    if args.figure == "curves":
        draw_logs([""], [read_seeds(args.files)], PANELS, output)
    elif len(args.files) > 1:
        parser.error("video takes one checkpoint; only curves are drawn from several files")
    else:
        draw_row(output, *args.files, args.video, args.data_dir, args.annotations, args.video_file)


if __name__ == "__main__":
    with one_line_errors():
        main()
