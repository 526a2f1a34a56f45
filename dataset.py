"""The AVE dataset as published: one `AVEDataset` for each split, the batches of an epoch, and the files they come from.

    files = find_files("data", required_files(["train"]))
    train = AVEDataset(files, "train")                       # all features in memory
    train = AVEDataset(files, "train", features="disk")      # or read when they are asked for
    train[0]["visual"]        # [T, h, w, Dv] of one video
    train[[3, 1, 2]]          # a batch of three videos: each value has a leading batch axis

Nothing here depends on the network; all sizes are read from the files. The last class is background.
"""
import errno
import math
import os
import re
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch.nn.functional import one_hot
from torch.utils.data import Dataset

from utils import UserError, one_line, progress_bar, rank_and_world_size

with suppress(ImportError):
    import hdf5plugin  # noqa: F401      more compressions

SPLITS = ("train", "val", "test")
FEATURES = ("audio", "visual")      # what a network is given, in this order


class AVEDataset(Dataset):
    """The videos of one split.

    `dataset[i]` is a dict of new tensors; with a list or tensor of positions, each has a leading batch axis B.

        audio   [T, Da] of dtype         visual [T, h, w, Dv] of dtype
        labels  [T] int64: label of each segment, the last class is background
        video   int64: the video's row in the files (background videos are numbered after the last row)
        label_share  [C] of dtype, with weak=True: share of each label in the video (prob_label.h5)
        video_label  [C] of dtype, with weak=True: one-hot event category of the video (mil_labels.h5)

    files: path of each file by its name in `AVE_FILES`, see `find_files`.
    split: 'train', 'val' or 'test'; 'all': all rows in their order; None: the same without labels.
    weak: adds the video-level labels and, if files names them, the background videos after the videos of the split.
    features: 'memory', read once and held; or 'disk', read when they are asked for.
    dtype: float32, float64, or bfloat16 for visual features in memory alone. Values are rounded to float32 first.
    device: of all tensors if the features are held in memory; else they are on the CPU, as are the positions.
    pinned: whether values on the CPU come in pinned memory, from which a GPU copies without a wait.

    tensors: all values by name, indexed by position. sizes: `Sizes`. fingerprint: see `fingerprint`. random_weights,
    without_features: whether the features were made without the published weights, and how many videos have none.

    Raises UserError for files that cannot be used, features that are NaN or infinite (found when they are read), and a
    split in which no video has features.
    """

    def __init__(self, files, split, weak=False, features="memory", dtype=torch.float32, device="cpu", pinned=False):
        for name, value, known in (("split", split, (*SPLITS, "all", None)), ("features", features, ("memory", "disk")),
                                   ("dtype", dtype, (torch.float32, torch.float64, torch.bfloat16))):
            if value not in known:
                raise ValueError(f"{name}={value!r}: expected one of {known}")
        self.sizes = read_sizes(files)
        self.device, self.pinned = torch.device(device if features == "memory" else "cpu"), pinned
        self.random_weights = bool(feature_attribute(files, "random_weights").any())
        num_rows = self.sizes.num_rows
        rows = read_order(files, f"order_{split}", num_rows) if split in SPLITS else torch.arange(num_rows)
        self.without_features = int(np.isin(rows, feature_attribute(files, "rows_without_video")).sum())
        if self.without_features == len(rows):
            raise UserError(f"{files['visual']}: no video of {split or 'this folder'} has features; extract them again")
        labels = {} if split is None else {"labels": read_one_hot(files, "labels")[rows]}
        labels["video"] = rows
        parts = {name: {name: rows} for name in FEATURES}
        if weak:
            background_videos = check_weak_shapes(files, self.sizes)
            labels["label_share"] = read_label_share(files)[rows]
            labels["video_label"] = one_hot(read_one_hot(files, "video_labels")[rows], self.sizes.num_classes)
            if background_videos:
                share = one_hot(read_one_hot(files, "labels_bg"), self.sizes.num_classes)
                background = {
                    "video": num_rows + torch.arange(background_videos),
                    "labels": torch.full((background_videos, self.sizes.num_segments), self.sizes.background),
                    "label_share": share.float(),
                    "video_label": share,
                }
                labels = {name: torch.cat([value, background[name]]) for name, value in labels.items()}
                for name in FEATURES:
                    parts[name][f"{name}_bg"] = torch.arange(background_videos)

        label_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        on_disk = {name: FeatureRows(files, parts[name], label_dtype) for name in FEATURES}
        self.fingerprint = fingerprint(on_disk, labels)
        for name in {"label_share", "video_label"} & labels.keys():
            labels[name] = labels[name].to(label_dtype)
        self.tensors = {name: value.to(self.device) for name, value in labels.items()} | on_disk
        if features == "memory":
            for name, stored in on_disk.items():
                held = torch.empty(stored.shape, dtype=dtype if name == "visual" else label_dtype, device=self.device)
                stored.read(torch.arange(len(held)), held, show_progress=True)
                self.tensors[name] = held

    def __len__(self):
        return next(iter(self.tensors.values())).shape[0]

    def __getitem__(self, index):
        positions = index if torch.is_tensor(index) else torch.arange(len(self), device=self.device)[index]
        items = {}
        for name, value in self.tensors.items():
            rows = torch.empty(positions.numel(), *value.shape[1:], dtype=value.dtype, device=self.device,
                               pin_memory=self.pinned)
            if isinstance(value, FeatureRows):
                value.read(positions.flatten(), rows)
            else:
                torch.index_select(value, 0, positions.flatten(), out=rows)
            items[name] = rows.view((*positions.shape, *value.shape[1:]))
        return items

    def only(self, *names):
        """The same videos, with these values alone."""
        chosen = copy(self)
        chosen.tensors = {name: self.tensors[name] for name in names}
        return chosen


class FeatureRows:
    """Rows of feature files, read by position when they are asked for, and rounded to float32.

    parts: {name in `AVE_FILES`: rows}, in the order of the positions. Each process opens the files when it first reads.
    """

    def __init__(self, files, parts, dtype):
        self._files = {name: files[name] for name in parts}
        self._rows = [(name, row) for name, rows in parts.items() for row in rows.tolist()]      # by position
        self._opened = None
        self.dtype, self.shape = dtype, (len(self._rows), *read_shape(files, next(iter(parts)))[1:])

    def __getstate__(self):
        return {**vars(self), "_opened": None}

    def read(self, positions, out, show_progress=False):
        """Fills out[i], of any dtype and device, with the row of positions[i]; UserError if it is not finite."""
        if self._opened is None:
            stack = ExitStack()
            self._opened = stack, {name: stack.enter_context(open_file(self._files, name)) for name in self._files}
        rows = [self._rows[position] for position in positions.tolist()]

        def read_row(i):
            name, row = rows[i]
            block = read_finite_rows(self._files[name], self._opened[1][name], slice(row, row + 1))
            with torch.inference_mode(out.is_inference()):      # each thread has a mode of its own
                out[i] = torch.from_numpy(block[0])

        in_file_order = sorted(range(len(rows)), key=rows.__getitem__)
        with ThreadPoolExecutor(2) as readers:      # one reads while the other converts
            list(progress_bar(iterable=readers.map(read_row, in_file_order), total=len(rows), unit="video",
                              desc=f"reading {next(iter(self._files.values()))}", leave=False, delay=1,
                              disable=not show_progress))


def fingerprint(features, labels):
    """Checksum of all labels, and of the features of 64 videos spread over the split."""
    videos, checksum = len(labels["video"]), 0
    sample = torch.linspace(0, videos - 1, min(videos, 64)).long()
    for rows in features.values():
        values = torch.empty(len(sample), *rows.shape[1:], dtype=torch.float32)
        rows.read(sample, values)
        checksum = zlib.crc32(values.numpy(), checksum)
    for values in labels.values():
        checksum = zlib.crc32(values.numpy(), checksum)
    return f"{checksum:08x}"


# -------------------------------------------------------------------------------------------------- batches

def in_batches(order, batch_size):
    """[videos] -> [steps, B]; the last short batch is dropped."""
    return order[:len(order) // batch_size * batch_size].view(-1, batch_size)


def shuffled(videos, batch_size, seed):
    """Yields the positions of each epoch's batches, int64 [steps, B]; an epoch depends on the seed and its number."""
    for epoch in count():
        yield in_batches(torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(videos)), batch_size)


class TrainingBatches:
    """The batches of every epoch, on the device. Under torchrun, each process gets its share of every batch.

    order: yields the positions of each epoch's batches, like `shuffled`, from the seed and a generator of its own.
    Raises UserError if the batch is larger than the dataset, or does not divide among the processes.
    """

    def __init__(self, dataset, batch_size, seed, device, order=shuffled):
        self.rank, self.world_size = rank_and_world_size()
        if batch_size > len(dataset):
            raise UserError(f"--batch_size {batch_size} is larger than the training set ({len(dataset)} videos)")
        if batch_size % self.world_size:
            raise UserError(f"--batch_size {batch_size} is not divisible by the number of processes, {self.world_size}")
        self.dataset, self.device, self.batch_size = dataset, device, batch_size
        self.steps = len(dataset) // batch_size
        self._epochs, self._drawn = order(len(dataset), batch_size, seed), 0

    def positions(self, epoch):
        """Positions [steps, B] of this process's batches. Epochs are drawn in rising order, else ValueError."""
        positions = next(islice(self._epochs, epoch - self._drawn, None))      # a resumed run skips the epochs before
        self._drawn = epoch + 1
        if positions.shape != (self.steps, self.batch_size):
            raise ValueError(f"the order gives positions {tuple(positions.shape)}, not {self.steps, self.batch_size}")
        return positions.tensor_split(self.world_size, dim=1)[self.rank]

    def epoch(self, epoch):
        """Yields the batches of an epoch, a dict of tensors each."""
        return load_batches(self.dataset, self.positions(epoch).to(self.dataset.device), self.device)


def load_batches(dataset, positions, device):
    """Yields dataset[p] on the device for each p of positions; if the dataset is elsewhere, a thread reads ahead."""
    if dataset.device == device:
        yield from map(dataset.__getitem__, positions)
        return

    def read(p):
        return {name: value.to(device, non_blocking=True) for name, value in dataset[p].items()}

    with ThreadPoolExecutor(1) as reader:
        coming = deque()
        for p in positions:
            coming.append(reader.submit(read, p))
            if len(coming) > 1:
                yield coming.popleft().result()
        yield from (last.result() for last in coming)


def network_inputs(batch):
    """What a network is given of a batch, in training, evaluation and pictures: network(*network_inputs(batch))."""
    return [batch[name] for name in FEATURES]


# ----------------------------------------------------------------------------------------------- published files

_AVE_ECCV18 = "https://github.com/YapengTian/AVE-ECCV18"
_PSP_FILES = "https://drive.google.com/drive/folders/1q8GYBqfkyDDAnVMClrMTXR9YzH9UPcSM"
_LABELS = f"{_PSP_FILES} or data/prepare_labels.py"


class AVEFile(NamedTuple):
    """One of the published files."""
    names: tuple              # file names, the preferred one first
    content: str              # description for messages
    source: str
    key: str = "avadataset"   # its HDF5 dataset


# The features of the background videos are named <feature>_bg.
AVE_FILES = {
    "audio": AVEFile(("audio_feature.h5",), "audio features [videos, segments, width]", _AVE_ECCV18),
    "visual": AVEFile(("visual_feature.h5",), "visual maps [videos, segments, height, width, channels]", _AVE_ECCV18),
    "labels": AVEFile(("right_labels.h5", "right_label.h5"), "one-hot labels [videos, segments, classes]", _LABELS),
    "video_labels": AVEFile(("mil_labels.h5",), "one-hot event category of each video [videos, classes]", _LABELS),
    "label_share": AVEFile(("prob_label.h5",), "share of each label in each video [videos, classes]", _LABELS),
    "audio_bg": AVEFile(("audio_feature_noisy.h5",), "audio features of the background videos", _AVE_ECCV18),
    "visual_bg": AVEFile(("visual_feature_noisy.h5",), "visual maps of the background videos", _AVE_ECCV18),
    "labels_bg": AVEFile(("labels_noisy.h5",), "one-hot label of the background videos [videos, classes]", _LABELS),
    "order_train": AVEFile(("train_order.h5",), "rows of the training videos", _PSP_FILES, "order"),
    "order_val": AVEFile(("val_order.h5",), "rows of the validation videos", _PSP_FILES, "order"),
    "order_test": AVEFile(("test_order.h5",), "rows of the test videos", _PSP_FILES, "order"),
}


def required_files(splits, weak_training=False, background_videos=True):
    """Names (in `AVE_FILES`) of the files of a list of splits, see `AVEDataset`; [None] for features alone."""
    names = list(FEATURES)
    if splits != [None]:
        names += ["labels", *(f"order_{split}" for split in splits if split in SPLITS)]
    if weak_training:
        names += ["video_labels", "label_share"]
        if background_videos:
            names += [f"{name}_bg" for name in FEATURES if f"{name}_bg" in AVE_FILES] + ["labels_bg"]
    return names


def find_file(data_dir, name, given=None):
    """Path of the file of this name in `AVE_FILES`: `given`, else in `data_dir`; UserError with its source."""
    wanted = AVE_FILES[name]
    candidates = [Path(data_dir) / file_name for file_name in wanted.names] if given is None else [Path(given)]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f"{' or '.join(map(str, candidates))}: missing: {wanted.content}, from {wanted.source}")


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
            "data files not found:", *missing, "Put them there, or name another folder with --data_dir.",
            "No features yet? `python data/synthetic.py --output_dir data/synthetic` writes a set for --data_dir."]))
    return found


# -------------------------------------------------------------------------------------------- one HDF5 file

@contextmanager
def hdf5_errors(path):
    """Turns an error of h5py, inside the block, into a UserError that names the file and the reason."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        found = re.search(r"errno = (\d+)", str(error))
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number not in (None, errno.EINVAL):      # EINVAL: a corrupt file holds invalid addresses
            raise UserError(f"{path}: cannot be read ({os.strerror(number)})") from error
        raise UserError(f"{path}: cannot be read as HDF5 ({one_line(error)}); download or make it again; "
                        f"{advice(path)}") from error


def advice(path):
    """The end of a message about a file that does not hold what it should."""
    return f"'python data/check.py --data_dir {Path(path).parent}' says more"


MOST_CACHED = 1.5e9      # bytes of chunks; where h5py chooses them, those of a video take up to 1 GB


@contextmanager
def open_h5(path, key="avadataset", content="numbers"):
    """The HDF5 dataset `key` of a file, to be read; content: its description for messages.

    Raises UserError if it cannot be read, does not hold numbers, or was not written to its end.
    """
    with hdf5_errors(path):
        with h5py.File(path, "r", locking=False) as file:
            dataset = file.get(key)
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub" or not dataset.shape:
                raise UserError(f"{path}: has no HDF5 dataset of numbers '{key}', but {', '.join(file)[:100]}; it "
                                f"should hold {content}; {advice(path)}")
            check_whole(path, dataset)
            cache = chunk_cache(dataset)
        file = h5py.File(path, "r", locking=False, **cache)
    with file:
        yield file[key]


def check_whole(path, dataset):
    """Raises UserError if h5py does not have the file's compression, or the file was not written to its end."""
    layout = dataset.id.get_create_plist()
    for code, _, _, name in map(layout.get_filter, range(layout.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            raise UserError(f"{path}: is compressed by filter {code} {name!r}, which h5py does not have; "
                            "pip install hdf5plugin")
    if dataset.chunks is None:
        whole = dataset.id.get_storage_size() == dataset.size * dataset.id.get_type().get_size()
    else:
        chunks = math.prod(math.ceil(size / step) for size, step in zip(dataset.shape, dataset.chunks))
        whole = dataset.id.get_num_chunks() == chunks
    if not whole:
        raise UserError(f"{path}: is incomplete; download or make it again")


def chunk_cache(dataset):
    """h5py's options for a cache that holds all chunks of a video, so that each is decompressed once in file order."""
    if dataset.chunks is None:
        return {}
    chunks = math.prod(math.ceil(size / step) for size, step in zip(dataset.shape[1:], dataset.chunks[1:]))
    needed = chunks * math.prod(dataset.chunks) * dataset.dtype.itemsize
    return {"rdcc_nbytes": needed, "rdcc_nslots": 10 * chunks + 1} if needed < MOST_CACHED else {}


def read_rows(path, dataset, rows):
    """dataset[rows] for a slice of rows, in the file's own dtype; UserError if they cannot be read."""
    with hdf5_errors(path):
        return dataset[rows]


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


def read_shape(files, name):
    """Shape of the file's dataset."""
    with open_file(files, name) as dataset:
        return dataset.shape


def check_shape(files, name, expected):
    """Shape of the file's dataset; UserError unless it is the expected one, in which None is any size above 0."""
    shape = read_shape(files, name)
    if len(shape) != len(expected) or any(
            size == 0 or wanted not in (None, size) for size, wanted in zip(shape, expected)):
        wanted = ", ".join(">0" if size is None else str(size) for size in expected)
        raise UserError(f"{files[name]}: has shape {shape}; to fit the other files, the {AVE_FILES[name].content} "
                        f"must have shape ({wanted}); {advice(files[name])}")
    return shape


MOST_CELLS = 256      # of maps with a single channel


def read_sizes(files):
    """Sizes of the data from its main files; UserError if their shapes disagree or cannot be right."""
    labelled = "labels" in files
    num_rows, num_segments, num_classes = check_shape(files, "labels" if labelled else "audio", [None] * 3)
    if labelled and num_classes < 2:
        raise UserError(f"{files['labels']}: has {num_classes} class; at least one category and background are needed")
    for name in FEATURES:
        axes = {"audio": 3, "visual": 5}.get(name, len(read_shape(files, name)))
        check_shape(files, name, [num_rows, num_segments] + [None] * (axes - 2))
    *_, height, width, visual_dim = shape = read_shape(files, "visual")
    if visual_dim == 1 and height * width > MOST_CELLS:
        raise UserError(f"{files['visual']}: has shape {shape}, {height * width} cells with one channel; expected "
                        f"{AVE_FILES['visual'].content}; {advice(files['visual'])}")
    return Sizes(num_rows, num_segments, read_shape(files, "audio")[2], (height, width), visual_dim,
                 num_classes if labelled else None)


def check_weak_shapes(files, sizes):
    """Number of background videos, 0 without their files; UserError if a file of weak training does not fit."""
    for name in ("video_labels", "label_share"):
        check_shape(files, name, (sizes.num_rows, sizes.num_classes))
    if "labels_bg" not in files:
        return 0
    background_videos, _ = check_shape(files, "labels_bg", (None, sizes.num_classes))
    for name in FEATURES:
        if f"{name}_bg" not in files:
            raise UserError(f"{files[name]}: background videos have no such features; train without them "
                            "(--background_videos off)")
        check_shape(files, f"{name}_bg", (background_videos, *read_shape(files, name)[1:]))
    return background_videos


def read_one_hot(files, name):
    """Label index [...] int64 of one-hot rows [..., C]; UserError if a row is not one-hot."""
    with open_file(files, name) as dataset:
        values = read_finite_rows(files[name], dataset, slice(0, len(dataset)))
    wrong = ((values != 0) & (values != 1)).any(axis=-1) | (values.sum(axis=-1) != 1)
    if wrong.any():
        raise UserError(f"{files[name]}: row {np.argwhere(wrong)[0][0]} is not one-hot, a single 1 among zeros")
    return torch.from_numpy(values.argmax(axis=-1))


SHARE_TOLERANCE = 2e-3      # of a share, and of their sum: float16 has no more


def read_label_share(files):
    """prob_label.h5 [videos, C] float32; UserError if the values of a row are negative or do not sum to 1."""
    with open_file(files, "label_share") as dataset:
        share = read_finite_rows(files["label_share"], dataset, slice(0, len(dataset)))
    wrong = ~((share >= 0).all(axis=1) & (abs(share.sum(axis=1) - 1) < SHARE_TOLERANCE))
    if wrong.any():
        raise UserError(f"{files['label_share']}: row {wrong.argmax()} does not hold shares, 0 or more that sum to 1")
    return torch.from_numpy(share)


def read_order(files, name, num_rows):
    """Rows [n] int64 of a split; UserError if it is empty, or names a row that does not exist or twice."""
    check_shape(files, name, [None])
    path = files[name]
    with open_file(files, name) as dataset:
        order = read_rows(path, dataset, slice(None))
    if order.dtype.kind not in "iu":
        raise UserError(f"{path}: holds {order.dtype}; expected whole numbers, the {AVE_FILES[name].content}")
    if order.min() < 0 or order.max() >= num_rows:
        raise UserError(f"{path}: names rows {order.min()} to {order.max()}, but the labels have 0 to {num_rows - 1}")
    if len(np.unique(order)) < len(order):
        raise UserError(f"{path}: names rows more than once; get the order files again")
    return torch.from_numpy(order.astype(np.int64))


def feature_attribute(files, name):
    """What data/extract_features.py wrote about the features: the values [n] of this attribute of both files."""
    values = []
    for feature in FEATURES:
        with open_file(files, feature) as dataset, hdf5_errors(files[feature]):
            values.append(np.ravel(dataset.attrs.get(name, [])))
    return np.concatenate(values)
