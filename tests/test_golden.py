"""The networks are the published ones: float64 agreement with numbers that their authors' code computed.

golden/released.json (PSP) and golden/avel.json hold, for each setting, tensors (of wide ones, 8 channels and the norm),
losses, the gradient norm of each parameter and the losses of 10 Adam steps. golden/make_golden.py makes them again,
here from stand-ins of the authors' files, and shows a fault in these.
"""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from conftest import TESTS, close
from golden import make_golden, recipe
from golden.stand_in_networks import AVEL_NAMES
from model.avel import AVELNetwork, avel_fully_supervised_loss, avel_video_probability, avel_weakly_supervised_loss
from model.released_checkpoint import RELEASED_NAMES
from psp_model import (PUBLISHED, PSPNetwork, avps_loss, avps_target, fully_supervised_loss, video_probability,
                       weakly_supervised_loss)

GOLDEN = {model: json.loads((TESTS / "golden" / f"{model}.json").read_text()) for model in ("released", "avel")}


class GoldenRun:
    """One published network with the golden weights, its inputs, and all that its first step computed."""

    def __init__(self, model, setting):
        numbers = GOLDEN[model]
        self.model, self.setting, self.golden = model, setting, numbers[setting]
        if model == "avel":
            network, modules = AVELNetwork(128, 512, (7, 7), 29), AVEL_NAMES
        else:
            network, modules = PSPNetwork(128, 512, (7, 7), 29, **PUBLISHED[setting]).eval(), RELEASED_NAMES[setting]
        self.network, self.names = network, {}
        for released in self.golden["grad_norms"]:
            module, _, name = released.rpartition(".")
            self.names[released] = f"{modules[module]}.{name}"
            parameter = network.get_parameter(self.names[released])
            parameter.data = torch.from_numpy(recipe.parameter(numbers["seed"], released, tuple(parameter.shape)))
        self.audio, self.visual, self.labels = map(torch.from_numpy, recipe.inputs(numbers["seed"], numbers["batch"]))

        self.tensors = {}
        for name, layer in (("attended_visual", "attention"), ("audio_lstm", "lstm_audio"),
                            ("visual_lstm", "lstm_visual")):
            network.get_submodule(layer).register_forward_hook(
                lambda module, args, result, name=name: self.tensors.update({name: result[0]}))
        self.output = network(self.audio, self.visual)
        psp, logits = self.output.psp, self.output.logits
        if model == "avel":
            self.tensors |= {"segment_output": logits.softmax(-1) if setting == "fully" else logits,
                             "video_prob": avel_video_probability(logits)}
        else:
            self.tensors |= {"visual_psp": psp.visual, "audio_psp": psp.audio, "fusion": psp.fusion, "logits": logits,
                             "scores": logits, "similarity": self.output.similarity,
                             "video_prob": video_probability(logits)}

    def loss(self, output):
        if self.model == "avel" and self.setting == "fully":
            return avel_fully_supervised_loss(output, self.labels)
        if self.model == "avel":      # the event's category: background, 28, is the largest label
            return avel_weakly_supervised_loss(output, torch.eye(29)[self.labels.amin(dim=1)])
        if self.setting == "fully":
            return fully_supervised_loss(output, self.labels, avps_target(self.labels, 28), self.golden["lam"])
        return weakly_supervised_loss(output, one_hot(self.labels, 29).double().mean(dim=1))


@pytest.fixture(params=[(model, setting) for model in GOLDEN for setting in PUBLISHED], ids=" ".join)
def run(request):
    torch.set_default_dtype(torch.float64)
    return GoldenRun(*request.param)


def test_every_intermediate_tensor_agrees(run):
    for name, expected in run.golden.items():
        if np.ndim(expected) > 1:
            close(run.tensors[name][..., :np.shape(expected)[-1]], expected)
            close(run.tensors[name].norm(), run.golden.get(f"{name}_norm", np.linalg.norm(expected)))


def test_losses_agree(run):
    close(run.loss(run.output), run.golden["loss"])
    if "loss_avps" in run.golden:
        close(avps_loss(run.output.similarity, avps_target(run.labels, 28)), run.golden["loss_avps"])


def test_every_gradient_norm_agrees_and_no_parameter_is_unused(run):
    run.loss(run.output).backward()
    gradients = {name: parameter.grad for name, parameter in run.network.named_parameters()}
    assert set(gradients) == set(run.names.values())
    for released, ours in run.names.items():
        close(gradients[ours].norm(), run.golden["grad_norms"][released])


def test_ten_adam_steps_agree(run):
    optimizer = torch.optim.Adam(run.network.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        loss = run.loss(run.network(run.audio, run.visual))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    close(losses, run.golden["adam_losses"])


STAND_IN = (TESTS / "golden" / "stand_in_networks.py").read_text()


@pytest.fixture
def remake(quick_script, tmp_path, monkeypatch):
    """Runs the script on files of this text; {(file, setting, name): difference}."""
    def run(text):
        monkeypatch.chdir(tmp_path)
        for file in ("PSP_CVPR_2021/fully_model.py", "PSP_CVPR_2021/weakly_model.py", "AVE-ECCV18/models.py"):
            Path(file).parent.mkdir(exist_ok=True)
            Path(file).write_text(text)
        lines = quick_script("golden/make_golden.py").stdout.splitlines()
        assert "golden_again: File exists" in quick_script("golden/make_golden.py", code=2).stderr
        return {tuple(group): float(number) for *group, number in map(str.split, lines)}
    return run


def test_the_committed_numbers_are_made_again(remake, tmp_path):
    differences = remake(STAND_IN)
    for model, numbers in GOLDEN.items():
        made = json.loads((tmp_path / "golden_again" / f"{model}.json").read_text())
        assert make_golden.difference(made, numbers) < 1e-9
    assert len(differences) == 53 and max(differences.values()) < 1e-9


def test_a_fault_shows_in_all_that_is_computed_after_it(remake, monkeypatch):
    monkeypatch.setattr(make_golden, "STEPS", 1)      # faster, and itself a fault
    differences = remake(STAND_IN.replace("threshold = threshold", "threshold = 0"))      # no pruning
    right = {"threshold", "lam", "attended_visual", "audio_lstm", "visual_lstm", "accuracy"}
    for (file, setting, name), difference in differences.items():
        wrong = name == "adam_losses" or file == "released.json" and name.removesuffix("_norm") not in right
        assert name == "accuracy" or (difference > 1e-6) == wrong, (file, setting, name)
