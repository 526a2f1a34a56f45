"""Names of classes and videos: Annotations.txt, and what a folder without it says."""
import unicodedata
from pathlib import Path
from typing import NamedTuple

from utils import UserError, one_line

# The classes of AVE, in the order of its label files.
AVE_CLASSES = (
    "Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane", "Race car, auto racing",
    "Female speech, woman speaking", "Helicopter", "Violin, fiddle", "Flute", "Ukulele", "Frying (food)", "Truck",
    "Shofar", "Motorcycle", "Acoustic guitar", "Train horn", "Clock", "Banjo", "Goat", "Baby cry, infant cry", "Bus",
    "Chainsaw", "Cat", "Horse", "Toilet flush", "Rodents, rats, mice", "Accordion", "Mandolin", "background")
AVE_ROWS = 4143            # of its label files
AVE_VIDEOS = 4097          # different ones: some stand in several rows
ANNOTATION_HEADER = ["category", "videoid", "quality", "starttime", "endtime"]      # in the archive of the dataset


class Annotation(NamedTuple):
    """One line of Annotations.txt: segments start .. end-1 of the video hold the event."""
    category: str
    video_id: str      # on YouTube
    quality: str
    start: int
    end: int
    line: int = 0      # its number in the file, from 1


def read_annotations(path):
    """The annotations of all videos in the order of the rows; a line is `category&YouTube id&quality&start&end`.

    Skips a header line, blanks around a field, and empty lines at the end. Accents and 'Background' get one form.
    Raises UserError, with the line's number, for a line that is not of this form.
    """
    annotations = []
    for number, line in enumerate(read_lines(path), start=1):
        fields = [" ".join(unicodedata.normalize("NFC", field).split()) for field in line.split("&")]
        if number == 1 and [field.lower().replace(" ", "") for field in fields] == ANNOTATION_HEADER:
            continue
        times = [int(field) for field in fields[3:] if field.isdecimal() and len(field) < 7]
        if len(fields) != 5 or not fields[0] or len(times) != 2 or times[0] > times[1]:
            raise UserError(f"{path}: line {number} is {line[:80]!r}; expected category&YouTube id&quality&start&end "
                            "with whole seconds, start not after end")
        category = "background" if fields[0].lower() == "background" else fields[0]
        annotations.append(Annotation(category, *fields[1:3], *times, number))
    if not annotations:
        raise UserError(f"{path}: contains no annotations")
    return annotations


def read_lines(path):
    """The lines of a text file without the empty ones at its end; UserError if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); it should be text in UTF-8") from error


def class_names(annotations=None, num_classes=None):
    """Names of the classes, background last: AVE's if all annotated categories are AVE's, else the annotated ones.

    These are in the order of their first appearance. If there are none, or num_classes does not fit, they are numbers.
    """
    named = list(dict.fromkeys(line.category for line in annotations or [] if line.category != "background"))
    if named and set(named) <= set(AVE_CLASSES) and num_classes in (None, len(AVE_CLASSES)):
        return list(AVE_CLASSES)
    if num_classes is not None and len(named) != num_classes - 1:
        named = [f"category {index}" for index in range(num_classes - 1)]
    return [*named, "background"]


def match_classes(trained, names):
    """Numbers that classes have among the `trained` ones, by name; None if names on one side are unknown or numbers.

    Raises UserError, with the difference, if they are not the same classes.
    """
    for known in (trained, names):
        if known is None or list(known) == class_names(num_classes=len(known)):
            return None
    missing, extra = (", ".join(name for name in one if name not in other)[:100]
                      for one, other in ((trained, names), (names, trained)))
    if missing or extra:
        raise UserError(f"was trained on other classes: only there {missing or 'none'}; only in the data "
                        f"{extra or 'none'}")
    return [trained.index(name) for name in names]


def names_and_ids(data_dir, annotations_path, sizes):
    """(class names, or None if unknown; name of the video in each row, or None) of a data folder.

    From the annotations (None: Annotations.txt, if it exists); else the class names are known for AVE's label files
    alone, and the videos are named by videos.txt. Raises UserError unless there is one line for each row.
    """
    path, listed = Path(annotations_path or Path(data_dir) / "Annotations.txt"), Path(data_dir) / "videos.txt"
    names = list(AVE_CLASSES) if (sizes.num_rows, sizes.num_classes) == (AVE_ROWS, len(AVE_CLASSES)) else None
    ids = None
    if annotations_path or path.is_file():
        lines = read_annotations(path)
        names, ids = class_names(lines, sizes.num_classes), [line.video_id for line in lines]
    elif listed.is_file():
        path, ids = listed, read_lines(listed)      # line i is the file of row i
    if ids is not None and len(ids) != sizes.num_rows:
        raise UserError(f"{path}: has {len(ids)} lines, but the data has {sizes.num_rows} rows; "
                        "line i must be row i (name the right annotations with --annotations)")
    return names, ids
