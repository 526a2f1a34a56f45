"""Audits a data folder: is every file there, whole, and of the same data as the others?

    python data/check.py --data_dir data

Prints a table of the files, their features beside real ones, what is wrong and how to mend it, and what is worth
knowing. The exit code is 0 only if the folder can be trained on (--setting fully: fully supervised only) or, where it
has features only, labelled. The large files are streamed: memory stays small.
"""
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.prepare_labels import segment_labels  # noqa: E402
from data.annotations import class_names, read_annotations  # noqa: E402
from data.feature_statistics import REAL, statistics, statistics_table  # noqa: E402
from data.files import UserError  # noqa: E402
from data.hdf5 import blocks_of, read_rows  # noqa: E402
from data.progress import progress_bar  # noqa: E402
from dataset import (AVE_FILES, FEATURES, SPLITS, check_weak_shapes, find_files, has_labels,  # noqa: E402
                     has_random_weights, open_file, read_label_share, read_one_hot, read_order, read_sample,
                     read_sizes, required_files)
from utils import OptionParser, one_line_errors  # noqa: E402

FLOAT32_MAX = float(np.finfo(np.float32).max)      # the networks compute in float32


def scan(path, name):
    """(row of the table, problems) of one file, streamed; UserError where it cannot be read to its end."""
    with open_file(path, name) as file:
        layout = file.compression or (f"chunked {file.chunks}" if file.chunks else "contiguous")
        row = {"file": path.name, "shape": " x ".join(map(str, file.shape)), "dtype": str(file.dtype),
               "MB": f"{path.stat().st_size / 1e6:.1f}", "layout": layout}
        if file.size == 0:
            return row, [f"{path}: is empty; it should hold {AVE_FILES[name].content}"]
        low, high, zeros, odd = np.inf, -np.inf, 0, 0
        with progress_bar(total=len(file), desc=path.name, unit="row", leave=False, delay=1) as bar:
            for rows in blocks_of(file):
                block = read_rows(path, file, rows)
                zeros += block.size - np.count_nonzero(block)
                low, high = np.minimum(low, block.min()), np.maximum(high, block.max())      # NaN stays NaN
                if not (-FLOAT32_MAX <= low and high <= FLOAT32_MAX):
                    odd += block.size - np.count_nonzero(abs(block) <= FLOAT32_MAX)
                bar.update(len(block))
        row |= {"range": f"{low:.4g} .. {high:.4g}", "zeros": f"{100 * zeros / file.size:.1f} %",
                "not finite": str(odd)}
    return row, [f"{path}: {odd} values are NaN or infinite; extract or download it again"] if odd else []


def print_table(rows):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    widths = {column: max(len(column), *(len(row.get(column, "-")) for row in rows)) for column in columns}
    for row in [{column: column for column in columns}, *rows]:
        print("  ".join(f"{row.get(column, '-'):{widths[column]}}" for column in columns).rstrip())


class Audit:
    """Collects problems, each of which keeps the folder from being trained on, and notes, which do not."""

    def __init__(self):
        self.problems, self.notes = [], []

    def attempt(self, function, *arguments):
        """The function's value; None where it raises UserError, which is a problem."""
        try:
            return function(*arguments)
        except UserError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None


def check_labels(audit, files, sizes, annotations, weak):
    """Segment labels [videos, T] int, or None; do the annotations and, if weak, the other labels agree with them?"""
    labels = audit.attempt(read_one_hot, files, "labels")
    if labels is None:
        return None
    labels = labels.numpy()
    one_hot = np.eye(sizes.num_classes)[labels]
    if weak:
        share = audit.attempt(read_label_share, files)
        if share is not None:
            wrong = (abs(share.numpy() - one_hot.mean(axis=1)) > 1e-4).any(axis=1)
            if wrong.any():
                audit.problems.append(
                    f"{files['label_share']}: {wrong.sum()} videos have another share of labels than {files['labels']} "
                    f"(first in row {wrong.argmax()}); build both with data/prepare_labels.py")
        category = audit.attempt(read_one_hot, files, "video_labels")
        if category is not None:
            wrong = ((labels != sizes.background) & (labels != category.numpy()[:, None])).any(axis=1)
            if wrong.any():
                audit.problems.append(
                    f"{files['video_labels']}: {wrong.sum()} videos have another category than their segments in "
                    f"{files['labels']} (first in row {wrong.argmax()}); build both with data/prepare_labels.py")
        background = audit.attempt(read_one_hot, files, "labels_bg")
        if background is not None and (background != sizes.background).any():
            audit.problems.append(f"{files['labels_bg']}: has videos that are not background; "
                                  "build it with data/prepare_labels.py")
    if annotations:
        expected = audit.attempt(segment_labels, annotations, sizes.num_segments)
        if expected is not None:
            same_shape = expected[0].shape == one_hot.shape
            wrong = (expected[0] != one_hot).any(axis=(1, 2)) if same_shape else np.ones(1, bool)
            if wrong.any():
                audit.problems.append(f"{files['labels']}: {wrong.sum()} videos have other labels than annotated "
                                      f"(first in row {wrong.argmax()}); build it with data/prepare_labels.py")
    empty = np.flatnonzero((labels == sizes.background).all(axis=1))
    if len(empty):
        audit.notes.append(f"videos with no event at all: {len(empty)} (rows {', '.join(map(str, empty[:10]))})")
    return labels


def check_orders(audit, files, videos):
    """{split: rows} of the splits that can be read."""
    orders = {}
    for split in SPLITS:
        if f"order_{split}" in files:
            order = audit.attempt(read_order, files, f"order_{split}", videos)
            if order is not None:
                orders[split] = order.tolist()
    for split, rows in orders.items():
        for other in SPLITS[SPLITS.index(split) + 1:]:
            shared = set(rows) & set(orders.get(other, []))
            if shared:
                audit.problems.append(f"{files[f'order_{split}']}: shares {len(shared)} rows with the {other} split "
                                      f"(first {min(shared)}); get the order files again")
    unused = videos - len(set().union(*orders.values()))
    if len(orders) == len(SPLITS) and unused:
        audit.notes.append(f"{unused} videos are in no split")
    return orders


def note_repeated_ids(audit, annotations, orders):
    """Notes the YouTube ids that occur more than once, with different categories."""
    times = Counter(annotation.video_id for annotation in annotations)
    repeated = [count for count in times.values() if count > 1]
    if repeated:
        audit.notes.append(f"{len(repeated)} ids stand more than once in the annotations: "
                           f"{sum(repeated) - len(repeated)} rows too many")
    splits = defaultdict(set)
    for split, rows in orders.items():
        for row in rows:
            splits[annotations[row].video_id].add(split)
    for pair in (("train", "test"), ("train", "val"), ("val", "test")):
        count = sum(set(pair) <= where for where in splits.values())
        if count:
            audit.notes.append(f"{count} ids are in both {pair[0]} and {pair[1]}")


def print_splits(labels, orders, names, background):
    """Videos of each category in each split, and the share of event segments."""
    first_event = np.take_along_axis(labels, (labels != background).argmax(axis=1)[:, None], axis=1)[:, 0]
    category = np.where((labels != background).any(axis=1), first_event, background)
    rows = [{"category": name, **{split: str((category[rows] == label).sum()) for split, rows in orders.items()}}
            for label, name in enumerate([*names[:-1], "no event at all"])
            if label != background or (category == background).any()]
    rows.append({"category": "all videos", **{split: str(len(rows)) for split, rows in orders.items()}})
    event = labels != background
    rows.append({"category": "segments that hold the event",
                 **{split: f"{100 * event[rows].mean():.1f} %" for split, rows in orders.items()}})
    rows.append({"category": "videos with the event in all segments",
                 **{split: f"{100 * event[rows].all(axis=1).mean():.1f} %" for split, rows in orders.items()}})
    print_table(rows)


def compare_with_real_features(audit, files):
    """Prints statistics of a sample of the features beside those of real ones; notes what looks like another kind.

    A factor of 5 is more than other videos make.
    """
    samples = {}
    for name in REAL:
        path = files[name]
        if audit.attempt(has_random_weights, files, name):
            audit.notes.append(f"{path}: was made with --random_weights, so that its features mean nothing")
        features = audit.attempt(read_sample, path, name)
        if features is None:
            continue
        if name == "audio" and features.ndim == 5:
            audit.notes.append(f"{path}: looks like maps of VGGish's last pooling layer; the published features are "
                               "its embedding, the output of its last layer")
        elif features.ndim == {"audio": 3, "visual": 5}[name]:
            samples[name] = features
            looks, real = statistics(features), REAL[name]
            factor = looks["standard deviation"] / real["standard deviation"]
            if (features < 0).any():
                audit.notes.append(f"{path}: has negative values; the published features end in a ReLU and have none")
            elif looks["zeros"] < real["zeros"] / 5:
                audit.notes.append(f"{path}: only {100 * looks['zeros']:.1f} % of its values are zeros; of published "
                                   f"features about {100 * real['zeros']:.0f} % are")
            if not 1 / 5 < factor < 5:
                audit.notes.append(f"{path}: its standard deviation is {factor:.3g} times that of published features; "
                                   "is it scaled, or of another network?")
    print("\n" + statistics_table(samples))


def main():
    parser = OptionParser(__doc__)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--annotations", type=Path, metavar="FILE",
                        help="(default: DATA_DIR/Annotations.txt, if it exists)")
    parser.add_argument("--setting", choices=["both", "fully"], default="both",
                        help="what the folder is to be trained on (default: %(default)s)")
    args = parser.parse_args()

    audit, files, rows = Audit(), {}, []
    has_features = any((args.data_dir / AVE_FILES[name].names[0]).is_file() for name in FEATURES)
    labelled = has_labels(args.data_dir) or not has_features      # of an empty folder, all files are asked for
    names = required_files(SPLITS, weak_training=args.setting == "both") if labelled else required_files([None])
    for name in names:
        path = args.data_dir / AVE_FILES[name].names[0]
        try:
            path = find_files(args.data_dir, [name])[name]
            row, problems = scan(path, name)
            files[name] = path
            rows.append(row)
            audit.problems += problems
        except UserError as error:
            rows.append({"file": path.name, "shape": "unreadable" if path.is_file() else "MISSING"})
            audit.problems.append(str(error) if path.is_file() else
                                  f"{path}: missing ({AVE_FILES[name].content}); get it from {AVE_FILES[name].source}"
                                  + (", or build it with data/prepare_labels.py" if "label" in name else ""))
    print_table(rows)

    default = args.data_dir / "Annotations.txt"
    annotations_path = args.annotations or (default if default.is_file() else None)
    annotations = audit.attempt(read_annotations, annotations_path) if annotations_path else None
    if set(FEATURES) <= files.keys():
        compare_with_real_features(audit, files)
    sizes = audit.attempt(read_sizes, files) if {*FEATURES, *["labels"] * labelled} <= files.keys() else None
    if sizes and annotations and len(annotations) != sizes.num_videos:
        audit.problems.append(f"{annotations_path}: has {len(annotations)} lines, "
                              f"but the data has {sizes.num_videos} videos")
        annotations = None
    if sizes and labelled:
        weak = args.setting == "both" and set(required_files([], weak_training=True)) <= files.keys()
        weak = weak and audit.attempt(check_weak_shapes, files, sizes) is not None
        labels = check_labels(audit, files, sizes, annotations, weak)
        orders = check_orders(audit, files, sizes.num_videos)
        if annotations:
            note_repeated_ids(audit, annotations, orders)
        if labels is not None and orders:
            print()
            print_splits(labels, orders, class_names(annotations, sizes.num_classes), sizes.background)

    for title, lines in (("Worth knowing:", audit.notes), ("Wrong:", audit.problems)):
        if lines:
            print("\n" + title, *(f"  - {line}" for line in lines), sep="\n")
    what = "trained on (fully and weakly supervised)" if args.setting == "both" else "trained on (fully supervised)"
    if not labelled:
        what = "labelled by a trained network (it has features only: no label or order files)"
    print(f"\n{args.data_dir}: can{'not' if audit.problems else ''} be {what}")
    sys.exit(2 if audit.problems else 0)


if __name__ == "__main__":
    with one_line_errors():
        main()
