"""What the released code does differently in training; each quirk of --released_quirks changes one thing.

    released_order    fully: the order of the videos is one list, shuffled again and again
    stale_avps        fully: the targets of L_avps are in a buffer that is never cleared
    fixed_batches     weakly: only the first batch of an epoch is random, the others are always the same
    initial_weights   both: the layers are drawn in the order of the authors' constructors

All quirks of a setting together train as the released script of that setting does.
"""
import random

import torch
from torch import nn

from dataset import in_batches
from model.released import RELEASED_NAMES

QUIRKS = {
    "fully": {"released_order": "one list of the videos is shuffled again and again",
              "stale_avps": "targets of L_avps are never cleared",
              "initial_weights": "layers are drawn in the order of the authors' constructors"},
    "weakly": {"fixed_batches": "only the first batch of an epoch is random",
               "initial_weights": "layers are drawn in the order of the authors' constructors"},
}


# ---------------------------------------------------------------------------------------------- orders

def released_order(videos, batch_size, seed):
    """Yields the positions of each epoch's batches, int64 [steps, B], as the released fully supervised script."""
    generator, order = random.Random(seed), list(range(videos))
    while True:
        generator.shuffle(order)
        yield in_batches(torch.tensor(order), batch_size)


def fixed_batches(videos, batch_size, seed):
    """Yields the positions of each epoch's batches, int64 [steps, B], as the released weakly supervised script."""
    generator = random.Random(seed)
    while True:
        order = list(range(videos))
        generator.shuffle(order)
        batches = in_batches(torch.arange(videos), batch_size)
        batches[0] = torch.tensor(order[:batch_size])
        yield batches


# --------------------------------------------------------------------------------------------- targets

class StaleTargets:
    """Targets of L_avps as the released code has them: in a buffer that is never cleared.

    Each call writes 1/n into the n event segments of each video (1/T into all segments of a video without an event)
    and returns the whole buffer, in which each row keeps values of videos in earlier batches.
    """

    def __init__(self, background):
        self.background, self.buffer = background, None

    def __call__(self, labels):
        """labels [B, T] int -> target [B, T] of the default dtype, rounded to float32 as in the released code."""
        event = labels != self.background
        written = event | ~event.any(dim=1, keepdim=True)
        value = (1 / written.sum(dim=1, keepdim=True)).float().expand(labels.shape)
        old = torch.zeros_like(value) if self.buffer is None else self.buffer
        self.buffer = torch.where(written, value, old)
        return self.buffer.to(torch.get_default_dtype())

    def pass_over(self, batches, epochs):
        """Sees the labels of the first epochs of `TrainingBatches`, for a run that continues after them."""
        for epoch in range(epochs):
            for positions in batches.positions(epoch):
                self(batches.dataset.tensors["labels"][positions].to(batches.device))


# -------------------------------------------------------------------------------------- initial weights

AVGA = ("attention.affine_audio", "attention.affine_video", "attention.affine_v", "attention.affine_g",
        "attention.affine_h")
AVGA_XAVIER = AVGA[2:] + AVGA[:2]
LSTMS = ("lstm_a_v.lstm_audio", "lstm_a_v.lstm_video")


def draw_released_weights(network, setting, seed):
    """Draws all weights of a whole `PSPNetwork` as the released script of the setting does with this seed.

    Layers that the authors never use are drawn, too, so that later random numbers such as dropout are the same.
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
