"""The released code's protocol, batch for batch: golden/released_batches.json holds what its own classes gave."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import MAIN, TESTS, rewrite
from data.batches import TrainingBatches
from golden import recipe
from model.run import Run

GOLDEN = json.loads((TESTS / "golden" / "released_batches.json").read_text())
TRAIN = GOLDEN["order"]


class PositionsOnly:
    """A dataset whose items are their positions."""
    device, in_memory, sizes = torch.device("cpu"), True, SimpleNamespace(background=28)

    def __init__(self, videos, labels=None):
        self.videos, self.values = videos, {"labels": labels}

    def __len__(self):
        return self.videos

    def buffers(self, batch_size):
        return None

    def batch(self, positions, buffers):
        return {"positions": positions}


def epochs_of(dataset, order, stale=False):
    batches = TrainingBatches(dataset, GOLDEN["batch_size"], order, 123, torch.device("cpu"), stale)
    return [list(batches.epoch(epoch)) for epoch in range(len(GOLDEN["fully"]))]


def test_stale_targets_are_those_of_the_released_code():
    dataset = PositionsOnly(len(TRAIN), torch.tensor(GOLDEN["labels"])[TRAIN])
    for expected, batches in zip(GOLDEN["fully"], epochs_of(dataset, "released", stale=True), strict=True):
        for golden, batch in zip(expected, batches, strict=True):
            assert [TRAIN[position] for position in batch["positions"]] == golden["videos"]
            assert torch.equal(batch["avps_target"], torch.tensor(golden["avps_target"]))


def test_fixed_batches_are_those_of_the_released_code():
    videos = TRAIN + [1000 + k for k in range(GOLDEN["background_videos"])]
    for expected, batches in zip(GOLDEN["weakly"], epochs_of(PositionsOnly(len(videos)), "fixed"), strict=True):
        assert [[videos[position] for position in batch["positions"]] for batch in batches] == expected


@pytest.mark.parametrize("script_name, quirk", [
    ("fully_supervised_main.py", "stale_avps"), ("fully_supervised_main.py", "fixed_batches,stale_avps"),
    ("weakly_supervised_main.py", "fixed_batches")])
def test_a_run_with_quirks_trains_differently_and_goes_on_as_it_began(
        main_in_process, tiny_folder, tmp_path, monkeypatch, script_name, quirk):
    options = ("--train", "--nb_epoch", 4, "--save_epoch", 1, "--batch_size", 8, "--data_dir", tiny_folder)
    logs = {}
    for name, more in (("plain", ()), ("quirk", ("--released_quirks", quirk))):
        assert main_in_process(script_name, *options, *more, "--output_dir", tmp_path / name)[0] == 0
        logs[name] = next((tmp_path / name).glob("*.jsonl")).read_text().splitlines()[1:]
    assert logs["plain"] != logs["quirk"]

    end_epoch = Run.end_epoch

    def killed(run):
        end_epoch(run)
        if run.epoch == 2:
            raise SystemExit(1)
    monkeypatch.setattr(Run, "end_epoch", killed)
    stopped = (*options, "--released_quirks", quirk, "--output_dir", tmp_path / "stopped")
    assert main_in_process(script_name, *stopped)[0] == 1
    monkeypatch.undo()
    assert main_in_process(script_name, *stopped, "--resume")[0] == 0
    assert next((tmp_path / "stopped").glob("*.jsonl")).read_text().splitlines()[1:] == logs["quirk"]


def test_an_unknown_quirk_is_refused(main_in_process, tiny_folder):
    code, _, error = main_in_process("weakly_supervised_main.py", "--train", "--released_quirks", "stale_avps",
                                     "--data_dir", tiny_folder)
    assert code == 2 and "'stale_avps' is an unknown quirk; weakly supervised training has" in error


def test_stale_targets_alone_leave_the_batches_as_they_are(tiny_folder):
    """--released_quirks stale_avps --batches shuffled differs from a plain run in nothing but the targets."""
    from dataset import AVEDataset, find_files, required_files
    dataset = AVEDataset(find_files(tiny_folder, required_files(["train"])), "train")
    plain, stale = (TrainingBatches(dataset, 8, "shuffled", 5, torch.device("cpu"), stale) for stale in (False, True))
    for epoch in range(2):
        for one, two in zip(plain.epoch(epoch), stale.epoch(epoch), strict=True):
            assert torch.equal(one["video"], two["video"]) and "avps_target" in two and "avps_target" not in one


TWIN = json.loads((TESTS / "golden" / "twin64.json").read_text())


@pytest.fixture(scope="module")
def twin_folder(tmp_path_factory):
    """The data of the released scripts' own runs, from golden/recipe.py."""
    folder = tmp_path_factory.mktemp("twin")
    audio, visual, labels = recipe.inputs(71, 96)
    audio_bg, visual_bg, _ = recipe.inputs(72, 24)
    one_hot, category = np.eye(29)[labels], np.eye(29)[labels.min(axis=1)]
    background = np.tile(np.eye(29)[28], (24, 1))
    for name, array in (("audio_feature", audio), ("visual_feature", visual), ("audio_feature_noisy", audio_bg),
                        ("visual_feature_noisy", visual_bg), ("right_labels", one_hot), ("mil_labels", category),
                        ("prob_label", one_hot.mean(axis=1)), ("labels_noisy", background)):
        rewrite(folder / f"{name}.h5", array)
    for split, rows in (("train", slice(64)), ("val", slice(64, 80)), ("test", slice(80, None))):
        rewrite(folder / f"{split}_order.h5", np.array(TWIN["order"][rows]), "order")
    return folder


def dropout_is_that_of_the_twin():
    """Whether this PyTorch draws dropout as the one that computed golden/twin64.json (2.13 does, 2.6 does not)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        return torch.nn.functional.dropout(torch.ones(40960).double(), 0.1).count_nonzero() == 36705


@pytest.mark.skipif(not dropout_is_that_of_the_twin(), reason="this PyTorch draws dropout in another way")
@pytest.mark.parametrize("setting", ["fully", "weakly"])
def test_every_step_has_the_loss_of_the_released_scripts_own_run(
        setting, main_in_process, twin_folder, tmp_path, monkeypatch):
    """golden/twin64.json: the released scripts in float64, seed 123, batches of 16, 5 epochs; on any processor."""
    losses = []
    add = Run.add

    def note_and_add(run, loss):
        losses.append(loss.item())
        add(run, loss)
    monkeypatch.setattr(Run, "add", note_and_add)
    options = ("--train", "--batch_size", 16, "--nb_epoch", 5, "--check_epoch", 100, "--released_quirks", "all",
               "--precision", "fp64")
    assert main_in_process(MAIN[setting], *options, "--data_dir", twin_folder, "--output_dir", tmp_path)[0] == 0
    assert losses == pytest.approx(TWIN[setting], rel=1e-6)
