"""AVEL is the published one: float64 agreement with numbers that its authors' code computed (golden/avel.json)."""
import json

import pytest
import torch

from conftest import MAIN, TESTS, close, read_log
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
        names[f"{RELEASED_NAMES[module]}.{parameter}"] = released
    network.load_state_dict({
        ours: torch.from_numpy(recipe.parameter(GOLDEN["seed"], released, tuple(golden["parameters"][released])))
        for ours, released in names.items()}, strict=True)
    audio, visual, labels = map(torch.from_numpy, recipe.inputs(GOLDEN["seed"], GOLDEN["batch"]))
    category = torch.eye(29).double()[labels.amin(dim=1)]      # of the event: background, 28, is the largest label

    def loss_of(output):
        if setting == "fully":
            return avel_fully_supervised_loss(output, labels)
        return avel_weakly_supervised_loss(output, category)

    output = network(audio, visual)
    close(output.logits.softmax(-1) if setting == "fully" else output.logits, golden["segment_output"])
    if setting == "weakly":
        close(avel_video_probability(output.logits), golden["video_prob"])
    close(loss_of(output), golden["loss"])
    loss_of(output).backward()
    for ours, released in names.items():
        close(network.get_parameter(ours).grad.norm(), golden["grad_norms"][released])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for expected in golden["adam_losses"]:
        loss = loss_of(network(audio, visual))
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


def test_evaluation_gives_the_figures_of_training(quick_script, tiny_folder, tmp_path):
    options = ("--data_dir", tiny_folder, "--output_dir", tmp_path)
    quick_script("model/avel.py", "--setting", "weakly", "--train", "--nb_epoch", 1, "--batch_size", 8, *options)
    best = read_log(tmp_path, "weakly", "AVEL")[2]["best"]
    evaluation = ("--trained_model_path", tmp_path / "AVEL_weakly.pt", *options)
    done = quick_script("model/avel.py", "--setting", "weakly", *evaluation)
    assert f"test accuracy: {100 * best['test_accuracy']:.2f} %" in done.stdout
    error = quick_script(MAIN["weakly"], *evaluation, code=2).stderr
    assert "AVEL_weakly.pt: is a checkpoint of AVEL, not of PSP" in error and error.count("\n") == 1
