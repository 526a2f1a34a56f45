"""The initial weights that the authors' constructors draw, in their order, the layers that they never use included."""
import torch
from torch import nn

from model.released import RELEASED_NAMES

AVGA = ("attention.affine_audio", "attention.affine_video", "attention.affine_v", "attention.affine_g",
        "attention.affine_h")
AVGA_XAVIER = AVGA[2:] + AVGA[:2]
LSTMS = ("lstm_a_v.lstm_audio", "lstm_a_v.lstm_video")


def draw_released_weights(network, setting, seed):
    """Draws the weights of a whole `PSPNetwork` anew, as the released script of the setting does with this seed.

    All that is drawn afterwards, as dropout, is then the same, too.
    """
    torch.manual_seed(seed)

    def draw(*names):      # as the constructor of each layer does
        for name in names:
            network.get_submodule(RELEASED_NAMES[setting][name]).reset_parameters()

    def xavier(*layers):
        for layer in layers:
            if isinstance(layer, str):
                layer = network.get_submodule(RELEASED_NAMES[setting][layer])
            nn.init.xavier_uniform_(layer.weight)

    def unused(inputs, outputs, bias=False):
        return nn.Linear(inputs, outputs, bias)

    visual_dim, num_classes = network.attention.U_v.in_features, network.classifier[2].out_features
    if setting == "fully":
        draw("fa.0", "fa.1", "fv.0", "fv.1")
        unused(visual_dim, 128, bias=True)
        draw(*AVGA)
        xavier(*AVGA_XAVIER)
        draw(*LSTMS, "psp.v_L1", "psp.v_L2", "psp.v_fc", "psp.a_L1", "psp.a_L2", "psp.a_fc")
        xavier("psp.v_L1", "psp.v_L2", "psp.a_L1", "psp.a_L2", "psp.a_fc", "psp.v_fc")
        for _ in ("v_classify", "a_classify"):
            xavier(*[unused(256, 64), unused(64, num_classes - 1)])
        draw("L1", "L2")
        L3, L4 = unused(256, 64, bias=True), unused(64, 2, bias=True)
        xavier("L1", "L2", L3, L4)
    else:
        draw("linear_v", *AVGA)
        xavier(*AVGA_XAVIER)
        draw(*LSTMS, "psp.v_L1", "psp.v_L2", "psp.a_L1", "psp.a_L2")
        xavier("psp.v_L1", "psp.v_L2", "psp.a_L1", "psp.a_L2")
        unused(256, 1), unused(64, 1)      # W1, W2
        draw("W3", "L1", "L2")
        xavier("L1", "L2")
