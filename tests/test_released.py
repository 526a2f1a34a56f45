"""The authors' checkpoints load as they are, and nothing that a file names is ever run."""
import io
import json
import os
import pickle
import zipfile

import pytest
import torch

from conftest import TESTS
from golden import recipe
from model.checkpoint import load_checkpoint, rebuild
from model.released_checkpoint import Inert, our_name
from psp_model import FULLY_SUPERVISED, PAPER_THRESHOLD, WEAKLY_SUPERVISED, PSPNetwork
from stand_ins import released_network, save_module
from utils import UserError

GOLDEN = json.loads((TESTS / "golden" / "released.json").read_text())
OPTIONS = {"fully": FULLY_SUPERVISED, "weakly": WEAKLY_SUPERVISED}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Detected pickle protocol 4")
in_both_formats = pytest.mark.parametrize("legacy", [True, False], ids=["stream", "zip"])


@pytest.fixture(params=["fully", "weakly"])
def released(request):
    """(setting, {released name: float32 golden weight})."""
    setting = request.param
    network = PSPNetwork(128, 512, (7, 7), 29, threshold=0.1, **OPTIONS[setting])
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return setting, {name: torch.from_numpy(recipe.parameter(GOLDEN["seed"], name,
                                                             shapes[our_name(name, setting)])).float()
                     for name in GOLDEN[setting]["grad_norms"]}


def assert_is_the_golden_network(path, setting):
    """The checkpoint at `path` is of the setting, and its network gives the released code's outputs, in float32."""
    checkpoint = load_checkpoint(path, setting)
    assert checkpoint["network_args"]["threshold"] == PAPER_THRESHOLD[setting] == GOLDEN[setting]["threshold"]
    network = rebuild(checkpoint, path, PSPNetwork).eval()
    audio, visual, _ = recipe.inputs(GOLDEN["seed"], GOLDEN["batch"])
    output = network(torch.from_numpy(audio).float(), torch.from_numpy(visual).float())
    golden = torch.tensor(GOLDEN[setting]["logits" if setting == "fully" else "scores"])
    torch.testing.assert_close(output.logits, golden, rtol=1e-3, atol=1e-4)


@in_both_formats
def test_a_pickled_module_loads_and_computes_what_the_released_code_computes(released, tmp_path, legacy):
    setting, weights = released
    path = tmp_path / "PSP.pt"
    save_module(released_network(setting, weights), path, legacy)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)      # what a user meets without this repository
    for name, value in weights.items():
        assert torch.equal(load_checkpoint(path)["weights"][our_name(name, setting)], value)
    assert_is_the_golden_network(path, setting)


def test_a_module_that_was_trained_on_several_gpus(released, tmp_path):
    setting, weights = released
    network = torch.nn.DataParallel(released_network(setting, weights))
    network.src_device_obj, network.size = torch.device("cuda:0"), torch.Size([2])      # as on a GPU
    save_module(network, tmp_path / "PSP.pt", legacy=True)
    assert_is_the_golden_network(tmp_path / "PSP.pt", setting)


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {f"module.{name}": value for name, value in state.items()},
], ids=["plain", "in state_dict", "of DataParallel"])
def test_state_dicts_with_released_names_and_with_ours(released, tmp_path, wrap):
    setting, weights = released
    theirs = released_network(setting, weights).state_dict()
    ours = {our_name(name, setting): value for name, value in weights.items()}
    for state in (theirs, ours):
        torch.save(wrap(state), tmp_path / "PSP.pt")
        assert_is_the_golden_network(tmp_path / "PSP.pt", setting)


def test_the_script_writes_one_of_ours(released, quick_script, tmp_path):
    setting, weights = released
    theirs, ours = tmp_path / "theirs.pt", tmp_path / "ours.pt"
    save_module(released_network(setting, weights), theirs, legacy=True)
    quick_script("model/convert_checkpoint.py", theirs, ours)
    assert torch.load(ours, weights_only=True).keys() == {"setting", "model_name", "network_args", "weights",
                                                             "class_names"}
    assert_is_the_golden_network(ours, setting)
    assert "--overwrite" in quick_script("model/convert_checkpoint.py", theirs, ours, code=2).stderr


@pytest.mark.parametrize("change, expected", [
    (lambda weights, name: weights.pop(name), "psp.visual_value.0.weight"),
    (lambda weights, name: weights.pop("L2.weight"), "classifier.2.weight"),
    (lambda weights, name: weights.update({"extra.weight": torch.ones(1)}), "extra.weight"),
    (lambda weights, name: weights.update({name: torch.ones(2, 2)}), "psp.visual_value.0.weight"),
], ids=["missing", "missing and its shape needed", "unknown", "other shape"])
def test_a_network_that_is_not_whole_is_refused(released, tmp_path, change, expected):
    setting, weights = released
    change(weights, "psp.v_L1.weight")
    torch.save(weights, tmp_path / "PSP.pt")
    with pytest.raises(UserError, match=expected) as error:
        rebuild(load_checkpoint(tmp_path / "PSP.pt"), tmp_path / "PSP.pt", PSPNetwork)
    assert str(tmp_path / "PSP.pt") in str(error.value)


# ---------------------------------------------------------------------------------------- hostile files

CANARY = "touch executed"      # in the working directory, which is the test's own folder
LEGACY_HEAD = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def file_of(program, legacy):
    """A file in one of torch's formats around a pickle."""
    if legacy:
        return LEGACY_HEAD + program + pickle.dumps([], 2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
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
    "a name with dots": (called("collections", "OrderedDict.fromkeys", "ab"), "OrderedDict.fromkeys"),
    "a name with dots in torch.nn": (called("torch.nn", "Module.__setstate__.__globals__"), "not a checkpoint"),
    "os.system by torch.nn": (called("torch.nn.parallel.distributed", "os.system", CANARY), "not a checkpoint"),
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
    with pytest.raises(UserError, match=expected) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["PSP.pt"]
    assert dict(vars(Inert)) == before


@in_both_formats
@pytest.mark.parametrize("case", ["os.system", "os.system by torch.nn"])
def test_torch_would_run_them(tmp_path, monkeypatch, case, legacy):
    monkeypatch.chdir(tmp_path)
    torch.load(io.BytesIO(file_of(HOSTILE[case][0], legacy)), weights_only=False)
    assert (tmp_path / "executed").exists()


def torchscript(path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)


def half(path):
    torch.save(torch.nn.Linear(20, 20), path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


@pytest.mark.parametrize("write, expected", [
    (torchscript, "TorchScript"),
    (half, "cannot be read as a PyTorch checkpoint .*; download it again"),
    (lambda path: path.write_bytes(b""), "is empty; download it again"),
    (lambda path: path.write_text("\n<!DOCTYPE html><html>quota exceeded"), "is a web page.*; download it again"),
    (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git-lfs pointer.*; download it"),
    (lambda path: path.mkdir(), "is a folder"),
    (lambda path: None, "not found"),
], ids=["TorchScript", "half a file", "empty", "web page", "git-lfs", "folder", "none"])
def test_other_files_end_in_one_clear_line(tmp_path, write, expected):
    write(tmp_path / "PSP.pt")
    with pytest.raises(UserError, match=expected) as error:
        load_checkpoint(tmp_path / "PSP.pt")
    assert "\n" not in str(error.value)
