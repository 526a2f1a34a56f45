"""Checkpoints: what is written is read again, and what does not fit is refused in one line."""
from types import SimpleNamespace

import pytest
import torch

from dataset import Sizes
from model.checkpoint import load_checkpoint, rebuild, save_tensors
from model.run import Run
from utils import UserError

SIZES = Sizes(24, 6, audio_dim=12, map_size=(3, 2), visual_dim=20, num_classes=5)
SIZE_ARGUMENTS = {"audio_dim": 12, "visual_dim": 20, "map_size": [3, 2], "num_classes": 5}


class Network(torch.nn.Module):
    def __init__(self, threshold, audio_dim, visual_dim, map_size, num_classes):
        super().__init__()
        self.threshold = threshold
        self.layer = torch.nn.Linear(audio_dim + visual_dim, num_classes)


@pytest.fixture
def content():
    network = Network(0.1, **SIZE_ARGUMENTS)
    return {"setting": "fully", "model_name": "Mine", "network_args": {**SIZE_ARGUMENTS, "threshold": 0.1},
            "weights": network.state_dict(), "epoch": 7}


def test_a_checkpoint_gives_its_network_again(content, tmp_path):
    path = tmp_path / "Mine_fully.pt"
    save_tensors(path, content)
    checkpoint = load_checkpoint(str(path), "fully")
    assert checkpoint["epoch"] == 7
    network = rebuild(checkpoint, path, Network, SIZES)
    assert network.threshold == 0.1
    assert torch.equal(network.layer.weight, content["weights"]["layer.weight"])


def test_a_network_is_rebuilt_in_the_default_dtype(content, tmp_path):
    torch.set_default_dtype(torch.float64)
    assert rebuild(content, tmp_path, Network).layer.weight.dtype == torch.float64


def test_data_of_other_sizes_are_refused(content, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: was trained with map_size .*, but the data has"):
        rebuild(content, tmp_path, Network, SIZES._replace(map_size=(2, 3)))


@pytest.mark.parametrize("change", [lambda args: args.update(heads=8), lambda args: args.pop("threshold")])
def test_arguments_that_this_code_does_not_take_are_refused_in_one_line(content, tmp_path, change):
    change(content["network_args"])
    with pytest.raises(UserError, match="this code cannot build its network: Network .*('heads'|'threshold')") as error:
        rebuild(content, tmp_path, Network)
    assert "\n" not in str(error.value)


def test_the_other_setting_is_refused(content, tmp_path):
    save_tensors(tmp_path / "x.pt", content)
    with pytest.raises(UserError, match="x.pt: is a fully supervised checkpoint; .* not the weakly supervised one"):
        load_checkpoint(tmp_path / "x.pt", "weakly")


def test_a_checkpoint_without_one_of_its_parts_is_refused(content, tmp_path):
    del content["network_args"]
    save_tensors(tmp_path / "x.pt", content)
    with pytest.raises(UserError, match="x.pt: is not a checkpoint of these networks"):
        load_checkpoint(tmp_path / "x.pt")


def test_the_state_of_a_run_is_not_its_checkpoint(content, tmp_path):
    save_tensors(tmp_path / "PSP_fully_state.pt", {"weights": content["weights"], "optimizer": {}, "epoch": 3})
    with pytest.raises(UserError, match="is the state of a run.* its checkpoint is PSP_fully.pt"):
        load_checkpoint(str(tmp_path / "PSP_fully_state.pt"))


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:len(data) // 2], lambda data: bytes(len(data)), lambda data: b"?" + data[1:],
    lambda data: data.replace(b"PK", b"KP"),
], ids=["empty", "cut", "zeros", "text", "damaged"])
def test_a_broken_state_is_not_downloaded_again(content, tmp_path, damage):
    path = tmp_path / "PSP_fully_state.pt"
    save_tensors(path, content)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"^{path}: .*; start again without --resume$"):
        Run._continue(SimpleNamespace(state_path=path))
