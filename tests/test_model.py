"""Propagation, the losses and the ablations, against plain loops and examples worked by hand."""
import math

import pytest
import torch

from psp_model import (FULLY_SUPERVISED, WEAKLY_SUPERVISED, AudioGuidedVisualAttention, PositiveSamplePropagation,
                       Output, PSPNetwork, avps_loss, avps_target, fully_supervised_loss, video_probability,
                       weakly_supervised_loss)

SETTINGS = {"fully": FULLY_SUPERVISED, "weakly": WEAKLY_SUPERVISED}


def test_attention_on_a_few_videos_at_once_equals_attention_on_all(monkeypatch):
    torch.manual_seed(0)
    attention = AudioGuidedVisualAttention(6, 10, num_regions=9)
    audio, visual = torch.randn(7, 4, 6), torch.randn(7, 4, 9, 10)
    monkeypatch.setattr("psp_model.CACHED_VALUES", 3 * 4 * 9 * 512)      # three videos
    for part, expected in zip(attention(audio, visual), attention.attend(audio, visual), strict=True):
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("renormalise", [True, False])
def test_propagation_equals_a_loop_over_segments(renormalise):
    torch.manual_seed(0)
    T, d, threshold = 5, 8, 0.2
    psp = PositiveSamplePropagation(d, threshold, renormalise, output_layers=False).double().eval()
    v, a = torch.randn(1, T, d).double(), torch.randn(1, T, d).double()
    result = psp(v, a)
    v1, v2, a1, a2 = (torch.relu(part[0](x))[0] for part, x in (
        (psp.visual_value, v), (psp.visual_query, v), (psp.audio_key, a), (psp.audio_value, a)))

    def propagate(query, key, value, own):
        rows = []
        for i in range(T):
            row = [max(0.0, (query[i] @ key[j]).item() / math.sqrt(d)) for j in range(T)]
            row = [x / (sum(row) + 1e-8) for x in row]
            row = [x if x > threshold else 0.0 for x in row]
            if renormalise:
                row = [x / (sum(row) + 1e-8) for x in row]
            rows.append(row)
        gathered = torch.stack([own[i] + sum(rows[i][j] * value[j] for j in range(T)) for i in range(T)])
        return torch.tensor(rows).double(), torch.nn.functional.layer_norm(gathered, (d,), eps=1e-6)

    gamma_va, visual = propagate(v2, a1, a2, v[0])
    gamma_av, audio = propagate(a1, v2, v1, a[0])
    for found, expected in ((result.gamma_va, gamma_va), (result.gamma_av, gamma_av), (result.visual, visual),
                            (result.audio, audio), (result.fusion, (visual + audio) / 2)):
        torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-7)


def test_pruning_is_strict_and_a_row_without_similarity_stays_empty():
    beta = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0, 0, 0]]])
    torch.testing.assert_close(PositiveSamplePropagation(4, 0.25, True, False).prune(beta),
                               torch.tensor([[[1.0, 0, 0], [0, 0, 1.0], [0, 0, 0]]]))


def test_avps_target_and_loss_worked_by_hand():
    labels = torch.tensor([[3, 3, 28, 28], [28, 28, 28, 28], [28, 1, 28, 28]])
    assert avps_target(labels, 28).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    similarity = torch.tensor([[0.5, 0.25, -1.0, 0.25], [-1, -1, -1, -1]])
    target = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 0.0]])
    # s = [.5, .25, 0, .25] and [0, 0, 0, 0]: (0 + 1/16 + 0 + 1/16) / 8
    torch.testing.assert_close(avps_loss(similarity, target), torch.tensor(0.125 / 8))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_network_of_any_sizes(setting):
    network = PSPNetwork(5, 768, (2, 3), 4, threshold=0.1, **SETTINGS[setting])
    output = network(torch.rand(7, 8, 5), torch.rand(7, 8, 2, 3, 768))
    assert output.logits.shape == (7, 8, 4)
    assert output.similarity.shape == (7, 8)
    assert output.attention.shape == (7, 8, 2, 3)
    assert output.psp.gamma_va.shape == output.psp.beta_av.shape == (7, 8, 8)
    torch.testing.assert_close(output.attention.sum((2, 3)), torch.ones(7, 8))


def test_initial_values_are_xavier_uniform_in_attention_psp_and_classifier():
    torch.manual_seed(0)
    network = PSPNetwork(128, 512, (7, 7), 29, threshold=0.1, **FULLY_SUPERVISED)
    for name, weight in network.named_parameters():
        if weight.dim() < 2 or "lstm" in name:
            continue
        xavier = name.startswith(("attention.", "psp.", "classifier."))
        bound = math.sqrt(6 / sum(weight.shape)) if xavier else math.sqrt(1 / weight.shape[1])
        assert 0.93 * bound < weight.abs().max() <= bound * 1.0001, name


# ------------------------------------------------------------------------------------------- ablations

def network(setting, **options):
    torch.manual_seed(1)
    return PSPNetwork(12, 20, (3, 3), 5, **{"threshold": 0.15, **SETTINGS[setting], **options}).double().eval()


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(2, 6, 12, generator=generator, dtype=torch.float64),
            torch.rand(2, 6, 3, 3, 20, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("setting", SETTINGS)
def test_mean_attention_sees_no_place(setting):
    audio, visual = features()
    flipped = visual.flip(2)
    ablated, whole = network(setting, attention="mean"), network(setting)
    torch.testing.assert_close(ablated(audio, visual).logits, ablated(audio, flipped).logits)
    assert not torch.allclose(whole(audio, visual).logits, whole(audio, flipped).logits)
    assert torch.allclose(ablated(audio, visual).attention, torch.tensor(1 / 9).double())


@pytest.mark.parametrize("setting", SETTINGS)
def test_threshold_0_propagates_all_pairs_and_threshold_1_none(setting):
    everything, nothing = (network(setting, threshold=threshold)(*features()).psp for threshold in (0, 1))
    torch.testing.assert_close(everything.gamma_va, everything.beta_va)
    assert nothing.beta_va.count_nonzero() and not nothing.gamma_va.count_nonzero()


@pytest.mark.parametrize("modality, used", [("audio", 0), ("visual", 1)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_one_modality_depends_on_that_one_alone(setting, modality, used):
    first, second = features(0), features(1)
    ablated = network(setting, modality=modality)
    logits = ablated(*first).logits
    other_changed = [second[i] if i != used else first[i] for i in (0, 1)]
    own_changed = [second[i] if i == used else first[i] for i in (0, 1)]
    assert torch.equal(ablated(*other_changed).logits, logits)
    assert not torch.allclose(ablated(*own_changed).logits, logits)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("options, left_out", [
    ({}, ()), ({"attention": "mean"}, ("attention.",)), ({"modality": "audio"}, ("attention.", "visual_in.")),
    ({"modality": "visual"}, ("audio_in.",)), ({"weighting": False}, ("weighting.",)),
    ({"output_layers": False}, ("psp.visual_out.", "psp.audio_out."))])
def test_what_is_left_out_is_not_built_and_all_else_gets_a_gradient(setting, options, left_out):
    built = network(setting, **options)
    output = built(*features())
    if setting == "fully":
        labels = torch.zeros(2, 6, dtype=torch.long)
        fully_supervised_loss(output, labels, avps_target(labels, 4).double(), LAMBDA=100).backward()
    else:
        weakly_supervised_loss(output, torch.full((2, 5), 0.2).double()).backward()
    gradients = {name: parameter.grad for name, parameter in built.named_parameters()}
    assert None not in gradients.values()
    assert not [name for name in gradients if name.startswith(left_out)] if left_out else len(gradients) > 20


def test_the_weak_loss_is_binary_cross_entropy_to_the_bit_and_nan_if_the_output_is_not_finite():
    torch.manual_seed(0)
    logits, target = torch.randn(3, 5, 4, requires_grad=True), torch.rand(3, 4)
    loss = weakly_supervised_loss(Output(logits, None), target)
    expected = torch.nn.functional.binary_cross_entropy(video_probability(logits), target)
    assert torch.equal(loss, expected)
    assert torch.equal(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))
    broken = logits.detach().clone()
    broken[1, 2, 0] = torch.inf
    assert weakly_supervised_loss(Output(broken, None), target).isnan()
