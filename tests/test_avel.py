"""AVEL is the published one: float64 agreement with numbers that its authors' code computed (golden/avel.json)."""
import json

import pytest
import torch

from conftest import TESTS, close, read_log
from dataset import AVEDataset, find_files, required_files
from golden import recipe
from model.avel import (AVELNetwork, avel_fully_supervised_loss, avel_milestones, avel_video_probability,
                        avel_weakly_supervised_loss)

GOLDEN = json.loads((TESTS / "golden" / "avel.json").read_text())
RELEASED_NAMES = {
    "affine_video": "attention.U_v", "affine_audio": "attention.U_a", "affine_v": "attention.W_v",
    "affine_g": "attention.W_g", "affine_h": "attention.w_h", "lstm_audio": "lstm_audio", "lstm_video": "lstm_visual",
    "L1": "classifier.0", "L2": "classifier.2"}


@pytest.mark.parametrize("setting", ["fully", "weakly"])
def test_outputs_loss_gradients_and_adam_steps_agree(setting):
    golden = GOLDEN[setting]
    network = AVELNetwork(128, 512, (7, 7), 29).double()
    names = {}
    for released in golden["parameters"]:
        module, parameter = released.split(".")
        names[released] = f"{RELEASED_NAMES[module]}.{parameter}"
    network.load_state_dict({
        ours: torch.from_numpy(recipe.parameter(GOLDEN["seed"], released, tuple(golden["parameters"][released])))
        for released, ours in names.items()})
    audio, visual, labels = map(torch.from_numpy, recipe.inputs(GOLDEN["seed"], GOLDEN["batch"]))

    output = network(audio, visual)
    if setting == "fully":
        compute_loss, target = avel_fully_supervised_loss, labels
        close(output.logits.softmax(-1), golden["segment_output"])
    else:      # the event's category: background, 28, is the largest label
        compute_loss, target = avel_weakly_supervised_loss, torch.eye(29).double()[labels.amin(dim=1)]
        close(output.logits, golden["segment_output"])
        close(avel_video_probability(output.logits), golden["video_prob"])
    compute_loss(output, target).backward()
    for released, ours in names.items():
        close(network.get_parameter(ours).grad.norm(), golden["grad_norms"][released])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for expected in golden["adam_losses"]:
        loss = compute_loss(network(audio, visual), target)
        close(loss, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_the_learning_rate_falls_after_the_epoch_of_each_15000th_step():
    assert avel_milestones(steps_per_epoch=52, epochs=300) == [289]      # step 15,000 is in epoch 288
    assert avel_milestones(steps_per_epoch=7500, epochs=4) == [2, 4]


def test_training_keeps_the_order_of_the_file(quick_script, tiny_folder, tmp_path):
    quick_script("model/avel.py", "--setting", "fully", "--train", "--nb_epoch", 2, "--batch_size", 8, "--lr", 0,
                 "--log_steps", "--device", "cpu", "--data_dir", tiny_folder, "--output_dir", tmp_path)
    dataset = AVEDataset(find_files(tiny_folder, required_files(["train"])), "train")
    torch.manual_seed(123)
    network = AVELNetwork(12, 20, (3, 3), 5)
    losses = [avel_fully_supervised_loss(network(batch["audio"], batch["visual"]), batch["labels"]).item()
              for batch in map(dataset.__getitem__, torch.arange(24).split(8))]
    for epoch in read_log(tmp_path, "fully", "AVEL")[1]:
        assert epoch["losses"] == pytest.approx(losses, rel=1e-5)
