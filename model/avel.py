"""AVEL, the baseline that PSP grew from: A+V-att of Tian et al., "Audio-Visual Event Localization in Unconstrained
Videos", ECCV 2018. Shape letters as in psp_model.py."""
import torch
from torch import nn
from torch.nn import functional as F

from psp_model import AudioGuidedVisualAttention, Output, xavier_uniform

DECAY_STEPS = 15000      # after each so many steps the learning rate falls to a tenth


class AVELNetwork(nn.Module):
    """AVGA -> Bi-LSTMs -> concatenation -> classifier. Arguments as of `PSPNetwork`."""

    def __init__(self, audio_dim, visual_dim, map_size, num_classes):
        super().__init__()
        self.attention = AudioGuidedVisualAttention(audio_dim, visual_dim, map_size[0] * map_size[1])
        self.lstm_audio = nn.LSTM(audio_dim, 128, batch_first=True, bidirectional=True)
        self.lstm_visual = nn.LSTM(visual_dim, 128, batch_first=True, bidirectional=True)
        self.classifier = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, num_classes))
        xavier_uniform(self.attention, self.classifier)

    def forward(self, audio, visual):
        """audio [B, T, Da], visual [B, T, h, w, Dv] -> `Output` without similarity and psp."""
        attended, alpha = self.attention(audio, visual.flatten(2, 3))                     # [B, T, Dv], [B, T, R]
        audio_hidden, _ = self.lstm_audio(audio)                                          # [B, T, 256]
        visual_hidden, _ = self.lstm_visual(attended)                                     # [B, T, 256]
        hidden = torch.cat([audio_hidden, visual_hidden], dim=-1)                         # [B, T, 512]
        logits = self.classifier(F.relu(hidden))                                          # [B, T, C]
        return Output(logits, alpha.unflatten(-1, visual.shape[2:4]))


def avel_fully_supervised_loss(output, labels):
    """Multi-label soft margin of the segments' probabilities, taken as logits; labels [B, T] int -> scalar."""
    probability = F.softmax(output.logits, dim=-1).flatten(0, 1)
    one_hot = F.one_hot(labels.flatten(), probability.shape[-1]).to(probability.dtype)
    return F.multilabel_soft_margin_loss(probability, one_hot)


def avel_video_probability(logits):
    """Softmax over the classes of the maximum over time; [B, T, C] -> [B, C]."""
    return F.softmax(logits.amax(dim=1), dim=-1)


def avel_weakly_supervised_loss(output, video_label):
    """Multi-label soft margin of the video's probabilities, taken as logits; video_label [B] int -> scalar."""
    probability = avel_video_probability(output.logits)
    one_hot = F.one_hot(video_label, probability.shape[-1]).to(probability.dtype)
    return F.multilabel_soft_margin_loss(probability, one_hot)


def avel_milestones(steps_per_epoch, epochs):
    """The epochs after which the learning rate falls: those in which each 15,000th step ends."""
    falls = epochs * steps_per_epoch // DECAY_STEPS
    return [-(-DECAY_STEPS * n // steps_per_epoch) for n in range(1, falls + 1)]
