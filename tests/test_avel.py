"""AVEL is the published one: float64 agreement with numbers that its authors' code computed (golden/avel.json)."""
import json
from pathlib import Path

import pytest
import torch

from conftest import close
from golden import recipe
from model.avel import AVELNetwork, avel_fully_supervised_loss, avel_video_probability, avel_weakly_supervised_loss

GOLDEN = json.loads((Path(__file__).parent / "golden" / "avel.json").read_text())
RELEASED_NAMES = {
    "affine_video": "attention.U_v",
    "affine_audio": "attention.U_a",
    "affine_v": "attention.W_v",
    "affine_g": "attention.W_g",
    "affine_h": "attention.w_h",
    "lstm_audio": "lstm_audio",
    "lstm_video": "lstm_visual",
    "L1": "classifier.0",
    "L2": "classifier.2",
}


@pytest.mark.parametrize("setting", ["fully", "weakly"])
def test_outputs_loss_gradients_and_adam_steps_agree(setting):
    golden = GOLDEN[setting]
    network = AVELNetwork(128, 512, (7, 7), 29).double()
    names = {}
    for released in golden["parameters"]:
        module, _, parameter = released.rpartition(".")
        names[f"{RELEASED_NAMES[module]}.{parameter}"] = released
    network.load_state_dict({ours: torch.from_numpy(recipe.parameter(GOLDEN["seed"], released,
                                                                     tuple(golden["parameters"][released])))
                             for ours, released in names.items()}, strict=True)
    audio, visual, labels = map(torch.from_numpy, recipe.inputs(GOLDEN["seed"], GOLDEN["batch"]))
    category = labels.amin(dim=1)      # of the event: background, 28, is the largest label

    def loss_of(output):
        if setting == "fully":
            return avel_fully_supervised_loss(output, labels)
        return avel_weakly_supervised_loss(output, category)

    output = network(audio, visual)
    segments = output.logits.softmax(-1) if setting == "fully" else output.logits
    close(segments, golden["segment_output"])
    if setting == "weakly":
        close(avel_video_probability(output.logits), golden["video_prob"])
    loss = loss_of(output)
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-8)
    loss.backward()
    for ours, released in names.items():
        norm = network.get_parameter(ours).grad.norm().item()
        assert norm == pytest.approx(golden["grad_norms"][released], rel=1e-8), ours
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for expected in golden["adam_losses"]:
        loss = loss_of(network(audio, visual))
        assert loss.item() == pytest.approx(expected, rel=1e-8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
