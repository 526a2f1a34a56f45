"""Advice on data files of another layout: what they seem to be, and the command that writes them as expected.

Each function returns lines, none if it has nothing to say. No command writes over a file that exists.
"""
import json
import shlex
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
from torch.nn.functional import one_hot

from data.prepare_labels import segment_labels
from dataset import AVE_FILES, FEATURES, MOST_CELLS, read_shape
from model.class_names import AVE_ROWS, AVE_VIDEOS
from utils import ROOT, UserError


def quoted(text):
    """As a string in Python code, in double quotes, so that the shell can take the code in single ones."""
    return json.dumps(str(text), ensure_ascii=False)


def read_hdf5(path, key):
    """Python code that reads a whole HDF5 dataset."""
    return f"h5py.File({quoted(path)})[{quoted(key)}][:]"


def write_command(path, name, array="a", read=None, before=""):
    """'write NEW: python -c ...' for a file of this name in `AVE_FILES`.

    Of Python code: `array` is written, `read` is its `a` (default: what the file holds), `before` comes first.
    """
    key = AVE_FILES[name].key
    new, instead = path, ""
    if path.exists():
        new, instead = path.with_name(f"{path.stem}_new.h5"), ", and use it instead"
    program = (f"import h5py, numpy; {before}a = {read or read_hdf5(path, key)}; "
               f'h5py.File({quoted(new)}, "x")[{quoted(key)}] = {array}')
    return f"write {new}{instead}: python -c {shlex.quote(program)}"


def file_advice(path, name, annotations):
    """On a file of this name in `AVE_FILES` that is missing or cannot be used; annotations: where they should be."""
    try:
        source = path if path.exists() else path.with_suffix(".npy")
        with open(source, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                return _numpy_advice(path, name, source, annotations)
        with h5py.File(path, "r", locking=False) as file:
            return _hdf5_advice(path, name, file)
    except Exception:      # of a damaged file, h5py raises errors of any kind
        return []


def _numpy_advice(path, name, source, annotations):
    """On a NumPy file: an array of numbers, or a pickled dict {video id: array}."""
    try:
        np.load(source, mmap_mode="r")
        return [f"{source} is a NumPy file: {write_command(path, name, read=f'numpy.load({quoted(source)})')}"]
    except ValueError:      # Python objects; only unpickling, which may run any code, would tell which
        before = f"d = numpy.load({quoted(source)}, allow_pickle=True).item(); "
        order, rows = "of their names", "sorted(d)"
        if not name.endswith("_bg"):
            before += (f"import sys; sys.path.insert(0, {quoted(ROOT)}); from model.class_names import "
                       "read_annotations; ")
            order = f"of the lines of {annotations}"
            rows = f"[line.video_id for line in read_annotations({quoted(annotations)})]"
        command = write_command(path, name, read=f"numpy.stack([d[i] for i in {rows}])", before=before)
        return [f"{source} is a NumPy file of Python objects. If they are a dict, an array by video id, and you trust "
                f"its source, stack them in the order {order}: {command}"]


def _hdf5_advice(path, name, file):
    """On an HDF5 file without the expected dataset, or whose numbers are in other files."""
    dataset = file.get(AVE_FILES[name].key)
    if not isinstance(dataset, h5py.Dataset):
        keys = []      # at any depth
        file.visititems(lambda key, item: keys.append(key) if isinstance(item, h5py.Dataset) else None)
        if not keys:
            return ["it holds no dataset at all; download or make it again"]
        found = ", ".join(f"{key} {file[key].shape}" for key in keys)[:200]
        key, choose = (keys[0], ":") if len(keys) == 1 else ("NAME", "; with the right one for NAME,")
        return [f"it holds {found}{choose} {write_command(path, name, read=read_hdf5(path, key))}"]
    # HDF5 looks for virtual sources in the folder of the file, for external ones in the current folder.
    sources = [path.parent / source.file_name for source in dataset.virtual_sources()] if dataset.is_virtual else []
    sources += [Path.cwd() / source for source, *_ in dataset.external or []]
    missing = sorted({str(source) for source in sources if not source.exists()})
    if missing:
        return [f"its numbers are in other files, which are missing: {', '.join(missing)[:200]}"]
    return [f"its numbers are in other files: {write_command(path, name)}"] if sources else []


def shape_advice(files):
    """On each file whose shape cannot be right, as far as the shapes tell what it is."""
    advice = []
    for background in (False, True):
        shapes = {name: read_shape(files, name) for name in files
                  if name.endswith("_bg") == background and not name.startswith("order_")}
        # The first axis of all files should be videos: the commonest size at either end.
        ends = Counter([shape[0] for shape in shapes.values()] + [shape[-1] for shape in shapes.values()])
        for name, shape in shapes.items():
            visual = name.startswith("visual")
            if shape[0] != ends.most_common(1)[0][0] == shape[-1]:
                advice.append(f"the axes of {files[name]} look reversed: {write_command(files[name], name, 'a.T')}")
            elif visual and len(shape) == 3:
                command = write_command(files[name], name, "a[:, :, None, None]")
                advice.append(f"features without a map need 1 x 1 cells: {command}")
            elif visual and len(shape) == 5 and shape[4] == 1 and shape[2] * shape[3] > MOST_CELLS:
                command = write_command(files[name], name, "a.reshape(*a.shape[:2], 1, 1, -1)")
                advice.append(f"these may be flattened features; as channels of 1 x 1 cells: {command}")
            elif name.startswith("audio") and len(shape) == 5:
                advice.append("these look like maps of VGGish's last pooling layer; its last layer is needed")
    return advice


def rows_advice(files, ids, annotations):
    """On features of one row for each video, where some videos stand in several lines; ids: of each line, if any."""
    lines, videos = (len(ids), len(set(ids))) if ids else (AVE_ROWS, AVE_VIDEOS)
    rows = {read_shape(files, name)[0] for name in FEATURES if name in files}
    known = ids or ("labels" in files and read_shape(files, "labels")[0] == lines)
    if not known or rows != {videos} or videos == lines:
        return []
    return [f"{annotations} has {lines} lines for {videos} videos, since some stand in it more than once; extract "
            "features with data/extract_features.py --annotations, which makes a row for each line, not each video"]


def channels_first(files, sizes):
    """On maps whose channels seem to come before height and width."""
    height, width = sizes.map_size
    if height < 4 * max(width, sizes.visual_dim):
        return []
    return [f"{files['visual']}: the maps look as if the channels came first: {height} x {width} cells of "
            f"{sizes.visual_dim} channels; expected {AVE_FILES['visual'].content}",
            *(write_command(files[name], name, "a.transpose(0, 1, 3, 4, 2)") for name in ("visual", "visual_bg")
              if name in files)]


def background_first(files, labels, sizes):
    """On labels [videos, T] whose class 0 shares videos with many classes, as only background does."""
    present = one_hot(labels, sizes.num_classes).amax(dim=1)      # [videos, C]
    together = present.T @ present > 0
    if sizes.num_classes < 3 or together[0, 1:].double().mean() <= 0.5 or together[-1, 1:-1].any():
        return []
    return [f"{files['labels']}: class 0 looks like background, which must be the last class in all label files",
            *(write_command(files[name], name, "numpy.roll(a, -1, axis=-1)")
              for name in ("labels", "video_labels", "label_share", "labels_bg") if name in files)]


def other_than_annotated(path, labels, num_classes, annotations, several):
    """(lines on labels [videos, T] that differ from the annotations, whether the rows do not belong together).

    several [videos]: whether a video has events of several categories; a line names only one, so it is not compared.
    """
    try:
        expected, _ = segment_labels(annotations, labels.shape[1])
    except UserError as error:      # training reads the names alone
        return [f"annotations, {error}; the labels are not compared with the annotations"], False
    if expected.shape != (*labels.shape, num_classes):
        return [f"{path}: has shape {(*labels.shape, num_classes)}; the annotations make {expected.shape}"], False
    wrong = (expected.argmax(axis=2) != labels).any(axis=1) & ~several
    text = f"{path}: {wrong.sum()} of {len(wrong)} videos differ from the annotations (first in row {wrong.argmax()})"
    if wrong.mean() > 0.2:      # more than corrections of single labels
        return [f"{text}: the rows do not belong together, or the classes have another order; get the right "
                "annotations, or build the labels with data/prepare_labels.py"], True
    return [f"{text}; keep a published file"] if wrong.any() else [], False
