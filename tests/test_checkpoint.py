"""Checkpoints: what is written is read again, and what does not fit is refused in one line."""
import pytest
import torch

from dataset import Sizes, UserError
from model.checkpoint import load, rebuild, save

SIZES = Sizes(24, 6, audio_dim=12, map_size=(3, 2), visual_dim=20, num_classes=5)
SIZE_ARGUMENTS = {"audio_dim": 12, "visual_dim": 20, "map_size": [3, 2], "num_classes": 5}


class Unthresholded(torch.nn.Module):
    def __init__(self, audio_dim, visual_dim, map_size, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear(audio_dim + visual_dim, num_classes)


class Network(Unthresholded):
    def __init__(self, threshold, **sizes):
        super().__init__(**sizes)
        self.threshold = threshold


@pytest.fixture
def content():
    network = Network(0.1, **SIZE_ARGUMENTS)
    return {"setting": "fully", "model_name": "Mine", "network": {**SIZE_ARGUMENTS, "threshold": 0.1},
            "weights": network.state_dict(), "epoch": 7}


def test_a_checkpoint_gives_its_network_again(content, tmp_path):
    path = tmp_path / "Mine_fully.pt"
    save(path, content)
    checkpoint = load(path, "fully")
    assert checkpoint["epoch"] == 7
    network = rebuild(checkpoint, path, Network, SIZES)
    assert network.threshold == 0.1
    assert torch.equal(network.layer.weight, content["weights"]["layer.weight"])
    assert rebuild(checkpoint, path, Network, threshold=0.3).threshold == 0.3
    assert checkpoint["network"]["threshold"] == 0.1


def test_a_network_is_rebuilt_in_the_default_dtype(content, tmp_path):
    torch.set_default_dtype(torch.float64)
    assert rebuild(content, tmp_path, Network).layer.weight.dtype == torch.float64


def test_data_of_other_sizes_are_refused(content, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: was trained with map_size .*, but the data has"):
        rebuild(content, tmp_path, Network, SIZES._replace(map_size=(2, 3)))


def test_a_network_without_a_threshold_cannot_be_given_one(content, tmp_path):
    content["network"] = SIZE_ARGUMENTS
    rebuild(content, tmp_path, Unthresholded)
    with pytest.raises(UserError, match="checkpoint of Mine, which has no --threshold"):
        rebuild(content, tmp_path, Unthresholded, threshold=0.1)


def test_the_other_setting_is_refused(content, tmp_path):
    save(tmp_path / "x.pt", content)
    with pytest.raises(UserError, match="x.pt: is a fully supervised checkpoint; .* not the weakly supervised one"):
        load(tmp_path / "x.pt", "weakly")


def test_a_checkpoint_without_one_of_its_parts_is_refused(content, tmp_path):
    del content["network"]
    save(tmp_path / "x.pt", content)
    with pytest.raises(UserError, match="x.pt: is not a checkpoint of these networks"):
        load(tmp_path / "x.pt")


def test_the_state_of_a_run_is_not_its_checkpoint(content, tmp_path):
    save(tmp_path / "PSP_fully_state.pt", {"weights": content["weights"], "optimizer": {}, "epoch": 3})
    with pytest.raises(UserError, match="is the state of a run.* its checkpoint is PSP_fully.pt"):
        load(tmp_path / "PSP_fully_state.pt")
