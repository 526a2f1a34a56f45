"""The parts of the network against plain loops and hand-worked examples."""
import math

import pytest
import torch

from psp_model import (FULLY_SUPERVISED, WEAKLY_SUPERVISED, AudioGuidedVisualAttention, PositiveSamplePropagation,
                       PSPNetwork, avps_loss, avps_target, fully_supervised_loss, weakly_supervised_loss)


def test_attention_equals_a_loop_over_regions():
    torch.manual_seed(0)
    attention = AudioGuidedVisualAttention(5, 6, 4, hidden_dim=7).double()
    audio, visual = torch.randn(2, 3, 5).double(), torch.randn(2, 3, 4, 6).double()
    attended, alpha = attention(audio, visual)
    for b in range(2):
        for t in range(3):
            H_a = torch.relu(attention.U_a.weight @ audio[b, t] + attention.U_a.bias)
            from_audio = attention.W_g.weight @ H_a
            z = []
            for r in range(4):
                H_v = torch.relu(attention.U_v.weight @ visual[b, t, r] + attention.U_v.bias)
                z.append(attention.w_h.weight[0] @ torch.tanh(attention.W_v.weight @ H_v + from_audio[r]))
            weights = torch.softmax(torch.stack(z), 0)
            torch.testing.assert_close(alpha[b, t], weights)
            torch.testing.assert_close(attended[b, t], sum(w * v for w, v in zip(weights, visual[b, t])))


@pytest.mark.parametrize("renormalise", [True, False])
def test_propagation_equals_a_loop_over_segments(renormalise):
    torch.manual_seed(0)
    T, d, threshold = 5, 8, 0.2
    psp = PositiveSamplePropagation(d, threshold, renormalise, output_layers=False).double().eval()
    v, a = torch.randn(1, T, d).double(), torch.randn(1, T, d).double()
    result = psp(v, a)
    v1, v2, a1, a2 = (torch.relu(part[0](x))[0] for part, x in ((psp.v1, v), (psp.v2, v), (psp.a1, a), (psp.a2, a)))

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
    torch.testing.assert_close(result.gamma_va[0], gamma_va, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(result.gamma_av[0], gamma_av, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(result.visual[0], visual, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(result.audio[0], audio, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(result.fusion, (result.visual + result.audio) / 2)


def test_pruning_is_strict_and_renormalises_only_where_asked():
    beta = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]])
    assert PositiveSamplePropagation(4, 0.25, False, False).prune(beta).tolist() == torch.tensor(
        [[[0.5, 0, 0], [0, 0, 0.6]]]).tolist()
    torch.testing.assert_close(PositiveSamplePropagation(4, 0.2, True, False).prune(beta),
                               torch.tensor([[[0.5, 0.25, 0.25], [0, 0, 1.0]]]))
    # A row without any similarity stays empty, and is no NaN.
    assert PositiveSamplePropagation(4, 0.2, True, False).prune(torch.zeros(1, 2, 3)).abs().sum() == 0


def test_avps_target_and_loss_worked_by_hand():
    labels = torch.tensor([[3, 3, 28, 28], [28, 28, 28, 28], [28, 1, 28, 28]])
    assert avps_target(labels, 28).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    similarity = torch.tensor([[0.5, 0.25, -1.0, 0.25], [-1, -1, -1, -1]])
    target = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 0.0]])
    # s = [.5, .25, 0, .25] and [0, 0, 0, 0]: (0 + 1/16 + 0 + 1/16) / 8
    torch.testing.assert_close(avps_loss(similarity, target), torch.tensor(0.125 / 8))


@pytest.mark.parametrize("options", [FULLY_SUPERVISED, WEAKLY_SUPERVISED], ids=["fully", "weakly"])
@pytest.mark.parametrize("sizes", [(128, 512, (7, 7), 29, 10), (5, 768, (2, 3), 4, 3), (7, 9, (1, 1), 2, 1)])
def test_any_sizes_and_what_a_forward_pass_gives_back(options, sizes):
    audio_dim, visual_dim, (h, w), labels, T = sizes
    network = PSPNetwork(audio_dim, visual_dim, (h, w), labels, threshold=0.1, **options)
    output = network(torch.rand(2, T, audio_dim), torch.rand(2, T, h, w, visual_dim))
    assert output.logits.shape == (2, T, labels)
    assert output.similarity.shape == (2, T)
    assert output.attention.shape == (2, T, h, w)
    torch.testing.assert_close(output.attention.sum((2, 3)), torch.ones(2, T))
    for name in ("beta_va", "beta_av", "gamma_va", "gamma_av"):
        assert getattr(output.psp, name).shape == (2, T, T)
    loss = (fully_supervised_loss(output, torch.zeros(2, T, dtype=torch.long), 100) if options is FULLY_SUPERVISED
            else weakly_supervised_loss(output, torch.full((2, labels), 1 / labels)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_initial_values_are_xavier_uniform_where_the_spec_says_so():
    torch.manual_seed(0)
    network = PSPNetwork(128, 512, (7, 7), 29, threshold=0.1, **FULLY_SUPERVISED)
    for name, weight in network.named_parameters():
        if weight.dim() < 2 or "lstm" in name:
            continue
        xavier = name.startswith(("attention.", "psp.", "classifier."))
        bound = math.sqrt(6 / sum(weight.shape)) if xavier else math.sqrt(1 / weight.shape[1])
        assert 0.93 * bound < weight.abs().max() <= bound * 1.0001, name
