"""Reads PyTorch checkpoint files, the authors' pickled modules among them, without running anything they name.

`read_file` understands what torch.save writes, in today's zip format and in the stream of torch 1.5 and older. A pickle
is a program for a small stack machine, and one of its instructions calls whatever Python function the file names. Here
that machine is a short loop over the few instructions that torch.save needs; a name in the file is looked up in the
tables below, never imported, and anything else is refused by name. Modules become `ModuleRecord`s, which do nothing.

`released_weights` then finds the tensors by the names of the authors' networks.
"""
import io
import math
import pickletools
import re
import struct
import zipfile
from collections import Counter, OrderedDict

import torch

from data.files import UserError

MAX_FILE_BYTES = 2**30         # the released checkpoints have 7 MB
MAX_PICKLE_BYTES = 2**21       # the part that is not tensors; 20 KB there
MAX_ITEMS = 10**6              # that a pickle may copy from one container to another, and modules within modules

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}
_MODULE_FILES = ("fully_model", "weakly_model")       # where the authors' classes are defined


class ModuleRecord:
    """Stands for an instance of a module class: its class's name and its attributes, and no behaviour."""

    def __init__(self, class_name):
        self.class_name = class_name
        self.attributes = {}


class _Name:
    """A function or class that the file names, by one of the allowed names."""

    def __init__(self, name):
        self.name = name


class _Storage:
    """The numbers behind tensors: read once the whole pickle is known to be fine."""

    def __init__(self, key, dtype, numel):
        self.key, self.dtype, self.numel = key, dtype, numel


class _TensorRecord:
    """A view of a storage."""

    def __init__(self, storage, offset, size, stride):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


# ----------------------------------------------------------------------------------------------- files

def read_file(path):
    """What torch.save wrote to `path`: tensors on the CPU, plain values, dicts and lists of these, `ModuleRecord`s.

    Raises UserError for a file that is broken, or names anything but tensors and known modules.
    """
    if not path.is_file():
        raise UserError(f"{path}: " + ("is a folder, not a file" if path.is_dir() else "not found"))
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path}: has more than {MAX_FILE_BYTES} bytes; checkpoints of these networks have 7 million")
    data = path.read_bytes()
    try:
        content, storages = _read_zip(data) if data[:2] == b"PK" else _read_stream(io.BytesIO(data))
        return _with_tensors(content, storages)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:      # whatever a broken file leads the readers below into
        raise UserError(f"{path}: is broken or no checkpoint ({type(error).__name__}); "
                        "make it or download it again") from error


def _read_zip(data):
    """(content, {storage key: bytes}) of the zip format: a pickle `NAME/data.pkl`, storages `NAME/data/KEY`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {}
        for info in archive.infolist():
            if info.filename in entries:
                raise UserError(f"is broken: two parts are named {info.filename[:60]!r}")
            entries[info.filename] = info
        pickles = [name for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise UserError("is a zip file, but no checkpoint (it has no data.pkl)")
        folder = pickles[0].removesuffix("data.pkl")
        left = len(data)

        def read(name):
            nonlocal left
            info = entries.get(folder + name)
            if info is None:
                raise UserError(f"is broken: its part {name!r} is missing")
            # torch.save never compresses; with this, a file cannot unfold into more than its own size.
            left -= info.file_size
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or left < 0:
                raise UserError(f"is no checkpoint: its part {name!r} is compressed or overlaps others")
            return archive.read(info)

        if folder + "byteorder" in entries and read("byteorder") != b"little":
            raise UserError("was written on a big-endian machine, which is not supported")
        storages = {}
        content = _run_pickle(io.BytesIO(read("data.pkl")), storages)
        return content, {key: read(f"data/{key}") for key in storages}


def _read_stream(stream):
    """(content, {storage key: bytes}) of the older format: five pickles, then length and numbers of each storage."""
    try:
        magic = _run_pickle(stream, {})
    except Exception as error:
        raise UserError("is no PyTorch checkpoint") from error
    if magic != _LEGACY_MAGIC:
        raise UserError("is no PyTorch checkpoint")
    _run_pickle(stream, {})                                          # version of the format
    system = _run_pickle(stream, {})
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise UserError("was written on a big-endian machine, which is not supported")
    storages = {}
    content = _run_pickle(stream, storages)
    keys = _run_pickle(stream, {})
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise UserError("is broken: its list of tensors does not fit its content")
    data = {}
    for key in keys:
        numel, = struct.unpack("<q", stream.read(8))
        if numel != storages[key].numel:
            raise UserError("is broken: a tensor has another length than announced")
        data[key] = stream.read(numel * storages[key].dtype.itemsize)
    return content, data


def _with_tensors(content, storages):
    """The content with each `_TensorRecord` in a dict, list, tuple or module replaced by its tensor."""
    done = {}
    room = 2 * sum(map(len, storages.values()))     # bytes of all tensors; each number stands in one or two of them
    flat = {}

    def tensor(record):
        nonlocal room
        storage, data = record.storage, storages[record.storage.key]
        if len(data) != storage.numel * storage.dtype.itemsize:
            raise UserError("is broken: a tensor has another length than announced")
        numel = math.prod(record.size)
        if numel == 0:
            return torch.empty(record.size, dtype=storage.dtype)
        room -= numel * storage.dtype.itemsize
        last = record.offset + sum((size - 1) * stride for size, stride in zip(record.size, record.stride))
        if last >= storage.numel or room < 0:
            raise UserError("is broken: a tensor reaches beyond its numbers")
        if storage.key not in flat:
            flat[storage.key] = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        return flat[storage.key].as_strided(record.size, record.stride, record.offset).clone()

    def replace(value, depth=0):
        if depth > 60:
            raise UserError("is nested too deeply for a checkpoint")
        if isinstance(value, (dict, list, tuple, ModuleRecord, _TensorRecord)) and id(value) in done:
            return done[id(value)][1]
        if isinstance(value, _TensorRecord):
            new = tensor(value)
        elif isinstance(value, dict):
            new = type(value)()
            done[id(value)] = value, new
            for key, inner in value.items():
                new[key] = replace(inner, depth + 1)
        elif isinstance(value, (list, tuple)):
            new = type(value)(replace(inner, depth + 1) for inner in value)
        elif isinstance(value, ModuleRecord):
            new = ModuleRecord(value.class_name)
            done[id(value)] = value, new
            new.attributes = replace(value.attributes, depth + 1)
        else:
            return None if isinstance(value, (_Name, _Storage)) else value
        done[id(value)] = value, new        # keeps value alive, so that its id stays its own
        return new

    return replace(content)


# ---------------------------------------------------------------------------------------- pickle machine

def _run_pickle(stream, storages):
    """The object that the pickle at the stream's position builds; its storages are added to {key: _Storage}."""
    start = stream.tell()
    stack, marks, memo = [], [], {}
    room = MAX_ITEMS

    def pop_to_mark():
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for operation, argument, position in pickletools.genops(stream):
        if position - start > MAX_PICKLE_BYTES:
            raise UserError("is no checkpoint of these networks: what is not tensors is too long")
        if room < 0:
            raise UserError("is refused: its pickle copies far more than it holds")
        match operation.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation.name])
            case ("BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE"
                  | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES"):
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                number = int(operation.name[-1])
                stack[-number:] = [tuple(stack[-number:])]
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "APPEND" | "APPENDS":
                items = pop_to_mark() if operation.name == "APPENDS" else [stack.pop()]
                _expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = pop_to_mark() if operation.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _update(_expect(stack[-1], dict), items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name = stack.pop()
                stack.append(_named(_expect(stack.pop(), str), _expect(name, str)))
            case "NEWOBJ" | "REDUCE":
                arguments = _expect(stack.pop(), tuple)
                room -= sum(len(argument) for argument in arguments if isinstance(argument, (dict, list, tuple)))
                stack.append(_made(_expect(stack.pop(), _Name).name, arguments))
            case "BUILD":
                state = stack.pop()
                room -= len(state) if isinstance(state, (dict, list, tuple)) else 0
                _build(stack[-1], state)
            case "BINPERSID":
                stack.append(_persistent(_expect(stack.pop(), tuple), storages))
            case _:
                raise UserError(f"is refused: its pickle uses {operation.name}, which no checkpoint needs")
    raise UserError("is broken: its pickle does not end")


def _expect(value, kind):
    if not isinstance(value, kind):
        raise UserError(f"is broken: its pickle has {type(value).__name__} where {kind.__name__} belongs")
    return value


def _update(target, items):
    for key, value in zip(items[::2], items[1::2], strict=True):
        # A deeply nested key could overrun the C stack when it is hashed; large numbers can be made to collide.
        if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2**31):
            raise UserError(f"is refused: it has a dictionary key of type {type(key).__name__}")
        target[key] = value


def _named(module, name):
    """The stand-in for a global that the file names; UserError for all that is not in the tables."""
    full = f"{module}.{name}"
    known = (
        full in _CALLS
        or module in ("torch", "torch.cuda") and name in _DTYPES
        or module in _MODULE_FILES and name.isidentifier()
        or re.fullmatch(r"torch\.nn\.modules\.[a-z_]+", module) and name.isidentifier()
        or module == "torch.nn.functional" and name.isidentifier())
    if not known:
        raise UserError(f"is refused: it names {full[:120]!r}, which is neither a tensor nor a known module; "
                        "it was not run")
    return _Name(full)


def _rebuild_tensor(storage, offset, size, stride, *rest):
    numbers = [offset, *_expect(size, tuple), *_expect(stride, tuple)]
    if len(size) != len(stride) or len(size) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
        raise UserError("is broken: a tensor has an impossible shape")
    return _TensorRecord(_expect(storage, _Storage), offset, size, stride)


def _pairs(kind):
    """Makes an empty dict of `kind` from nothing, a dict, or a list of pairs."""
    def make(content=()):
        made = kind()
        items = content.items() if isinstance(content, dict) else _expect(content, (list, tuple))
        for item in items:
            _update(made, list(_expect(item, (list, tuple))))
        return made
    return make


_CALLS = {
    "collections.OrderedDict": _pairs(OrderedDict),
    "collections.Counter": _pairs(Counter),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: _expect(data, _TensorRecord),
    "torch.nn.parameter.Parameter": lambda data, *rest: _expect(data, _TensorRecord),
    "torch.Size": lambda size: tuple(_expect(size, (list, tuple))),
    "torch.nn.backends.thnn._get_thnn_function_backend": lambda: None,      # in every module until torch 1.2
    "__builtin__.set": lambda items=(): list(_expect(items, (list, tuple))),     # an empty one, in nn.Module
    "builtins.set": lambda items=(): list(_expect(items, (list, tuple))),
}


def _made(name, arguments):
    """What calling the allowed name with these arguments stands for."""
    if name in _CALLS:
        return _CALLS[name](*arguments)
    module, _, class_name = name.rpartition(".")
    if module in _MODULE_FILES or module.startswith("torch.nn.modules."):
        return ModuleRecord(class_name)
    raise UserError(f"is refused: it calls {name[:120]!r}")


def _build(target, state):
    """Sets attributes: those of a module, kept; those of an OrderedDict, of no use."""
    if isinstance(target, ModuleRecord):
        target.attributes.update(_expect(state, dict))
    elif not isinstance(target, OrderedDict):
        raise UserError(f"is refused: it sets attributes of a {type(target).__name__}")


def _persistent(identity, storages):
    """What a persistent id stands for: ('storage', type, key, place, numel, ...) or ('module', class, file, source)."""
    match identity:
        case ("module", _Name() as module_class, _, _):
            return module_class
        case ("storage", _Name(name=name), str(key), str(), int(numel), *_) if name.rpartition(".")[2] in _DTYPES:
            storage = _Storage(key, _DTYPES[name.rpartition(".")[2]], numel)
            if not 0 <= numel <= MAX_FILE_BYTES or not re.fullmatch(r"\d{1,20}", key):
                raise UserError("is broken: a tensor has an impossible length")
            known = storages.setdefault(key, storage)
            if (known.dtype, known.numel) != (storage.dtype, storage.numel):
                raise UserError("is broken: a tensor has two types")
            return known
    raise UserError("is refused: it refers to something that is no tensor")


# --------------------------------------------------------------------------------- the authors' networks

# released name -> our name, of modules; a parameter below a module keeps its own last name (weight_ih_l0, bias, ...).
_SHARED_NAMES = {
    "attention.affine_video": "attention.U_v",
    "attention.affine_audio": "attention.U_a",
    "attention.affine_v": "attention.W_v",
    "attention.affine_g": "attention.W_g",
    "attention.affine_h": "attention.w_h",
    "lstm_a_v.lstm_audio": "lstm_audio",
    "lstm_a_v.lstm_video": "lstm_visual",
    "psp.v_L1": "psp.v1.0",
    "psp.v_L2": "psp.v2.0",
    "psp.a_L1": "psp.a1.0",
    "psp.a_L2": "psp.a2.0",
    "psp.layer_norm": "psp.layer_norm",
    "L1": "classifier.0",
    "L2": "classifier.2",
}
RELEASED_NAMES = {
    "fully": {
        **_SHARED_NAMES,
        "fa.0": "audio_in.0",
        "fa.1": "audio_in.1",
        "fv.0": "visual_in.0",
        "fv.1": "visual_in.1",
        "psp.v_fc": "psp.v_out.0",
        "psp.a_fc": "psp.a_out.0",
    },
    "weakly": {
        **_SHARED_NAMES,
        "linear_v": "visual_in",
        "W3": "weighting",
    },
}


def our_name(released_name, setting):
    """Our name of the released parameter, e.g. 'psp.v_L1.weight' -> 'psp.v1.0.weight'; setting 'fully' or 'weakly'.

    Raises KeyError for a name that has no counterpart: the released networks also own parameters that never
    reach their output, and this one does not have those.
    """
    module, _, parameter = released_name.rpartition(".")
    return f"{RELEASED_NAMES[setting][module]}.{parameter}"


# Parameters of the released networks that never reach their output, by the first part of the name.
RELEASED_UNUSED = {
    "fully": ("linear_v", "v_classify", "a_classify", "L3", "L4"),
    "weakly": ("temperature", "W1", "W2"),
}


def state_of(content):
    """{parameter name: tensor} of a pickled module or a state dict, None if the content is neither."""
    if isinstance(content, ModuleRecord):
        return _module_state(content)
    if isinstance(content, dict) and content and all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()):
        return dict(content)
    return None


def _module_state(root):
    state, waiting, visited = {}, [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        visited += 1
        if visited > 1000 or prefix.count(".") > 10:
            raise UserError("is no checkpoint of these networks: it has too many modules")
        for kind in ("_parameters", "_buffers"):
            for name, value in _expect(module.attributes.get(kind, {}), dict).items():
                if isinstance(value, torch.Tensor):
                    state[f"{prefix}{name}"] = value
        for name, inner in _expect(module.attributes.get("_modules", {}), dict).items():
            if isinstance(inner, ModuleRecord):
                waiting.append((f"{prefix}{name}.", inner))
    return state


def released_setting(state):
    """'fully' or 'weakly' for a state with the authors' names, else None."""
    return "weakly" if "W3.weight" in state else "fully" if "fa.0.weight" in state else None


def released_weights(state, setting):
    """Our names and float32 tensors from a state with the authors' names; parameters that they never use are left out.

    Raises UserError for a name that is missing or unknown.
    """
    weights, unknown = {}, []
    for name, value in state.items():
        try:
            weights[our_name(name, setting)] = value.float()
        except KeyError:
            if name.split(".")[0] not in RELEASED_UNUSED[setting]:
                unknown.append(name)
    if unknown:
        raise UserError(f"is no {setting} supervised network of the authors': it has {ascii(unknown[:5])[1:-1]}")
    missing = [name for name in RELEASED_NAMES[setting]
               if not any(ours.rpartition(".")[0] == RELEASED_NAMES[setting][name] for ours in weights)]
    if missing:
        raise UserError(f"is no {setting} supervised network of the authors': it has no {', '.join(missing)[:200]}")
    return weights
