"""Propagation, the targets of L_avps and the ablations, on examples worked by hand and in other ways."""
import math

import pytest
import torch

from psp_model import PUBLISHED, PositiveSamplePropagation, PSPNetwork, avps_target


@pytest.mark.parametrize("renormalise", [True, False])
def test_propagation_returns_the_weights_that_it_used(renormalise):
    """That they are the right ones, test_golden.py shows."""
    torch.manual_seed(0)
    psp = PositiveSamplePropagation(8, 0.2, renormalise, output_layers=False).eval()
    v, a = torch.randn(2, 1, 5, 8)
    result = psp(v, a)
    for gathered, own, gamma, beta, value in (
            (result.visual, v, result.gamma_va, result.beta_va, psp.audio_value(a)),
            (result.audio, a, result.gamma_av, result.beta_av, psp.visual_value(v))):
        torch.testing.assert_close(gathered, psp.layer_norm(own + gamma @ value))
        torch.testing.assert_close(gamma, psp.prune(beta))


BETA = [[0.5, 0.25, 0.25], [0.05, 0.05, 0.9], [0, 0, 0]]


@pytest.mark.parametrize("threshold, expected", [
    (0.25, [[1, 0, 0], [0, 0, 1], [0, 0, 0]]), (0, BETA), (1, [[0, 0, 0]] * 3)])
def test_pruning_is_strict_and_a_row_without_similarity_stays_empty(threshold, expected):
    gamma = PositiveSamplePropagation(4, threshold, True, False).prune(torch.tensor(BETA))
    torch.testing.assert_close(gamma, torch.tensor(expected).float())


def test_avps_targets_worked_by_hand():
    labels = torch.tensor([[3, 3, 28, 28], [28, 28, 28, 28], [28, 1, 28, 28]])
    assert avps_target(labels, 28).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("setting", PUBLISHED)
def test_a_network_of_any_sizes(setting):
    network = PSPNetwork(5, 768, (2, 3), 4, **PUBLISHED[setting])
    output = network(torch.rand(7, 8, 5), torch.rand(7, 8, 2, 3, 768))
    assert output.logits.shape == (7, 8, 4) and output.attention.shape == (7, 8, 2, 3)
    torch.testing.assert_close(output.attention.sum((2, 3)), torch.ones(7, 8))


def test_initial_values_are_xavier_uniform_in_attention_psp_and_classifier():
    torch.manual_seed(0)
    network = PSPNetwork(128, 512, (7, 7), 29, **PUBLISHED["fully"])
    for name, weight in network.named_parameters():
        if weight.dim() == 2 and "lstm" not in name:
            xavier = name.startswith(("attention.", "psp.", "classifier."))
            bound = math.sqrt(6 / sum(weight.shape)) if xavier else math.sqrt(1 / weight.shape[1])
            assert 0.93 * bound < weight.abs().max() <= bound * 1.0001, name


def network(setting, **options):
    torch.manual_seed(1)
    return PSPNetwork(12, 20, (3, 3), 5, **{**PUBLISHED[setting], "threshold": 0.15, **options}).double().eval()


def features(seed=0):
    torch.manual_seed(seed)
    return torch.rand(2, 6, 12).double(), torch.rand(2, 6, 3, 3, 20).double()


@pytest.mark.parametrize("setting", PUBLISHED)
def test_mean_attention_sees_no_place(setting):
    audio, visual = features()
    ablated = network(setting, attention="mean")
    torch.testing.assert_close(ablated(audio, visual).logits, ablated(audio, visual.flip(2)).logits)
    assert torch.allclose(ablated(audio, visual).attention, torch.tensor(1 / 9).double())


@pytest.mark.parametrize("modality, used", [("audio", 0), ("visual", 1)])
@pytest.mark.parametrize("setting", PUBLISHED)
def test_one_modality_depends_on_that_one_alone(setting, modality, used):
    ablated, (audio, visual), others = network(setting, modality=modality), features(0), features(1)
    expected = ablated(audio, visual).logits
    changed = [ablated(others[0], visual).logits, ablated(audio, others[1]).logits]
    assert torch.equal(changed[1 - used], expected) and not torch.allclose(changed[used], expected)


@pytest.mark.parametrize("setting", PUBLISHED)
@pytest.mark.parametrize("options, left_out", [
    ({}, ()), ({"attention": "mean"}, ("attention.",)), ({"modality": "audio"}, ("attention.", "visual_in.")),
    ({"modality": "visual"}, ("audio_in.",)), ({"weighting": False}, ("weighting.",)),
    ({"output_layers": False}, ("psp.visual_out.", "psp.audio_out."))])
def test_what_is_left_out_is_not_built_and_all_else_gets_a_gradient(setting, options, left_out):
    built = network(setting, **options)
    output = built(*features())
    (output.logits.sum() + (output.similarity.sum() if setting == "fully" else 0)).backward()
    gradients = {name: parameter.grad for name, parameter in built.named_parameters()}
    assert None not in gradients.values()
    assert not any(name.startswith(left_out) for name in gradients)
