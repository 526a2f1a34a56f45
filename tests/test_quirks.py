"""The released code's protocol, batch for batch: golden/released_batches.json holds what its own classes gave."""
import json
from argparse import Namespace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from utils import batches_of_epochs

GOLDEN = json.loads((Path(__file__).parent / "golden" / "released_batches.json").read_text())
TRAIN = GOLDEN["order"]


def epochs_of(videos, quirks, labels=None):
    args = Namespace(batch_size=GOLDEN["batch_size"], seed=123, batches="shuffled", released_quirks=quirks)

    class TrainSet(SimpleNamespace):
        def __len__(self):
            return videos
    train_set = TrainSet(labels=labels, sizes=SimpleNamespace(background=28))
    return islice(batches_of_epochs(args, train_set), len(GOLDEN["fully"]))


def test_stale_targets_are_those_of_the_released_code():
    labels = torch.tensor(GOLDEN["labels"])[TRAIN]
    for epoch, (batches, targets) in zip(GOLDEN["fully"], epochs_of(len(TRAIN), ["stale_avps"], labels)):
        assert [[TRAIN[position] for position in batch] for batch in batches.tolist()] == [batch["videos"] for batch in epoch]
        assert torch.equal(targets, torch.tensor([batch["avps_target"] for batch in epoch]))


def test_fixed_batches_are_those_of_the_released_code():
    videos = TRAIN + [1000 + k for k in range(GOLDEN["background_videos"])]
    for epoch, (batches, targets) in zip(GOLDEN["weakly"], epochs_of(len(videos), ["fixed_batches"])):
        assert [[videos[position] for position in batch] for batch in batches.tolist()] == epoch
        assert targets is None


@pytest.mark.parametrize("script_name, quirk", [("fully_supervised_main.py", "stale_avps"), ("fully_supervised_main.py", "fixed_batches,stale_avps"),
                                                ("weakly_supervised_main.py", "fixed_batches")])
def test_a_run_with_quirks_trains_otherwise_and_goes_on_as_it_began(main_in_process, tiny_folder, tmp_path, monkeypatch, script_name, quirk):
    import utils
    options = ("--train", "--nb_epoch", 4, "--save_epoch", 1, "--batch_size", 8, "--data_dir", tiny_folder)
    logs = {}
    for name, more in (("plain", ()), ("quirk", ("--released_quirks", quirk))):
        assert main_in_process(script_name, *options, *more, "--output_dir", tmp_path / name)[0] == 0
        logs[name] = next((tmp_path / name).glob("*.jsonl")).read_text().splitlines()[1:]
    assert logs["plain"] != logs["quirk"]

    end_epoch = utils.Run.end_epoch

    def killed(run, record):
        end_epoch(run, record)
        if run.epoch == 2:
            raise SystemExit(1)
    monkeypatch.setattr(utils.Run, "end_epoch", killed)
    stopped = (*options, "--released_quirks", quirk, "--output_dir", tmp_path / "stopped")
    assert main_in_process(script_name, *stopped)[0] == 1
    monkeypatch.undo()
    assert main_in_process(script_name, *stopped, "--resume")[0] == 0
    assert next((tmp_path / "stopped").glob("*.jsonl")).read_text().splitlines()[1:] == logs["quirk"]


def test_an_unknown_quirk_is_refused(main_in_process, tiny_folder):
    code, _, error = main_in_process("weakly_supervised_main.py", "--train", "--released_quirks", "stale_avps", "--data_dir", tiny_folder)
    assert code == 2 and "'stale_avps' is no quirk of weakly supervised training" in error
