"""The authors' checkpoints load as they are, nothing that a file names is ever run, and a broken file is told."""
import argparse
import gzip
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TESTS
from golden import recipe
from model.checkpoint import load_checkpoint, read_content, rebuild, save_tensors
from model.released_checkpoint import Inert, our_name
from psp_model import PAPER_THRESHOLD, PUBLISHED, PSPNetwork
from stand_ins import released_network, save_module
from utils import UserError

GOLDEN = json.loads((TESTS / "golden" / "released.json").read_text())
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Detected pickle protocol 4")
in_both_formats = pytest.mark.parametrize("legacy", [True, False], ids=["stream", "zip"])


@pytest.fixture(params=["fully", "weakly"])
def released(request):
    """(setting, {released name: float32 golden weight})."""
    setting = request.param
    state = PSPNetwork(128, 512, (7, 7), 29, **PUBLISHED[setting]).state_dict()
    shapes = {name: tuple(state[our_name(name, setting)].shape) for name in GOLDEN[setting]["grad_norms"]}
    return setting, {name: torch.from_numpy(recipe.parameter(GOLDEN["seed"], name, shape)).float()
                     for name, shape in shapes.items()}


def assert_is_the_golden_network(path, setting):
    """The checkpoint at `path` is of the setting, and its network gives the released code's outputs, in float32."""
    checkpoint = load_checkpoint(path, setting)
    assert checkpoint["network_args"]["threshold"] == PAPER_THRESHOLD[setting] == GOLDEN[setting]["threshold"]
    network = rebuild(checkpoint, path, PSPNetwork).eval()
    audio, visual, _ = recipe.inputs(GOLDEN["seed"], GOLDEN["batch"])
    output = network(torch.from_numpy(audio).float(), torch.from_numpy(visual).float())
    golden = torch.tensor(GOLDEN[setting]["logits" if setting == "fully" else "scores"])
    torch.testing.assert_close(output.logits, golden, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["stream", "zip", "several GPUs"])
def test_a_pickled_module_loads_and_computes_what_the_released_code_computes(released, tmp_path, form):
    setting, weights = released
    path, network = tmp_path / "PSP.pt", released_network(setting, weights)
    if form == "several GPUs":
        network = torch.nn.DataParallel(network)
        network.src_device_obj, network.size = torch.device("cuda:0"), torch.Size([2])      # as on a GPU
    save_module(network, path, legacy=form != "zip")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)      # what a user meets without this repository
    for name, value in weights.items():
        assert torch.equal(load_checkpoint(path)["weights"][our_name(name, setting)], value)
    assert_is_the_golden_network(path, setting)


def renamed(beginning):
    return lambda state: {f"{beginning}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"state_dict": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, "epoch": 3},
    lambda state: {"model_state_dict": state, "loss": 0.1},
    renamed("module."), renamed("_orig_mod."), renamed("network."),
    lambda state: {"state_dict": renamed("model.")(state), "hyper_parameters": {"lr": 1e-3}, "callbacks": {}},
], ids=["plain", "in state_dict", "in model_state_dict", "DataParallel", "compiled", "wrapped", "Lightning"])
def test_state_dicts_with_released_names_and_with_ours(released, tmp_path, wrap):
    setting, weights = released
    theirs = released_network(setting, weights).state_dict()
    ours = {our_name(name, setting): value for name, value in weights.items()}
    for state in (theirs, ours):
        torch.save(wrap(state), tmp_path / "PSP.pt")
        assert_is_the_golden_network(tmp_path / "PSP.pt", setting)


def saved(content, legacy=False):
    torch.save(content, buffer := io.BytesIO(), _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@in_both_formats
@pytest.mark.parametrize("beside", [
    np.float64(0.7), np.array(["a", None]), {np.int64(3): 1},
    argparse.Namespace(lr=0.1, path=Path("a"), layer=torch.nn.ReLU())], ids=["number", "array", "key", "Namespace"])
def test_what_lies_beside_a_state_dict_is_not_made(released, tmp_path, beside, legacy):
    setting, weights = released
    (tmp_path / "PSP.pt").write_bytes(saved({"state_dict": weights, "beside": beside}, legacy))
    assert_is_the_golden_network(tmp_path / "PSP.pt", setting)


@pytest.mark.parametrize("change, expected", [
    (lambda weights: weights.pop("psp.v_L1.weight"), "psp.visual_value.0.weight"),
    (lambda weights: weights.pop("L2.weight"), "classifier.2.weight"),
    (lambda weights: weights.update({"extra.weight": torch.ones(1)}), "extra.weight"),
    (lambda weights: weights.update({"psp.v_L1.weight": torch.ones(2, 2)}), "psp.visual_value.0.weight"),
], ids=["missing", "missing and its shape needed", "unknown", "other shape"])
def test_a_network_that_is_not_whole_is_refused(released, tmp_path, change, expected):
    path, (_, weights) = tmp_path / "PSP.pt", released
    change(weights)
    torch.save(weights, path)
    with pytest.raises(UserError, match=f"^{path}: .*{expected}"):
        rebuild(load_checkpoint(path), path, PSPNetwork)


# ---------------------------------------------------------------------------------------- hostile files

CANARY = "touch executed"      # in the working directory, which is the test's own folder; torch.load would run it
LEGACY_HEAD = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def file_of(program, legacy):
    """A file in one of torch's formats around a pickle."""
    if legacy:
        return LEGACY_HEAD + program + pickle.dumps([], 2)
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def called(module, name, *arguments):
    """A pickle that calls module.name(*arguments), where the name may have dots, as protocol 4 allows it."""
    module, name, arguments = (pickle.dumps(value, 2)[2:-1] for value in (module, name, arguments))
    return b"\x80\x04" + module + name + b"\x93" + arguments + b"R."


# An attribute of a class. If it is true and the file has another source of the class, torch.load writes a file.
DUMP_PATCHES = b"\x80\x02ctorch.nn\nReLU\n(N}X\x0c\0\0\0dump_patches\x88stb."
OTHER_SOURCE = b"\x80\x02(X\x06\0\0\0modulectorch.nn\nReLU\nX\x04\0\0\0fileX\x05\0\0\0othertQ."
HOSTILE = {      # name: (pickle, what the error says)
    "os.system": (called("posix", "system", CANARY), "'posix.system', which was not run"),
    "named, not called": (pickle.dumps({"weight": torch.ones(1), "function": os.system}, 2), "was not run"),
    "a name with dots": (called("torch.nn", "Module.__setstate__.__globals__"), "not a checkpoint"),
    "os.system by torch.nn": (called("torch.nn.parallel.distributed", "os.system", CANARY), "not a checkpoint"),
    "os.system by numpy": (called("numpy.f2py", "os.system", CANARY), "not a checkpoint"),
    "a terabyte": (b"\x80\x04\x96" + (2 ** 40).to_bytes(8, "little") + b".", "KeyError: 150"),
    "a class's attribute": (DUMP_PATCHES, "__setstate__"),
    "another source of a class": (OTHER_SOURCE, "not a checkpoint|persistent_load"),
    "a module within itself": (b"\x80\x02ctorch.nn\nReLU\n)\x81q\0}X\x08\0\0\0_modules}X\1\0\0\0ah\0ssb.",
                               "not a checkpoint"),
}


@in_both_formats
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, monkeypatch, case, legacy):
    monkeypatch.chdir(tmp_path)
    program, expected = HOSTILE[case]
    path = tmp_path / "PSP.pt"
    path.write_bytes(file_of(program, legacy))
    before = dict(vars(Inert))
    with pytest.raises(UserError, match=f"^{path}: .*({expected}).*$"):      # $ and . match no line break within
        load_checkpoint(path)
    assert [file.name for file in tmp_path.iterdir()] == ["PSP.pt"]
    assert dict(vars(Inert)) == before


with warnings.catch_warnings(action="ignore"):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), TORCHSCRIPT := io.BytesIO())
with zipfile.ZipFile(ZIP := io.BytesIO(), "w") as archive:
    archive.writestr("PSP.pt", b"")
OWN = PSPNetwork(8, 8, (2, 2), 3, **PUBLISHED["fully"])
TENSORS = {"weight": torch.ones(20, 20)}
BROKEN = r"cannot be read as a PyTorch checkpoint \(.*\); download it again"
NOT_OURS = r"is not a checkpoint of these networks; if it holds one, save its state_dict\(\) alone"
OTHER_FILES = {      # name: (content, what is said)
    "cut": (saved(TENSORS)[:1000], BROKEN),
    "cut stream": (saved(TENSORS, legacy=True)[:1000], BROKEN),
    "empty": (b"", "is empty; download it again"),
    "web page": (b"\n<!DOCTYPE html><html>quota exceeded", "is a web page, not a checkpoint; download it again"),
    "TorchScript": (TORCHSCRIPT.getvalue(), "is a TorchScript archive, not a checkpoint; it was not run"),
    "gzip": (gzip.compress(saved(TENSORS)), "is compressed; gunzip it first"),
    "tar": (tarfile.TarInfo("PSP.pt").tobuf() + bytes(1024), "is a tar archive, not a checkpoint; .* extract it first"),
    "zip": (ZIP.getvalue(), "is a zip archive, not a checkpoint; if one is in it, unzip it first"),
    "safetensors": (b"\x02\0\0\0\0\0\0\0{}", "is a safetensors file, which is not supported; .* with torch.save"),
    "log": (b'{"run": {"seed": 0}}\n', "is the log of a run; its checkpoint is PSP_fully.pt"),
    "text": (b"csv,of\nnames\n", "is not a file of torch.save; name the checkpoint itself"),
    "foreign": (saved(UserError()), r"names 'utils.UserError', which was not run; save the state_dict\(\) alone"),
    "ours": (saved(OWN), "is a whole module of psp_model.py, .* save network.state_dict.* instead"),
    "another entry": (saved({"net": TENSORS, "accuracy": np.float64(1)}), NOT_OURS),
    "no network_args": (saved({"setting": "fully", "model_name": "PSP", "weights": TENSORS}), NOT_OURS),
    "state": (saved({"weights": TENSORS, "optimizer": {}}), "is the state of a run, .* its checkpoint is PSP_fully.pt"),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_other_files_end_in_one_line_that_says_what_they_are(tmp_path, case):
    content, expected = OTHER_FILES[case]
    path = tmp_path / {"log": "PSP_fully.jsonl", "state": "PSP_fully_state.pt"}.get(case, "PSP.pt")
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: {expected}$"):
        load_checkpoint(path)


@pytest.mark.parametrize("network_args, expected", [
    ({"in_features": 12, "out_features": 2, "heads": 8}, "'heads'"), ({"in_features": 12}, "'out_features'")])
def test_arguments_that_this_code_does_not_take_are_refused(tmp_path, network_args, expected):
    with pytest.raises(UserError, match=f"this code cannot build its network .Linear.*{expected}"):
        rebuild({"network_args": network_args}, tmp_path, torch.nn.Linear)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="x.pt: only tensors and plain values can be saved"):
        save_tensors(tmp_path / "x.pt", {"threshold": np.float64(0.1)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [
    lambda data: data.replace(np.float32(0.3).tobytes(), np.float32(-0.3).tobytes()),      # torch.load would take it
    lambda data: b"", lambda data: data[:len(data) // 2], lambda data: bytes(len(data)), lambda data: b"?" + data[1:],
    lambda data: data.replace(b"PK", b"KP")], ids=["another number", "empty", "cut", "zeros", "text", "damaged"])
def test_a_broken_state_is_not_downloaded_again(tmp_path, damage):
    path = tmp_path / "PSP_fully_state.pt"
    save_tensors(path, {"weight": torch.full((2,), 0.3)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"^{path}: .*; start again without --resume$"):
        read_content(path, remedy="start again without --resume")
