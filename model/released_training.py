"""Trains PSP as the authors' released scripts do, where they differ from the paper. Each quirk changes one thing:

    released_order    fully: the order of the videos is one list, shuffled again and again
    stale_avps        fully: the targets of L_avps are in a buffer that is never cleared
    fixed_batches     weakly: only the first batch of an epoch is random, the others are always the same
    initial_weights   both: the layers are drawn in the order of the authors' constructors

    python model/released_training.py --setting fully --train                                    # with all of them
    python model/released_training.py --setting fully --train --quirks stale_avps,initial_weights

All other options are those of the main script of the setting.
"""
import argparse
import os
import random
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fully_supervised_main  # noqa: E402
import weakly_supervised_main  # noqa: E402
from dataset import in_batches  # noqa: E402
from model.options import parse_options  # noqa: E402
from model.released_checkpoint import RELEASED_NAMES  # noqa: E402
from utils import one_line_errors  # noqa: E402

MAINS = {"fully": fully_supervised_main, "weakly": weakly_supervised_main}
QUIRKS = {"fully": ("initial_weights", "released_order", "stale_avps"), "weakly": ("fixed_batches", "initial_weights")}


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

    def __init__(self, background, batches=None, start=0):
        """batches: `TrainingBatches` whose first epochs, up to start, are replayed to restore the buffer."""
        self.background, self.buffer = background, None
        for epoch in range(start):
            for positions in batches.positions(epoch):
                self(batches.dataset.tensors["labels"][positions].to(batches.device))

    def __call__(self, labels):
        """labels [B, T] int -> target [B, T] of the default dtype, rounded to float32 as in the released code."""
        event = labels != self.background
        written = event | ~event.any(dim=1, keepdim=True)
        value = (1 / written.sum(dim=1, keepdim=True)).float().expand(labels.shape)
        old = torch.zeros_like(value) if self.buffer is None else self.buffer
        self.buffer = torch.where(written, value, old)
        return self.buffer.to(torch.get_default_dtype())


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

    visual_dim, num_classes = network.attention.U_v.in_features, network.classifier[2].out_features
    if setting == "fully":
        draw("fa.0", "fa.1", "fv.0", "fv.1")
        nn.Linear(visual_dim, 128)                                                          # linear_v, unused
        draw(*AVGA)
        xavier(*AVGA_XAVIER)
        draw(*LSTMS, "psp.v_L1", "psp.v_L2", "psp.v_fc", "psp.a_L1", "psp.a_L2", "psp.a_fc")
        xavier("psp.v_L1", "psp.v_L2", "psp.a_L1", "psp.a_L2", "psp.a_fc", "psp.v_fc")
        for _ in ("v_classify", "a_classify"):
            xavier(nn.Linear(256, 64, bias=False), nn.Linear(64, num_classes - 1, bias=False))
        draw("L1", "L2")
        xavier("L1", "L2", nn.Linear(256, 64), nn.Linear(64, 2))                            # L3, L4
    else:
        draw("linear_v", *AVGA)
        xavier(*AVGA_XAVIER)
        draw(*LSTMS, "psp.v_L1", "psp.v_L2", "psp.a_L1", "psp.a_L2")
        xavier("psp.v_L1", "psp.v_L2", "psp.a_L1", "psp.a_L2")
        nn.Linear(256, 1, bias=False), nn.Linear(64, 1, bias=False)                         # W1, W2
        draw("W3", "L1", "L2")
        xavier("L1", "L2")


# ------------------------------------------------------------------------------------------- script

def split_names(text):
    """An argparse type: a list of the names that commas separate."""
    return sorted(set(filter(None, text.split(","))))


def train(args, data, device):
    """`train` of the main script with the quirks of args."""
    arguments = {
        "released_order": ("order", released_order),
        "fixed_batches": ("order", fixed_batches),
        "initial_weights": ("initialise", partial(draw_released_weights, setting=args.setting, seed=args.seed)),
        "stale_avps": ("avps_targets", StaleTargets)}
    return MAINS[args.setting].train(args, data, device, **dict(arguments[quirk] for quirk in args.quirks))


def main():
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--setting", nargs="?")
    setting = first.parse_known_args()[0].setting
    setting = setting if setting in MAINS else "fully"      # the parser of all options refuses it
    parser = MAINS[setting].options()
    parser.description = __doc__
    parser.training.add_argument("--setting", choices=MAINS, required=True, help="segment or video labels")
    parser.loss.add_argument("--quirks", type=split_names, default=list(QUIRKS[setting]), metavar="NAMES",
                             help=f"separated by commas (default: {','.join(QUIRKS[setting])})")
    args = parse_options(parser)
    if not {*args.quirks} <= {*QUIRKS[setting]}:
        parser.error(f"--quirks: {setting} supervised training has: {', '.join(QUIRKS[setting])}")
    changed = [name for name in ("attention", "modality", "weighting")
               if getattr(args, name) != parser.get_default(name)]
    if "initial_weights" in args.quirks and changed:
        parser.error(f"the quirk initial_weights needs all layers of PSP: not with --{changed[0]}")
    MAINS[setting].main(args, train)


if __name__ == "__main__":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with one_line_errors():
        main()
