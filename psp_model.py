"""The PSP networks of "Positive Sample Propagation along the Audio-Visual Event Line" (CVPR 2021).

Read from top to bottom this file follows the paper's method section:

1. `AudioGuidedVisualAttention`   where in the picture is what one hears?
2. `PositiveSamplePropagation`    which segments of the other modality support this one?
3. `PSPNetwork`                   both, between Bi-LSTMs and a classifier
4. the losses                     segment labels (fully) or video labels (weakly supervised)

Letters used for shapes, here and everywhere:

    B videos    T segments of one second    h x w = R regions of the visual feature map
    Da audio feature width    Dv visual feature width    d = 256 width inside PSP
    C classes: the event categories and, as the last one, background
"""
from functools import wraps
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

EPSILON = 1e-8              # keeps a sum that is divided by away from zero
CACHED_VALUES = 2 ** 21     # of H_v that a CPU computes at once


def few_videos_at_a_time(forward):
    """On a CPU, computes AVGA in small groups of videos: H_v is too large for its cache."""
    @wraps(forward)
    def in_parts(self, audio, visual):
        if visual.device.type != "cpu":
            return forward(self, audio, visual)
        videos = max(1, CACHED_VALUES // (visual[0, ..., 0].numel() * self.U_v.out_features))
        parts = [forward(self, a, V) for a, V in zip(audio.split(videos), visual.split(videos))]
        return tuple(torch.cat(part) for part in zip(*parts))
    return in_parts


class AudioGuidedVisualAttention(nn.Module):
    """AVGA: weighs the regions of each segment's visual map by how well they fit its sound.

        H_v = relu(U_v V)    H_a = relu(U_a a)
        alpha = softmax_regions(w_h tanh(W_v H_v + W_g H_a))
        attended visual = sum_r alpha_r V_r

    Tian et al., "Audio-Visual Event Localization in Unconstrained Videos", ECCV 2018.
    """

    def __init__(self, audio_dim, visual_dim, num_regions, hidden_dim=512):
        super().__init__()
        self.U_v = nn.Linear(visual_dim, hidden_dim)
        self.U_a = nn.Linear(audio_dim, hidden_dim)
        self.W_v = nn.Linear(hidden_dim, num_regions, bias=False)
        self.W_g = nn.Linear(hidden_dim, num_regions, bias=False)
        self.w_h = nn.Linear(num_regions, 1, bias=False)

    @few_videos_at_a_time
    def forward(self, audio, visual):
        """audio [B, T, Da], visual [B, T, R, Dv] -> attended visual [B, T, Dv], alpha [B, T, R]."""
        H_v = F.relu(self.U_v(visual.flatten(0, 2)), inplace=True)          # [B T R, hidden]
        H_a = F.relu(self.U_a(audio))                                       # [B, T, hidden]
        from_visual = self.W_v(H_v).unflatten(0, visual.shape[:3])          # [B, T, R, R]
        # As released: entry r of W_g H_a is added to the whole row of region r.
        context = from_visual + self.W_g(H_a).unsqueeze(-1)                 # [B, T, R, R] + [B, T, R, 1]
        z = self.w_h(torch.tanh(context)).squeeze(-1)                       # [B, T, R]
        alpha = F.softmax(z, dim=-1)                                        # [B, T, R]
        attended = (alpha.unsqueeze(-2) @ visual).squeeze(-2)               # [B, T, Dv]
        return attended, alpha


class Propagation(NamedTuple):
    """What `PositiveSamplePropagation` computes. Rows of *_va are visual, columns audio segments; reversed in *_av."""
    visual: torch.Tensor      # [B, T, d] v' after the LayerNorm
    audio: torch.Tensor       # [B, T, d] a' after the LayerNorm
    fusion: torch.Tensor      # [B, T, d] their mean
    beta_va: torch.Tensor     # [B, T, T] pair similarities before pruning, each row divided by its sum
    beta_av: torch.Tensor     # [B, T, T]
    gamma_va: torch.Tensor    # [B, T, T] after pruning: the weights that propagate audio into v
    gamma_av: torch.Tensor    # [B, T, T] the weights that propagate visual into a


class PositiveSamplePropagation(nn.Module):
    """PSP: every segment gathers the segments of the other modality that are similar enough to it.

    1. all pairs:    beta_va = relu(v2 a1^T / sqrt(d)), beta_av = beta_va^T, then each row divided by its sum
    2. pruning:      gamma = beta where beta > threshold, else 0
    3. aggregation:  v' = v + gamma_va a2, a' = a + gamma_av v1, then a LayerNorm

    v1, v2 (and a1, a2) are a linear layer, a ReLU and dropout of v (of a).
    `renormalise`: the rows of gamma are divided by their sum once more.
    `output_layers`: v' and a' pass one such layer each before the LayerNorm.
    The published fully supervised network has both, the weakly supervised one neither.
    """

    def __init__(self, dim, threshold, renormalise, output_layers, dropout=0.1):
        super().__init__()
        self.threshold = threshold
        self.renormalise = renormalise

        def projection():
            return nn.Sequential(nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Dropout(dropout))

        self.v1, self.v2 = projection(), projection()
        self.a1, self.a2 = projection(), projection()
        self.v_out = projection() if output_layers else nn.Identity()
        self.a_out = projection() if output_layers else nn.Identity()
        self.layer_norm = nn.LayerNorm(dim, eps=1e-6)  # one for both modalities

    def prune(self, beta):
        """[B, T, T] -> gamma [B, T, T]: similarities that are not above the threshold become 0."""
        gamma = beta * (beta > self.threshold)
        return rows_sum_to_one(gamma) if self.renormalise else gamma

    def forward(self, visual, audio):
        """visual v, audio a: [B, T, d] each -> `Propagation`."""
        visual_value, visual_query = self.v1(visual), self.v2(visual)       # v1, v2 [B, T, d]
        audio_key, audio_value = self.a1(audio), self.a2(audio)             # a1, a2 [B, T, d]

        # The division by sqrt(d) is the paper's; but for EPSILON it cancels in the rows' sums.
        beta = F.relu(visual_query @ audio_key.transpose(1, 2) / visual.shape[-1] ** 0.5)       # [B, T, T]
        beta_va, beta_av = rows_sum_to_one(beta), rows_sum_to_one(beta.transpose(1, 2))

        gamma_va, gamma_av = self.prune(beta_va), self.prune(beta_av)

        visual = self.layer_norm(self.v_out(visual + gamma_va @ audio_value))                   # v'
        audio = self.layer_norm(self.a_out(audio + gamma_av @ visual_value))                    # a'
        return Propagation(visual, audio, (visual + audio) / 2, beta_va, beta_av, gamma_va, gamma_av)


def rows_sum_to_one(matrix):
    """Each row divided by its sum; a row of zeros stays as it is."""
    return matrix / (matrix.sum(dim=-1, keepdim=True) + EPSILON)


class Output(NamedTuple):
    """What a network returns: logits and similarity enter the losses, attention and psp are there to be looked at."""
    logits: torch.Tensor                 # [B, T, C] the label of a segment is their arg-max
    attention: torch.Tensor              # [B, T, h, w] alpha of AVGA, sums to one over h x w
    similarity: torch.Tensor = None      # [B, T] cosine of v' and a', in -1..1
    psp: Propagation = None


# Where the two published networks differ: options of PSPNetwork, and tau.
FULLY_SUPERVISED = dict(input_layers=True, renormalise=True, output_layers=True, weighting=False)
WEAKLY_SUPERVISED = dict(input_layers=False, renormalise=False, output_layers=False, weighting=True)
PAPER_THRESHOLD = {"fully": 0.099, "weakly": 0.095}


class PSPNetwork(nn.Module):
    """The network of both settings: AVGA -> Bi-LSTMs -> PSP -> classifier.

        PSPNetwork(128, 512, (7, 7), 29, threshold=0.099, **FULLY_SUPERVISED)
        PSPNetwork(128, 512, (7, 7), 29, threshold=0.095, **WEAKLY_SUPERVISED)

    audio_dim, visual_dim, map_size, num_classes: Da, Dv, (h, w) and C of the data.
    threshold: pruning threshold tau of PSP, on rows that sum to one; what is not above it is pruned.
    input_layers: two linear maps before AVGA's audio and after its visual output
        (False: the audio features as they are, one linear map with bias for the visual ones).
    renormalise, output_layers, dropout: see `PositiveSamplePropagation`.
    weighting: a branch that multiplies each segment's scores by one number, sigmoid(relu(.)), so in 0.5..1.
    """

    def __init__(self, audio_dim, visual_dim, map_size, num_classes, *, threshold,
                 input_layers, renormalise, output_layers, weighting, dropout=0.1):
        super().__init__()
        lstm_dim = 128            # of each direction; also what the features are mapped to
        dim = 2 * lstm_dim        # d
        num_regions = map_size[0] * map_size[1]

        def input_map(width):     # no nonlinearity between the two, as released
            return nn.Sequential(nn.Linear(width, 256, bias=False), nn.Linear(256, lstm_dim, bias=False))

        self.audio_in = input_map(audio_dim) if input_layers else nn.Identity()
        self.visual_in = input_map(visual_dim) if input_layers else nn.Linear(visual_dim, lstm_dim)
        mapped_audio_dim = lstm_dim if input_layers else audio_dim

        self.attention = AudioGuidedVisualAttention(mapped_audio_dim, visual_dim, num_regions)
        self.lstm_audio = nn.LSTM(mapped_audio_dim, lstm_dim, batch_first=True, bidirectional=True)
        self.lstm_visual = nn.LSTM(lstm_dim, lstm_dim, batch_first=True, bidirectional=True)
        self.psp = PositiveSamplePropagation(dim, threshold, renormalise, output_layers, dropout)
        self.classifier = nn.Sequential(
            nn.Linear(dim, 64, bias=False), nn.ReLU(), nn.Linear(64, num_classes, bias=False))
        self.weighting = nn.Linear(num_classes, 1, bias=False) if weighting else None
        xavier_uniform(self.attention, self.psp, self.classifier)

    def forward(self, audio, visual):
        """audio [B, T, Da], visual [B, T, h, w, Dv] -> `Output`."""
        map_size = visual.shape[2:4]
        audio = self.audio_in(audio)                                        # [B, T, 128]
        visual, alpha = self.attention(audio, visual.flatten(2, 3))         # [B, T, Dv], [B, T, R]
        visual = self.visual_in(visual)                                     # [B, T, 128]

        audio, _ = self.lstm_audio(audio)                                   # [B, T, d]
        visual, _ = self.lstm_visual(visual)                                # [B, T, d]
        psp = self.psp(visual, audio)

        logits = self.classifier(psp.fusion)                                # [B, T, C]
        if self.weighting is not None:
            logits = torch.sigmoid(F.relu(self.weighting(logits))) * logits     # [B, T, 1] * [B, T, C]

        similarity = F.cosine_similarity(psp.visual, psp.audio, dim=-1)     # [B, T]
        return Output(logits, alpha.unflatten(-1, map_size), similarity, psp)


def xavier_uniform(*modules):
    """Draws the weights of all linear layers in these modules anew; biases stay as PyTorch gives them."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)


# ---------------------------------------------------------------------------------------------- losses

def avps_target(labels, background, dtype=torch.float32):
    """Target g of L_avps: 1/n on the n event segments of a video, 0 elsewhere (all 0 without an event).

    labels [B, T] int, background: the index of that label -> [B, T] of dtype.
    """
    event = (labels != background).to(dtype)
    return event / event.sum(dim=1, keepdim=True).clamp(min=1)


def avps_loss(similarity, target):
    """L_avps, the audio-visual pair similarity loss (equations 8 and 9): MSE(s, g) of [B, T] each -> scalar.

    s = relu(similarity) divided by its sum over the T segments.
    """
    s = rows_sum_to_one(F.relu(similarity))
    return F.mse_loss(s, target)


def fully_supervised_loss(output, labels, LAMBDA, target=None):
    """Cross entropy over all segments + LAMBDA x L_avps; labels [B, T] int, background is the last class -> scalar.

    target [B, T]: of L_avps; by default `avps_target(labels)`.
    """
    background = output.logits.shape[-1] - 1
    cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    if target is None:
        target = avps_target(labels, background, output.similarity.dtype)
    return cross_entropy + LAMBDA * avps_loss(output.similarity, target)


def video_probability(logits):
    """Weakly supervised video prediction: softmax over the classes of the mean over time; [B, T, C] -> [B, C]."""
    return F.softmax(logits.mean(dim=1), dim=-1)


def weakly_supervised_loss(output, label_share):
    """Binary cross entropy of the video prediction against the share of each label; label_share [B, C] -> scalar."""
    probability = video_probability(output.logits)
    # binary_cross_entropy refuses NaN, which is to reach the loss of a run that diverges.
    return F.binary_cross_entropy(probability.nan_to_num(), label_share) + 0 * probability.sum()
