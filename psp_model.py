"""The PSP networks of "Positive Sample Propagation along the Audio-Visual Event Line" (CVPR 2021).

Read from top to bottom this file follows the paper's method section:

1. `AudioGuidedVisualAttention`   where in the picture is what one hears?
2. `PositiveSamplePropagation`    which segments of the other modality support this one?
3. `PSPNetwork`                   both, between Bi-LSTMs and a classifier
4. the losses                     segment labels (fully) or video labels (weakly supervised)
5. ablations                      what stands in for a part of the network that is taken out
6. `AVELNetwork`                  the baseline that PSP grew from, and its losses
7. `RELEASED_NAMES`               our parameter names beside those of the authors' checkpoints

Letters used for shapes, here and everywhere:

    B videos    T segments of one second    h x w = R regions of the visual feature map
    Da audio feature width    Dv visual feature width
    C labels: the event categories and, as the last one, background
"""
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

EPSILON = 1e-8              # keeps a sum that is divided by away from zero
CACHED_VALUES = 2 ** 21     # of AVGA's hidden map that are computed at once on a CPU


class AudioGuidedVisualAttention(nn.Module):
    """AVGA: weighs the regions of each segment's visual map by how well they fit its sound.

        H_v = relu(U_v V)    H_a = relu(U_a a)
        alpha = softmax_regions(w_h tanh(W_v H_v + W_g H_a))
        attended visual = sum_r alpha_r V_r

    Tian et al., "Audio-Visual Event Localization in Unconstrained Videos", ECCV 2018.
    """

    def __init__(self, audio_dim, visual_dim, regions, hidden_dim=512):
        super().__init__()
        self.U_v = nn.Linear(visual_dim, hidden_dim)
        self.U_a = nn.Linear(audio_dim, hidden_dim)
        self.W_v = nn.Linear(hidden_dim, regions, bias=False)
        self.W_g = nn.Linear(hidden_dim, regions, bias=False)
        self.w_h = nn.Linear(regions, 1, bias=False)

    def forward(self, audio, visual):
        """audio [B, T, Da], visual [B, T, R, Dv] -> attended visual [B, T, Dv], alpha [B, T, R]."""
        videos = len(visual)
        if visual.device.type == "cpu":      # a few at once, so that their H_v, the largest tensor by far, stays in the cache
            videos = max(1, CACHED_VALUES // (visual[0, ..., 0].numel() * self.U_v.out_features))
        parts = [self.attend(a, V) for a, V in zip(audio.split(videos), visual.split(videos))]
        attended, alpha = (torch.cat(part) for part in zip(*parts))
        return attended, alpha

    def attend(self, audio, visual):
        """As `forward`."""
        H_v = F.relu(self.U_v(visual.flatten(0, 2)), inplace=True)              # [B T R, hidden]
        H_a = F.relu(self.U_a(audio))                                           # [B, T, hidden]
        # Entry r of W_g H_a is added to the whole row of region r: along the regions, not along W_v's outputs.
        regions = self.W_v(H_v).unflatten(0, visual.shape[:3])                  # [B, T, R, R]
        context = regions + self.W_g(H_a).unsqueeze(-1)                         # [B, T, R, R] + [B, T, R, 1]
        z = self.w_h(torch.tanh(context)).squeeze(-1)               # [B, T, R]
        alpha = F.softmax(z, dim=-1)
        attended = (alpha.unsqueeze(-2) @ visual).squeeze(-2)       # [B, T, 1, R] @ [B, T, R, Dv] -> [B, T, Dv]
        return attended, alpha


class Propagation(NamedTuple):
    """What `PositiveSamplePropagation` computes. Rows of a *_va matrix are visual segments, its columns audio segments."""
    visual: torch.Tensor      # [B, T, 256] v' after the LayerNorm
    audio: torch.Tensor       # [B, T, 256] a' after the LayerNorm
    fusion: torch.Tensor      # [B, T, 256] their mean
    beta_va: torch.Tensor     # [B, T, T] similarities before pruning, each row divided by its sum
    beta_av: torch.Tensor     # [B, T, T] likewise, rows are audio segments
    gamma_va: torch.Tensor    # [B, T, T] after pruning: the weights that propagate audio into v
    gamma_av: torch.Tensor    # [B, T, T] the weights that propagate visual into a


class PositiveSamplePropagation(nn.Module):
    """PSP: every segment gathers the segments of the other modality that are similar enough to it.

    1. all pairs:    S = relu(v2 a1^T / sqrt(d)); beta_va = S, beta_av = S^T, each row divided by its sum
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
        return _rows_sum_to_one(gamma) if self.renormalise else gamma

    def forward(self, visual, audio):
        """visual v, audio a: [B, T, d] each -> `Propagation`."""
        v1, v2 = self.v1(visual), self.v2(visual)
        a1, a2 = self.a1(audio), self.a2(audio)

        similarity = F.relu(v2 @ a1.transpose(1, 2) / visual.shape[-1] ** 0.5)     # [B, T, T]
        beta_va = _rows_sum_to_one(similarity)
        beta_av = _rows_sum_to_one(similarity.transpose(1, 2))

        gamma_va, gamma_av = self.prune(beta_va), self.prune(beta_av)

        visual = self.layer_norm(self.v_out(visual + gamma_va @ a2))               # v'
        audio = self.layer_norm(self.a_out(audio + gamma_av @ v1))                 # a'
        return Propagation(visual, audio, (visual + audio) / 2, beta_va, beta_av, gamma_va, gamma_av)


def _rows_sum_to_one(matrix):
    return matrix / (matrix.sum(dim=-1, keepdim=True) + EPSILON)


class PSPOutput(NamedTuple):
    """What a `PSPNetwork` returns: what is trained on first, then what a person may want to look at."""
    logits: torch.Tensor      # [B, T, C] the label of a segment is their arg-max
    similarity: torch.Tensor  # [B, T] cosine of v' and a', in -1..1
    attention: torch.Tensor   # [B, T, h, w] alpha of AVGA, sums to one over h x w
    psp: Propagation


# Where the two published networks differ: options of PSPNetwork, and tau.
FULLY_SUPERVISED = dict(input_layers=True, renormalise=True, output_layers=True, weighting=False)
WEAKLY_SUPERVISED = dict(input_layers=False, renormalise=False, output_layers=False, weighting=True)
PAPER_THRESHOLD = {"fully": 0.099, "weakly": 0.095}


class PSPNetwork(nn.Module):
    """The network of both settings: AVGA -> Bi-LSTMs -> PSP -> classifier.

        PSPNetwork(128, 512, (7, 7), 29, threshold=0.099, **FULLY_SUPERVISED)
        PSPNetwork(128, 512, (7, 7), 29, threshold=0.095, **WEAKLY_SUPERVISED)

    audio_dim, visual_dim, map_size, labels: Da, Dv, (h, w) and C of the data.
    threshold: pruning threshold tau of PSP, on rows that sum to one; what is not above it is pruned.
    input_layers: two linear maps in front of AVGA's audio and behind its visual output
        (False: the audio features as they are, one linear map with bias for the visual ones).
    renormalise, output_layers, dropout: see `PositiveSamplePropagation`.
    weighting: a branch that multiplies each segment's scores by one number, sigmoid(relu(.)), so in 0.5..1.
    attention, propagation, modality: what to take out for an ablation, see `ATTENTIONS`, `PROPAGATIONS`, `MODALITIES`.
    """

    def __init__(self, audio_dim, visual_dim, map_size, labels, *, threshold,
                 input_layers, renormalise, output_layers, weighting, dropout=0.1,
                 attention="audio-guided", propagation="psp", modality="both"):
        super().__init__()
        lstm_dim = 128            # of each direction; also what the features are mapped to
        dim = 2 * lstm_dim
        regions = map_size[0] * map_size[1]      # R

        def input_map(width):     # no nonlinearity between the two, as released
            return nn.Sequential(nn.Linear(width, 256, bias=False), nn.Linear(256, lstm_dim, bias=False))

        self.audio_in = input_map(audio_dim) if input_layers else nn.Identity()
        self.visual_in = input_map(visual_dim) if input_layers else nn.Linear(visual_dim, lstm_dim)
        mapped_audio_dim = lstm_dim if input_layers else audio_dim
        if modality == "visual":
            self.audio_in = Silenced(mapped_audio_dim)
        if modality == "audio":
            self.visual_in, attention = Silenced(lstm_dim), "mean"

        self.attention = ATTENTIONS[attention](mapped_audio_dim, visual_dim, regions)
        self.lstm_audio = nn.LSTM(mapped_audio_dim, lstm_dim, batch_first=True, bidirectional=True)
        self.lstm_visual = nn.LSTM(lstm_dim, lstm_dim, batch_first=True, bidirectional=True)
        self.psp = PROPAGATIONS[propagation](dim, threshold, renormalise, output_layers, dropout)
        self.classifier = nn.Sequential(nn.Linear(dim, 64, bias=False), nn.ReLU(), nn.Linear(64, labels, bias=False))
        self.weighting = nn.Linear(labels, 1, bias=False) if weighting else None
        self.reset_parameters()

    def reset_parameters(self):
        """Xavier uniform for the weight matrices of AVGA, PSP and the classifier; the rest as PyTorch gives it."""
        for part in (self.attention, self.psp, self.classifier):
            for layer in part.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)

    def forward(self, audio, visual):
        """audio [B, T, Da], visual [B, T, h, w, Dv] -> `PSPOutput`."""
        map_size = visual.shape[2:4]
        audio = self.audio_in(audio)                                               # [B, T, 128]
        visual, alpha = self.attention(audio, visual.flatten(2, 3))                # [B, T, Dv], [B, T, R]
        visual = self.visual_in(visual)                                            # [B, T, 128]

        audio, _ = self.lstm_audio(audio)                                          # [B, T, 256]
        visual, _ = self.lstm_visual(visual)                                       # [B, T, 256]
        psp = self.psp(visual, audio)

        logits = self.classifier(psp.fusion)                                       # [B, T, C]
        if self.weighting is not None:
            logits = torch.sigmoid(F.relu(self.weighting(logits))) * logits        # [B, T, 1] * [B, T, C]

        similarity = F.cosine_similarity(psp.visual, psp.audio, dim=-1)            # [B, T]
        return PSPOutput(logits, similarity, alpha.unflatten(-1, map_size), psp)


# ---------------------------------------------------------------------------------------------- losses

def avps_target(labels, background, dtype=torch.float32):
    """Target g of L_avps: 1/n on the n event segments of a video, 0 elsewhere (all 0 without an event).

    labels [B, T] int, background: the index of that label -> [B, T] of dtype.
    """
    event = (labels != background).to(dtype)
    return event / event.sum(dim=1, keepdim=True).clamp(min=1)


def avps_loss(similarity, target):
    """L_avps, the audio-visual pair similarity loss: MSE(s, g), s = relu(similarity) divided by its sum over time.

    similarity, target [B, T] -> scalar.
    """
    s = F.relu(similarity)
    s = s / (s.sum(dim=1, keepdim=True) + EPSILON)
    return F.mse_loss(s, target)


def fully_supervised_loss(output, labels, LAMBDA, target=None):
    """Cross entropy over all segments + LAMBDA x L_avps; labels [B, T] int, background is the last of C -> scalar.

    target [B, T]: of L_avps, if not `avps_target`.
    """
    background = output.logits.shape[-1] - 1
    cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    if target is None:
        target = avps_target(labels, background, output.similarity.dtype)
    return cross_entropy + LAMBDA * avps_loss(output.similarity, target)


def video_probability(logits):
    """Weakly supervised video prediction: softmax over the labels of the mean over time; [B, T, C] -> [B, C]."""
    return F.softmax(logits.mean(dim=1), dim=-1)


def weakly_supervised_loss(output, label_share):
    """Binary cross entropy of the video prediction against the share of each label; label_share [B, C] -> scalar."""
    return F.binary_cross_entropy(video_probability(output.logits), label_share)


# ------------------------------------------------------------------------------------------- ablations

class MeanOverRegions(nn.Module):
    """Instead of AVGA: all regions weigh the same."""

    def __init__(self, audio_dim, visual_dim, regions):
        super().__init__()

    def forward(self, audio, visual):
        """As `AudioGuidedVisualAttention.forward`; the audio is not used."""
        return visual.mean(dim=-2), visual.new_full(visual.shape[:-1], 1 / visual.shape[-2])


class AllPairPropagation(PositiveSamplePropagation):
    """PSP without its pruning: what is propagated comes from all pairs, also the negative ones."""

    def prune(self, beta):
        return beta


class NoPropagation(nn.Module):
    """PSP without its propagation: v' = v, a' = a, then the output layers and the LayerNorm as there."""

    def __init__(self, dim, threshold, renormalise, output_layers, dropout=0.1):
        super().__init__()
        self.threshold = threshold

        def projection():
            return nn.Sequential(nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Dropout(dropout))

        self.v_out = projection() if output_layers else nn.Identity()
        self.a_out = projection() if output_layers else nn.Identity()
        self.layer_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, visual, audio):
        """As `PositiveSamplePropagation.forward`; all similarities are 0."""
        visual, audio = self.layer_norm(self.v_out(visual)), self.layer_norm(self.a_out(audio))
        nothing = visual.new_zeros(*visual.shape[:2], visual.shape[1])
        return Propagation(visual, audio, (visual + audio) / 2, nothing, nothing, nothing, nothing)


class Silenced(nn.Module):
    """Instead of the input map of a modality: zeros [B, T, width], whatever comes in."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, features):
        return features.new_zeros(*features.shape[:2], self.width)


ATTENTIONS = {"audio-guided": AudioGuidedVisualAttention, "mean": MeanOverRegions}
PROPAGATIONS = {"psp": PositiveSamplePropagation, "all-pairs": AllPairPropagation, "none": NoPropagation}
MODALITIES = ("both", "audio", "visual")


# ------------------------------------------------------------------------------------ the AVEL baseline

class AVELOutput(NamedTuple):
    """What an `AVELNetwork` returns."""
    logits: torch.Tensor      # [B, T, C] scores before the softmax
    attention: torch.Tensor   # [B, T, h, w]


class AVELNetwork(nn.Module):
    """A+V-att: AVGA -> Bi-LSTMs -> concatenation -> classifier.

    Tian et al., "Audio-Visual Event Localization in Unconstrained Videos", ECCV 2018. Arguments as of `PSPNetwork`.
    """

    def __init__(self, audio_dim, visual_dim, map_size, labels):
        super().__init__()
        self.attention = AudioGuidedVisualAttention(audio_dim, visual_dim, map_size[0] * map_size[1])
        self.lstm_audio = nn.LSTM(audio_dim, 128, batch_first=True, bidirectional=True)
        self.lstm_visual = nn.LSTM(visual_dim, 128, batch_first=True, bidirectional=True)
        self.classifier = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, labels))
        for part in (self.attention, self.classifier):
            for layer in part.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)

    def forward(self, audio, visual):
        """audio [B, T, Da], visual [B, T, h, w, Dv] -> `AVELOutput`."""
        attended, alpha = self.attention(audio, visual.flatten(2, 3))              # [B, T, Dv]
        audio, _ = self.lstm_audio(audio)                                          # [B, T, 256]
        visual_lstm, _ = self.lstm_visual(attended)                                # [B, T, 256]
        logits = self.classifier(F.relu(torch.cat([audio, visual_lstm], dim=-1)))  # [B, T, C]
        return AVELOutput(logits, alpha.unflatten(-1, visual.shape[2:4]))


def avel_fully_supervised_loss(output, labels):
    """Multi-label soft margin of the segments' probabilities, taken as if they were logits; labels [B, T] int -> scalar."""
    probability = F.softmax(output.logits, dim=-1).flatten(0, 1)
    one_hot = F.one_hot(labels.flatten(), probability.shape[-1]).to(probability.dtype)
    return F.multilabel_soft_margin_loss(probability, one_hot)


def avel_video_probability(logits):
    """Softmax over the labels of the maximum over time; [B, T, C] -> [B, C]."""
    return F.softmax(logits.amax(dim=1), dim=-1)


def avel_weakly_supervised_loss(output, video_label):
    """Multi-label soft margin of the video's probabilities, taken as logits, and its category; video_label [B] int -> scalar."""
    probability = avel_video_probability(output.logits)
    return F.multilabel_soft_margin_loss(probability, F.one_hot(video_label, probability.shape[-1]).to(probability.dtype))


# ----------------------------------------------------------------------------- the authors' checkpoints

# released name -> our name, of modules; a parameter below a module keeps its own last name (weight_ih_l0, bias, ...).
_SHARED_NAMES = {
    "attention.affine_video": "attention.U_v",
    "attention.affine_audio": "attention.U_a",
    "attention.affine_v": "attention.W_v",
    "attention.affine_g": "attention.W_g",
    "attention.affine_h": "attention.w_h",
    "lstm_a_v.lstm_audio": "lstm_audio",
    "lstm_a_v.lstm_video": "lstm_visual",
    "psp.v_L1": "psp.v1.0",
    "psp.v_L2": "psp.v2.0",
    "psp.a_L1": "psp.a1.0",
    "psp.a_L2": "psp.a2.0",
    "psp.layer_norm": "psp.layer_norm",
    "L1": "classifier.0",
    "L2": "classifier.2",
}
AVEL_RELEASED_NAMES = {
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
RELEASED_NAMES = {
    "fully": {
        **_SHARED_NAMES,
        "fa.0": "audio_in.0",
        "fa.1": "audio_in.1",
        "fv.0": "visual_in.0",
        "fv.1": "visual_in.1",
        "psp.v_fc": "psp.v_out.0",
        "psp.a_fc": "psp.a_out.0",
    },
    "weakly": {
        **_SHARED_NAMES,
        "linear_v": "visual_in",
        "W3": "weighting",
    },
}


def our_name(released_name, setting):
    """Our name of the released parameter, e.g. 'psp.v_L1.weight' -> 'psp.v1.0.weight'; setting 'fully' or 'weakly'.

    Raises KeyError for a name that has no counterpart: the released networks also own parameters that never
    reach their output, and this one does not have those.
    """
    module, _, parameter = released_name.rpartition(".")
    return f"{RELEASED_NAMES[setting][module]}.{parameter}"


# Parameters of the released networks that never reach their output, by the first part of the name.
RELEASED_UNUSED = {
    "fully": ("linear_v", "v_classify", "a_classify", "L3", "L4"),
    "weakly": ("temperature", "W1", "W2"),
}
