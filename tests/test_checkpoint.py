"""Checkpoints: what is written is read again, and what does not fit is refused in one line."""
import numpy as np
import pytest
import torch

from model.checkpoint import load_checkpoint, read_content, rebuild, save_tensors
from utils import UserError


@pytest.fixture
def content():
    return {"setting": "fully", "model_name": "Mine", "network_args": {"in_features": 12, "out_features": 2},
            "weights": {"bias": torch.full((2,), 0.3)}, "epoch": 7}


@pytest.mark.parametrize("network_args, expected", [
    ({"in_features": 12, "out_features": 2, "heads": 8}, "'heads'"), ({"in_features": 12}, "'out_features'")])
def test_arguments_that_this_code_does_not_take_are_refused(content, tmp_path, network_args, expected):
    content["network_args"] = network_args
    with pytest.raises(UserError, match=f"this code cannot build its network: Linear .*{expected}"):
        rebuild(content, tmp_path, torch.nn.Linear)


def test_what_could_not_be_read_again_is_not_written(content, tmp_path):
    content["threshold"] = np.float64(0.1)
    with pytest.raises(ValueError, match="x.pt: only tensors and plain values can be saved"):
        save_tensors(tmp_path / "x.pt", content)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_one_of_its_parts_is_refused(content, tmp_path):
    del content["network_args"]
    save_tensors(tmp_path / "x.pt", content)
    with pytest.raises(UserError, match="x.pt: is not a checkpoint of these networks"):
        load_checkpoint(tmp_path / "x.pt")


def test_the_state_of_a_run_is_not_its_checkpoint(content, tmp_path):
    save_tensors(tmp_path / "PSP_fully_state.pt", {"weights": content["weights"], "optimizer": {}, "epoch": 3})
    with pytest.raises(UserError, match="is the state of a run.* its checkpoint is PSP_fully.pt"):
        load_checkpoint(str(tmp_path / "PSP_fully_state.pt"))


def with_another_number(data):
    """Which torch.load would take."""
    number = torch.tensor(0.3).numpy().tobytes()
    assert number in data
    return data.replace(number, torch.tensor(-0.3).numpy().tobytes())


@pytest.mark.parametrize("damage", [
    with_another_number, lambda data: b"", lambda data: data[:len(data) // 2], lambda data: bytes(len(data)),
    lambda data: b"?" + data[1:], lambda data: data.replace(b"PK", b"KP"),
], ids=["another number", "empty", "cut", "zeros", "text", "damaged"])
def test_a_broken_state_is_not_downloaded_again(content, tmp_path, damage):
    path = tmp_path / "PSP_fully_state.pt"
    save_tensors(path, content)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"^{path}: .*; start again without --resume$"):
        read_content(path, remedy="start again without --resume")
