"""What an ablation takes out of PSP.

    --propagation all-pairs, none    nothing is pruned (tau = 0), all is (tau = 1)
    --attention mean                 all regions weigh the same
    --modality audio, visual         the other modality is silenced

The last two are swapped in after the network is built.
"""
from torch import nn

ATTENTIONS = ("audio-guided", "mean")
MODALITIES = ("both", "audio", "visual")
PROPAGATION_THRESHOLD = {"all-pairs": 0.0, "none": 1.0}      # of rows that are >= 0 and sum to less than 1


class MeanOverRegions(nn.Module):
    """In place of AVGA."""

    def forward(self, audio, visual):
        """As `AudioGuidedVisualAttention.forward`; the audio is not used."""
        return visual.mean(dim=-2), visual.new_full(visual.shape[:-1], 1 / visual.shape[-2])


class Silenced(nn.Module):
    """In place of the input map of a modality: zeros [B, T, width], whatever comes in."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, features):
        return features.new_zeros(*features.shape[:2], self.width)


def ablate(network, attention="audio-guided", modality="both"):
    """The `PSPNetwork` with these parts taken out, of `ATTENTIONS` and `MODALITIES`."""
    if modality == "visual":
        network.audio_in = Silenced(network.lstm_audio.input_size)
    if modality == "audio":
        network.visual_in = Silenced(network.lstm_visual.input_size)
    if attention == "mean" or modality == "audio":
        network.attention = MeanOverRegions()
    return network
