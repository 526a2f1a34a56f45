"""Reads the authors' checkpoints: the tensors in a module that `torch.save` wrote, without running anything.

The authors saved whole modules. PyTorch writes a module as a pickle: a program that may call any Python function.
`torch.load(weights_only=True)` refuses such a file, and `weights_only=False` runs it. Here torch.load reads the file
with `_Unpickler`, which imports nothing. A name of a module, of NumPy, argparse or pathlib gives an object that does
nothing, a tensor's name gives a tensor, and any other name is refused.
"""
import io
import os.path
import pickle
import warnings
import zipfile
from types import SimpleNamespace

import torch

from utils import UserError, one_line


# A pickle can call each of these with any arguments and can try to set its attributes. Pickle does set the attributes
# of a function or a plain class. A class with its own `__setstate__` refuses.

class Inert(dict):
    """Stands for every object that is not a tensor. Keeps a dict's items, and a module's tensors and parts."""

    dump_patches = False      # torch.load reads it, and writes a file if it is true
    parts = {}                # of a module: {name: tensor, Inert or None}
    __hash__ = object.__hash__    # a NumPy number may be the key of a dict

    def __init__(self, *arguments, **named):
        super().__init__()

    def __setstate__(self, state):
        if not isinstance(state, dict):      # of a NumPy array
            return
        self.parts = {name: part for kind in ("_parameters", "_buffers", "_modules")
                      for name, part in state.get(kind, {}).items()}


class _Tensor(Inert):
    """Stands for the function that makes a tensor from a storage. Gives that tensor."""

    def __new__(cls, storage, offset, size, stride, *rest):
        return torch._utils._rebuild_tensor(storage, offset, size, stride)


class _Parameter(Inert):
    """Stands for the function that makes a parameter from a tensor. Gives the tensor."""

    def __new__(cls, tensor, *rest):
        return tensor


_TENSORS = {"torch._utils._rebuild_tensor_v2": _Tensor, "torch._utils._rebuild_parameter": _Parameter}
_INERT_NAMES = {"torch.Size", "torch.device", "collections.OrderedDict", "__builtin__.set", "_codecs.encode"}
_INERT_MODULES = ("fully_model.", "weakly_model.", "torch.nn.", "numpy.", "argparse.", "pathlib.")


class _NotRunError(pickle.UnpicklingError):
    """A pickle names something else; the message is that name."""


class _Unpickler(pickle._Unpickler):
    """Looks every name up in the tables above. torch.load itself handles the names of storages.

    `pickle._Unpickler` is written in Python. In `pickle.Unpickler`, one flipped bit of a file can take gigabytes.
    """

    # Without the one command that takes as much memory as it says; checkpoints do not have it.
    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]}

    def find_class(self, module, name):
        full_name = f"{module}.{name}"
        if full_name in _INERT_NAMES or full_name.startswith(_INERT_MODULES):
            return Inert
        if full_name in _TENSORS:
            return _TENSORS[full_name]
        raise _NotRunError(full_name)


_PICKLE = SimpleNamespace(      # torch.load's pickle_module
    __name__="inert pickle", Unpickler=_Unpickler, load=lambda file, **options: _Unpickler(file, **options).load())
_STREAM_MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)[2:-1]
DOWNLOAD = "download it again"
NOT_OURS = "is not a checkpoint of these networks; if it holds one, save its state_dict() alone"


def read_bytes(path, remedy=DOWNLOAD):
    """The file's bytes; UserError for one that is not safe for torch.load. remedy: what to do about a broken file."""
    data = path.read_bytes()
    # torch.load gives a zip file with this entry to torch.jit.load. Any place counts, since zip readers may disagree.
    if b"constants.pkl" in data:
        raise UserError(f"{path}: is a TorchScript archive, not a checkpoint; it was not run")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        ours, damaged = any(name.endswith("/data.pkl") for name in archive.namelist()), archive.testzip()
    except Exception:      # not a zip file, or a broken one, which torch.load refuses
        return data
    if not ours:
        raise UserError(f"{path}: is a zip archive, not a checkpoint; if one is in it, unzip it first")
    if damaged:      # by a checksum, at which torch.load does not look
        raise UserError(f"{path}: is damaged, in {ascii(damaged)}; {remedy}")
    return data


def read_released(path, data, remedy=DOWNLOAD):
    """{released name: tensor} of the module that torch.save wrote to `path`, in today's zip format or the old stream.

    Runs nothing that the file names. Raises UserError for a file that is broken or holds anything else.
    """
    try:
        with warnings.catch_warnings(action="ignore"):      # about the missing source of the authors' classes
            # Not the path: given a path, torch.load also opens a tar file.
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False, pickle_module=_PICKLE)
    except Exception as error:      # a broken file can raise anything
        raise UserError(f"{path}: {_what_is_wrong(path, data, error, remedy)}") from error
    weights = find_weights(content)
    if weights is None:
        raise UserError(f"{path}: {NOT_OURS}")
    return weights


def _what_is_wrong(path, data, error, remedy):
    """What a file is that torch.load did not read, and what to do about it."""
    if not data:
        return f"is empty; {remedy}"
    if data.lstrip().startswith(b"<"):
        return f"is a web page, not a checkpoint; {remedy}"
    if data.startswith(b"version https://git-lfs"):
        return f"is a git-lfs pointer, not the checkpoint itself; {remedy}, with git-lfs"
    if data.startswith(b"\x1f\x8b"):
        return "is compressed; gunzip it first"
    if data[257:262] == b"ustar":
        return "is a tar archive, not a checkpoint; if one is in it, extract it first"
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return "is a safetensors file, which is not supported; write its state dict with torch.save"
    if data.startswith(b'{"run":'):
        return f"is the log of a run; its checkpoint is {path.with_suffix('.pt').name}"
    if isinstance(error, _NotRunError) and data.startswith((b"PK", b"\x80")):
        if str(error).startswith("psp_model."):
            return "is a whole module of psp_model.py, which was not run; save network.state_dict() instead"
        return f"names {one_line(error)!r}, which was not run; save the state_dict() alone"
    if not data.startswith((b"PK", b"\0\0\0\0")) and _STREAM_MAGIC not in data[:40]:      # disks leave zeros
        return f"is not a file of torch.save; {'name the checkpoint itself' if remedy == DOWNLOAD else remedy}"
    reason = one_line(error).partition(". ")[0]
    return f"cannot be read as a PyTorch checkpoint ({type(error).__name__}: {reason}); {remedy}"


def find_weights(content):
    """{name: tensor} from what torch.load gave: a state dict, or a module as `read_released` sees it. Else None.

    Takes the entry 'state_dict', 'model_state_dict' or 'model' of a dict. Removes what all names begin with, such as
    DataParallel's 'module.', if that leaves names of ours or of the authors.
    """
    if isinstance(content, dict):
        content = next((content[key] for key in ("state_dict", "model_state_dict", "model") if key in content), content)
    if isinstance(content, Inert) and content.parts:
        content = _module_weights(content)
    if not isinstance(content, dict) or not content or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()):
        return None
    prefix = os.path.commonprefix(list(content))
    bare = {name.removeprefix(prefix): value for name, value in content.items()}
    return bare if any(name.rpartition(".")[0] in _KNOWN_MODULES for name in bare) else dict(content)


def _module_weights(module, prefix="", depth=0):
    """{name: tensor} of a module and its parts, as in its state_dict()."""
    weights = {}
    for name, part in module.parts.items():
        if isinstance(part, torch.Tensor):
            weights[f"{prefix}{name}"] = part
        elif isinstance(part, Inert) and depth < 8:      # a broken file can put a module into itself
            weights.update(_module_weights(part, f"{prefix}{name}.", depth + 1))
    return weights


# released name -> our name, of modules; a parameter below a module keeps its own last name (weight_ih_l0, bias, ...).
_SHARED_NAMES = {
    "attention.affine_video": "attention.U_v",
    "attention.affine_audio": "attention.U_a",
    "attention.affine_v": "attention.W_v",
    "attention.affine_g": "attention.W_g",
    "attention.affine_h": "attention.w_h",
    "lstm_a_v.lstm_audio": "lstm_audio",
    "lstm_a_v.lstm_video": "lstm_visual",
    "psp.v_L1": "psp.visual_value.0",
    "psp.v_L2": "psp.visual_query.0",
    "psp.a_L1": "psp.audio_key.0",
    "psp.a_L2": "psp.audio_value.0",
    "psp.layer_norm": "psp.layer_norm",
    "L1": "classifier.0",
    "L2": "classifier.2",
}
RELEASED_NAMES = {
    "weakly": {**_SHARED_NAMES, "linear_v": "visual_in", "W3": "weighting"},
    "fully": {**_SHARED_NAMES, "fa.0": "audio_in.0", "fa.1": "audio_in.1", "fv.0": "visual_in.0", "fv.1": "visual_in.1",
              "psp.v_fc": "psp.visual_out.0", "psp.a_fc": "psp.audio_out.0"},
}
_KNOWN_MODULES = {module for names in RELEASED_NAMES.values() for pair in names.items() for module in pair}

# Parameters of the released networks that never reach their output, by the first part of the name.
RELEASED_UNUSED = {
    "fully": ("linear_v", "v_classify", "a_classify", "L3", "L4"),
    "weakly": ("temperature", "W1", "W2"),
}


def our_name(released_name, setting):
    """'classifier.0.weight' for 'L1.weight', say; KeyError for a name without a counterpart."""
    module, _, parameter = released_name.rpartition(".")
    return f"{RELEASED_NAMES[setting][module]}.{parameter}"


def released_weights(weights, setting, path):
    """{our name: float32 tensor} from weights with the authors' names, without the parameters that they never use.

    path: of their file. Raises UserError for an unknown name; `model.checkpoint.rebuild` finds missing ones.
    """
    used = [name for name in weights if name.split(".")[0] not in RELEASED_UNUSED[setting]]
    unknown = [name for name in used if name.rpartition(".")[0] not in RELEASED_NAMES[setting]]
    if unknown:
        raise UserError(f"{path}: is not a {setting} supervised network of the authors: it has "
                        f"{ascii(unknown[:5])[1:-1]}")
    return {our_name(name, setting): weights[name].float() for name in used}
