"""Audits a data folder: are all files present, complete and consistent?

    python data/check.py --data_dir data

Prints the files, the videos of each category and split, what is worth knowing, and what is wrong and how to fix it. The
exit code is 2 if the folder cannot be trained on (--setting fully: fully supervised only) or, if it has only features,
labelled; 1 if training takes it, but what it holds looks wrong; else 0. --dir_* are those of the (weak) training.
"""
import argparse
import re
import sys
from collections import Counter
from itertools import combinations, zip_longest
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.advice import background_first, channels_first, file_advice, rows_advice, shape_advice  # noqa: E402
from data.prepare_labels import doubtful_categories, label_files  # noqa: E402
from dataset import (AVE_FILES, FEATURES, SHARE_TOLERANCE, SPLITS, check_weak_shapes, feature_attribute,  # noqa: E402
                     find_file, open_file, read_label_share, read_one_hot, read_order, read_rows, read_sizes,
                     required_files)
from model.class_names import class_names, names_and_ids, read_annotations  # noqa: E402
from model.data import has_labels  # noqa: E402
from model.options import FILE_OPTIONS, add_data_options  # noqa: E402
from utils import OptionParser, UserError, one_line_errors, progress_bar  # noqa: E402


class Audit:
    """Lines on what training refuses (of background videos: `background`), on what it takes but should not; notes."""

    def __init__(self):
        self.problems, self.background, self.doubts, self.notes = [], [], [], []

    def attempt(self, function, *arguments, advice=()):
        """The function's value; None if it raises UserError, which is a problem."""
        try:
            return function(*arguments)
        except UserError as error:
            self.problems += [str(error), *advice]


def print_table(rows):
    """Prints rows of values; the first row names the columns."""
    columns = list(zip_longest(*rows, fillvalue="-"))
    widths = [max(len(str(value)) for value in column) for column in columns]
    for row in zip(*columns):
        print("  ".join(f"{value!s:{width}}" for value, width in zip(row, widths)).rstrip())


def scan(path, name):
    """(row of the table, rows of zeros alone, rows that are not finite) of a file; UserError if it cannot be used."""
    low, high, zero_rows, odd_rows = np.inf, -np.inf, set(), set()
    with open_file({name: path}, name) as dataset:
        if dataset.size == 0:
            raise UserError(f"{path}: is empty; it should hold {AVE_FILES[name].content}")
        step = max(1, 2**24 * len(dataset) // dataset.size)      # rows that are read at once
        for start in progress_bar(iterable=range(0, len(dataset), step), desc=path.name, leave=False, delay=1):
            with np.errstate(over="ignore", invalid="ignore"):
                block = read_rows(path, dataset, slice(start, start + step)).astype(np.float32)      # as in training
            block = block.reshape(len(block), -1)
            low, high = np.minimum(low, block.min()), np.maximum(high, block.max())      # NaN stays NaN
            zero_rows.update(start + np.flatnonzero(~block.any(axis=1)))
            odd_rows.update(start + np.flatnonzero(~np.isfinite(block).all(axis=1)))
        row = (path.name, " x ".join(map(str, dataset.shape)), dataset.dtype, f"{path.stat().st_size / 1e6:.1f}",
               f"{low:.4g} .. {high:.4g}", len(odd_rows))
    if odd_rows and name not in FEATURES:      # of features, training reads the videos of the splits alone
        raise UserError(f"{path}: {len(odd_rows)} rows hold NaN or infinite values; extract or download it again")
    return row, zero_rows, odd_rows


def scan_files(audit, data_dir, names, given, annotations):
    """Prints the table. ({name: path}, {name: rows of zeros}, {name: rows not finite}) of the usable files."""
    files, zero_rows, odd_rows = {}, {}, {}
    table = [("file", "shape", "dtype", "MB", "range", "rows not finite")]
    for name in names:
        path = given.get(name) or data_dir / AVE_FILES[name].names[0]
        try:
            path = find_file(data_dir, name, given.get(name))
            row, zero_rows[name], odd_rows[name] = scan(path, name)
            files[name] = path
        except UserError as error:
            row = path.name, "unusable" if path.exists() else "MISSING"
            lines = audit.background if name.endswith("_bg") else audit.problems
            lines += [str(error), *file_advice(path, name, annotations)]
        table.append(row)
    print_table(table)
    return files, zero_rows, odd_rows


def check_weak_labels(audit, files, labels, sizes):
    """Do the labels for weak training agree with the segment labels [videos, T]?"""
    alone = {name: path for name, path in files.items() if not name.endswith("_bg")}
    if audit.attempt(check_weak_shapes, alone, sizes, advice=shape_advice(alone)) is None:
        return

    def compare(name, bad, what):      # bad: whether each video is wrong
        if bad.any():
            audit.doubts.append(f"{files[name]}: {bad.sum()} videos have another {what} (first in row {bad.argmax()}); "
                                "build the label files with data/prepare_labels.py")

    share = audit.attempt(read_label_share, files)
    if share is not None:
        difference = abs(share.numpy() - np.eye(sizes.num_classes)[labels].mean(axis=1))
        compare("label_share", (difference > SHARE_TOLERANCE).any(axis=1), f"share of labels than in {files['labels']}")
    category = audit.attempt(read_one_hot, files, "video_labels")
    if category is not None:
        other = (labels != sizes.background).any(axis=1) & (labels != category.numpy()[:, None]).all(axis=1)
        compare("video_labels", other, f"category than in {files['labels']}")
    if not audit.background:
        try:
            check_weak_shapes(files, sizes)
            compare("labels_bg", read_one_hot(files, "labels_bg").numpy() != sizes.background, "label than background")
        except UserError as error:
            audit.background += [str(error), *shape_advice(files)]


def check_orders(audit, files, num_rows, ids):
    """{split: rows} of the splits that can be read; ids: the name of the video in each row, or None."""
    orders = {split: audit.attempt(read_order, files, f"order_{split}", num_rows) for split in SPLITS
              if f"order_{split}" in files}
    orders = {split: order.tolist() for split, order in orders.items() if order is not None}
    repeated = [count for count in Counter(ids).values() if count > 1]
    if repeated:
        audit.notes.append(f"{len(repeated)} ids occur more than once: {sum(repeated) - len(repeated)} rows too many")
    for split, other in combinations(orders, 2):
        rows = set(orders[split]) & set(orders[other])
        if rows:
            audit.doubts.append(f"{files[f'order_{split}']}: shares {len(rows)} rows with the {other} split "
                                f"(first {min(rows)}); get the order files again")
        shared = {ids[row] for row in orders[split]} & {ids[row] for row in orders[other]} if ids else None
        if shared:
            audit.notes.append(f"{len(shared)} ids are in both {split} and {other}")
    return orders


def check_features(audit, files, zero_rows, odd_rows, orders):
    """Training refuses features that are not finite, and a split in which no video has features."""
    missing = set(feature_attribute(files, "rows_without_video"))
    for split, rows in orders.items():
        for name in FEATURES:
            odd = odd_rows[name].intersection(rows)
            if odd:
                audit.problems.append(f"{files[name]}: {len(odd)} of {len(rows)} videos of {split} have values that "
                                      f"are NaN or infinite (first in row {min(odd)}); extract or download it again")
        without = (zero_rows["visual"] | missing).intersection(rows)
        text = f"{files['visual']}: {len(without)} of {len(rows)} videos of {split} have no features"
        if len(without) == len(rows):      # training does not look for zeros
            lines = audit.problems if missing.issuperset(rows) else audit.doubts
            lines.append(f"{text}; extract them again from a folder with the video files")
        elif without:
            audit.notes.append(f"{text}, only zeros (first in row {min(without)}): their video files were missing")


def print_splits(labels, orders, names):
    """Prints the videos of each category in each split, and the share of event segments."""
    columns = [["category", *names[:-1], "no event at all", "all videos", "segments that hold the event"]]
    for split, rows in orders.items():
        event = labels[rows] != len(names) - 1
        videos = [(labels[rows] == label).any(axis=1).sum() for label in range(len(names) - 1)]
        columns.append([split, *videos, (~event).all(axis=1).sum(), len(rows), f"{event.mean():.1%}"])
    print()
    print_table(zip(*columns))


def check_annotations(audit, path, labels, annotations, several):
    """Do labels [videos, T] fit the annotations? A line names one event, so those with `several` are left out."""
    try:
        expected = label_files(annotations, labels.shape[1])["right_labels.h5"].argmax(axis=2)
    except UserError as error:      # training reads the names alone
        audit.notes.append(f"{error}; the labels are not compared with the annotations")
        return
    wrong = (expected != labels).any(axis=1) & ~several
    text = f"{path}: {wrong.sum()} of {len(wrong)} videos differ from the annotations (first in row {wrong.argmax()})"
    if wrong.mean() > 0.2:      # more than corrections of single labels
        audit.doubts.append(f"{text}: the rows do not belong together, or the classes are others; get the right "
                            "annotations, or build the labels with data/prepare_labels.py")
    elif wrong.any():
        audit.notes.append(f"{text}; keep a published file")


def check_labels(audit, files, sizes, annotations, names, ids):
    """Checks label and order files; {split: rows}. names, ids: see `names_and_ids`."""
    orders = check_orders(audit, files, sizes.num_rows, ids)
    labels = audit.attempt(read_one_hot, files, "labels")
    if labels is None:
        return orders
    labels = labels.numpy()
    audit.doubts += background_first(files, labels, sizes)
    empty = np.flatnonzero((labels == sizes.background).all(axis=1))
    if len(empty):
        audit.notes.append(f"videos with no event at all: {len(empty)} (rows {', '.join(map(str, empty[:10]))})")
    first = labels.min(axis=1, keepdims=True)      # background is the last
    several = ((labels != first) & (labels != sizes.background)).any(axis=1)
    if several.any():
        audit.notes.append(f"{several.sum()} videos have events of more than one category (first in row "
                           f"{several.argmax()}); mil_labels.h5 and an annotation name only one of them")
    if {"video_labels", "label_share"} <= files.keys():
        check_weak_labels(audit, files, labels, sizes)
    if annotations and len(annotations) == sizes.num_rows:
        check_annotations(audit, files["labels"], labels, annotations, several)
    if orders:
        print_splits(labels, orders, names or class_names(num_classes=sizes.num_classes))
    return orders


def check_folder(audit, args, given, labelled):
    """Prints the tables, and collects problems and notes; given: {name: path} of single files."""
    names = required_files(SPLITS, weak_training=args.setting == "both") if labelled else required_files([None])
    path = args.annotations or args.data_dir / "Annotations.txt"
    files, zero_rows, odd_rows = scan_files(audit, args.data_dir, names, given, path)
    annotations = audit.attempt(read_annotations, path) if args.annotations or path.is_file() else None
    audit.notes += doubtful_categories(annotations or [])
    if not {*FEATURES, "labels"} & set(names) <= files.keys():
        return
    advice = rows_advice(files, annotations, path)
    sizes = audit.attempt(read_sizes, files, advice=shape_advice(files) + advice)
    if sizes is None:
        return
    if feature_attribute(files, "random_weights").any():
        audit.notes.append(f"{args.data_dir}: the features were made with --random_weights: they mean nothing")
    audit.notes += channels_first(files, sizes)
    found = audit.attempt(names_and_ids, args.data_dir, args.annotations, sizes, advice=advice) or (None, None)
    every_row = {"the folder": range(sizes.num_rows)}
    orders = check_labels(audit, files, sizes, annotations, *found) if labelled else every_row
    check_features(audit, files, zero_rows, odd_rows, orders)


def main():
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)      # the setting decides on the other options
    before.add_argument("--setting", nargs="?")
    setting = "fully" if before.parse_known_args()[0].setting == "fully" else "weakly"
    parser = OptionParser(__doc__)
    parser.add_argument("--setting", choices=["both", "fully"], default="both",
                        help="what the folder is to be trained on (default: %(default)s)")
    add_data_options(parser, setting)
    args = parser.parse_args()
    given = {name: getattr(args, option) for option, name in FILE_OPTIONS[setting].items()}

    audit = Audit()
    has_features = any(given[name] or (args.data_dir / AVE_FILES[name].names[0]).is_file() for name in FEATURES)
    labelled = has_labels(args.data_dir, given) or not has_features      # of an empty folder, all files are asked for
    check_folder(audit, args, given, labelled)
    for title, lines in (("Worth knowing:", audit.notes),
                         ("Weak training needs --background_videos off, since:", audit.background),
                         ("Doubtful:", audit.doubts), ("Wrong:", audit.problems)):
        if lines:
            print("\n" + title)
        for line in dict.fromkeys(lines):
            print("  -", re.sub(r"[;,] 'python data/check\.py .*' says more", "", line))
    option = " with --background_videos off" if audit.background else ""
    what = f"trained on (fully{' and weakly' if args.setting == 'both' else ''} supervised{option})"
    if not labelled:
        what = "labelled by a trained network (it has only features)"
    doubt = ", but see what is doubtful" if audit.doubts and not audit.problems else ""
    print(f"\n{args.data_dir}: can{'not' if audit.problems else ''} be {what}{doubt}")
    sys.exit(2 if audit.problems else 1 if audit.doubts else 0)


if __name__ == "__main__":
    with one_line_errors():
        main()
