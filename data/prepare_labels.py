"""Builds the label files from Annotations.txt: right_labels.h5, prob_label.h5, mil_labels.h5 (and labels_noisy.h5).

    python data/prepare_labels.py --annotations data/Annotations.txt --output_dir data

Line i of the annotations is row i of every file. Segments start .. end-1 hold the event, others background, the last.
"""
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.hdf5 import write_h5  # noqa: E402
from model.class_names import AVE_CLASSES, class_names, read_annotations  # noqa: E402
from utils import (OptionParser, UserError, add_overwrite_option, bounded, one_line_errors,  # noqa: E402
                   refuse_to_overwrite)


def label_files(annotations, segments, background_videos=0):
    """Arrays of the label files by file name, as published: right_labels.h5 [videos, T, C], the others [videos, C].

    Raises UserError, with the line's number, for an event that ends after the last segment.
    """
    names = class_names(annotations)
    category = [names.index(annotation.category) for annotation in annotations]
    label = np.full((len(annotations), segments), len(names) - 1)
    for row, annotation in enumerate(annotations):
        if annotation.end > segments:
            raise UserError(f"--annotations, line {annotation.line} ({annotation.video_id}): the event ends at second "
                            f"{annotation.end}, but a video has {segments}; give --segments")
        label[row, annotation.start:annotation.end] = category[row]
    segment_labels, one_hot = np.eye(len(names))[label], np.eye(len(names), dtype=np.float32)
    return {"right_labels.h5": segment_labels, "prob_label.h5": segment_labels.mean(axis=1),
            "mil_labels.h5": one_hot[category], "labels_noisy.h5": one_hot[[-1] * background_videos]}


def doubtful_categories(annotations):
    """A note on names that differ in case only; and, if most categories are AVE's, on each that is not."""
    count = Counter(annotation.category for annotation in annotations if annotation.category != "background")
    first_line = {annotation.category: annotation.line for annotation in reversed(annotations)}
    notes = [f"{one!r} and {other!r} differ in case only; each makes a class of its own"
             for one, other in combinations(count, 2) if one.casefold() == other.casefold()]
    unknown = [name for name in count if name not in AVE_CLASSES]
    if 2 * len(unknown) < len(count):
        notes += [f"{name!r} is not a category of AVE ({count[name]} lines, the first is line {first_line[name]}); "
                  "a misspelt name makes a class of its own" for name in unknown]
    return notes


def main():
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("--annotations", type=Path, default=Path("data/Annotations.txt"), metavar="FILE",
        help="category&YouTube id&quality&start&end of each video (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("data"), metavar="DIR",
        help="for the label files (default: %(default)s)")
    add("--segments", type=bounded(int, 1, 1000), default=10, help="segments of a video (default: %(default)s)")
    add("--background_videos", type=bounded(int, 0, 10**6), default=178, metavar="N",
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

    names = class_names(annotations)
    print(f"{len(names)} classes:", *(f"{number:>4}  {name}" for number, name in enumerate(names)), sep="\n")
    found = len({annotation.category for annotation in annotations} & set(names[:-1]))
    if found < len(names) - 1:
        print(f"note: only {found} of AVE's {len(names) - 1} categories occur; the labels have all its classes")
    for note in doubtful_categories(annotations):
        print(f"note: {note}")
    for row, annotation in enumerate(annotations):
        if annotation.start == annotation.end:
            print(f"note: line {annotation.line} (video row {row}, {annotation.video_id}) has an event of zero length")


if __name__ == "__main__":
    with one_line_errors():
        main()
