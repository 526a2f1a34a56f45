"""Stands for fully_model.py, weakly_model.py and models.py of the authors, under whose names the test copies it.

Our networks, with their layers under the released names. So it tests make_golden.py, and not the numbers. As the
authors' files may, it asks for a GPU, returns more than one tensor and has parameters that it does not use.
"""
from pathlib import Path

import torch
from torch import nn

from model.avel import AVELNetwork
from model.released_checkpoint import RELEASED_NAMES
from psp_model import PUBLISHED, PSPNetwork

AVEL_NAMES = {
    "affine_video": "attention.U_v", "affine_audio": "attention.U_a", "affine_v": "attention.W_v",
    "affine_g": "attention.W_g", "affine_h": "attention.w_h", "lstm_audio": "lstm_audio", "lstm_video": "lstm_visual",
    "L1": "classifier.0", "L2": "classifier.2"}
SETTING = Path(__file__).stem.removesuffix("_model")


class Renamed(nn.Module):
    """Has layers of a network of ours; names: {released name: ours}."""

    def __init__(self, network, names):
        super().__init__()
        for released, our_name in names.items():
            parent, _, name = released.rpartition(".")
            if parent and not hasattr(self, parent):
                self.add_module(parent, nn.Module())
            self.get_submodule(parent).add_module(name, network.get_submodule(our_name))
        self.ours = network      # last: what has two names is listed under the first


class psp_net(Renamed):
    def __init__(self, a_dim, v_dim, hidden_dim, category_num):
        network = PSPNetwork(a_dim, v_dim, (7, 7), category_num, **PUBLISHED[SETTING])
        super().__init__(network, RELEASED_NAMES[SETTING])
        self.temperature = nn.Parameter(torch.tensor(1.0))      # not used

    def forward(self, audio, video, threshold):
        self.ours.psp.threshold = threshold
        output = self.ours(audio.cuda(), video.float())
        last = output.similarity if SETTING == "fully" else output.logits.mean(dim=1).softmax(dim=-1)
        return output.psp.fusion, output.logits, last


class att_Net(Renamed):
    def __init__(self, embedding_dim, hidden_dim, hidden_size, tagset_size):
        super().__init__(AVELNetwork(embedding_dim, hidden_size, (7, 7), tagset_size), AVEL_NAMES)

    def forward(self, audio, video):
        return self.ours(audio, video).logits.softmax(dim=-1)
