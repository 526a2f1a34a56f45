"""The PSP networks of "Positive Sample Propagation along the Audio-Visual Event Line" (CVPR 2021).

Read from top to bottom this file follows the paper's method section:

1. `AudioGuidedVisualAttention`   which regions of the picture fit the sound?
2. `PositiveSamplePropagation`    which segments of the other modality support this one?
3. `PSPNetwork`                   the whole network: AVGA, Bi-LSTMs, PSP, classifier
4. the losses                     for segment labels (fully) or video labels (weakly supervised)

Letters used for shapes, here and everywhere:

    B videos    T segments of one second    h x w = R regions of the visual feature map
    Da audio feature width    Dv visual feature width    d = 256 width inside PSP
    C classes: the event categories, background last
"""
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

EPSILON = 1e-8              # avoids division by zero
CACHED_VALUES = 2 ** 21     # elements of H_v per chunk on a CPU; fits the cache of a core


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

    def attend(self, audio, visual):
        """audio [B, T, Da], visual [B, T, R, Dv] -> attended visual [B, T, Dv], alpha [B, T, R]."""
        H_v = F.relu(self.U_v(visual.flatten(0, 2)), inplace=True)          # [B T R, hidden]
        H_a = F.relu(self.U_a(audio))                                       # [B, T, hidden]
        from_visual = self.W_v(H_v).unflatten(0, visual.shape[:3])          # [B, T, R, R]
        # As in the released code: entry r of W_g H_a is added to the whole row of region r.
        context = from_visual + self.W_g(H_a).unsqueeze(-1)                 # [B, T, R, R] + [B, T, R, 1]
        z = self.w_h(torch.tanh(context)).squeeze(-1)                       # [B, T, R]
        alpha = F.softmax(z, dim=-1)                                        # [B, T, R]
        attended = (alpha.unsqueeze(-2) @ visual).squeeze(-2)               # [B, T, Dv]
        return attended, alpha

    def forward(self, audio, visual):
        """Same as `attend`; on a CPU in chunks of videos, since H_v of a whole batch does not fit its cache."""
        if visual.device.type != "cpu":
            return self.attend(audio, visual)
        videos = max(1, CACHED_VALUES // (visual[0, ..., 0].numel() * self.U_v.out_features))
        parts = [self.attend(a, V) for a, V in zip(audio.split(videos), visual.split(videos))]
        return tuple(torch.cat(part) for part in zip(*parts))


class Propagation(NamedTuple):
    """What `PositiveSamplePropagation` computes. *_va: rows are visual, columns audio segments; *_av: reversed."""
    visual: torch.Tensor      # [B, T, d] v' after the LayerNorm
    audio: torch.Tensor       # [B, T, d] a' after the LayerNorm
    fusion: torch.Tensor      # [B, T, d] their mean
    beta_va: torch.Tensor     # [B, T, T] similarities of all pairs before pruning, each row divided by its sum
    beta_av: torch.Tensor     # [B, T, T]
    gamma_va: torch.Tensor    # [B, T, T] after pruning: the weights that propagate audio into v
    gamma_av: torch.Tensor    # [B, T, T] the weights that propagate visual into a


class PositiveSamplePropagation(nn.Module):
    """PSP: every segment gathers the segments of the other modality that are similar enough to it.

    1. all pairs:    beta_va = relu(v2 a1^T / sqrt(d)), beta_av = beta_va^T, then each row divided by its sum
    2. pruning:      gamma = beta if beta > threshold, else 0
    3. aggregation:  v' = v + gamma_va a2, a' = a + gamma_av v1, then a LayerNorm

    v1, v2, a1, a2: projections of v and a, each a linear layer, a ReLU and dropout.
    renormalise: divide the rows of gamma by their sum once more.
    output_layers: one more such projection of v' and of a' before the LayerNorm.
    The published fully supervised network has both, the weakly supervised one neither.
    """

    def __init__(self, dim, threshold, renormalise, output_layers, dropout=0.1):
        super().__init__()
        self.threshold = threshold
        self.renormalise = renormalise

        def projection():
            return nn.Sequential(nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Dropout(dropout))

        self.visual_value = projection()                                    # v1
        self.visual_query = projection()                                    # v2
        self.audio_key = projection()                                       # a1
        self.audio_value = projection()                                     # a2
        self.visual_out = projection() if output_layers else nn.Identity()
        self.audio_out = projection() if output_layers else nn.Identity()
        self.layer_norm = nn.LayerNorm(dim, eps=1e-6)                       # one for both modalities

    def prune(self, beta):
        """beta [B, T, T] -> gamma [B, T, T]: similarities <= threshold become 0."""
        gamma = beta * (beta > self.threshold)
        return rows_sum_to_one(gamma) if self.renormalise else gamma

    def forward(self, visual, audio):
        """visual v, audio a: [B, T, d] each -> `Propagation`."""
        v1, v2 = self.visual_value(visual), self.visual_query(visual)       # [B, T, d]
        a1, a2 = self.audio_key(audio), self.audio_value(audio)             # [B, T, d]

        # The paper divides by sqrt(d); the division by the rows' sums cancels it up to EPSILON.
        beta = F.relu(v2 @ a1.transpose(1, 2) / visual.shape[-1] ** 0.5)                        # [B, T, T]
        beta_va, beta_av = rows_sum_to_one(beta), rows_sum_to_one(beta.transpose(1, 2))

        gamma_va, gamma_av = self.prune(beta_va), self.prune(beta_av)

        visual = self.layer_norm(self.visual_out(visual + gamma_va @ a2))                       # v' [B, T, d]
        audio = self.layer_norm(self.audio_out(audio + gamma_av @ v1))                          # a' [B, T, d]
        return Propagation(visual, audio, (visual + audio) / 2, beta_va, beta_av, gamma_va, gamma_av)


def rows_sum_to_one(matrix):
    """Divides each row by its sum; a row of zeros stays as it is."""
    return matrix / (matrix.sum(dim=-1, keepdim=True) + EPSILON)


class LSTM(nn.LSTM):
    """Bi-LSTM that on CUDA computes in the dtype of its weights: under autocast, cuDNN would take float16."""

    def __init__(self, input_dim, hidden_dim):
        super().__init__(input_dim, hidden_dim, batch_first=True, bidirectional=True)

    def forward(self, features):
        """features [B, T, input_dim] -> [B, T, 2 hidden_dim] of both directions, and the last states."""
        if features.device.type == "cuda":
            with torch.autocast("cuda", enabled=False):
                return super().forward(features.to(self.weight_ih_l0.dtype))
        if torch.is_autocast_enabled("cpu"):
            features = features.to(torch.get_autocast_dtype("cpu"))     # some CPUs' LSTM fails to convert it itself
        return super().forward(features)


class Output(NamedTuple):
    """What a network returns: the losses use logits and similarity; attention and psp are for inspection."""
    logits: torch.Tensor                 # [B, T, C] their arg-max is the label of a segment
    attention: torch.Tensor              # [B, T, h, w] alpha of AVGA, sums to one over h x w
    similarity: torch.Tensor = None      # [B, T] cosine of v' and a', in -1..1
    psp: Propagation = None


# The two published networks: arguments of PSPNetwork, and tau.
FULLY_SUPERVISED = dict(input_layers=True, renormalise=True, output_layers=True, weighting=False)
WEAKLY_SUPERVISED = dict(input_layers=False, renormalise=False, output_layers=False, weighting=True)
PAPER_THRESHOLD = {"fully": 0.099, "weakly": 0.095}
PUBLISHED = {"fully": {**FULLY_SUPERVISED, "threshold": PAPER_THRESHOLD["fully"]},
             "weakly": {**WEAKLY_SUPERVISED, "threshold": PAPER_THRESHOLD["weakly"]}}

ATTENTIONS = ("audio-guided", "mean")          # choices of PSPNetwork's arguments of these names, the paper's first
MODALITIES = ("both", "audio", "visual")


class PSPNetwork(nn.Module):
    """The network of both settings: AVGA -> Bi-LSTMs -> PSP -> classifier.

        PSPNetwork(128, 512, (7, 7), 29, threshold=0.099, **FULLY_SUPERVISED)

    audio_dim, visual_dim, map_size, num_classes: Da, Dv, (h, w) and C of the data.
    threshold: pruning threshold tau, for rows that sum to one; values not above it become 0.
    input_layers: two linear maps of the audio features and two of the attended visual ones
        (False: audio features as they are, one linear map with bias for the visual ones).
    renormalise, output_layers, dropout: see `PositiveSamplePropagation`.
    weighting: multiply the scores of each segment by one number, sigmoid(relu(.)), in 0.5..1.
    attention: 'mean' weighs all regions alike. modality: 'audio' or 'visual' replaces the other one by zeros.
    """

    def __init__(self, audio_dim, visual_dim, map_size, num_classes, *, threshold,
                 input_layers, renormalise, output_layers, weighting, dropout=0.1,
                 attention="audio-guided", modality="both"):
        super().__init__()
        if attention not in ATTENTIONS or modality not in MODALITIES or not 0 <= threshold <= 1:
            raise ValueError(f"attention {attention!r}, modality {modality!r} or threshold {threshold!r} is unknown")
        lstm_dim = 128            # of each direction; also the width that features are mapped to
        dim = 2 * lstm_dim        # d
        num_regions = map_size[0] * map_size[1]

        def input_map(width):     # as in the released code, no nonlinearity between the two
            return nn.Sequential(nn.Linear(width, 256, bias=False), nn.Linear(256, lstm_dim, bias=False))

        mapped_audio_dim = lstm_dim if input_layers else audio_dim
        if modality == "visual":
            self.audio_in = Zeros(mapped_audio_dim)
        else:
            self.audio_in = input_map(audio_dim) if input_layers else nn.Identity()
        if modality == "audio":
            self.visual_in = Zeros(lstm_dim)
        else:
            self.visual_in = input_map(visual_dim) if input_layers else nn.Linear(visual_dim, lstm_dim)
        if attention == "mean" or modality == "audio":
            self.attention = MeanOverRegions()
        else:
            self.attention = AudioGuidedVisualAttention(mapped_audio_dim, visual_dim, num_regions)
        self.lstm_audio = LSTM(mapped_audio_dim, lstm_dim)
        self.lstm_visual = LSTM(lstm_dim, lstm_dim)
        self.psp = PositiveSamplePropagation(dim, threshold, renormalise, output_layers, dropout)
        self.classifier = nn.Sequential(
            nn.Linear(dim, 64, bias=False), nn.ReLU(), nn.Linear(64, num_classes, bias=False))
        self.weighting = nn.Linear(num_classes, 1, bias=False) if weighting else None
        xavier_uniform(self.attention, self.psp, self.classifier)

    def forward(self, audio, visual):
        """audio [B, T, Da], visual [B, T, h, w, Dv] -> `Output`."""
        map_size = visual.shape[2:4]
        audio = self.audio_in(audio)                                        # [B, T, 128]; weakly [B, T, Da]
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


class MeanOverRegions(nn.Module):
    """Replaces AVGA: all regions have the same weight."""

    def forward(self, audio, visual):
        """audio [B, T, Da], visual [B, T, R, Dv] -> mean [B, T, Dv], weights [B, T, R]."""
        return visual.mean(dim=-2), visual.new_full(visual.shape[:-1], 1 / visual.shape[-2])


class Zeros(nn.Module):
    """Replaces the input map of a modality that is left out."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, features):
        """features [B, T, ...] -> zeros [B, T, width]."""
        return features.new_zeros(*features.shape[:2], self.width)


def xavier_uniform(*modules):
    """Draws new weights for all linear layers in these modules; biases keep PyTorch's initial values."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)


# ---------------------------------------------------------------------------------------------- losses

def avps_target(labels, background):
    """Target g of L_avps: 1/n on the n event segments of a video, 0 elsewhere (all 0 without an event).

    labels [B, T] int, background: the index of that label -> [B, T] of the default dtype.
    """
    event = labels != background
    return event / event.sum(dim=1, keepdim=True).clamp(min=1)


def avps_loss(similarity, target):
    """L_avps, the audio-visual pair similarity loss (equations 8 and 9): MSE(s, g) of [B, T] each -> scalar.

    s = relu(similarity) divided by its sum over the T segments.
    """
    s = rows_sum_to_one(F.relu(similarity))
    return F.mse_loss(s, target)


def fully_supervised_loss(output, labels, target, LAMBDA):
    """Cross entropy of all segments + LAMBDA x L_avps -> scalar.

    labels [B, T] int, target [B, T]: of L_avps, see `avps_target`.
    """
    cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    return cross_entropy + LAMBDA * avps_loss(output.similarity, target)


def video_probability(logits):
    """Weakly supervised video prediction: average the scores over time, then softmax; [B, T, C] -> [B, C]."""
    return F.softmax(logits.mean(dim=1), dim=-1)


def weakly_supervised_loss(output, target):
    """Binary cross entropy of the video prediction; target [B, C]: share of each label in the video -> scalar.

    NaN if the network's output is not finite.
    """
    probability = video_probability(output.logits)
    # On a GPU, the binary cross entropy of NaN would end the process.
    loss = F.binary_cross_entropy(probability.nan_to_num(), target)
    return torch.where(probability.isfinite().all(), loss, torch.nan)
