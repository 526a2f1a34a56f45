"""The authors' checkpoints load as they are, and nothing that a file names is ever run."""
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch

from conftest import TESTS
from data.files import UserError
from golden import recipe
from model.checkpoint import load, rebuild
from model.released import RELEASED_NAMES, ModuleRecord, our_name, read_file
from psp_model import FULLY_SUPERVISED, PAPER_THRESHOLD, WEAKLY_SUPERVISED, PSPNetwork
from released_models import released_network, save

GOLDEN = json.loads((TESTS / "golden" / "released.json").read_text())
OPTIONS = {"fully": FULLY_SUPERVISED, "weakly": WEAKLY_SUPERVISED}


@pytest.fixture(params=["fully", "weakly"])
def released(request):
    """(setting, {released name: float32 golden weight})."""
    setting = request.param
    network = PSPNetwork(128, 512, (7, 7), 29, threshold=0.1, **OPTIONS[setting])
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return setting, {name: torch.from_numpy(recipe.parameter(GOLDEN["seed"], name,
                                                             shapes[our_name(name, setting)])).float()
                     for name in GOLDEN[setting]["grad_norms"]}


def assert_is_the_golden_network(checkpoint, path, setting):
    """The network of the checkpoint gives the released code's outputs, to what float32 allows."""
    assert checkpoint["setting"] == setting
    assert checkpoint["network"]["threshold"] == PAPER_THRESHOLD[setting] == GOLDEN[setting]["threshold"]
    network = rebuild(checkpoint, path).eval()
    audio, visual, _ = recipe.inputs(GOLDEN["seed"], GOLDEN["batch"])
    output = network(torch.from_numpy(audio).float(), torch.from_numpy(visual).float())
    golden = torch.tensor(GOLDEN[setting]["logits" if setting == "fully" else "scores"])
    torch.testing.assert_close(output.logits, golden, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("legacy", [True, False], ids=["stream", "zip"])
def test_a_pickled_module_loads_and_computes_what_the_released_code_computes(released, tmp_path, legacy):
    setting, weights = released
    path = tmp_path / "PSP.pt"
    save(released_network(setting, weights), path, legacy)
    with pytest.raises(Exception):
        torch.load(path, weights_only=True)      # what a user meets without this repository
    checkpoint = load(path, setting)
    for name, value in weights.items():
        assert torch.equal(checkpoint["weights"][our_name(name, setting)], value)
    assert_is_the_golden_network(checkpoint, path, setting)
    other = {"fully": "weakly", "weakly": "fully"}[setting]
    with pytest.raises(UserError, match=f"is a {setting} supervised checkpoint"):
        load(path, other)


def test_the_stream_of_torch_1_2_names_its_backend_in_every_module(tmp_path, released):
    """torch 1.2 also pickled an attribute `_backend`, by a function of a module that is gone."""
    setting, weights = released
    network = released_network(setting, weights)

    class Backend:
        def __reduce__(self):
            return _get_thnn_function_backend, ()

    def _get_thnn_function_backend():
        raise AssertionError("must not be called")
    import types
    _get_thnn_function_backend.__module__ = "torch.nn.backends.thnn"
    _get_thnn_function_backend.__qualname__ = "_get_thnn_function_backend"
    backends = types.ModuleType("torch.nn.backends.thnn")
    backends._get_thnn_function_backend = _get_thnn_function_backend
    sys.modules["torch.nn.backends.thnn"] = backends
    try:
        for module in network.modules():
            module.__dict__["_backend"] = Backend()
        save(network, tmp_path / "PSP.pt", legacy=True)
    finally:
        del sys.modules["torch.nn.backends.thnn"]
    assert_is_the_golden_network(load(tmp_path / "PSP.pt"), tmp_path, setting)


def test_state_dicts_with_released_names_and_with_ours(released, tmp_path):
    setting, weights = released
    ours = {our_name(name, setting): value for name, value in weights.items()}
    for number, state in enumerate((weights, OrderedDict(ours), released_network(setting, weights).state_dict())):
        for legacy in (True, False):
            path = tmp_path / f"{number}{legacy}.pt"
            torch.save(state, path, _use_new_zipfile_serialization=not legacy)
            assert_is_the_golden_network(load(path, setting), path, setting)


def test_convert_released_writes_one_of_ours(released, quick_script, tmp_path):
    setting, weights = released
    save(released_network(setting, weights), tmp_path / "theirs.pt", legacy=True)
    quick_script("model/convert_released.py", tmp_path / "theirs.pt", tmp_path / "ours.pt")
    content = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert set(content) == {"setting", "model_name", "network", "weights"}
    assert_is_the_golden_network(load(tmp_path / "ours.pt", setting), tmp_path, setting)
    done = quick_script("model/convert_released.py", tmp_path / "theirs.pt", tmp_path / "ours.pt", code=2)
    assert "--overwrite" in done.stderr


@pytest.mark.parametrize("change, expected", [
    (lambda weights, last: weights.pop(last), "has no"),
    (lambda weights, last: weights.update({"extra.weight": torch.ones(1)}), "extra.weight"),
    (lambda weights, last: weights.update({last: torch.ones(2, 2)}), "does not hold"),
    (lambda weights, last: weights.update({last: weights[last] * float("nan")}), "NaN"),
], ids=["missing", "unknown", "other shape", "NaN"])
def test_a_network_that_is_not_whole_is_refused(released, tmp_path, change, expected):
    setting, weights = released
    change(weights, "psp.v_L1.weight")
    torch.save(weights, tmp_path / "PSP.pt")
    with pytest.raises(UserError, match=expected):
        rebuild(load(tmp_path / "PSP.pt", setting), tmp_path / "PSP.pt")


def test_names_of_both_settings_cover_all_parameters():
    for setting, names in RELEASED_NAMES.items():
        network = PSPNetwork(128, 512, (7, 7), 29, threshold=0.1, **OPTIONS[setting])
        ours = {name.rpartition(".")[0] for name in network.state_dict()}
        assert set(names.values()) == ours


# ---------------------------------------------------------------------------------------- hostile files

class Call:
    """Pickles as a call of function(*arguments); with this, a plain unpickler would run it."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def canary(tmp_path):
    return f"touch {tmp_path}/executed"


def hostile_objects(tmp_path):
    import builtins
    deep = ()
    for _ in range(400):
        deep = (deep,)
    return {
        "os.system": Call(os.system, canary(tmp_path)),
        "eval": Call(eval, f"__import__('os').system({canary(tmp_path)!r})"),
        "named, not called": {"L1.weight": torch.ones(2), "function": os.system},
        "exec": Call(exec, f"__import__('os').system({canary(tmp_path)!r})"),
        "getattr chain": Call(builtins.getattr, Call(__import__, "os"), "system"),
        "torch.load": Call(torch.load, f"{tmp_path}/other.pt"),
        "subprocess": Call(subprocess.check_output, ["touch", f"{tmp_path}/executed"]),
        "setstate of a module": Call(torch.nn.Module.__setstate__, torch.nn.ReLU(), {"a": 1}),
        "a function of torch": Call(torch.ones, 10**9),
        "jit": Call(torch.jit.load, "x"),
        "weights and a call": {"L1.weight": torch.ones(2), "x": Call(os.system, canary(tmp_path))},
        "state for an OrderedDict": Call(OrderedDict, state=(None, {"popitem": Call(os.system, canary(tmp_path))})),
        "nested too deep": deep,
    }


HOSTILE = list(hostile_objects("/nowhere"))


@pytest.mark.parametrize("legacy", [True, False], ids=["stream", "zip"])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, case, legacy):
    torch.save(hostile_objects(tmp_path)[case], tmp_path / "PSP.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError) as error:
        read_file(tmp_path / "PSP.pt")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(tmp_path))
    assert not (tmp_path / "executed").exists()
    if case in ("os.system", "eval", "torch.load"):
        name = {"os.system": "posix.system", "eval": "eval", "torch.load": "torch.serialization.load"}[case]
        assert name in str(error.value)


def zip_of(pickle_bytes, **parts):
    """A file in torch's zip format around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        for name, data in parts.items():
            archive.writestr(f"archive/data/{name[1:]}", data)
    return buffer.getvalue()


def storage_pickle(numel, size, stride=(1,), offset=0, key=b"0"):
    """A pickle of one tensor with these, true or not."""
    def integer(value):
        return b"\x8a\x08" + struct.pack("<q", value)
    def integers(values):
        return b"(" + b"".join(map(integer, values)) + b"t"
    text = b"X" + struct.pack("<I", len(key)) + key
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + text + b"X\x03\0\0\0cpu" + integer(numel) + b"tQ"
    return (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(offset) + integers(size)
            + integers(stride) + b"\x89}tR.")


def many_modules():
    """A module whose ten parts are one module, whose ten parts are one module, and so on: 10^12 paths."""
    module = ModuleRecordPickle({})
    for _ in range(12):
        module = ModuleRecordPickle({str(number): module for number in range(10)})
    buffer = io.BytesIO()
    torch.save(module, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


class ModuleRecordPickle(torch.nn.ReLU):
    def __init__(self, parts):
        super().__init__()
        self._modules = parts

    def __reduce__(self):
        return torch.nn.ReLU, (), {"_modules": self._modules}


LIST = b"]q\x00(" + b"K\x01" * 100_000 + b"e0"       # memo 0: a list of 100,000 numbers
FLOATS = struct.pack("<4f", 1, 2, 3, 4)
RAW = {
    "empty": b"",
    "one byte": b"\x80",
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "text": b"<html>quota exceeded</html>",
    "zip without a pickle": zip_of(b".")[:30],
    "memo of 2^32 entries": zip_of(b"\x80\x02Nr\xff\xff\xff\xff" * 3 + b"."),
    "string of 2^31 bytes": zip_of(b"\x80\x02X\xff\xff\xff\x7fabc."),
    "bytes of 2^63 bytes": zip_of(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc."),
    "frame of 2^60 bytes": zip_of(b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N"),
    "number of 10^6 digits": zip_of(b"\x80\x02I" + b"9" * 10**6 + b"\n."),
    "deep dictionary key": zip_of(b"\x80\x02})" + b"\x85" * 10**6 + b"Ns."),
    "deep value": zip_of(b"\x80\x02)" + b"\x85" * 10**6 + b"."),
    "deep lists": zip_of(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
    "stack of nothing": zip_of(b"\x80\x02a."),
    "modules within modules": many_modules(),
    "a list copied over and over": zip_of(
        b"\x80\x02" + LIST + b"ctorch\nSize\nq\x01" + b"h\x01h\x00\x85R" * 50_000 + b"."),
    "pairs copied over and over": zip_of(
        b"\x80\x02" + LIST + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 9 + b"."),
    "keys that collide": zip_of(b"\x80\x02}(" + b"".join(
        b"\x8a\x0a" + ((2**61 - 1) * (k + 1)).to_bytes(10, "little") + b"N" for k in range(20_000)) + b"u."),
    "no end": zip_of(b"\x80\x02NNNN"),
    "extension registry": zip_of(b"\x80\x02\x82\x01."),
    "old instance": zip_of(b"(S'touch x'\nios\nsystem\n."),
    "named through unicode": zip_of("\x80\x02c\u043fs\nsystem\n.".encode()),
    "a tensor longer than its numbers": zip_of(storage_pickle(4, (5,)), k0=FLOATS),
    "a tensor that reaches out": zip_of(storage_pickle(4, (2,), (3,), 1), k0=FLOATS),
    "a tensor of 2^40 zeros": zip_of(storage_pickle(4, (2**39, 2), (0, 0)), k0=FLOATS),
    "a negative stride": zip_of(storage_pickle(4, (2,), (-1,), 1), k0=FLOATS),
    "a negative length": zip_of(storage_pickle(-4, (1,)), k0=FLOATS),
    "a storage of 2^50": zip_of(storage_pickle(2**50, (1,)), k0=FLOATS),
    "a storage elsewhere": zip_of(storage_pickle(4, (4,), key=b"../../../etc/passwd"), k0=FLOATS),
    "a storage that is missing": zip_of(storage_pickle(4, (4,), key=b"7"), k0=FLOATS),
}


@pytest.mark.parametrize("case", RAW)
def test_broken_files_end_in_one_clear_line(tmp_path, case):
    path = tmp_path / "PSP.pt"
    path.write_bytes(RAW[case])
    with pytest.raises(UserError) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_the_hand_made_tensor_is_read_where_it_is_right(tmp_path):
    (tmp_path / "t.pt").write_bytes(zip_of(storage_pickle(4, (2, 2), (1, 2)), k0=FLOATS))
    assert read_file(tmp_path / "t.pt").tolist() == [[1, 3], [2, 4]]


def test_zip_bombs_and_paths(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * 10**7 + b"N.")
    with zipfile.ZipFile(tmp_path / "path.pt", "w") as archive:
        archive.writestr("../../data.pkl", b"\x80\x02N.")
    with zipfile.ZipFile(tmp_path / "absolute.pt", "w") as archive:
        archive.writestr("/tmp/data.pkl", b"\x80\x02N.")
    for name, expected in (("bomb", "compressed"), ("path", "no data.pkl"), ("absolute", "no data.pkl")):
        with pytest.raises(UserError, match=expected):
            read_file(tmp_path / f"{name}.pt")
    with pytest.raises(UserError, match="folder"):
        read_file(tmp_path)


def test_parts_of_a_zip_file_that_overlap_are_refused(tmp_path):
    """The numbers of storage 0 are the whole entry of storage 1: the file unfolds into nearly twice its size."""
    floats = FLOATS * 1000
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data/1", floats)
    inner = buffer.getvalue()[:30 + len("archive/data/1") + len(floats)]      # its local header and its data
    inner += bytes(-len(inner) % 4)

    def tensor(key, numel):
        return storage_pickle(numel, (1,), key=key).removeprefix(b"\x80\x02").removesuffix(b".")
    with zipfile.ZipFile(tmp_path / "PSP.pt", "w") as archive:
        tensors = tensor(b"0", len(inner) // 4) + tensor(b"1", 4000)
        archive.writestr("archive/data.pkl", b"\x80\x02" + tensors + b"\x86.")
        archive.writestr("archive/data/0", inner)
        outer = archive.getinfo("archive/data/0")
        part = zipfile.ZipInfo("archive/data/1")
        part.header_offset = outer.header_offset + 30 + len(outer.filename)
        part.file_size = part.compress_size = len(floats)
        part.CRC = zipfile.crc32(floats)
        archive.filelist.append(part)
        archive.NameToInfo[part.filename] = part
    with pytest.raises(UserError, match="overlaps|broken"):      # newer zipfiles notice it themselves
        read_file(tmp_path / "PSP.pt")


@pytest.mark.parametrize("legacy", [True, False], ids=["stream", "zip"])
def test_truncations_and_bit_flips_never_end_in_anything_but_an_error_or_a_checkpoint(tmp_path, legacy):
    """Of a small module: read_file raises UserError or gives records and tensors of no more than the file's size."""
    buffer = io.BytesIO()
    torch.save({"m": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LSTM(2, 2)), "n": [1, 2.5, "x", (None, True)]},
               buffer, _use_new_zipfile_serialization=not legacy)
    whole = buffer.getvalue()
    generator = random.Random(0)
    path = tmp_path / "PSP.pt"
    damaged = [whole[:generator.randrange(len(whole))] for _ in range(100)]
    for _ in range(300):
        flipped = bytearray(whole)
        for _ in range(generator.choice([1, 1, 4])):
            flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        try:
            content = read_file(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert isinstance(content, (dict, ModuleRecord))
    path.write_bytes(whole)
    assert isinstance(read_file(path)["m"], ModuleRecord)


def test_a_hostile_file_ends_the_script_with_one_line_in_bounded_memory(tmp_path, tiny_folder, script):
    """In a process that may not use more than 8 GB of address space, some of which torch itself maps."""
    for case in ("deep dictionary key", "memo of 2^32 entries", "bytes of 2^63 bytes"):
        path = tmp_path / "PSP.pt"
        path.write_bytes(RAW[case])
        done = subprocess.run(
            script.command("fully_supervised_main.py", "--trained_model_path", path, "--data_dir", tiny_folder),
            capture_output=True, text=True, env=script.environment(), timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30)))
        assert done.returncode == 2
        assert str(path) in done.stderr and done.stderr.count("\n") == 1
