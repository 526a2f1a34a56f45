"""Advice on data files of another layout: what they seem to be, and the command that writes them as expected.

No command writes over a file that exists.
"""
import json
import shlex
from collections import Counter
from pathlib import Path

import h5py
from torch.nn.functional import one_hot

from dataset import AVE_FILES, MOST_CELLS, read_shape


def quoted(text):
    """As a string in Python code, in double quotes, so that the shell can take the code in single ones."""
    return json.dumps(str(text), ensure_ascii=False)


def new_path(path):
    """Where a command writes what the file should hold."""
    path_as_h5 = path.with_suffix(".h5")
    return path.with_name(f"{path.stem}_new.h5") if path_as_h5.exists() else path_as_h5


def by_command(path, command):
    instead = "" if new_path(path) == path else ", and use it instead"
    return f"write {new_path(path)}{instead}: {command}"


def by_python(path, key, array):
    """'write NEW: python -c ...'; array: what to write, as Python code."""
    program = f'import h5py, numpy; h5py.File({quoted(new_path(path))}, "x")[{quoted(key)}] = {array}'
    return by_command(path, f"python -c {shlex.quote(program)}")


def from_hdf5(path, key):
    """Python code that reads a whole HDF5 dataset."""
    return f"h5py.File({quoted(path)})[{quoted(key)}][:]"


def rewritten(files, name, function):
    """Advice to write an array of `AVE_FILES` anew; function: Python code with {} for the array."""
    key = AVE_FILES[name].key
    return by_python(files[name], key, function.format(from_hdf5(files[name], key)))


# ---------------------------------------------------------------------------------------------------- one file

def file_advice(path, name):
    """Advice on a file of this name in `AVE_FILES` that is missing or cannot be used; '' if there is none."""
    path, key = Path(path), AVE_FILES[name].key
    try:
        if not path.exists():
            numpy_path = path.with_suffix(".npy")
            if not numpy_path.is_file():
                return ""
            return f"{numpy_path} is there: {by_python(path, key, f'numpy.load({quoted(numpy_path)})')}"
        with open(path, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                return f"it is a NumPy file, not HDF5: {by_python(path, key, f'numpy.load({quoted(path)})')}"
        with h5py.File(path, "r", locking=False) as file:
            dataset = file.get(key)
            if isinstance(dataset, h5py.Dataset):
                return _storage_advice(path, key, dataset)
            return _key_advice(path, key, file)
    except Exception:      # of a damaged file, h5py raises errors of any kind
        return ""


def _key_advice(path, key, file):
    """Advice on an HDF5 file without the dataset `key`: choose one of those that it holds."""
    names = []      # at any depth
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    if not names:
        return "it holds no dataset at all; download or make it again"
    found = ", ".join(f"{name} {file[name].shape}" for name in names)[:200]
    if len(names) == 1:
        return f"it holds {found}: {by_python(path, key, from_hdf5(path, names[0]))}"
    return f"it holds {found}; with the right one for NAME, {by_python(path, key, from_hdf5(path, 'NAME'))}"


def _storage_advice(path, key, dataset):
    """Advice on numbers in other files, and on filters that h5py does not have."""
    # HDF5 looks for virtual sources beside the file, for external ones in the current folder.
    sources = [path.parent / source.file_name for source in dataset.virtual_sources()] if dataset.is_virtual else []
    sources += [Path.cwd() / source for source, *_ in dataset.external or []]
    missing = sorted({str(source) for source in sources if not source.exists()})
    if missing:
        return f"it has its numbers in other files, which must be where it looks for them: {', '.join(missing)[:200]}"
    if sources:
        return f"it has its numbers in other files: {by_python(path, key, from_hdf5(path, key))}"
    layout = dataset.id.get_create_plist()
    if all(h5py.h5z.filter_avail(layout.get_filter(number)[0]) for number in range(layout.get_nfilters())):
        return ""
    return "or without hdf5plugin: " + by_command(
        path, f"h5repack -f NONE {shlex.quote(str(path))} {shlex.quote(str(new_path(path)))}")


# --------------------------------------------------------------------------------------------- files together

def shape_advice(files):
    """A line on each file whose shape cannot be right, as far as the shapes tell what it is."""
    advice = []
    for background in (False, True):
        shapes = {name: read_shape(files, name) for name in files
                  if name.endswith("_bg") == background and not name.startswith("order_")}
        # The first axis of all files should be videos: the commonest size at either end.
        ends = Counter([shape[0] for shape in shapes.values()] + [shape[-1] for shape in shapes.values()])
        for name, shape in shapes.items():
            if shape[0] != ends.most_common(1)[0][0] == shape[-1]:
                advice.append(f"the axes of {files[name]} look reversed, as MATLAB and Julia write them: "
                              + rewritten(files, name, "{}.T"))
            elif name.startswith("visual") and len(shape) == 3:
                advice.append("features without a map need 1 x 1 cells: "
                              + rewritten(files, name, "{}[:, :, None, None]"))
            elif name.startswith("visual") and len(shape) == 5 and shape[4] == 1 and shape[2] * shape[3] > MOST_CELLS:
                advice.append("these may be flattened features; as channels of 1 x 1 cells: "
                              + rewritten(files, name, "{}" + f".reshape({shape[0]}, {shape[1]}, 1, 1, -1)"))
            elif name.startswith("audio") and len(shape) == 5:
                advice.append("these look like maps of VGGish's last pooling layer; its last layer is needed")
    return advice


def channels_first(files, sizes):
    """A note, and lines of advice, on maps whose channels seem to come before height and width; [] if they do not."""
    height, width = sizes.map_size
    if height < 4 * max(width, sizes.visual_dim):
        return []
    names = [name for name in ("visual", "visual_bg") if name in files]
    return [f"{files['visual']}: the maps look as if the channels came first: {height} x {width} cells of "
            f"{sizes.visual_dim} channels; expected {AVE_FILES['visual'].content}",
            *(rewritten(files, name, "{}.transpose(0, 1, 3, 4, 2)") for name in names)]


def background_first(files, labels, sizes):
    """A note, and lines of advice, on labels [videos, T] whose background seems to be class 0; [] if it does not.

    Background shares a video with many categories, a category with none but background.
    """
    present = one_hot(labels, sizes.num_classes).amax(dim=1)      # [videos, C]
    together = present.T @ present > 0
    if sizes.num_classes < 3 or together[0, 1:].double().mean() <= 0.5 or together[-1, 1:-1].any():
        return []
    names = [name for name in ("labels", "video_labels", "label_share", "labels_bg") if name in files]
    return [f"{files['labels']}: class 0 looks like background, since it is in the videos of most other classes; "
            "background must be the last class, in all label files",
            *(rewritten(files, name, "numpy.roll({}, -1, axis=-1)") for name in names)]
