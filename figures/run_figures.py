"""Pictures of a run: what it learned and where it looks (needs matplotlib).

    python figures/run_figures.py curves model/PSP_fully.jsonl      # of several seeds: mean and standard deviation
    python figures/run_figures.py video model/PSP_fully.pt --data_dir data --video 17        # a row of the files
"""
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.video import FRAMES_OF_A_SEGMENT, VideoError, read_clip  # noqa: E402
from dataset import (AVE_FILES, SPLITS, AVEDataset, find_files, network_inputs, open_h5, read_order,  # noqa: E402
                     read_rows, required_files)
from drawing import PANELS, draw_logs, draw_video  # noqa: E402
from model.avel import AVELNetwork  # noqa: E402
from model.checkpoint import load_checkpoint, rebuild  # noqa: E402
from model.data import has_labels  # noqa: E402
from model.evaluate import match_labels  # noqa: E402
from psp_model import PSPNetwork  # noqa: E402
from run_results import read_log  # noqa: E402
from utils import OptionParser, UserError, bounded, one_line_errors  # noqa: E402


def read_seeds(paths):
    """The logs of the seeds of one training; UserError if they are of different ones."""
    logs = [read_log(path) for path in paths]
    for path, log in zip(paths, logs):
        if log.training != logs[0].training:
            raise UserError(f"{paths[0]} and {path}: are not seeds of one training; draw them one by one")
    return logs


@torch.inference_mode()
def draw_row(output, path, row, data_dir, annotations, video_file):
    """Writes the picture of the video in this row of the files; path: of the checkpoint."""
    checkpoint = load_checkpoint(path)
    network_class = {"PSP": PSPNetwork, "AVEL": AVELNetwork}[checkpoint["model_name"]]
    split = "all" if has_labels(data_dir) else None      # of both, the position is the row
    splits = [name for name in SPLITS if (data_dir / AVE_FILES[f"order_{name}"].names[0]).is_file()]
    files = find_files(data_dir, required_files([split, *splits]))
    dataset = AVEDataset(files, split, features="disk")
    network = rebuild(checkpoint, path, network_class, dataset.sizes).eval()
    names, ids = match_labels(checkpoint, path, {split: dataset}, data_dir, annotations)
    num_rows, num_segments, _, map_size, *_ = dataset.sizes
    if row >= num_rows:
        raise UserError(f"--video {row}: {data_dir} has the rows 0 to {num_rows - 1}")
    title, true_cells = f"video row {row}", None
    title += "".join(f" ({name})" for name in splits if row in read_order(files, f"order_{name}", num_rows))
    title += f", {ids[row]}" if ids else ""
    cells_path = data_dir / "true_cells.h5"      # of synthetic videos
    if cells_path.is_file():
        with open_h5(cells_path) as cells:
            if cells.shape == (num_rows, num_segments, *map_size):
                true_cells = read_rows(cells_path, cells, slice(row, row + 1))[0]
                title += "; orange: cells in which the source is seen"
    recording = read_recording(video_file, num_segments) if video_file else (None, None)
    video = dataset[[row]]
    true = video["labels"][0].tolist() if "labels" in video else None
    draw_video(output, network(*network_inputs(video)), names, title, true, true_cells, *recording)


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


def main():
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("figure", choices=["curves", "video"])
    add("files", type=Path, nargs="+", metavar="FILE", help="logs (for curves) or a checkpoint")
    add("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    add("--annotations", type=Path, metavar="FILE", help="for names (default: DATA_DIR/Annotations.txt, if there)")
    add("--video", type=bounded(int, 0), default=0, metavar="ROW", help="row of `video` (default: %(default)s)")
    add("--video_file", type=Path, metavar="FILE", help="for `video`: the video, for frames and sound (needs PyAV)")
    add("--output", type=Path, metavar="FILE", help="such as .png, .pdf or .svg (default: <figure>.png here)")
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
