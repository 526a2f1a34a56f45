"""The AVE dataset as published: HDF5 features and labels, one `AVEDataset` for each split of either setting.

    files = find_files("data", required_files(["train"]))
    train = AVEDataset(files, "train")                       # all features in memory
    train = AVEDataset(files, "train", features="disk")      # or read when they are asked for
    train[0]["visual"]        # [T, h, w, Dv] float32 of one video
    train[[3, 1, 2]]          # a batch of three, each value with a leading batch axis

Nothing here is tied to one network, nor to the sizes of AVE: videos, segments, map size, feature widths and the number
of classes are read from the files. The last class is background.
"""
import math
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import one_hot
from torch.utils.data import Dataset

from data.files import UserError
from data.hdf5 import blocks_of, open_h5, read_finite_rows, refusing
from data.progress import progress_bar

SPLITS = ("train", "val", "test")
FEATURES = ("audio", "visual")      # those of the background videos are in AVE_FILES as '<name>_bg'

_AVE_ECCV18 = "https://github.com/YapengTian/AVE-ECCV18"
_PSP_FILES = "https://drive.google.com/drive/folders/1q8GYBqfkyDDAnVMClrMTXR9YzH9UPcSM"


class AVEFile(NamedTuple):
    """One of the published files."""
    names: tuple              # file names it is known by, the preferred one first
    content: str              # what it holds, for a person
    source: str               # where it comes from
    key: str = "avadataset"   # its HDF5 dataset


AVE_FILES = {
    "audio": AVEFile(("audio_feature.h5",), "audio features [videos, segments, width]", _AVE_ECCV18),
    "visual": AVEFile(("visual_feature.h5",), "visual feature maps [videos, segments, height, width, channels]",
                      _AVE_ECCV18),
    "labels": AVEFile(("right_labels.h5", "right_label.h5"), "one-hot segment labels [videos, segments, classes]",
                      _PSP_FILES),
    "video_labels": AVEFile(("mil_labels.h5",), "one-hot event category of each video [videos, classes]", _PSP_FILES),
    "label_share": AVEFile(("prob_label.h5",), "share of each label in each video [videos, classes]", _PSP_FILES),
    "audio_bg": AVEFile(("audio_feature_noisy.h5",), "audio features of the background videos", _AVE_ECCV18),
    "visual_bg": AVEFile(("visual_feature_noisy.h5",), "visual feature maps of the background videos", _AVE_ECCV18),
    "labels_bg": AVEFile(("labels_noisy.h5",), "one-hot label of the background videos [videos, classes]", _PSP_FILES),
    "order_train": AVEFile(("train_order.h5",), "rows of the training videos", _PSP_FILES, "order"),
    "order_val": AVEFile(("val_order.h5",), "rows of the validation videos", _PSP_FILES, "order"),
    "order_test": AVEFile(("test_order.h5",), "rows of the test videos", _PSP_FILES, "order"),
}


def required_files(splits, weak_training=False, background_videos=True):
    """Names (of `AVE_FILES`) of the files that these splits are read from; weak training needs two or five more.

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
    """Whether a label or order file exists, or is given; else the folder holds features to be labelled."""
    names = ["labels", *(f"order_{split}" for split in SPLITS)]
    return any((given or {}).get(name) is not None for name in names) or any(
        (Path(data_dir) / file_name).exists() for name in names for file_name in AVE_FILES[name].names)


def find_files(data_dir, names, given=None):
    """Path of each named file: `given[name]` where that is set, else a published file name in `data_dir`.

    Raises UserError with one message for all that are missing: what each is and where it comes from.
    """
    given = {name: Path(path) for name, path in (given or {}).items() if path is not None}
    found, missing = {}, []
    for name in names:
        wanted = AVE_FILES[name]
        candidates = [given[name]] if name in given else [Path(data_dir) / file_name for file_name in wanted.names]
        found[name] = next((path for path in candidates if path.is_file()), None)
        if found[name] is None:
            where = " or ".join(map(str, candidates))
            problem = "is a folder, not a file" if candidates[0].is_dir() else wanted.content
            missing.append(f"  {where}: {problem}\n      from {wanted.source}")
    if missing:
        raise UserError("\n".join([
            f"{len(missing)} data file{'s' * (len(missing) > 1)} not found:", *missing,
            "Put them there, or name another folder with --data_dir.",
            "No features yet? `python data/synthetic.py --output_dir data/synthetic` writes a synthetic set of all "
            "files;\nthen use `--data_dir data/synthetic`."]))
    return found


class Sizes(NamedTuple):
    """Sizes of the data; the letters are those of psp_model.py."""
    num_videos: int        # rows of the files, all splits together
    num_segments: int      # T
    audio_dim: int         # Da
    map_size: tuple        # (h, w)
    visual_dim: int        # Dv
    num_classes: int       # C, background included; None without labels

    @property
    def background(self):
        """Index of the background class: the last."""
        return self.num_classes - 1


class AVEDataset(Dataset):
    """The videos of one split.

    `dataset[i]` is a dict of tensors; with a list or tensor of positions, each has a leading batch axis B:

        audio   [T, Da] of dtype         visual [T, h, w, Dv] of dtype
        labels  [T] int64: label of each segment, the last class is background
        video   int64: the video's row in the files (background videos are numbered on after the last row)
        label_share  [C] of dtype, with weak=True: share of each label in the video (prob_label.h5)
        video_label  int64, with weak=True: event category of the video (mil_labels.h5)

    files: path of each file by its name in `AVE_FILES`, see `find_files`.
    split: 'train', 'val' or 'test'; None: all videos of features that have no labels, by the order of the rows.
    weak: adds the video-level labels and, after the videos of the split, the background videos where files names them.
    features: 'memory', read once and held; or 'disk', read again for each item and never held.
    dtype: of features and label shares, float32 or float64; torch.bfloat16 halves the memory of visual features held
        in memory, all else is then float32.
    device: where all of it lies if in memory; what is read from disk comes to main memory.

    Raises UserError for a file that cannot be read, shapes that disagree, labels that are not one-hot, an order with
    no video or with a row that does not exist, and features that are NaN or infinite (found when they are read).
    """

    def __init__(self, files, split, weak=False, features="memory", dtype=torch.float32, device="cpu"):
        self.sizes = read_sizes(files)
        self.in_memory = features == "memory"
        self.device = torch.device(device if self.in_memory else "cpu")
        self.random_weights = any(has_random_weights(files, name) for name in FEATURES)
        if split is None:
            rows = torch.arange(self.sizes.num_videos)
            tensors = {"video": rows}
        else:
            rows = read_order(files, f"order_{split}", self.sizes.num_videos)
            tensors = {"labels": read_one_hot(files, "labels")[rows], "video": rows}
        parts = {name: [(files[name], name, rows)] for name in FEATURES}
        background_videos = check_weak_shapes(files, self.sizes) if weak else 0
        if weak:
            tensors["label_share"] = read_label_share(files)[rows]
            tensors["video_label"] = read_one_hot(files, "video_labels")[rows]
        if background_videos:
            tensors = _with_background_videos(tensors, files, self.sizes, background_videos)
            for name in FEATURES:
                if f"{name}_bg" not in files:
                    raise UserError(f"{files[name]}: has no counterpart for the background videos; "
                                    "train without them (--background_videos off)")
                parts[name].append((files[f"{name}_bg"], f"{name}_bg", torch.arange(background_videos)))

        # Each value is indexed by position along its first axis.
        self.values = {**{name: FeatureRows(parts[name]) for name in FEATURES}, **tensors}
        self.digest = self._digest()
        other_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        for name in FEATURES:
            self.values[name].dtype = other_dtype
        if "label_share" in self.values:
            self.values["label_share"] = self.values["label_share"].to(other_dtype)
        if self.in_memory:
            for name, value in self.values.items():
                if isinstance(value, FeatureRows):
                    value = value.load(dtype if name == "visual" else other_dtype, self.device)
                self.values[name] = value.to(self.device)

    def _digest(self):
        """Checksum of all labels and of the features of 64 videos: tells whether two runs had the same data."""
        sample = torch.linspace(0, len(self) - 1, min(len(self), 64)).long()
        checksum = 0
        for name, value in self.values.items():
            checksum = zlib.crc32((value[sample] if name in FEATURES else value).numpy(), checksum)
        return f"{checksum:08x}"

    def __len__(self):
        return len(self.values["video"])

    def __getitem__(self, index):
        return {name: value[index] for name, value in self.values.items()}

    def buffers(self, batch_size, pin_memory=False):
        """Tensors for the features of a batch, to be filled by `batch`."""
        return {name: torch.empty(batch_size, *self.values[name].shape[1:], dtype=self.values[name].dtype,
                                  pin_memory=pin_memory) for name in FEATURES}

    def batch(self, positions, buffers):
        """`self[positions]` with the features written into `buffers`, whose memory is used again and again."""
        batch = {}
        for name, value in self.values.items():
            if name not in FEATURES:
                batch[name] = value[positions]
                continue
            batch[name] = buffers[name][:len(positions)]
            if isinstance(value, FeatureRows):
                value.read(positions, batch[name])
            else:
                torch.index_select(value, 0, positions, out=batch[name])
        return batch


def _size_and_time(dataset):
    """Of the open file of an HDF5 dataset: its size and when it was last written to."""
    status = os.fstat(dataset.file.id.get_vfd_handle())
    return status.st_size, status.st_mtime_ns


def _with_background_videos(tensors, files, sizes, count):
    """The labels with those of the background videos after them."""
    label = read_one_hot(files, "labels_bg")
    background = {
        "labels": torch.full((count, sizes.num_segments), sizes.background),
        "video": sizes.num_videos + torch.arange(count),
        "label_share": one_hot(label, sizes.num_classes).float(),
        "video_label": label,
    }
    return {name: torch.cat([value, background[name]]) for name, value in tensors.items()}


class FeatureRows:
    """Rows of feature files, read again whenever they are asked for; indexed like a tensor by position.

    parts: (path, name in `AVE_FILES`, rows wanted) of each file, in the order of the positions.
    dtype: float32 (or float64, of values rounded to float32), to be set before rows are read.
    h5py, not numpy.memmap: that ends the whole process where a file is cut short while it is in use.
    """

    dtype = torch.float32

    def __init__(self, parts):
        self._open = ExitStack()
        self._files = [(path, self._open.enter_context(open_file(path, name))) for path, name, _ in parts]
        self._as_opened = [_size_and_time(dataset) for _, dataset in self._files]
        self._file_of = np.repeat(np.arange(len(parts)), [len(rows) for *_, rows in parts])      # by position
        self._row_of = np.concatenate([rows.numpy() for *_, rows in parts])
        self.shape = (len(self._row_of), *self._files[0][1].shape[1:])

    def __len__(self):
        return len(self._row_of)

    def __getitem__(self, index):
        """[*row] for a whole number, [n, *row] for a slice, list or tensor of positions."""
        positions = torch.arange(len(self))[index]
        out = torch.empty(positions.numel(), *self.shape[1:], dtype=self.dtype)
        self.read(positions.view(-1), out)
        return out.view(*positions.shape, *self.shape[1:])

    def read(self, positions, out):
        """out[i] = self[positions[i]], of rows of its dtype; UserError where one cannot be read or is not finite."""
        positions, out = positions.numpy(), [row.numpy() for row in out]

        def read_row(i):
            row = int(self._row_of[positions[i]])
            path, dataset = self._files[self._file_of[positions[i]]]
            out[i][...] = read_finite_rows(path, dataset, slice(row, row + 1))[0]

        in_file_order = np.lexsort([self._row_of[positions], self._file_of[positions]])
        with ThreadPoolExecutor(2) as readers:      # one reads while the other converts
            list(readers.map(read_row, in_file_order))
        for (path, dataset), as_opened in zip(self._files, self._as_opened):
            # Beyond the end of a file that was cut short since it was opened, HDF5 reads zeros.
            if _size_and_time(dataset) != as_opened:
                raise UserError(f"{path}: was changed while it was in use; start again once it is whole")

    def load(self, dtype, device):
        """All rows as one tensor of dtype on the device."""
        features = torch.empty(self.shape, dtype=dtype, device=device)
        as_read = dtype == self.dtype and features.device.type == "cpu"
        name = Path(self._files[0][0]).name
        with progress_bar(total=len(self), desc=f"reading {name}", unit="video", leave=False, delay=1) as bar:
            for positions in torch.from_numpy(np.lexsort([self._row_of, self._file_of])).split(64):
                if as_read:
                    self.read(positions, [features[position] for position in positions])
                else:
                    features[positions.to(device)] = self[positions].to(device, dtype)
                bar.update(len(positions))
        return features


# ------------------------------------------------------------------------------------- reading the files

def open_file(path, name):
    """The HDF5 dataset of the AVE file `name`, as a context; UserError where it cannot be read, or is not whole."""
    return open_h5(path, AVE_FILES[name].key, AVE_FILES[name].content)


def _shape(files, name):
    with open_file(files[name], name) as file:
        return file.shape


def visual_values(files, splits):
    """How many values the visual features of these splits have, and of the background videos if `files` names them."""
    videos = sum(_shape(files, f"order_{split}" if split else "visual")[0] for split in splits)
    if "visual_bg" in files:
        videos += _shape(files, "visual_bg")[0]
    return videos * math.prod(_shape(files, "visual")[1:])


def read_sample(path, name, videos=48):
    """Features of at most so many videos, spread evenly over the file of that name, float32."""
    with open_file(path, name) as file:
        step = max(1, -(-len(file) // videos))
        rows = [read_finite_rows(path, file, slice(row, row + 1)) for row in range(0, len(file), step)]
    return np.concatenate(rows).astype(np.float32)


def has_random_weights(files, name):
    """Whether data/extract_features.py made these features with random networks, so that they mean nothing."""
    with open_file(files[name], name) as file, refusing(files[name]):
        return bool(np.all(file.attrs.get("random_weights", False)))


def read_sizes(files):
    """Sizes of the data from its main files; UserError where their shapes disagree."""
    first = "labels" if "labels" in files else "audio"
    for name, axes in (("labels", 3), ("audio", 3), ("visual", 5)):
        if name not in files:
            continue
        shape = _shape(files, name)
        if len(shape) != axes or 0 in shape:
            raise UserError(f"{files[name]}: has shape {shape}; expected {AVE_FILES[name].content}")
    videos, segments, num_classes = _shape(files, first)
    audio_dim = _shape(files, "audio")[2]
    height, width, visual_dim = _shape(files, "visual")[2:]
    for name in FEATURES:
        _check_shape(files, name, (videos, segments, *_shape(files, name)[2:]), first)
    if first == "audio":
        return Sizes(videos, segments, audio_dim, (height, width), visual_dim, num_classes=None)
    if num_classes < 2:
        raise UserError(f"{files['labels']}: has {num_classes} class; at least one category and background are needed")
    return Sizes(videos, segments, audio_dim, (height, width), visual_dim, num_classes)


def check_weak_shapes(files, sizes):
    """Number of background videos, 0 without their files; UserError where a file of weak training does not fit."""
    for name in ("video_labels", "label_share"):
        _check_shape(files, name, (sizes.num_videos, sizes.num_classes), "labels")
    if "labels_bg" not in files:
        return 0
    extra = _shape(files, "labels_bg")[0]
    if extra == 0:
        raise UserError(f"{files['labels_bg']}: has no background video; train without them (--background_videos off)")
    _check_shape(files, "labels_bg", (extra, sizes.num_classes), "labels")
    _check_shape(files, "audio_bg", (extra, sizes.num_segments, sizes.audio_dim), "audio")
    _check_shape(files, "visual_bg", (extra, sizes.num_segments, *sizes.map_size, sizes.visual_dim), "visual")
    return extra


def _check_shape(files, name, expected, other):
    shape = _shape(files, name)
    if shape != expected:
        raise UserError(f"{files[name]}: has shape {shape}; to fit {files[other]}, the {AVE_FILES[name].content} "
                        f"must have shape {expected}")


def _read_blocks(files, name):
    with open_file(files[name], name) as file:
        for rows in blocks_of(file):
            yield read_finite_rows(files[name], file, rows)


def read_one_hot(files, name):
    """Label index [...] int64 of one-hot rows [..., C]; UserError where a row is not one-hot."""
    labels, first = [], 0
    for block in _read_blocks(files, name):
        wrong = ~(((block == 0) | (block == 1)).all(axis=-1) & (block.sum(axis=-1) == 1))
        if wrong.any():
            row = first + np.argwhere(wrong)[0][0]
            raise UserError(f"{files[name]}: labels are not one-hot (first in video row {row}); "
                            "each must be a single 1 among zeros")
        labels.append(block.argmax(axis=-1))
        first += len(block)
    return torch.from_numpy(np.concatenate(labels))


def read_label_share(files):
    """prob_label.h5 [videos, C] float32; UserError where a row is no share: 0 or more, sum 1."""
    share = np.concatenate(list(_read_blocks(files, "label_share")))
    wrong = ~((share >= 0).all(axis=1) & (abs(share.sum(axis=1) - 1) < 1e-3))
    if wrong.any():
        raise UserError(f"{files['label_share']}: row {wrong.argmax()} is no share of labels: its values must be "
                        "0 or more and sum to 1")
    return torch.from_numpy(share.astype(np.float32))


def read_order(files, name, videos):
    """Video rows [n] int64 of a split; UserError where it is empty, or names a row that does not exist or twice."""
    path = files[name]
    with open_file(path, name) as file:
        if len(file.shape) != 1 or file.dtype.kind not in "iu":
            raise UserError(f"{path}: holds {file.dtype} of shape {file.shape}; expected a list of whole numbers, "
                            f"the {AVE_FILES[name].content}")
        if len(file) > videos:
            raise UserError(f"{path}: names {len(file)} rows, but {files['labels']} has {videos}")
        order = read_finite_rows(path, file, slice(0, len(file)))
    if len(order) == 0:
        raise UserError(f"{path}: the split has no videos")
    wrong = (order < 0) | (order >= videos)
    if wrong.any():
        raise UserError(f"{path}: names video row {order[wrong][0]}, but {files['labels']} has rows 0 to {videos - 1}")
    repeated = len(order) - len(np.unique(order))
    if repeated:
        raise UserError(f"{path}: names {repeated} rows more than once; get the order files again")
    return torch.from_numpy(order.astype(np.int64))
