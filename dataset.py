"""The AVE dataset as published: HDF5 features and labels, one `AVEDataset` for each split of either setting.

    files = find_files("data", required_files(["train"]))
    train = AVEDataset(files, "train")                       # all features in memory
    train = AVEDataset(files, "train", features="disk")      # or read when they are asked for
    train[0]["visual"]        # [T, h, w, Dv] float32 of one video
    train[[3, 1, 2]]          # a batch of three, each value with a leading batch axis

Nothing here is tied to one network, nor to the sizes of AVE: videos, segments, map size, feature widths and the number
of labels are read from the files. The last label is background.
"""
import math
import os
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

SPLITS = ("train", "val", "test")

# Names of the labels of AVE, in the order of its label files.
AVE_LABELS = (
    "Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane", "Race car, auto racing",
    "Female speech, woman speaking", "Helicopter", "Violin, fiddle", "Flute", "Ukulele", "Frying (food)", "Truck",
    "Shofar", "Motorcycle", "Acoustic guitar", "Train horn", "Clock", "Banjo", "Goat", "Baby cry, infant cry", "Bus",
    "Chainsaw", "Cat", "Horse", "Toilet flush", "Rodents, rats, mice", "Accordion", "Mandolin", "background")

_AVE_ECCV18 = "https://github.com/YapengTian/AVE-ECCV18"
_PSP_FILES = "https://drive.google.com/drive/folders/1q8GYBqfkyDDAnVMClrMTXR9YzH9UPcSM"


class DataError(Exception):
    """A data file is missing, broken, or does not fit the others; the text says which, what and what to do."""


class AVEFile(NamedTuple):
    """One of the published files."""
    names: tuple   # file names it is known by, the preferred one first
    what: str      # what it holds, for a person
    source: str    # where it comes from
    key: str = "avadataset"   # its HDF5 dataset


AVE_FILES = {
    "audio": AVEFile(("audio_feature.h5",), "audio features [videos, segments, width]", _AVE_ECCV18),
    "visual": AVEFile(("visual_feature.h5",), "visual feature maps [videos, segments, height, width, channels]", _AVE_ECCV18),
    "labels": AVEFile(("right_labels.h5", "right_label.h5"), "one-hot segment labels [videos, segments, labels]", _PSP_FILES),
    "video_labels": AVEFile(("mil_labels.h5",), "one-hot event category of each video [videos, labels]", _PSP_FILES),
    "label_share": AVEFile(("prob_label.h5",), "share of each label in each video [videos, labels]", _PSP_FILES),
    "audio_bg": AVEFile(("audio_feature_noisy.h5",), "audio features of the background videos", _AVE_ECCV18),
    "visual_bg": AVEFile(("visual_feature_noisy.h5",), "visual feature maps of the background videos", _AVE_ECCV18),
    "labels_bg": AVEFile(("labels_noisy.h5",), "one-hot label of the background videos [videos, labels]", _PSP_FILES),
    "order_train": AVEFile(("train_order.h5",), "rows of the training videos", _PSP_FILES, "order"),
    "order_val": AVEFile(("val_order.h5",), "rows of the validation videos", _PSP_FILES, "order"),
    "order_test": AVEFile(("test_order.h5",), "rows of the test videos", _PSP_FILES, "order"),
}


def required_files(splits, weak_training=False, background_videos=True):
    """Names (of `AVE_FILES`) of the files that these splits are read from; weak training needs two or five more."""
    names = ["audio", "visual", "labels", *(f"order_{split}" for split in splits)]
    if weak_training:
        names += ["video_labels", "label_share"]
        if background_videos:
            names += ["audio_bg", "visual_bg", "labels_bg"]
    return names


def find_files(data_dir, names, given=None):
    """Path of each named file: `given[name]` where that is set, else a published file name in `data_dir`.

    Raises DataError with one message for all that are missing: what each is and where it comes from.
    """
    given = {name: Path(path) for name, path in (given or {}).items() if path is not None}
    found, missing = {}, []
    for name in names:
        wanted = AVE_FILES[name]
        candidates = [given[name]] if name in given else [Path(data_dir) / file_name for file_name in wanted.names]
        found[name] = next((path for path in candidates if path.is_file()), None)
        if found[name] is None:
            where = " or ".join(map(str, candidates))
            problem = "is a folder, not a file" if candidates[0].is_dir() else wanted.what
            missing.append(f"  {where}: {problem}\n      from {wanted.source}")
    if missing:
        raise DataError("\n".join([
            f"{len(missing)} data file{'s' * (len(missing) > 1)} not found:", *missing,
            "Put them there, or name another folder with --data_dir.",
            "No features at hand? `python data/synthetic.py --output_dir data/synthetic` writes a synthetic set of all "
            "files;\nthen use `--data_dir data/synthetic`."]))
    return found


class Sizes(NamedTuple):
    """Sizes of the data; the letters are those of psp_model.py."""
    videos: int        # rows of the files, all splits together
    segments: int      # T
    audio_dim: int     # Da
    map_size: tuple    # (h, w)
    visual_dim: int    # Dv
    labels: int        # C, background included

    @property
    def background(self):
        """Index of the background label: the last."""
        return self.labels - 1


class AVEDataset(Dataset):
    """The videos of one split.

    `dataset[i]` is a dict of tensors; with a list or tensor of positions, each has a leading batch axis B:

        audio   [T, Da] float32          visual [T, h, w, Dv] float32
        labels  [T] int64: label of each segment, the last one is background
        video   int64: the video's row in the files (background videos count on behind the last row)
        label_share  [C] float32, with weak=True: share of each label in the video (prob_label.h5)
        video_label  int64, with weak=True: event category of the video (mil_labels.h5)

    files: path of each file by its name in `AVE_FILES`, see `find_files`.
    split: 'train', 'val' or 'test'.
    weak: adds the video-level labels and, behind the videos of the split, the background videos where files names them.
    features: 'memory', read once and held; or 'disk', read again for each item and never held.
    dtype: of visual features held in memory (torch.bfloat16 takes half the room).
    device: where everything is held in memory, and comes from; features read from disk come to main memory.

    Raises DataError for a file that cannot be read, shapes that disagree, labels that are not one-hot, an order with
    no video or with a row that does not exist, and features that are NaN or infinite (found when they are read).
    """

    def __init__(self, files, split, weak=False, features="memory", dtype=torch.float32, device="cpu"):
        self.split = split
        self.weak = weak
        self.sizes = read_sizes(files)
        self.video = read_order(files, f"order_{split}", self.sizes.videos)
        self.labels = read_one_hot(files, "labels")[self.video]
        audio, visual = [("audio", self.video)], [("visual", self.video)]
        if weak:
            check_weak_shapes(files, self.sizes)
            self.video_label = read_one_hot(files, "video_labels")[self.video]
            self.label_share = read_label_share(files)[self.video]
        if weak and "labels_bg" in files:
            background_rows = torch.arange(check_background_shapes(files, self.sizes))
            self._add_background_videos(files, background_rows)
            audio.append(("audio_bg", background_rows))
            visual.append(("visual_bg", background_rows))
        self.place = torch.device(device) if features == "memory" else None      # None: not in memory
        self.audio, self.visual = FeatureRows(files, audio), FeatureRows(files, visual)
        self._digest = [self._digest_of_sample()]
        if features == "memory":
            audio, visual = self.audio, self.visual
            self.audio, self.visual = audio.load(torch.float32, device), visual.load(dtype, device)
            self._digest.append(f"{audio.checksum:08x}{visual.checksum:08x}")
            for name in set(self._names()) - {"audio", "visual"}:
                setattr(self, name, getattr(self, name).to(device))

    def _add_background_videos(self, files, background_rows):
        """All labels of the background videos, behind those of the split."""
        background_label = read_one_hot(files, "labels_bg")
        background_share = torch.nn.functional.one_hot(background_label, self.sizes.labels).float()
        background_segments = torch.full((len(background_rows), self.sizes.segments), self.sizes.background)
        self.video_label = torch.cat([self.video_label, background_label])
        self.label_share = torch.cat([self.label_share, background_share])
        self.labels = torch.cat([self.labels, background_segments])
        self.video = torch.cat([self.video, self.sizes.videos + background_rows])

    def _digest_of_sample(self):
        sample = torch.linspace(0, len(self) - 1, min(len(self), 64)).long()
        checksum = 0
        for name in self._names():
            values = getattr(self, name)[sample if name in ("audio", "visual") else slice(None)]
            checksum = zlib.crc32(values.numpy(), checksum)
        return f"{checksum:08x}"

    def digest(self):
        """Checksums that tell whether two runs had the same data: [of all labels and the features of 64 videos, of all
        features]; without the second where the features stay on disk."""
        return list(self._digest)

    def _names(self):
        return ["audio", "visual", "labels", "video"] + (["label_share", "video_label"] if self.weak else [])

    def __len__(self):
        return len(self.video)

    def __getitem__(self, index):
        return {name: getattr(self, name)[index] for name in self._names()}

    def batch(self, positions, visual):
        """`self[positions]` with the visual features written into the tensor `visual`, whose memory can so be used again."""
        if isinstance(self.visual, FeatureRows):
            self.visual.read(positions, visual)
        else:
            torch.index_select(self.visual, 0, positions, out=visual)
        return {name: visual if name == "visual" else getattr(self, name)[positions] for name in self._names()}


# ------------------------------------------------------------------------------------------ annotations

class Annotation(NamedTuple):
    """One line of Annotations.txt: segments start .. end-1 of the video hold the event."""
    category: str
    video_id: str      # on YouTube
    quality: str
    start: int
    end: int


def read_annotations(path):
    """The annotations of all videos, a line `category&YouTube id&quality&start&end` each, in the order of the rows.

    Raises DataError, with the line's number, for a line that is not of that form.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: not found, or not a file")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({_first_line(error)})") from error
    annotations = []
    for number, line in enumerate(lines, start=1):
        fields = line.split("&")
        times = [field for field in fields[3:] if re.fullmatch(r"[0-9]{1,6}", field)]
        if len(fields) != 5 or not fields[0] or len(times) != 2 or int(fields[3]) > int(fields[4]):
            raise DataError(f"{path}: line {number} is {line[:80]!r}; expected category&YouTube id&quality&start&end "
                            "with whole seconds, start not after end")
        annotations.append(Annotation(*fields[:3], int(fields[3]), int(fields[4])))
    if not annotations:
        raise DataError(f"{path}: holds no annotations")
    return annotations


def label_names(annotations=None, labels=len(AVE_LABELS)):
    """Names of the `labels` labels, background last.

    Those of AVE where the annotations (or, without any, the number of labels) fit them; else the annotations'
    categories in the order of their first appearance; else numbers.
    """
    named = list(dict.fromkeys(annotation.category for annotation in annotations or []))
    if set(named) <= set(AVE_LABELS) and labels == len(AVE_LABELS):
        return list(AVE_LABELS)
    if len(named) != labels - 1:
        named = [f"category {index}" for index in range(labels - 1)]
    return [*named, "background"]


# ------------------------------------------------------------------------------------- reading the files

@contextmanager
def open_file(path, name):
    """The HDF5 dataset of the AVE file `name` at `path`; DataError where it cannot be read, or is not whole."""
    with ExitStack() as stack:
        try:
            # A cache that holds one chunk of any reasonable file, so that a chunk is decompressed once.
            file = stack.enter_context(h5py.File(path, "r", rdcc_nbytes=2**28))
            dataset = _whole_dataset(path, name, file)
        except DataError:
            raise
        except BlockingIOError as error:
            raise DataError(f"{path}: another process is writing to it; wait until that is done") from error
        except PermissionError as error:
            raise DataError(f"{path}: may not be read (permission denied)") from error
        except Exception as error:      # whatever a broken file leads HDF5 into
            raise _unreadable(path, error) from error
        yield dataset


def _whole_dataset(path, name, file):
    """The HDF5 dataset in an open file; DataError where it is not numbers that all lie in this file."""
    key, what = AVE_FILES[name].key, AVE_FILES[name].what
    if isinstance(file.get(key, getlink=True), h5py.ExternalLink):
        raise DataError(f"{path}: '{key}' is a link to another file; name that file instead")
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset):
        others = [str(other) for other in file if other != key]
        raise DataError(f"{path}: has no HDF5 dataset '{key}' (it has: {', '.join(others)[:100] or 'nothing else'}); "
                        f"it should hold {what}")
    if dataset.dtype.kind not in "fiu":
        raise DataError(f"{path}: '{key}' holds {dataset.dtype}, not numbers")
    if not dataset.shape:
        raise DataError(f"{path}: '{key}' is a single value or nothing; it should hold {what}")
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{path}: '{key}' has its numbers in other files; copy them into one (h5repack does)")
    if dataset.chunks is None:
        missing = dataset.nbytes - dataset.id.get_storage_size()
    else:
        missing = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks)) - dataset.id.get_num_chunks()
    if missing > 0:
        raise DataError(f"{path}: was never written to its end; download or make it again")
    return dataset


def _unreadable(path, error):
    return DataError(f"{path}: cannot be read as HDF5 ({_first_line(error)}); download or make it again")


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def _shape(files, name):
    with open_file(files[name], name) as file:
        return file.shape


def visual_values(files, splits):
    """How many numbers the visual features of these splits are, with those of the background videos where files names them."""
    videos = sum(_shape(files, f"order_{split}")[0] for split in splits)
    if "visual_bg" in files:
        videos += _shape(files, "visual_bg")[0]
    return videos * math.prod(_shape(files, "visual")[1:])


def read_sizes(files):
    """Sizes of the data from its three main files; DataError where their shapes disagree."""
    for name, axes in (("labels", 3), ("audio", 3), ("visual", 5)):
        shape = _shape(files, name)
        if len(shape) != axes or 0 in shape:
            raise DataError(f"{files[name]}: has shape {shape}; expected {AVE_FILES[name].what}")
    videos, segments, labels = _shape(files, "labels")
    audio_dim = _shape(files, "audio")[2]
    height, width, visual_dim = _shape(files, "visual")[2:]
    _check_shape(files, "audio", (videos, segments, audio_dim), "labels")
    _check_shape(files, "visual", (videos, segments, height, width, visual_dim), "labels")
    if labels < 2:
        raise DataError(f"{files['labels']}: has {labels} label; at least one category and background are needed")
    return Sizes(videos, segments, audio_dim, (height, width), visual_dim, labels)


def check_weak_shapes(files, sizes):
    """DataError where a file of video-level labels does not fit the others."""
    for name in ("video_labels", "label_share"):
        _check_shape(files, name, (sizes.videos, sizes.labels), "labels")


def check_background_shapes(files, sizes):
    """Number of background videos; DataError where a file of theirs does not fit the others."""
    extra = _shape(files, "labels_bg")[0]
    if extra == 0:
        raise DataError(f"{files['labels_bg']}: holds no background video; train without them (--background_videos off)")
    _check_shape(files, "labels_bg", (extra, sizes.labels), "labels")
    _check_shape(files, "audio_bg", (extra, sizes.segments, sizes.audio_dim), "audio")
    _check_shape(files, "visual_bg", (extra, sizes.segments, *sizes.map_size, sizes.visual_dim), "visual")
    return extra


def _check_shape(files, name, expected, other):
    shape = _shape(files, name)
    if shape != expected:
        raise DataError(f"{files[name]}: has shape {shape}, but {files[other]} asks for {expected}; "
                        "the two are not of the same data")


def _read_block(path, file, rows):
    """The rows (a slice) as the file holds them, float64 as float32; DataError where one is NaN or infinite."""
    try:
        block = file[rows]
    except Exception as error:      # as above
        raise _unreadable(path, error) from error
    if block.dtype.kind == "f" and block.dtype.itemsize > 4:
        with np.errstate(over="ignore"):      # what is too large for float32 becomes infinite, and is found below
            block = block.astype(np.float32)
    _check_finite(path, block, rows.start)
    return block


def _check_finite(path, block, first_row):
    """DataError where a value of the block, whose first row is that of the file, is NaN or infinite."""
    # NaN and infinity both survive a sum, so that one pass without a copy tells of most blocks that they are right.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(block.sum()):
            return
    wrong = np.argwhere(~np.isfinite(block))
    if len(wrong):
        row, *position = map(int, wrong[0])
        raise DataError(f"{path}: holds NaN or infinite values (first in video row {row + first_row}, at "
                        f"{tuple(position)}); extract or download it again")


def _read_blocks(files, name):
    """The whole dataset in blocks of at most 2^24 values."""
    with open_file(files[name], name) as file:
        rows = max(1, 2**24 // math.prod(file.shape[1:]))
        for start in range(0, len(file), rows):
            yield _read_block(files[name], file, slice(start, min(start + rows, len(file))))


def read_one_hot(files, name):
    """Label index [...] int64 of one-hot rows [..., C]; DataError where a row is not one-hot."""
    labels, first = [], 0
    for one_hot in _read_blocks(files, name):
        wrong = ~(((one_hot == 0) | (one_hot == 1)).all(axis=-1) & (one_hot.sum(axis=-1) == 1))
        if wrong.any():
            raise DataError(f"{files[name]}: labels are not one-hot (first in video row {first + np.argwhere(wrong)[0][0]}); "
                            "each must be a single 1 among zeros")
        labels.append(one_hot.argmax(axis=-1))
        first += len(one_hot)
    return torch.from_numpy(np.concatenate(labels))


def read_label_share(files):
    """prob_label.h5 [videos, C] float32; DataError where a row is no share: 0 or more, sum 1."""
    share = np.concatenate(list(_read_blocks(files, "label_share")))
    wrong = ~((share >= 0).all(axis=1) & (abs(share.sum(axis=1) - 1) < 1e-3))
    if wrong.any():
        raise DataError(f"{files['label_share']}: row {wrong.argmax()} is no share of labels: its values must be "
                        "0 or more and sum to 1")
    return torch.from_numpy(share.astype(np.float32))


def read_order(files, name, videos):
    """Video rows [n] int64 of a split; DataError where it is empty, or names a row that does not exist or twice."""
    path = files[name]
    with open_file(path, name) as file:
        if len(file.shape) != 1 or file.dtype.kind not in "iu":
            raise DataError(f"{path}: holds {file.dtype} of shape {file.shape}; expected a list of whole numbers, "
                            f"the {AVE_FILES[name].what}")
        order = _read_block(path, file, slice(0, len(file)))
    if len(order) == 0:
        raise DataError(f"{path}: the split has no videos")
    wrong = (order < 0) | (order >= videos)
    if wrong.any():
        raise DataError(f"{path}: names video row {order[wrong][0]}, but {files['labels']} has rows 0 to {videos - 1}")
    if len(np.unique(order)) < len(order):
        raise DataError(f"{path}: names {len(order) - len(np.unique(order))} rows more than once; get the order files again")
    return torch.from_numpy(order.astype(np.int64))


class FeatureRows:
    """Rows of feature files as float32, read anew whenever they are asked for; indexed like a tensor along its first axis.

    parts: (name of the file in `files`, rows wanted of it) each, one behind the other.
    """

    def __init__(self, files, parts):
        self._parts = files, parts      # all that another process needs to open the files for itself
        self._files = [FeatureFile(files[name], name) for name, _ in parts]
        self._file_of = np.repeat(np.arange(len(parts)), [len(rows) for _, rows in parts])      # by position
        self._row_of = np.concatenate([rows.numpy() for _, rows in parts])
        self._row_shape = self._files[0].dataset.shape[1:]
        self.checksum = None

    def __reduce__(self):
        return FeatureRows, self._parts

    def __len__(self):
        return len(self._row_of)

    def __getitem__(self, index):
        """[*row] float32 for a whole number, [n, *row] for a slice, list or tensor of positions."""
        positions = torch.arange(len(self))[index]
        out = torch.empty(positions.numel(), *self._row_shape)
        self.read(positions.view(-1), out)
        return out.view(*positions.shape, *self._row_shape)

    def read(self, positions, out):
        """out[i] = self[positions[i]], of float32 tensors."""
        with ThreadPoolExecutor(READERS) as readers:
            self._read(positions.numpy(), list(out.numpy()), readers)

    def _read(self, positions, out, readers):
        for number, file in enumerate(self._files):
            of_file = np.flatnonzero(self._file_of[positions] == number)
            file.read(self._row_of[positions[of_file]], [out[i] for i in of_file], readers)

    def load(self, dtype, device):
        """All rows as one tensor of dtype on the device; sets `checksum`, that of their float32 values."""
        features = torch.empty(len(self), *self._row_shape, dtype=dtype, device=device)
        as_read = dtype == torch.float32 and features.device.type == "cpu"
        block = torch.empty(max(1, 2**23 // math.prod(self._row_shape)), *self._row_shape)
        checksums = np.empty(len(self), np.uint32)
        in_file_order = np.lexsort([self._row_of, self._file_of])
        with ThreadPoolExecutor(READERS) as readers, \
             tqdm(total=len(self), desc=f"reading {self._files[0].path.name}", unit="video", leave=False, delay=1) as bar:
            for start in range(0, len(self), len(block)):
                positions = in_file_order[start:start + len(block)]
                rows = list(block[:len(positions)].numpy()) if not as_read else [features[i].numpy() for i in positions]
                self._read(positions, rows, readers)
                checksums[positions] = list(readers.map(zlib.crc32, rows))
                if not as_read:
                    features[torch.from_numpy(positions).to(device)] = block[:len(positions)].to(device, dtype)
                bar.update(len(positions))
        self.checksum = zlib.crc32(checksums)
        return features


READERS = min(8, os.cpu_count() or 1)      # threads that read features


class FeatureFile:
    """An open feature file.

    The rows of a contiguous dataset are read in place, each by a system call of its own, by several threads at once. All
    other layouts go through h5py.
    """

    def __init__(self, path, name):
        self.path = path
        self._open = ExitStack()
        self.dataset = self._open.enter_context(open_file(path, name))
        self._offset = self.dataset.id.get_offset()      # None where the rows do not lie one behind the other
        as_numpy = self.dataset.id.get_type().equal(h5py.h5t.py_create(self.dataset.dtype))
        self._in_place = hasattr(os, "preadv") and self._offset is not None and as_numpy
        self._descriptor = self.dataset.file.id.get_vfd_handle()

    def read(self, rows, out, readers):
        """out[i][...] = row rows[i] as float32; DataError where it cannot be read, is NaN or infinite."""
        if self._in_place:
            list(readers.map(self._read_in_place, rows, out))
            return
        in_file_order = np.argsort(rows, kind="stable")
        gaps = np.flatnonzero(np.diff(rows[in_file_order]) != 1) + 1
        for run in np.split(in_file_order, gaps):      # positions whose rows are neighbours in the file
            if len(run):
                block = _read_block(self.path, self.dataset, slice(int(rows[run[0]]), int(rows[run[-1]]) + 1))
                for position, row in zip(run, block):
                    out[position][...] = row

    def _read_in_place(self, row, out):
        values = out if out.dtype == self.dataset.dtype else np.empty(self.dataset.shape[1:], self.dataset.dtype)
        try:
            size = os.preadv(self._descriptor, [values], self._offset + int(row) * values.nbytes)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        if size < values.nbytes:
            raise DataError(f"{self.path}: ends before the end of video row {row}; download or make it again")
        if values is not out:
            with np.errstate(over="ignore"):
                out[...] = values
        _check_finite(self.path, out[np.newaxis], int(row))
