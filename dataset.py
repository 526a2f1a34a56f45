"""The AVE dataset as published: HDF5 features and labels, one `AVEDataset` for each split, and the batches of an epoch.

    files = find_files("data", required_files(["train"]))
    train = AVEDataset(files, "train")                       # all features in memory
    train = AVEDataset(files, "train", features="disk")      # or read when they are asked for
    train[0]["visual"]        # [T, h, w, Dv] of one video
    train[[3, 1, 2]]          # a batch of three videos: each value has a leading batch axis

Nothing here depends on the network or on the sizes of AVE: videos, segments, map size, feature widths and the number
of classes are read from the files. The last class is background.
"""
import errno
import math
import os
import re
import shutil
import sys
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from itertools import product
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch.nn.functional import one_hot
from torch.utils.data import Dataset
from tqdm import tqdm


class UserError(Exception):
    """A file or an option cannot be used; the text says which, what is wrong and what to do."""


def one_line(error):
    """The message of an error in printable characters on one line of at most 300."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(character for character in text if character.isprintable())[:300]


class _Lines:
    """A stream for tqdm that prints each state of the bar as a line of its own."""

    def write(self, text):
        text = text.strip()
        if text:
            print(text, file=sys.stderr)

    def flush(self):
        sys.stderr.flush()


def progress_bar(**options):
    """A tqdm bar on standard error: redrawn on a terminal; elsewhere, for example in a log file, a line every 30 s."""
    if sys.stderr is None or getattr(sys.stderr, "closed", False):
        return tqdm(**{**options, "disable": True})
    if getattr(sys.stderr, "isatty", bool)():
        return tqdm(mininterval=0.5, **options)
    return tqdm(mininterval=30, file=_Lines(), **options)


# ------------------------------------------------------------------------------------- names of classes and videos

# The classes of AVE, in the order of its label files.
AVE_CLASSES = (
    "Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane", "Race car, auto racing",
    "Female speech, woman speaking", "Helicopter", "Violin, fiddle", "Flute", "Ukulele", "Frying (food)", "Truck",
    "Shofar", "Motorcycle", "Acoustic guitar", "Train horn", "Clock", "Banjo", "Goat", "Baby cry, infant cry", "Bus",
    "Chainsaw", "Cat", "Horse", "Toilet flush", "Rodents, rats, mice", "Accordion", "Mandolin", "background")
AVE_ROWS = 4143            # of its label files
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

    Skips a header line, blanks around a field, and empty lines at the end.
    Raises UserError, with the line's number, for a line that is not of this form.
    """
    annotations = []
    for number, line in enumerate(read_lines(path), start=1):
        fields = [field.strip() for field in line.split("&")]
        if number == 1 and [field.lower().replace(" ", "") for field in fields] == ANNOTATION_HEADER:
            continue
        times = [int(field) for field in fields[3:] if re.fullmatch(r"[0-9]{1,6}", field)]
        if len(fields) != 5 or not fields[0] or len(times) != 2 or times[0] > times[1]:
            raise UserError(f"{path}: line {number} is {line[:80]!r}; expected category&YouTube id&quality&start&end "
                            "with whole seconds, start not after end")
        annotations.append(Annotation(*fields[:3], *times, number))
    if not annotations:
        raise UserError(f"{path}: contains no annotations")
    return annotations


def read_lines(path):
    """The lines of a text file without the empty ones at its end; UserError if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as text ({one_line(error)}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def unknown_categories(annotations):
    """A note on each category that is not AVE's, if most of them are."""
    count = Counter(annotation.category for annotation in annotations)
    first_line = {annotation.category: annotation.line for annotation in reversed(annotations)}
    unknown = [name for name in count if name not in AVE_CLASSES]
    if 2 * len(unknown) >= len(count):
        return []
    return [f"{name!r} is not a category of AVE ({count[name]} lines, the first is line {first_line[name]}); "
            "a misspelt name makes a class of its own" for name in unknown]


def class_names(annotations=None, num_classes=None):
    """Names of the classes, background last: AVE's if all annotated categories are AVE's, else the annotated ones.

    The annotated ones are in the order of their first appearance. If there are no annotations, or num_classes does not
    fit them, the names are numbers.
    """
    named = list(dict.fromkeys(annotation.category for annotation in annotations or []))
    if named and set(named) <= set(AVE_CLASSES) and num_classes in (None, len(AVE_CLASSES)):
        return list(AVE_CLASSES)
    if num_classes is not None and len(named) != num_classes - 1:
        named = [f"category {index}" for index in range(num_classes - 1)]
    return [*named, "background"]


def names_and_ids(data_dir, annotations_path, sizes, known_names=None):
    """(class names, or None if unknown; name of the video in each row, or None) of a data folder.

    From the annotations if there are any; else the class names are known_names (AVE's for its label file), and the
    videos are named by videos.txt.
    annotations_path: None for Annotations.txt in data_dir, if it exists.
    Raises UserError unless there is one line for each row.
    """
    path, listed = annotations_path or data_dir / "Annotations.txt", data_dir / "videos.txt"
    if annotations_path or path.is_file():
        lines = read_annotations(path)
        names, ids = class_names(lines, sizes.num_classes), [annotation.video_id for annotation in lines]
    else:
        path, names = listed, known_names
        ids = read_lines(listed) if listed.is_file() else None      # line i is the file of row i
        if names is None and (sizes.num_rows, sizes.num_classes) == (AVE_ROWS, len(AVE_CLASSES)):
            names = list(AVE_CLASSES)
    if ids is not None and len(ids) != sizes.num_rows:
        raise UserError(f"{path}: has {len(ids)} lines, but the data has {sizes.num_rows} rows; "
                        "line i must be row i (name the right annotations with --annotations)")
    return names, ids


# ----------------------------------------------------------------------------------------------- published files

SPLITS = ("train", "val", "test")
FEATURES = ("audio", "visual")      # the features of the background videos are in AVE_FILES as '<name>_bg'

_AVE_ECCV18 = "https://github.com/YapengTian/AVE-ECCV18"
_PSP_FILES = "https://drive.google.com/drive/folders/1q8GYBqfkyDDAnVMClrMTXR9YzH9UPcSM"
_LABELS = f"{_PSP_FILES} or data/prepare_labels.py"


class AVEFile(NamedTuple):
    """One of the published files."""
    names: tuple              # file names, the preferred one first
    content: str              # description for messages
    source: str
    key: str = "avadataset"   # its HDF5 dataset


AVE_FILES = {
    "audio": AVEFile(("audio_feature.h5",), "audio features [videos, segments, width]", _AVE_ECCV18),
    "visual": AVEFile(("visual_feature.h5",), "visual feature maps [videos, segments, height, width, channels]",
                      _AVE_ECCV18),
    "labels": AVEFile(("right_labels.h5", "right_label.h5"), "one-hot segment labels [videos, segments, classes]",
                      _LABELS),
    "video_labels": AVEFile(("mil_labels.h5",), "one-hot event category of each video [videos, classes]", _LABELS),
    "label_share": AVEFile(("prob_label.h5",), "share of each label in each video [videos, classes]", _LABELS),
    "audio_bg": AVEFile(("audio_feature_noisy.h5",), "audio features of the background videos", _AVE_ECCV18),
    "visual_bg": AVEFile(("visual_feature_noisy.h5",), "visual feature maps of the background videos", _AVE_ECCV18),
    "labels_bg": AVEFile(("labels_noisy.h5",), "one-hot label of the background videos [videos, classes]", _LABELS),
    "order_train": AVEFile(("train_order.h5",), "rows of the training videos", _PSP_FILES, "order"),
    "order_val": AVEFile(("val_order.h5",), "rows of the validation videos", _PSP_FILES, "order"),
    "order_test": AVEFile(("test_order.h5",), "rows of the test videos", _PSP_FILES, "order"),
}


def required_files(splits, weak_training=False, background_videos=True):
    """Names (in `AVE_FILES`) of the files that these splits are read from.

    splits: [None] for features without labels.
    """
    names = list(FEATURES)
    if splits != [None]:
        names += ["labels", *(f"order_{split}" for split in splits)]
    if weak_training:
        names += ["video_labels", "label_share"]
        if background_videos:
            names += [f"{name}_bg" for name in FEATURES if f"{name}_bg" in AVE_FILES] + ["labels_bg"]
    return names


def has_labels(data_dir, given=None):
    """Whether a label or order file exists, or is given; else the folder holds features without labels."""
    names = ["labels", *(f"order_{split}" for split in SPLITS)]
    return any((given or {}).get(name) is not None for name in names) or any(
        (Path(data_dir) / file_name).exists() for name in names for file_name in AVE_FILES[name].names)


def find_file(data_dir, name, given=None):
    """Path of the file of this name in `AVE_FILES`: `given`, else a published file name in `data_dir`.

    Raises UserError, with what it holds and where it comes from, if it is missing.
    """
    wanted = AVE_FILES[name]
    candidates = [Path(data_dir) / file_name for file_name in wanted.names] if given is None else [Path(given)]
    for path in candidates:
        if path.is_file():
            return path
    problem = "is a folder, not a file" if path.is_dir() else f"missing: {wanted.content}, from {wanted.source}"
    if path.with_suffix(".npy").is_file():
        problem = mending(f"numpy.load('{path.with_suffix('.npy')}')", path, wanted.key)
    raise UserError(f"{' or '.join(map(str, candidates))}: {problem}")


def find_files(data_dir, names, given=None):
    """Path of each named file, see `find_file`; UserError with a line for each missing file."""
    found, missing = {}, []
    for name in names:
        try:
            found[name] = find_file(data_dir, name, (given or {}).get(name))
        except UserError as error:
            missing.append(f"  {error}")
    if missing:
        raise UserError("\n".join([
            f"{len(missing)} data file{'s' * (len(missing) > 1)} not found:", *missing,
            "Put them there, or name another folder with --data_dir.",
            "No features yet? `python data/synthetic.py --output_dir data/synthetic` writes a synthetic set of all "
            "files;\nthen use `--data_dir data/synthetic`."]))
    return found


# -------------------------------------------------------------------------------------------- one HDF5 file

BLOCK_VALUES = 2**24      # that are read at once


def system_error(error):
    """Number of the operating system's error that made h5py fail; None if the system is not the reason."""
    found = re.search(r"errno = ([0-9]+)", str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    return None if number == errno.EINVAL else number      # how it answers the absurd addresses of a broken file


@contextmanager
def hdf5_errors(path):
    """Turns an error of h5py, inside the block, into a UserError that names the file and the reason."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if system_error(error):
            raise UserError(f"{path}: cannot be read ({os.strerror(system_error(error))})") from error
        raise UserError(f"{path}: cannot be read as HDF5 ({one_line(error)}); download or make it again") from error


def mending(array, new_path="NEW.h5", key="avadataset"):
    """Advice: the command that writes an array, given as Python code, as HDF5."""
    program = f"import h5py, numpy; h5py.File('{new_path}', 'w')['{key}'] = {array}"
    return f'write {new_path} with: python -c "{program}"'


@contextmanager
def open_h5(path, key="avadataset", content="numbers"):
    """The HDF5 dataset `key` of a file, to be read; content: its description for messages.

    Raises UserError if it cannot be read, does not hold numbers, or was not written to its end.
    """
    with ExitStack() as stack:
        with hdf5_errors(path):
            if stack.enter_context(open(path, "rb")).read(6) == b"\x93NUMPY":
                raise UserError(f"{path}: is a NumPy file, not HDF5; let its name end in .npy, and "
                                + mending(f"numpy.load('{Path(path).with_suffix('.npy')}')", path, key))
            # The cache holds one chunk of any reasonable file, so that each chunk is decompressed once.
            file = stack.enter_context(h5py.File(path, "r", locking=False, rdcc_nbytes=2**28))
            dataset = _find_dataset(path, file, key, content)
            _check_whole(path, dataset)
        yield dataset
        check_length(path, dataset)


def _find_dataset(path, file, key, content):
    """The dataset `key`; UserError, with what the file holds instead, if it is not an array of numbers."""
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset):
        problem, names = f"has no HDF5 dataset '{key}'", list(file)
        if dataset is not None:
            problem, names = f"'{key}' is a group", [f"{key}/{name}" for name in dataset]
        if not names:
            raise UserError(f"{path}: {problem}, and nothing else; download or make it again")
        name = names[0] if len(names) == 1 else "NAME"
        raise UserError(f"{path}: {problem}; it should hold {content}, and holds {', '.join(names)[:100]}; to choose "
                        "one, " + mending(f"h5py.File('{path}')['{name}'][:]", key=key))
    if dataset.dtype.kind not in "fiub":
        raise UserError(f"{path}: '{key}' holds {dataset.dtype}, not numbers; it should hold {content}")
    if not dataset.shape:
        raise UserError(f"{path}: '{key}' is a single value or empty; it should hold {content}")
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{path}: '{key}' has its numbers in other files; "
                        + mending(f"h5py.File('{path}')['{key}'][:]", key=key))
    return dataset


def _check_whole(path, dataset):
    """Raises UserError if h5py does not have the file's compression, or the file was not written to its end."""
    layout = dataset.id.get_create_plist()
    filters = [layout.get_filter(number) for number in range(layout.get_nfilters())]
    for code, _, _, name in filters:
        if not h5py.h5z.filter_avail(code):
            with suppress(ImportError):
                import hdf5plugin  # noqa: F401
        if not h5py.h5z.filter_avail(code):
            raise UserError(f"{path}: is compressed by filter {code} {name.decode(errors='replace')!r}, which h5py "
                            "does not have; pip install hdf5plugin, or write it without: "
                            f"h5repack -f NONE {path} NEW.h5")
    value_bytes = dataset.id.get_type().get_size()      # in the file
    if dataset.chunks is None:
        whole = dataset.id.get_storage_size() == dataset.size * value_bytes
    else:
        chunks, chunk_bytes = [], math.prod(dataset.chunks) * value_bytes
        dataset.id.chunk_iter(chunks.append)
        starts = [range(0, size, step) for size, step in zip(dataset.shape, dataset.chunks)]
        whole = len(chunks) == math.prod(map(len, starts))
        whole = whole and {chunk.chunk_offset for chunk in chunks} == set(product(*starts))
        for chunk in chunks:      # HDF5 ends the whole program if a chunk is shorter than it expects
            whole = whole and chunk.size >= (4 if filters and not chunk.filter_mask else chunk_bytes)
    if not whole:
        raise UserError(f"{path}: is incomplete: it was not written to its end; download or make it again")


def read_rows(path, dataset, rows):
    """dataset[rows] for a slice of rows, in the file's own dtype; UserError if they cannot be read."""
    with hdf5_errors(path):
        return dataset[rows]


def check_length(path, dataset):
    """UserError if the file became shorter since it was opened: HDF5 reads zeros beyond the new end."""
    file = dataset.file.id
    if os.fstat(file.get_vfd_handle()).st_size < file.get_filesize():
        raise UserError(f"{path}: became shorter while it was in use; start again when it is whole")


def read_finite_rows(path, dataset, rows):
    """As `read_rows`, in float32; UserError if a value is NaN or infinite in float32."""
    with np.errstate(over="ignore"):
        block = read_rows(path, dataset, rows).astype(np.float32, copy=False)
    finite = np.isfinite(block)
    if not finite.all():
        row, *position = map(int, np.argwhere(~finite)[0])
        raise UserError(f"{path}: contains NaN or infinite values (first in row {row + rows.start}, at "
                        f"{tuple(position)}); extract or download it again")
    return block


def blocks_of(dataset):
    """Slices of rows, of about `BLOCK_VALUES` values each, that cover the dataset."""
    step = max(1, BLOCK_VALUES // max(1, math.prod(dataset.shape[1:])))
    return [slice(start, min(start + step, len(dataset))) for start in range(0, len(dataset), step)]


@contextmanager
def new_h5(path, shape, dtype, key="avadataset"):
    """A new HDF5 dataset to be filled; the file gets its name only when it is whole.

    Raises OSError, with the path, if the folder cannot be written to or has no room for the whole file.
    """
    partial = Path(f"{path}.partial")
    room = math.prod(shape) * np.dtype(dtype).itemsize + 2**16      # the values, and what describes them
    try:
        # HDF5 can end the whole program if it runs out of room.
        if shutil.disk_usage(partial.parent).free < room:
            raise OSError(errno.ENOSPC, "")
        with open(partial, "wb") as file:
            if hasattr(os, "posix_fallocate"):      # a quota may leave less
                os.posix_fallocate(file.fileno(), 0, room)
        with h5py.File(partial, "w", locking=False) as file:
            yield file.create_dataset(key, shape, dtype)
        os.replace(partial, path)
    except OSError as error:
        if error.filename or not system_error(error):
            raise
        raise OSError(system_error(error), os.strerror(system_error(error)), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_h5(path, array, key="avadataset"):
    """Writes a whole file."""
    with new_h5(path, array.shape, array.dtype, key) as dataset:
        dataset[...] = array


# ---------------------------------------------------------------------------------------------- published content

class Sizes(NamedTuple):
    """Sizes of the data; same letters as in psp_model.py."""
    num_rows: int          # videos in the files, of all splits together
    num_segments: int      # T
    audio_dim: int         # Da
    map_size: tuple        # (h, w)
    visual_dim: int        # Dv
    num_classes: int       # C with background; None without labels

    @property
    def background(self):
        """Index of the background class, the last."""
        return self.num_classes - 1


def open_file(files, name):
    """The HDF5 dataset of the file of this name in `AVE_FILES`, see `open_h5`."""
    return open_h5(files[name], AVE_FILES[name].key, AVE_FILES[name].content)


def shape_of(files, name):
    """Shape of the file's dataset."""
    with open_file(files, name) as dataset:
        return dataset.shape


def read_sizes(files):
    """Sizes of the data from its main files; UserError if their shapes disagree."""
    shapes = {name: shape_of(files, name) for name in ("labels", *FEATURES) if name in files}
    for name, axes in (("audio", 3), ("visual", 5), ("labels", 3)):
        shape = shapes.get(name, (1,) * axes)
        if len(shape) != axes or 0 in shape:
            advice = ""
            if name == "audio" and len(shape) == 5:
                advice = "; these look like maps of VGGish's last pooling layer, and its last layer is needed"
            if name == "visual" and len(shape) == 3:
                array = f"h5py.File('{files[name]}')['avadataset'][:][:, :, None, None]"
                advice = "; features without a map need 1 x 1 cells: " + mending(array)
            raise UserError(f"{files[name]}: has shape {shape}; expected {AVE_FILES[name].content}{advice}")
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape[:2] != shapes[first][:2]:
            raise UserError(f"{files[name]}: has shape {shape}, but {files[first]} has {shapes[first]}; the first two "
                            "axes, videos and segments, must agree" + _reversed(files, shapes))
    num_rows, num_segments, num_classes = shapes[first]
    if first != "labels":
        num_classes = None
    elif num_classes < 2:
        raise UserError(f"{files['labels']}: has {num_classes} class; at least one category and background are needed")
    return Sizes(num_rows, num_segments, shapes["audio"][2], shapes["visual"][2:4], shapes["visual"][4], num_classes)


def _reversed(files, shapes):
    """Advice on the files whose axes look reversed, as MATLAB and Julia write them; '' if none does."""
    looks = [files[name] for name, shape in shapes.items() for other in shapes
             if other != name and shape[::-1][:2] in (shapes[other][:2], shapes[other][::-1][:2])]
    if not looks:
        return ""
    return (f". The axes of {', '.join(map(str, dict.fromkeys(looks)))} look reversed, as MATLAB and Julia write them: "
            + mending(f"h5py.File('{looks[0]}')['avadataset'][:].T"))


def layout_note(sizes):
    """A note on visual features whose channels seem to come before height and width; '' if they do not."""
    height, width = sizes.map_size
    if height < 4 * max(width, sizes.visual_dim):
        return ""
    return (f"the maps look as if the channels came first: {height} x {width} cells of {sizes.visual_dim} channels; "
            "expected [videos, segments, height, width, channels]: move the channels with "
            "array.transpose(0, 1, 3, 4, 2)")


def background_note(labels, sizes):
    """A note on labels [videos, T] whose background seems to be class 0, not the last class; '' if it does not.

    Background shares a video with many categories, a category with none but background.
    """
    present = one_hot(labels.cpu(), sizes.num_classes).amax(dim=1)      # [videos, C]
    together = present.T @ present > 0
    if sizes.num_classes < 3 or together[0, 1:].double().mean() <= 0.5 or together[-1, 1:-1].any():
        return ""
    return ("class 0 looks like background, since it is in the videos of most other classes; background must be the "
            "last class: numpy.roll(array, -1, axis=-1) moves it, in all label files")


def check_weak_shapes(files, sizes):
    """Number of background videos, 0 without their files; UserError if a file of weak training does not fit."""
    expected = {name: (sizes.num_rows, sizes.num_classes) for name in ("video_labels", "label_share")}
    extra = 0
    if "labels_bg" in files:
        extra = shape_of(files, "labels_bg")[0]
        unmatched = [str(files[name]) for name in FEATURES if f"{name}_bg" not in files]
        if extra == 0 or unmatched:
            raise UserError(f"{', '.join(unmatched) or files['labels_bg']}: no background videos belong to it; "
                            "train without them (--background_videos off)")
        expected |= {f"{name}_bg": (extra, *shape_of(files, name)[1:]) for name in FEATURES}
        expected["labels_bg"] = extra, sizes.num_classes
    for name, shape in expected.items():
        found = shape_of(files, name)
        if found != shape:
            raise UserError(f"{files[name]}: has shape {found}; to fit the other files, the {AVE_FILES[name].content} "
                            f"must have shape {shape}" + "; its axes look reversed" * (found == shape[::-1]))
    return extra


def read_one_hot(files, name):
    """Label index [...] int64 of one-hot rows [..., C]; UserError if a row is not one-hot."""
    labels = []
    with open_file(files, name) as dataset:
        for rows in blocks_of(dataset):
            block = read_finite_rows(files[name], dataset, rows)
            wrong = ~(((block == 0) | (block == 1)).all(axis=-1) & (block.sum(axis=-1) == 1))
            if wrong.any():
                raise UserError(f"{files[name]}: labels are not one-hot (first in row "
                                f"{rows.start + np.argwhere(wrong)[0][0]}); each must be a single 1 among zeros")
            labels.append(block.argmax(axis=-1))
    return torch.from_numpy(np.concatenate(labels))


SHARE_TOLERANCE = 2e-3      # of a share, and of their sum: float16 has no more


def read_label_share(files):
    """prob_label.h5 [videos, C] float32; UserError if the values of a row are negative or do not sum to 1."""
    with open_file(files, "label_share") as dataset:
        share = read_finite_rows(files["label_share"], dataset, slice(0, len(dataset)))
    wrong = ~((share >= 0).all(axis=1) & (abs(share.sum(axis=1) - 1) < SHARE_TOLERANCE))
    if wrong.any():
        raise UserError(f"{files['label_share']}: row {wrong.argmax()} does not hold shares: its values must be 0 or "
                        "more and sum to 1")
    return torch.from_numpy(share)


def read_order(files, name, num_rows):
    """Rows [n] int64 of a split; UserError if it is empty, or names a row that does not exist or twice."""
    path = files[name]
    with open_file(files, name) as dataset:
        if len(dataset.shape) != 1 or dataset.dtype.kind not in "iu":
            raise UserError(f"{path}: holds {dataset.dtype} of shape {dataset.shape}; expected a list of whole "
                            f"numbers, the {AVE_FILES[name].content}")
        order = read_rows(path, dataset, slice(0, len(dataset)))
    if len(order) == 0:
        raise UserError(f"{path}: the split has no videos")
    wrong = (order < 0) | (order >= num_rows)
    if wrong.any():
        raise UserError(f"{path}: names row {order[wrong][0]}, but the labels have rows 0 to {num_rows - 1}")
    repeated = len(order) - len(np.unique(order))
    if repeated:
        raise UserError(f"{path}: names {repeated} rows more than once; get the order files again")
    return torch.from_numpy(order.astype(np.int64))


def feature_attribute(files, name):
    """What data/extract_features.py wrote about the features: the values [n] of this attribute of both files."""
    values = []
    for feature in FEATURES:
        with open_file(files, feature) as dataset, hdf5_errors(files[feature]):
            values.append(np.ravel(dataset.attrs.get(name, [])))
    return np.concatenate(values)


# ------------------------------------------------------------------------------------------------- one split

class AVEDataset(Dataset):
    """The videos of one split.

    `dataset[i]` is a dict of tensors; with a list or tensor of positions, each has a leading batch axis B:

        audio   [T, Da] of dtype         visual [T, h, w, Dv] of dtype
        labels  [T] int64: label of each segment, the last class is background
        video   int64: the video's row in the files (background videos are numbered after the last row)
        label_share  [C] of dtype, with weak=True: share of each label in the video (prob_label.h5)
        video_label  [C] of dtype, with weak=True: one-hot event category of the video (mil_labels.h5)

    files: path of each file by its name in `AVE_FILES`, see `find_files`.
    split: 'train', 'val' or 'test'; None: all videos of features without labels, in the order of the rows.
    weak: adds the video-level labels and, if files names them, the background videos after the videos of the split.
    features: 'memory', read once and held; or 'disk', read when they are asked for.
    dtype: float32 or float64; bfloat16 for visual features that are held in memory, all else is then float32. Values
        are rounded to float32 first.
    device: of all tensors if the features are held in memory; features that are read from disk are on the CPU.
    pinned: features on the CPU come in pinned memory, from which a GPU copies without a wait.

    tensors: all of it by name, indexed by position. sizes: `Sizes`. digest: a checksum of the data.
    without_features: number of videos in the split that data/extract_features.py found no video file for.

    Raises UserError for a file that cannot be read, shapes that disagree, labels that are not one-hot, an order with
    no video or with a row that does not exist, features that are NaN or infinite (found when they are read), and a
    split in which no video has features.
    """

    def __init__(self, files, split, weak=False, features="memory", dtype=torch.float32, device="cpu",
                 pinned=False):
        self.sizes = read_sizes(files)
        self.in_memory = features == "memory"
        self.device, self.pinned = torch.device(device if self.in_memory else "cpu"), pinned
        self.random_weights = bool(feature_attribute(files, "random_weights").any())
        num_rows = self.sizes.num_rows
        rows = torch.arange(num_rows) if split is None else read_order(files, f"order_{split}", num_rows)
        self.without_features = int(np.isin(rows, feature_attribute(files, "rows_without_video")).sum())
        if self.without_features == len(rows):
            raise UserError(f"{files['visual']}: no video of {split or 'this folder'} has features; extract them again "
                            "from a folder with the video files")
        tensors = {"video": rows}
        if split is not None:
            tensors = {"labels": read_one_hot(files, "labels")[rows], "video": rows}
        parts = {name: {name: rows} for name in FEATURES}
        if weak:
            background_videos = check_weak_shapes(files, self.sizes)
            tensors["label_share"] = read_label_share(files)[rows]
            tensors["video_label"] = one_hot(read_one_hot(files, "video_labels")[rows], self.sizes.num_classes)
            if background_videos:
                label = one_hot(read_one_hot(files, "labels_bg"), self.sizes.num_classes)
                background = {
                    "labels": torch.full((background_videos, self.sizes.num_segments), self.sizes.background),
                    "video": self.sizes.num_rows + torch.arange(background_videos),
                    "label_share": label.float(),
                    "video_label": label,
                }
                tensors = {name: torch.cat([value, background[name]]) for name, value in tensors.items()}
                for name in FEATURES:
                    parts[name][f"{name}_bg"] = torch.arange(background_videos)

        number_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        self.tensors = {**{name: FeatureRows(files, parts[name], number_dtype) for name in FEATURES}, **tensors}
        self.digest = self._digest()
        for name in {"label_share", "video_label"} & self.tensors.keys():
            self.tensors[name] = self.tensors[name].to(number_dtype)
        if self.in_memory:
            for name, value in self.tensors.items():
                if isinstance(value, FeatureRows):
                    self.tensors[name] = value.load(dtype if name == "visual" else number_dtype, self.device)
                else:
                    self.tensors[name] = value.to(self.device)

    def _digest(self):
        """Checksum of all labels and of the features of 64 videos."""
        sample = torch.linspace(0, len(self) - 1, min(len(self), 64)).long()
        checksum = 0
        for name, value in self.tensors.items():
            value = value[sample].float() if name in FEATURES else value
            checksum = zlib.crc32(value.numpy(), checksum)
        return f"{checksum:08x}"

    def __len__(self):
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index):
        """The values at a position, or at several with a leading batch axis; in memory of their own."""
        positions = index if torch.is_tensor(index) else torch.arange(len(self), device=self.device)[index]
        return {name: self._rows(value, positions.flatten()).view((*positions.shape, *value.shape[1:]))
                for name, value in self.tensors.items()}

    def _rows(self, value, positions):
        """value[positions]."""
        out = torch.empty(len(positions), *value.shape[1:], dtype=value.dtype, device=self.device,
                          pin_memory=self.pinned)
        if isinstance(value, FeatureRows):
            value.read(positions, out)
        else:
            torch.index_select(value, 0, positions, out=out)
        return out

    def only(self, *names):
        """The same videos, with these values alone."""
        chosen = copy(self)
        chosen.tensors = {name: self.tensors[name] for name in names}
        return chosen


class FeatureRows:
    """Rows of feature files, read when they are asked for; indexed like a tensor by position.

    parts: {name in `AVE_FILES`: rows}, in the order of the positions. The files are opened when they are first read,
    and again in each process that this is pickled to. Values are rounded to float32.
    """

    def __init__(self, files, parts, dtype):
        self._files = {name: files[name] for name in parts}
        self._rows = [(name, row) for name, rows in parts.items() for row in rows.tolist()]      # by position
        self._opened = None
        self.dtype, self.shape = dtype, (len(self._rows), *shape_of(files, next(iter(parts)))[1:])

    def __getstate__(self):
        return {**vars(self), "_opened": None}

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        """[*row] for a whole number, [n, *row] for a slice, list or tensor of positions."""
        positions = torch.arange(len(self))[index]
        out = torch.empty(positions.numel(), *self.shape[1:], dtype=self.dtype)
        self.read(positions.view(-1), out)
        return out.view(*positions.shape, *self.shape[1:])

    def read(self, positions, out):
        """Fills out[i], a tensor [*row] on the CPU, with self[positions[i]].

        Raises UserError if a row cannot be read or is not finite.
        """
        if self._opened is None:
            stack = ExitStack()
            self._opened = stack, {name: stack.enter_context(open_file(self._files, name)) for name in self._files}
        rows = [self._rows[position] for position in positions.tolist()]

        def read_row(i):
            name, row = rows[i]
            block = read_finite_rows(self._files[name], self._opened[1][name], slice(row, row + 1))
            out[i].numpy()[...] = block[0]

        in_file_order = sorted(range(len(rows)), key=rows.__getitem__)
        with ThreadPoolExecutor(2) as readers:      # one reads while the other converts
            list(readers.map(read_row, in_file_order))
        for name, dataset in self._opened[1].items():
            check_length(self._files[name], dataset)

    def load(self, dtype, device):
        """All rows as one tensor of dtype on the device."""
        features = torch.empty(self.shape, dtype=dtype, device=device)
        in_place = dtype == self.dtype and features.device.type == "cpu"
        in_file_order = torch.tensor(sorted(range(len(self)), key=self._rows.__getitem__))
        with progress_bar(total=len(self), desc=f"reading {next(iter(self._files.values()))}", unit="video",
                          leave=False, delay=1) as bar:
            for positions in in_file_order.split(64):
                if in_place:
                    self.read(positions, [features[position] for position in positions])
                else:
                    features[positions.to(device)] = self[positions].to(device, dtype)
                bar.update(len(positions))
        return features


def count_videos(files, splits):
    """Number of videos of these splits, and of the background videos if `files` names them."""
    videos = sum(shape_of(files, f"order_{split}" if split else "visual")[0] for split in splits)
    return videos + (shape_of(files, "visual_bg")[0] if "visual_bg" in files else 0)


# -------------------------------------------------------------------------------------------------- batches

def in_batches(order, batch_size):
    """[videos] -> [steps, B]; the last short batch is dropped."""
    return order[:len(order) // batch_size * batch_size].view(-1, batch_size)


def shuffled(videos, batch_size, seed):
    """Yields the positions of each epoch's batches, int64 [steps, B]; an epoch depends on the seed and its number."""
    epoch = 0
    while True:
        yield in_batches(torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(videos)), batch_size)
        epoch += 1


class TrainingBatches:
    """The batches of every epoch, on the device.

    order: yields the positions of each epoch's batches, like `shuffled`. rank, world_size: of several processes, each
    gets its share of every batch.
    Raises UserError if the batch is larger than the dataset, or does not divide among the processes.
    """

    def __init__(self, dataset, batch_size, seed, device, order=shuffled, rank=0, world_size=1):
        if batch_size > len(dataset):
            raise UserError(f"--batch_size {batch_size} is larger than the training set ({len(dataset)} videos)")
        if batch_size % world_size:
            raise UserError(f"--batch_size {batch_size} is not divisible by the number of processes, {world_size}")
        self.dataset, self.device = dataset, device
        self.rank, self.world_size = rank, world_size
        self.steps = len(dataset) // batch_size
        self._epochs, self._drawn = order(len(dataset), batch_size, seed), 0

    def positions(self, epoch):
        """Positions [steps, B] of this process's batches. Epochs are drawn in rising order, else ValueError."""
        if epoch < self._drawn:
            raise ValueError(f"epoch {epoch} was drawn already")
        while self._drawn <= epoch:      # a resumed run passes over the epochs before
            self._drawn += 1
            positions = next(self._epochs)
        return positions.tensor_split(self.world_size, dim=1)[self.rank]

    def epoch(self, epoch):
        """Yields the batches of an epoch, a dict of tensors each."""
        return load_batches(self.dataset, self.positions(epoch).to(self.dataset.device), self.device)


def load_batches(dataset, positions, device):
    """Yields dataset[p] on the device for each p of positions, which are where the dataset is.

    If the features are elsewhere, a thread reads a batch ahead.
    """
    if dataset.in_memory and dataset.device == device:
        yield from map(dataset.__getitem__, positions)
        return

    def read(p):
        return {name: value.to(device, non_blocking=True) for name, value in dataset[p].items()}

    with ThreadPoolExecutor(1) as reader:
        upcoming = None
        for p in positions:
            read_now, upcoming = upcoming, reader.submit(read, p)
            if read_now:
                yield read_now.result()
        if upcoming:
            yield upcoming.result()
