"""Looks a data folder over: is every file there, whole, and of the same data as the others?

    python data/check.py --data_dir data

Prints a table of the files, what is wrong with the remedy, and what is worth knowing. The exit code is 0 only if the folder
can be trained on (--setting fully: fully supervised only). The large files are streamed: memory stays small.
"""
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.prepare_labels import segment_labels  # noqa: E402
from dataset import (AVE_FILES, SPLITS, DataError, check_background_shapes, check_weak_shapes, find_files, label_names, open_file,  # noqa: E402
                     read_annotations, read_label_share, read_one_hot, read_order, read_sizes, required_files)
from utils import OptionParser, run_script  # noqa: E402

BLOCK_BYTES = 2**25
FLOAT32_MAX = float(np.finfo(np.float32).max)      # the networks compute in float32


def scan(path, name):
    """(row of the table, problems) of one file, streamed."""
    row, problems = {"file": path.name}, []
    with open_file(path, name) as file:
        layout = "contiguous" if file.chunks is None else f"chunked {file.chunks}" if file.compression is None else file.compression
        row |= {"shape": " x ".join(map(str, file.shape)), "dtype": str(file.dtype),
                "MB": f"{path.stat().st_size / 1e6:.1f}", "layout": layout}
        low, high, zeros, odd = np.inf, -np.inf, 0, 0
        if file.size == 0:
            return row, [f"{path}: holds nothing; it should hold {AVE_FILES[name].what}"]
        step = max(1, BLOCK_BYTES // max(1, file.dtype.itemsize * int(np.prod(file.shape[1:]))))
        for start in tqdm(range(0, len(file), step), desc=path.name, leave=False, delay=1):
            block = file[start:start + step]
            zeros += block.size - np.count_nonzero(block)
            low, high = np.minimum(low, block.min()), np.maximum(high, block.max())      # NaN stays NaN
            if not (-FLOAT32_MAX <= low and high <= FLOAT32_MAX):
                odd += block.size - np.count_nonzero(abs(block) <= FLOAT32_MAX)
        if odd:
            problems.append(f"{path}: {odd} values are NaN or infinite; extract or download it again")
        row |= {"range": f"{low:.4g} .. {high:.4g}", "zeros": f"{100 * zeros / file.size:.1f} %", "not finite": str(odd)}
    return row, problems


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
        """The function's value; None where it raises DataError, which is a problem."""
        try:
            return function(*arguments)
        except DataError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None


def check_labels(audit, files, sizes, annotations, weak):
    """Segment labels [videos, T] int, or None; agreement with them of the annotations and, if weak, of the other labels."""
    labels = audit.attempt(read_one_hot, files, "labels")
    if labels is None:
        return None
    labels = labels.numpy()
    one_hot = np.eye(sizes.labels)[labels]
    if weak:
        share = audit.attempt(read_label_share, files)
        if share is not None:
            wrong = (abs(share.numpy() - one_hot.mean(axis=1)) > 1e-4).any(axis=1)
            if wrong.any():
                audit.problems.append(
                    f"{files['label_share']}: {wrong.sum()} videos have another share of labels than {files['labels']} (first in "
                    f"row {wrong.argmax()}); build both with data/prepare_labels.py")
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
        expected = audit.attempt(segment_labels, annotations, sizes.segments)
        if expected is not None:
            wrong = (expected[0] != one_hot).any(axis=(1, 2)) if expected[0].shape == one_hot.shape else np.ones(1, bool)
            if wrong.any():
                audit.problems.append(f"{files['labels']}: {wrong.sum()} videos are labelled otherwise than annotated (first in row "
                                      f"{wrong.argmax()}); build it with data/prepare_labels.py")
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
    """What stands more than once on YouTube's side; the rows differ in their category."""
    times = Counter(annotation.video_id for annotation in annotations)
    repeated = [count for count in times.values() if count > 1]
    if repeated:
        audit.notes.append(f"{len(repeated)} ids stand more than once in the annotations: {sum(repeated) - len(repeated)} rows too many")
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
    category = np.where((labels != background).any(axis=1),
                        np.take_along_axis(labels, (labels != background).argmax(axis=1)[:, None], axis=1)[:, 0], background)
    rows = [{"category": name, **{split: str((category[rows] == label).sum()) for split, rows in orders.items()}}
            for label, name in enumerate(names) if label != background or (category == background).any()]
    rows[-1:] = [{**rows[-1], "category": "no event at all"}] if (category == background).any() else rows[-1:]
    rows.append({"category": "all videos", **{split: str(len(rows)) for split, rows in orders.items()}})
    event = labels != background
    rows.append({"category": "segments that hold the event",
                 **{split: f"{100 * event[rows].mean():.1f} %" for split, rows in orders.items()}})
    rows.append({"category": "videos with the event in all segments",
                 **{split: f"{100 * event[rows].all(axis=1).mean():.1f} %" for split, rows in orders.items()}})
    print_table(rows)


def check_shapes_for_weak_training(files, sizes):
    """Number of background videos; DataError where a file of weak training does not fit the others."""
    check_weak_shapes(files, sizes)
    return check_background_shapes(files, sizes)


def main():
    parser = OptionParser(__doc__)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="(default: DATA_DIR/Annotations.txt, if there)")
    parser.add_argument("--setting", choices=["both", "fully"], default="both",
                        help="what the folder is to be trained on (default: %(default)s)")
    args = parser.parse_args()

    audit, files, rows = Audit(), {}, []
    for name in required_files(SPLITS, weak_training=args.setting == "both"):
        path = args.data_dir / AVE_FILES[name].names[0]
        try:
            path = find_files(args.data_dir, [name])[name]
            row, problems = scan(path, name)
            files[name] = path
            rows.append(row)
            audit.problems += problems
        except DataError as error:
            rows.append({"file": path.name, "shape": "unreadable" if path.is_file() else "MISSING"})
            audit.problems.append(str(error) if path.is_file() else
                                  f"{path}: missing ({AVE_FILES[name].what}); get it from {AVE_FILES[name].source}" + (
                                      ", or build it with data/prepare_labels.py" if "label" in name else ""))
    print_table(rows)

    default = args.data_dir / "Annotations.txt"
    annotations_path = args.annotations or (default if default.is_file() else None)
    annotations = audit.attempt(read_annotations, annotations_path) if annotations_path else None
    sizes = audit.attempt(read_sizes, files) if {"audio", "visual", "labels"} <= files.keys() else None
    if sizes and annotations and len(annotations) != sizes.videos:
        audit.problems.append(f"{annotations_path}: has {len(annotations)} lines, but the data has {sizes.videos} videos")
        annotations = None
    if sizes:
        weak = args.setting == "both" and set(required_files([], weak_training=True)) <= files.keys()
        weak = weak and audit.attempt(check_shapes_for_weak_training, files, sizes) is not None
        labels = check_labels(audit, files, sizes, annotations, weak)
        orders = check_orders(audit, files, sizes.videos)
        if annotations:
            note_repeated_ids(audit, annotations, orders)
        if labels is not None and orders:
            print()
            print_splits(labels, orders, label_names(annotations, sizes.labels), sizes.background)

    for title, lines in (("Worth knowing:", audit.notes), ("Wrong:", audit.problems)):
        if lines:
            print("\n" + title, *(f"  - {line}" for line in lines), sep="\n")
    what = "fully and weakly supervised" if args.setting == "both" else "fully supervised"
    print(f"\n{args.data_dir}: can{'not' if audit.problems else ''} be trained on ({what})")
    sys.exit(2 if audit.problems else 0)


if __name__ == "__main__":
    run_script(main)
