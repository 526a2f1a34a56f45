"""Builds the label files from Annotations.txt: right_labels.h5, prob_label.h5, mil_labels.h5 (and labels_noisy.h5).

    python data/prepare_labels.py --annotations data/Annotations.txt --output_dir data

Line i of the annotations is row i of every file. An event counts in the segments start .. end-1; all others are
background, the last label.
"""
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset import AVE_LABELS, DataError, label_names, read_annotations  # noqa: E402
from utils import OptionParser, add_overwrite_option, naming, number, refuse_to_overwrite, run_script  # noqa: E402


def segment_labels(annotations, segments=10):
    """One-hot labels [videos, segments, labels] float64, and the one-hot category of each video [videos, labels] float32.

    Raises DataError, with the line's number, for an event that ends after the last segment.
    """
    categories = {annotation.category for annotation in annotations}
    labels = len(AVE_LABELS) if categories <= set(AVE_LABELS) else len(categories) + 1
    index = {name: i for i, name in enumerate(label_names(annotations, labels))}

    label = np.full((len(annotations), segments), labels - 1)
    for row, annotation in enumerate(annotations):
        if annotation.end > segments:
            raise DataError(f"annotations: line {row + 1} ({annotation.video_id}): the event ends at second "
                            f"{annotation.end}, but a video has {segments}")
        label[row, annotation.start:annotation.end] = index[annotation.category]
    category = np.array([index[annotation.category] for annotation in annotations])
    return np.eye(labels)[label], np.eye(labels, dtype=np.float32)[category]


def label_files(annotations, segments=10, background_videos=178):
    """Arrays of the label files by file name, as published."""
    one_hot, category = segment_labels(annotations, segments)
    background = np.zeros((background_videos, one_hot.shape[-1]), np.float32)
    background[:, -1] = 1
    return {
        "right_labels.h5": one_hot,
        "prob_label.h5": one_hot.mean(axis=1),
        "mil_labels.h5": category,
        "labels_noisy.h5": background,
    }


@contextmanager
def new_h5(path, shape, dtype, key="avadataset"):
    """The HDF5 dataset of a published file, to be filled; the file has its name only once it is whole.

    Its room on the disk is taken beforehand: HDF5 can end the whole program where it runs out while it writes.
    """
    partial = Path(f"{path}.partial")
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        take_room(partial, path, size)
        with h5py.File(partial, "w") as file:
            dataset = file.create_dataset(key, shape, dtype)
            if size:
                dataset[:1] = np.zeros((), dtype)      # HDF5 lays out a dataset when it is first written to
                file.flush()
                take_room(partial, path, partial.stat().st_size)
            yield dataset
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def take_room(partial, path, size):
    """Reserves the disk blocks of a file of that size; OSError naming `path` where there are not as many."""
    if size and hasattr(os, "posix_fallocate"):
        with naming(path), open(partial, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def write_h5(path, array, key="avadataset"):
    """Writes a whole published file."""
    with new_h5(path, array.shape, array.dtype, key) as dataset:
        dataset[...] = array


def main():
    parser = OptionParser(__doc__)
    parser.add_argument("--annotations", type=Path, default=Path("data/Annotations.txt"), metavar="FILE",
                        help="of AVE, a line category&YouTube id&quality&start&end for each video (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("data"), metavar="DIR",
                        help="where the label files go (default: %(default)s)")
    parser.add_argument("--segments", type=number(int, 1, 1000), default=10, help="segments of a video (default: %(default)s)")
    parser.add_argument("--background_videos", type=number(int, 0, 10**6), default=178, metavar="N",
                        help="rows of labels_noisy.h5 (default: %(default)s)")
    add_overwrite_option(parser)
    args = parser.parse_args()

    annotations = read_annotations(args.annotations)
    files = label_files(annotations, args.segments, args.background_videos)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    refuse_to_overwrite([args.output_dir / name for name in files], args.overwrite)
    for name, array in files.items():
        write_h5(args.output_dir / name, array)
        print(f"{args.output_dir / name}: {array.shape} {array.dtype}")

    for row, annotation in enumerate(annotations):
        if annotation.start == annotation.end:
            print(f"note: line {row + 1} (video row {row}, {annotation.video_id}) has an event of zero length: "
                  "all its segments are background")


if __name__ == "__main__":
    run_script(main)
