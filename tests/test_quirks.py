"""The protocols of the released code and of AVEL, batch for batch, and what each option of training changes."""
import json

import numpy as np
import pytest
import torch

from conftest import RELEASED, TESTS, read_log, rewrite
from dataset import AVEDataset, find_files, required_files, shuffled
from golden import recipe
from model.avel import AVELNetwork, avel_fully_supervised_loss, avel_milestones
from model.released_training import StaleTargets, draw_released_weights, fixed_batches, released_order
from psp_model import PUBLISHED, PSPNetwork, avps_target, fully_supervised_loss, weakly_supervised_loss

BATCHES = json.loads((TESTS / "golden" / "released_batches.json").read_text())      # from the released code's classes
TRAIN = BATCHES["order"]


def test_stale_targets_equal_the_released_targets():
    targets, labels = StaleTargets(background=28), torch.tensor(BATCHES["labels"])[TRAIN]
    for expected, batches in zip(BATCHES["fully"], released_order(len(TRAIN), BATCHES["batch_size"], 123)):
        for golden, positions in zip(expected, batches, strict=True):
            assert [TRAIN[position] for position in positions] == golden["videos"]
            assert torch.equal(targets(labels[positions]), torch.tensor(golden["avps_target"]))


def test_fixed_batches_equal_the_released_batches():
    videos = TRAIN + [1000 + k for k in range(BATCHES["background_videos"])]
    for expected, batches in zip(BATCHES["weakly"], fixed_batches(len(videos), BATCHES["batch_size"], 123)):
        assert [[videos[position] for position in positions] for positions in batches] == expected


@pytest.mark.parametrize("setting, option, value", [
    ("fully", "--quirks", ""), ("fully", "--quirks", "released_order"), ("fully", "--quirks", "stale_avps"),
    ("fully", "--quirks", "initial_weights"), ("fully", "--LAMBDA", "7"),
    ("weakly", "--quirks", ""), ("weakly", "--quirks", "fixed_batches"), ("weakly", "--quirks", "initial_weights"),
    ("weakly", "--weak_labels", "tag")])
def test_each_option_changes_one_thing(train, tiny_folder, tmp_path, setting, option, value):
    """The loss of every step equals the loss of a plain loop in which one thing differs; the learning rate is 0."""
    train(setting, "--nb_epoch", 2, "--lr", 0, "--log_steps", option, value, "--device", "cpu")
    weak = setting == "weakly"
    dataset = AVEDataset(find_files(tiny_folder, required_files(["train"], weak)), "train", weak)
    torch.manual_seed(123)
    network = PSPNetwork(12, 20, (3, 3), 5, **PUBLISHED[setting])
    if value == "initial_weights":
        draw_released_weights(network, setting, 123)
    order = {"released_order": released_order, "fixed_batches": fixed_batches}.get(value, shuffled)
    stale_targets = StaleTargets(background=4)
    for epoch, batches in zip(read_log(tmp_path, setting)[1], order(len(dataset), 12, 123)):
        for logged, batch in zip(epoch["losses"], map(dataset.__getitem__, batches), strict=True):
            output, labels = network(batch["audio"], batch["visual"]), batch["labels"]
            if weak:
                loss = weakly_supervised_loss(output, batch["video_label" if value == "tag" else "label_share"])
            else:
                target = stale_targets(labels) if value == "stale_avps" else avps_target(labels, 4)
                loss = fully_supervised_loss(output, labels, target, LAMBDA=7 if value == "7" else 100)
            assert logged == pytest.approx(loss.item(), rel=1e-5)


TWIN = json.loads((TESTS / "golden" / "twin64.json").read_text())


@pytest.fixture(scope="module")
def twin_folder(tmp_path_factory):
    """The data of the released scripts' own runs, from golden/recipe.py."""
    folder = tmp_path_factory.mktemp("twin")
    audio, visual, labels = recipe.inputs(TWIN["data_seed"], 96)
    audio_bg, visual_bg, _ = recipe.inputs(TWIN["data_seed"] + 1, 24)
    one_hot = np.eye(29)[labels]
    for name, array in (("audio_feature", audio), ("visual_feature", visual), ("audio_feature_noisy", audio_bg),
                        ("visual_feature_noisy", visual_bg), ("right_labels", one_hot),
                        ("mil_labels", np.eye(29)[labels.min(axis=1)]), ("prob_label", one_hot.mean(axis=1)),
                        ("labels_noisy", np.eye(29)[[28] * 24])):
        rewrite(folder / f"{name}.h5", array)
    for split, rows in (("train", slice(64)), ("val", slice(64, 80)), ("test", slice(80, None))):
        rewrite(folder / f"{split}_order.h5", np.array(TWIN["order"][rows]), "order")
    return folder


torch.manual_seed(123)
SAME_DROPOUT = torch.nn.functional.dropout(torch.ones(40960).double(), 0.1).count_nonzero() == 36705


@pytest.mark.skipif(not SAME_DROPOUT, reason="this PyTorch draws dropout in another way (2.13 in this one, 2.6 not)")
@pytest.mark.parametrize("setting", ["fully", "weakly"])
def test_every_step_has_the_loss_of_the_released_scripts_own_run(quick_script, twin_folder, tmp_path, setting):
    """golden/twin64.json: the released scripts in float64, seed 123, batches of 16, 5 epochs; on any processor."""
    quick_script(RELEASED, "--setting", setting, "--train", "--batch_size", 16, "--nb_epoch", 5, "--precision", "fp64",
                 "--log_steps", "--device", "cpu", "--data_dir", twin_folder, "--output_dir", tmp_path)
    losses = sum([epoch["losses"] for epoch in read_log(tmp_path, setting)[1]], [])
    assert losses == pytest.approx(TWIN[setting], rel=1e-9)


def test_the_learning_rate_of_AVEL_falls_after_the_epoch_of_each_15000th_step():
    assert avel_milestones(steps_per_epoch=52, epochs=300) == [289]      # step 15,000 is in epoch 288
    assert avel_milestones(steps_per_epoch=7500, epochs=4) == [2, 4]


def test_AVEL_keeps_the_order_of_the_file(quick_script, tiny_folder, tmp_path):
    quick_script("model/avel.py", "--setting", "fully", "--train", "--nb_epoch", 2, "--batch_size", 8, "--lr", 0,
                 "--log_steps", "--device", "cpu", "--data_dir", tiny_folder, "--output_dir", tmp_path)
    dataset = AVEDataset(find_files(tiny_folder, required_files(["train"])), "train")
    torch.manual_seed(123)
    network = AVELNetwork(12, 20, (3, 3), 5)
    losses = [avel_fully_supervised_loss(network(batch["audio"], batch["visual"]), batch["labels"]).item()
              for batch in map(dataset.__getitem__, torch.arange(24).split(8))]
    for epoch in read_log(tmp_path, "fully", "AVEL")[1]:
        assert epoch["losses"] == pytest.approx(losses, rel=1e-5)
