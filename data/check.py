"""Audits a data folder: are all files present, complete and consistent?

    python data/check.py --data_dir data

Prints a table of the files, the videos of each category and split, what is worth knowing, and what is wrong and how to
fix it. The exit code is 0 only if the folder can be trained on (--setting fully: fully supervised only) or, if it has
features only, labelled. The files are read in blocks: memory stays small. Options for single files (--dir_video, ...)
mean what they mean in the training script; with --setting both, in the weakly supervised one.
"""
import argparse
import re
import sys
from collections import Counter
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.advice import background_first, channels_first, file_advice, shape_advice  # noqa: E402
from data.hdf5 import row_blocks  # noqa: E402
from data.prepare_labels import segment_labels, unknown_categories  # noqa: E402
from dataset import (AVE_FILES, FEATURES, SHARE_TOLERANCE, SPLITS, check_weak_shapes, feature_attribute,  # noqa: E402
                     find_file, has_labels, open_file, read_label_share, read_one_hot, read_order, read_rows,
                     read_sizes, required_files)
from model.class_names import class_names, names_and_ids, read_annotations  # noqa: E402
from model.options import FILE_OPTIONS, add_data_options  # noqa: E402
from utils import OptionParser, UserError, one_line_errors, progress_bar  # noqa: E402

# Of real features: the sounds of the 178 background videos of AVE, and the picture of one clip.
REAL_ZEROS = {"audio": 0.653, "visual": 0.663}      # share of the values
REAL_SPREAD = {"audio": 0.262, "visual": 6.34}      # standard deviation
OTHER_KIND = 5        # times more or less than real features: more than other videos make
OTHER_ROWS = 0.2      # share of videos with other labels than annotated, above which the rows do not belong together


class Audit:
    """Collects problems, each of which keeps the folder from being trained on, and notes, which do not.

    Each is a text, which further lines of advice may follow.
    """

    def __init__(self):
        self.problems, self.notes = [], []

    def problem(self, text, *advice):
        lines = re.sub(r"[;,] 'python data/check\.py .*' says more", "", str(text)), *advice
        if lines not in self.problems:
            self.problems.append(lines)

    def note(self, *lines):
        if lines:
            self.notes.append(lines)

    def attempt(self, function, *arguments, advise=lambda: ()):
        """The function's value; None if it raises UserError, which is a problem, with the lines of advise()."""
        try:
            return function(*arguments)
        except UserError as error:
            self.problem(error, *advise())
            return None


def scan(audit, path, name):
    """(row of the table, numbers of the rows that are all zero) of a file, in float32 as in training.

    Raises UserError if it cannot be read to its end.
    """
    with open_file({name: path}, name) as dataset:
        if dataset.size == 0:
            raise UserError(f"{path}: is empty; it should hold {AVE_FILES[name].content}")
        low, high, zeros, odd, total, squares, zero_rows = np.inf, -np.inf, 0, 0, 0, 0, []
        with progress_bar(total=len(dataset), desc=path.name, unit="row", leave=False, delay=1) as bar, \
                np.errstate(over="ignore", invalid="ignore"):
            for rows in row_blocks(dataset):
                block = read_rows(path, dataset, rows).astype(np.float32, copy=False)
                low, high = np.minimum(low, block.min()), np.maximum(high, block.max())      # NaN stays NaN
                zeros += (block == 0).sum()
                odd += (~np.isfinite(block)).sum()
                total, squares = total + block.sum(dtype=float), squares + np.square(block).sum(dtype=float)
                zero_rows.append(rows.start + np.flatnonzero(~block.reshape(len(block), -1).any(axis=1)))
                bar.update(len(block))
            zeros, spread = zeros / dataset.size, np.sqrt(squares / dataset.size - (total / dataset.size) ** 2)
        row = {"file": path.name, "shape": " x ".join(map(str, dataset.shape)), "dtype": str(dataset.dtype),
               "MB": f"{path.stat().st_size / 1e6:.1f}",
               "layout": dataset.compression or (f"chunked {dataset.chunks}" if dataset.chunks else "contiguous"),
               "range": f"{low:.4g} .. {high:.4g}", "zeros": f"{100 * zeros:.1f} %", "not finite": str(odd)}
    if odd:
        audit.problem(f"{path}: {odd} values are NaN or infinite; extract or download it again")
    elif name in REAL_ZEROS:      # notes what does not look like features of AVE
        if low < 0:
            audit.note(f"{path}: has negative values; the published features end in a ReLU and have none")
        elif zeros < REAL_ZEROS[name] / OTHER_KIND:
            audit.note(f"{path}: only {100 * zeros:.1f} % of its values are zeros; of published features about "
                       f"{100 * REAL_ZEROS[name]:.0f} % are")
        if not 1 / OTHER_KIND < spread / REAL_SPREAD[name] < OTHER_KIND:
            audit.note(f"{path}: its standard deviation is {spread / REAL_SPREAD[name]:.3g} times that of "
                       "published features; is it scaled, or from a different network?")
    return row, np.concatenate(zero_rows)


def print_table(rows):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    widths = {column: max(len(column), *(len(row.get(column, "-")) for row in rows)) for column in columns}
    for row in [{column: column for column in columns}, *rows]:
        print("  ".join(f"{row.get(column, '-'):{widths[column]}}" for column in columns).rstrip())


def scan_files(audit, data_dir, names, given):
    """({name: path}, {name: rows that are all zero}) of the files that can be read; prints the table."""
    files, zero_rows, table = {}, {}, []
    for name in names:
        places = [given[name]] if given.get(name) else [data_dir / file_name for file_name in AVE_FILES[name].names]
        row = {"file": places[0].name, "shape": "MISSING"}
        try:
            places = [find_file(data_dir, name, given.get(name))]
            row["shape"] = "unusable"
            row, zero_rows[name] = scan(audit, places[0], name)
            files[name] = places[0]
        except UserError as error:
            audit.problem(error, *filter(None, (file_advice(path, name) for path in places)))
        table.append(row)
    print_table(table)
    return files, zero_rows


def check_labels(audit, files, sizes, weak):
    """Segment labels [videos, T] int, or None; if weak, do the other labels agree with them?"""
    labels = audit.attempt(read_one_hot, files, "labels")
    if labels is None:
        return None
    audit.note(*background_first(files, labels, sizes))
    labels, background = labels.numpy(), sizes.background
    empty = np.flatnonzero((labels == background).all(axis=1))
    if len(empty):
        audit.note(f"videos with no event at all: {len(empty)} (rows {', '.join(map(str, empty[:10]))})")
    if not weak:
        return labels

    def must_agree(name, wrong, what):
        if wrong.any():
            audit.problem(f"{files[name]}: {wrong.sum()} videos have another {what} than in {files['labels']} "
                                  f"(first in row {wrong.argmax()}); build both with data/prepare_labels.py")

    share = audit.attempt(read_label_share, files)
    if share is not None:
        difference = abs(share.numpy() - np.eye(sizes.num_classes)[labels].mean(axis=1))
        must_agree("label_share", (difference > SHARE_TOLERANCE).any(axis=1), "share of labels")
    category = audit.attempt(read_one_hot, files, "video_labels")
    if category is not None:
        other = (labels != background) & (labels != category.numpy()[:, None])
        must_agree("video_labels", other.any(axis=1), "category")
    noisy = audit.attempt(read_one_hot, files, "labels_bg")
    if noisy is not None and (noisy != background).any():
        audit.problem(f"{files['labels_bg']}: has videos that are not background; "
                              "build it with data/prepare_labels.py")
    return labels


def compare_with_annotations(audit, path, labels, sizes, annotations):
    """A few other labels are a note. With many, the rows do not belong together."""
    expected = audit.attempt(segment_labels, annotations, sizes.num_segments)
    if expected is None:
        return
    num_classes = expected[0].shape[2]
    if num_classes != sizes.num_classes:
        audit.note(f"{path}: has {sizes.num_classes} classes, but the annotations have {num_classes} with background")
        return
    wrong = (expected[0].argmax(axis=2) != labels).any(axis=1)
    text = (f"{path}: {wrong.sum()} of {len(wrong)} videos have other labels than annotated (first in row "
            f"{wrong.argmax()})")
    if wrong.mean() > OTHER_ROWS:
        audit.problem(f"{text}: the rows do not belong together, or the classes have another order; get the "
                              "right annotations, or build the labels with data/prepare_labels.py")
    elif wrong.any():
        audit.note(f"{text}; keep a published file: how it was made from the annotations is not known")


def check_orders(audit, files, num_rows):
    """{split: rows} of the splits that can be read."""
    orders = {split: audit.attempt(read_order, files, f"order_{split}", num_rows) for split in SPLITS
              if f"order_{split}" in files}
    orders = {split: order.tolist() for split, order in orders.items() if order is not None}
    for split, other in combinations(orders, 2):
        shared = set(orders[split]) & set(orders[other])
        if shared:
            audit.problem(f"{files[f'order_{split}']}: shares {len(shared)} rows with the {other} split "
                                  f"(first {min(shared)}); get the order files again")
    unused = num_rows - len(set().union(*orders.values()))
    if len(orders) == len(SPLITS) and unused:
        audit.note(f"{unused} videos are in no split")
    return orders


def check_videos(audit, files, zero_rows, orders):
    """Notes the videos without features in each split; a split in which none has any is a problem."""
    for split, rows in orders.items():
        without = {*zero_rows, *feature_attribute(files, "rows_without_video")} & set(rows)
        text = f"{files['visual']}: {len(without)} of {len(rows)} videos of {split} have no features"
        if len(without) == len(rows):
            audit.problem(f"{text}; extract them again from a folder with the video files")
        elif without:
            audit.note(f"{text}, only zeros (first in row {min(without)}): their video files were missing")


def note_repeated_ids(audit, ids, orders):
    """Notes the videos that occur more than once."""
    repeated = [count for count in Counter(ids).values() if count > 1]
    if repeated:
        audit.note(f"{len(repeated)} ids occur more than once in the annotations: "
                   f"{sum(repeated) - len(repeated)} rows too many")
    for split, other in combinations(orders, 2):
        count = len({ids[row] for row in orders[split]} & {ids[row] for row in orders[other]})
        if count:
            audit.note(f"{count} ids are in both {split} and {other}")


def print_splits(labels, orders, names):
    """Videos of each category in each split, and the share of event segments."""
    event = labels != len(names) - 1
    category = np.take_along_axis(labels, event.argmax(axis=1)[:, None], axis=1)[:, 0]      # of the first event segment
    videos = {name: category == label for label, name in enumerate([*names[:-1], "no event at all"])}
    videos["all videos"] = category >= 0
    shares = {"segments that hold the event": event, "videos with the event in all segments": event.all(axis=1)}
    print()
    print_table([
        *({"category": name, **{split: str(chosen[rows].sum()) for split, rows in orders.items()}}
          for name, chosen in videos.items()),
        *({"category": name, **{split: f"{100 * held[rows].mean():.1f} %" for split, rows in orders.items()}}
          for name, held in shares.items())])


def check_folder(audit, args, given, labelled):
    """Prints the tables of the folder, and collects its problems and notes; given: {name: path} of single files."""
    names = required_files(SPLITS, weak_training=args.setting == "both") if labelled else required_files([None])
    files, zero_rows = scan_files(audit, args.data_dir, names, given)
    path = args.annotations or args.data_dir / "Annotations.txt"
    annotations = audit.attempt(read_annotations, path) if args.annotations or path.is_file() else None
    for text in unknown_categories(annotations or []):
        audit.note(text)
    advise = partial(shape_advice, files)
    whole = {*FEATURES, *["labels"] * labelled} <= files.keys()
    sizes = audit.attempt(read_sizes, files, advise=advise) if whole else None
    if sizes is None:
        return
    if feature_attribute(files, "random_weights").any():
        audit.note(f"{args.data_dir}: the features were made with --random_weights: they mean nothing")
    audit.note(*channels_first(files, sizes))
    orders = {"the folder": range(sizes.num_rows)}
    if labelled:
        names, ids = audit.attempt(names_and_ids, args.data_dir, args.annotations, sizes) or (None, None)
        weak = args.setting == "both" and set(required_files([], weak_training=True)) <= files.keys()
        weak = weak and audit.attempt(check_weak_shapes, files, sizes, advise=advise) is not None
        labels = check_labels(audit, files, sizes, weak)
        orders = check_orders(audit, files, sizes.num_rows)
        if ids:
            note_repeated_ids(audit, ids, orders)
        if labels is not None and annotations and len(annotations) == sizes.num_rows:
            compare_with_annotations(audit, files["labels"], labels, sizes, annotations)
        if labels is not None and orders:
            print_splits(labels, orders, names or class_names(num_classes=sizes.num_classes))
    check_videos(audit, files, zero_rows["visual"].tolist(), orders)


def options():
    """(the options, {name in `dataset.AVE_FILES`: path or None} of those that name a file)."""
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)      # the setting decides on the other options
    before.add_argument("--setting", nargs="?")
    setting = "fully" if before.parse_known_args()[0].setting == "fully" else "weakly"
    parser = OptionParser(__doc__)
    parser.add_argument("--setting", choices=["both", "fully"], default="both",
                        help="what the folder is to be trained on (default: %(default)s)")
    add_data_options(parser, setting)
    args = parser.parse_args()
    return args, {name: getattr(args, option) for option, name in FILE_OPTIONS[setting].items()}


def main():
    args, given = options()
    audit = Audit()
    has_features = any(given[name] or (args.data_dir / AVE_FILES[name].names[0]).is_file() for name in FEATURES)
    labelled = has_labels(args.data_dir, given) or not has_features      # of an empty folder, all files are asked for
    check_folder(audit, args, given, labelled)
    for title, found in (("Worth knowing:", audit.notes), ("Wrong:", audit.problems)):
        if found:
            print("\n" + title, *("  - " + "\n    ".join(lines) for lines in found), sep="\n")
    what = "trained on (fully and weakly supervised)" if args.setting == "both" else "trained on (fully supervised)"
    if not labelled:
        what = "labelled by a trained network (it has features only: no label or order files)"
    print(f"\n{args.data_dir}: can{'not' if audit.problems else ''} be {what}")
    sys.exit(2 if audit.problems else 0)


if __name__ == "__main__":
    with one_line_errors():
        main()
