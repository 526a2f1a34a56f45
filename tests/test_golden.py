"""The networks are the published ones: float64 agreement with numbers that the authors' released code computed.

golden/released.json holds, for each setting, intermediate tensors (wide ones cut to their first 8 channels, and the
norm of the whole), losses, the gradient norm of each parameter, the losses of 10 Adam steps and the accuracy.
"""
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from conftest import TESTS, close
from golden import recipe
from model.released_checkpoint import our_name
from psp_model import (PUBLISHED, PSPNetwork, avps_loss, avps_target, fully_supervised_loss, video_probability,
                       weakly_supervised_loss)

GOLDEN = json.loads((TESTS / "golden" / "released.json").read_text())


class GoldenRun:
    """One published network with the golden weights, its inputs, and all that its first step computed."""

    def __init__(self, setting):
        self.setting, self.golden = setting, GOLDEN[setting]
        self.network = PSPNetwork(128, 512, (7, 7), 29, **PUBLISHED[setting]).eval()
        self.names = {released: our_name(released, setting) for released in self.golden["grad_norms"]}
        for released, ours in self.names.items():
            parameter = self.network.get_parameter(ours)
            parameter.data = torch.from_numpy(recipe.parameter(GOLDEN["seed"], released, tuple(parameter.shape)))
        self.audio, self.visual, self.labels = map(torch.from_numpy, recipe.inputs(GOLDEN["seed"], GOLDEN["batch"]))

        self.tensors = {}
        for name, layer in (("attended_visual", "attention"), ("audio_lstm", "lstm_audio"),
                            ("visual_lstm", "lstm_visual")):
            self.network.get_submodule(layer).register_forward_hook(
                lambda module, args, result, name=name: self.tensors.update({name: result[0]}))
        self.output = self.network(self.audio, self.visual)
        psp, logits = self.output.psp, self.output.logits
        self.tensors |= {"visual_psp": psp.visual, "audio_psp": psp.audio, "fusion": psp.fusion, "logits": logits,
                         "scores": logits, "similarity": self.output.similarity,
                         "video_prob": video_probability(logits)}

    def loss(self, output):
        if self.setting == "fully":
            return fully_supervised_loss(output, self.labels, avps_target(self.labels, 28), self.golden["lam"])
        return weakly_supervised_loss(output, one_hot(self.labels, 29).double().mean(dim=1))


@pytest.fixture(params=["fully", "weakly"])
def run(request):
    torch.set_default_dtype(torch.float64)
    return GoldenRun(request.param)


def test_every_intermediate_tensor_agrees(run):
    listed = [name for name in run.golden if name + "_norm" in run.golden]
    assert len(listed) == {"fully": 8, "weakly": 6}[run.setting]
    for name in listed:
        width = np.shape(run.golden[name])[-1]
        close(run.tensors[name][..., :width], run.golden[name])
        close(run.tensors[name].norm(), run.golden[name + "_norm"])


def test_losses_and_accuracy_agree(run):
    close(run.loss(run.output), run.golden["loss"])
    close((run.output.logits.argmax(-1) == run.labels).double().mean(), run.golden["accuracy"])
    if run.setting == "fully":
        close(avps_loss(run.output.similarity, avps_target(run.labels, 28)), run.golden["loss_avps"])
        close(cross_entropy(run.output.logits.flatten(0, 1), run.labels.flatten()), run.golden["loss_ce"])


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
