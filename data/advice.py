"""Advice on data files of another layout: what they seem to be, and the command that writes them as expected.

Each function returns lines, none if it has nothing to say. No command writes over a file that exists.
"""
import json
import shlex
from collections import Counter

import h5py
import numpy as np

from dataset import AVE_FILES, FEATURES, MOST_CELLS, read_shape
from model.class_names import AVE_ROWS, AVE_VIDEOS
from utils import ROOT


def quoted(text):
    """As a string in Python code, in double quotes, so that the shell can take the code in single ones."""
    return json.dumps(str(text), ensure_ascii=False)


def write_command(path, name, array="a", read=None):
    """'write NEW, and use it: python -c ...' for a file of this name in `AVE_FILES`.

    Of Python code: `array` is written; `read` makes its `a`, which by default is what the HDF5 file holds.
    """
    key = quoted(AVE_FILES[name].key)
    new = path.with_name(f"{path.stem}_new.h5") if path.exists() else path
    read = read or f"a = h5py.File({quoted(path)})[{key}][:]"
    program = f'import h5py, numpy; {read}; h5py.File({quoted(new)}, "x")[{key}] = {array}'
    return f"write {new}, and use it: python -c {shlex.quote(program)}"


def file_advice(path, name, annotations):
    """On a file of this name in `AVE_FILES` that is missing or cannot be used; annotations: where they should be."""
    source = path if path.exists() else path.with_suffix(".npy")
    keys = []      # of an HDF5 file, at any depth
    try:
        with open(source, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                return _numpy_advice(path, name, source, annotations)
        with h5py.File(source, "r", locking=False) as file:
            file.visit(keys.append)
            shapes = {key: file[key].shape for key in keys if isinstance(file[key], h5py.Dataset)}
    except Exception:      # of a damaged file, h5py raises errors of any kind
        return []
    if AVE_FILES[name].key in shapes:
        return []
    return [f"{path} holds {key} {shapes[key]}; if that is it, "
            + write_command(path, name, read=f"a = h5py.File({quoted(path)})[{quoted(key)}][:]")
            for key in list(shapes)[:5]]


def _numpy_advice(path, name, source, annotations):
    """On a NumPy file: an array of numbers, or a pickled dict {video id: array}."""
    try:
        np.load(source, mmap_mode="r")
    except ValueError:      # Python objects; only unpickling, which may run any code, would tell which
        ids = f"[line.video_id for line in read_annotations({quoted(annotations)})]"
        if name.endswith("_bg"):
            ids = "sorted(d)"
        read = (f"import sys; sys.path.insert(0, {quoted(ROOT)}); from model.class_names import read_annotations; "
                f"d = numpy.load({quoted(source)}, allow_pickle=True).item(); a = numpy.stack([d[i] for i in {ids}])")
        return [f"{source} is a NumPy file of Python objects. If they are a dict, an array by video id, and you trust "
                f"its source, stack it in the order of the lines of {annotations} (background videos: of their names): "
                f"{write_command(path, name, read=read)}"]
    command = write_command(path, name, read=f"a = numpy.load({quoted(source)})")
    return [f"{source} is a NumPy file: {command}"]


def shape_advice(files):
    """On each file whose shape cannot be right, as far as the shapes tell what it is."""
    advice = []
    for background in (False, True):
        shapes = {name: read_shape(files, name) for name in files
                  if name.endswith("_bg") == background and not name.startswith("order_")}
        # The first axis of all files should be videos: the commonest size at either end.
        ends = Counter(end for shape in shapes.values() for end in (shape[0], shape[-1]))
        for name, shape in shapes.items():
            if shape[0] != ends.most_common(1)[0][0] == shape[-1]:
                advice.append(f"the axes of {files[name]} look reversed: {write_command(files[name], name, 'a.T')}")
            elif name.startswith("visual") and len(shape) == 3:
                command = write_command(files[name], name, "a[:, :, None, None]")
                advice.append(f"features without a map need 1 x 1 cells: {command}")
            elif name.startswith("visual") and len(shape) == 5 and shape[4] == 1 and shape[2] * shape[3] > MOST_CELLS:
                command = write_command(files[name], name, "a.reshape(*a.shape[:2], 1, 1, -1)")
                advice.append(f"these may be flattened features; as channels of 1 x 1 cells: {command}")
    return advice


def rows_advice(files, annotations, path):
    """On features of one row for each video, where some videos stand in several lines; path: of the annotations."""
    ids = [annotation.video_id for annotation in annotations or []]
    lines, videos = (len(ids), len(set(ids))) if ids else (AVE_ROWS, AVE_VIDEOS)
    if videos == lines or any(read_shape(files, name)[0] != videos for name in FEATURES):
        return []
    return [f"{path} has {lines} lines for {videos} videos, since some stand in it more than once; extract features "
            "with data/extract_features.py --annotations, which makes a row for each line, not each video"]


def channels_first(files, sizes):
    """On maps whose channels seem to come before height and width."""
    height, width = sizes.map_size
    if height < 4 * max(width, sizes.visual_dim):
        return []
    return [f"{files[name]}: the maps look as if the channels came first: {height} x {width} cells of "
            f"{sizes.visual_dim} channels; {write_command(files[name], name, 'a.transpose(0, 1, 3, 4, 2)')}"
            for name in ("visual", "visual_bg") if name in files]


def background_first(files, labels, sizes):
    """On labels [videos, T] whose class 0 shares videos with many classes, as only background does."""
    present = np.eye(sizes.num_classes)[labels].max(axis=1)      # [videos, C]
    together = present.T @ present > 0
    if sizes.num_classes < 3 or together[0, 1:].mean() <= 0.5 or together[-1, 1:-1].any():
        return []
    return [f"{files[name]}: class 0 looks like background, which must be the last class in all label files; "
            f"{write_command(files[name], name, 'numpy.roll(a, -1, axis=-1)')}"
            for name in ("labels", "video_labels", "label_share", "labels_bg") if name in files]
