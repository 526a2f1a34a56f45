"""Reads the authors' checkpoints: the tensors in a module that `torch.save` wrote, without running anything.

The authors saved whole modules. PyTorch writes a module as a pickle: a program that may call any Python function.
`torch.load(weights_only=True)` refuses such a file, and `weights_only=False` runs it. Here torch.load reads the file
with `_Unpickler`, which imports nothing. A module's name gives an object that does nothing, a tensor's name gives a
tensor, and any other name is refused.
"""
import io
import pickle
import warnings
from types import SimpleNamespace

import torch

from utils import UserError, one_line


# A pickle can call each of these with any arguments and can try to set its attributes. Pickle does set the attributes
# of a function or a plain class. A class with its own `__setstate__` refuses.

class Inert(dict):
    """Stands for every object that is not a tensor. Keeps a dict's items, and a module's tensors and parts."""

    dump_patches = False      # torch.load reads it, and writes a file if it is true
    parts = {}                # of a module: {name: tensor, Inert or None}

    def __init__(self, *arguments, **named):
        super().__init__()

    def __setstate__(self, state):
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


_STANDS_FOR = {
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": _Parameter,
    "torch.Size": Inert,
    "torch.device": Inert,
    "collections.OrderedDict": Inert,
    "__builtin__.set": Inert,
}


class _Unpickler(pickle._Unpickler):
    """Looks every name up in the table above. torch.load itself handles the names of storages.

    `pickle._Unpickler` is written in Python. In `pickle.Unpickler`, one flipped bit of a file can take gigabytes.
    """

    def find_class(self, module, name):
        full_name = f"{module}.{name}"
        if full_name in _STANDS_FOR:
            return _STANDS_FOR[full_name]
        if full_name.startswith(("fully_model.", "weakly_model.", "torch.nn.")):
            return Inert
        raise pickle.UnpicklingError(f"it names {full_name!r}, which was not run")


def _load(file, **options):
    return _Unpickler(file, **options).load()


_PICKLE = SimpleNamespace(__name__="inert pickle", Unpickler=_Unpickler, load=_load)      # torch.load's pickle_module


def read_bytes(path):
    """Returns the file's bytes. Raises UserError for a file that is not a checkpoint or not safe for torch.load."""
    if not path.is_file():
        raise UserError(f"{path}: is a folder, not a file" if path.is_dir() else f"{path}: not found")
    data = path.read_bytes()
    if not data:
        raise UserError(f"{path}: is empty; download it again")
    if data.lstrip().startswith(b"<"):
        raise UserError(f"{path}: is a web page, not a checkpoint; download it again")
    if data.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a git-lfs pointer, not the checkpoint itself; download it again, with git-lfs")
    # torch.load gives a zip file with this entry to torch.jit.load. Any place counts, since zip readers may disagree.
    if b"constants.pkl" in data:
        raise UserError(f"{path}: is a TorchScript archive, not a checkpoint; it was not run")
    return data


def read_released(path, data):
    """{released name: tensor} of the module that torch.save wrote to `path`, in today's zip format or the old stream.

    Runs nothing that the file names. Raises UserError for a file that is broken or holds anything else.
    """
    try:
        with warnings.catch_warnings(action="ignore"):      # about the missing source of the authors' classes
            # Not the path: given a path, torch.load also opens a tar file.
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False, pickle_module=_PICKLE)
    except Exception as error:      # a broken file can raise anything
        raise UserError(f"{path}: cannot be read as a PyTorch checkpoint "
                        f"({type(error).__name__}: {one_line(error)}); download it again") from error
    weights = find_weights(content)
    if weights is None:
        raise UserError(f"{path}: is not a checkpoint of these networks")
    return weights


def find_weights(content):
    """{name: tensor} from what torch.load gave: a state dict, or a module as `read_released` sees it. Else None.

    Takes the entry 'state_dict' or 'model' of a dict, and removes DataParallel's 'module.' if all names begin with it.
    """
    if isinstance(content, dict):
        content = content.get("state_dict", content.get("model", content))
    if isinstance(content, Inert) and content.parts:
        content = _module_weights(content)
    if not isinstance(content, dict) or not content:
        return None
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()):
        return None
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value for name, value in content.items()}


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
    "fully": {
        **_SHARED_NAMES,
        "fa.0": "audio_in.0",
        "fa.1": "audio_in.1",
        "fv.0": "visual_in.0",
        "fv.1": "visual_in.1",
        "psp.v_fc": "psp.visual_out.0",
        "psp.a_fc": "psp.audio_out.0",
    },
}

# Parameters of the released networks that never reach their output, by the first part of the name.
RELEASED_UNUSED = {
    "fully": ("linear_v", "v_classify", "a_classify", "L3", "L4"),
    "weakly": ("temperature", "W1", "W2"),
}


def our_name(released_name, setting):
    """'classifier.0.weight' for 'L1.weight', say; KeyError for a name without a counterpart."""
    module, _, parameter = released_name.rpartition(".")
    return f"{RELEASED_NAMES[setting][module]}.{parameter}"


def released_setting(weights):
    """'fully' or 'weakly' for weights with the authors' names, else None."""
    return "weakly" if "W3.weight" in weights else "fully" if "fa.0.weight" in weights else None


def released_weights(weights, setting):
    """{our name: float32 tensor} from weights with the authors' names, without the parameters that they never use.

    Raises UserError for an unknown name. `model.checkpoint.rebuild` finds missing ones.
    """
    used = [name for name in weights if name.split(".")[0] not in RELEASED_UNUSED[setting]]
    unknown = [name for name in used if name.rpartition(".")[0] not in RELEASED_NAMES[setting]]
    if unknown:
        raise UserError(f"is not a {setting} supervised network of the authors: it has {ascii(unknown[:5])[1:-1]}")
    return {our_name(name, setting): weights[name].float() for name in used}
