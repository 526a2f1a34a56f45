"""Names of videos and classes: Annotations.txt of AVE, and videos.txt of videos that nobody has annotated."""
import re
from pathlib import Path
from typing import NamedTuple

from data.files import UserError, one_line

# Names of the classes of AVE, in the order of its label files.
AVE_CLASSES = (
    "Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane", "Race car, auto racing",
    "Female speech, woman speaking", "Helicopter", "Violin, fiddle", "Flute", "Ukulele", "Frying (food)", "Truck",
    "Shofar", "Motorcycle", "Acoustic guitar", "Train horn", "Clock", "Banjo", "Goat", "Baby cry, infant cry", "Bus",
    "Chainsaw", "Cat", "Horse", "Toilet flush", "Rodents, rats, mice", "Accordion", "Mandolin", "background")


class Annotation(NamedTuple):
    """One line of Annotations.txt: segments start .. end-1 of the video hold the event."""
    category: str
    video_id: str      # on YouTube
    quality: str
    start: int
    end: int


def read_annotations(path):
    """The annotations of all videos, a line `category&YouTube id&quality&start&end` each, in the order of the rows.

    Raises UserError, with the line's number, for a line that is not of that form.
    """
    annotations = []
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split("&")
        times = [field for field in fields[3:] if re.fullmatch(r"[0-9]{1,6}", field)]
        if len(fields) != 5 or not fields[0] or len(times) != 2 or int(fields[3]) > int(fields[4]):
            raise UserError(f"{path}: line {number} is {line[:80]!r}; expected category&YouTube id&quality&start&end "
                            "with whole seconds, start not after end")
        annotations.append(Annotation(*fields[:3], int(fields[3]), int(fields[4])))
    if not annotations:
        raise UserError(f"{path}: contains no annotations")
    return annotations


def read_lines(path):
    """Lines of a text file; UserError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{path}: cannot be read as text ({reason})") from error


def class_names(annotations=None, num_classes=len(AVE_CLASSES)):
    """Names of the classes, background last.

    Those of AVE where the annotations (or, without any, the number of classes) fit them; else the annotations'
    categories in the order of their first appearance; else numbers.
    """
    named = list(dict.fromkeys(annotation.category for annotation in annotations or []))
    if set(named) <= set(AVE_CLASSES) and num_classes == len(AVE_CLASSES):
        return list(AVE_CLASSES)
    if len(named) != num_classes - 1:
        named = [f"category {index}" for index in range(num_classes - 1)]
    return [*named, "background"]


def names_and_ids(data_dir, annotations_path, num_videos, num_classes):
    """Class names, and the name of each video by row: from the annotations, else from videos.txt, else None.

    annotations_path: None for Annotations.txt in data_dir, if it exists.
    Raises UserError where there is not one line for each video.
    """
    path, listed = annotations_path or data_dir / "Annotations.txt", data_dir / "videos.txt"
    if annotations_path or path.is_file():
        lines = read_annotations(path)
        names, ids = class_names(lines, num_classes), [annotation.video_id for annotation in lines]
    else:
        path, names = listed, class_names(num_classes=num_classes)
        ids = read_lines(listed) if listed.is_file() else None      # line i is the file of video row i
    if ids is not None and len(ids) != num_videos:
        raise UserError(f"{path}: has {len(ids)} lines, but the data has {num_videos} videos; "
                        "line i must be video row i (name the right annotations with --annotations)")
    return names, ids
