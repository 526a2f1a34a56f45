"""Writes one of this repository's checkpoints from one of the authors' (or from a bare state dict with their names).

    python model/convert_released.py downloads/PSP_fully.pt model/PSP_fully.pt

The authors' file is a pickled module, which a current torch.load refuses, since loading it runs whatever code it holds.
Here nothing in it is run, see released.py. --trained_model_path takes such a file as it is, too.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.files import UserError, refuse_to_overwrite  # noqa: E402
from model.checkpoint import load, rebuild, save  # noqa: E402
from utils import OptionParser, add_overwrite_option, one_line_errors  # noqa: E402


def main():
    parser = OptionParser(__doc__)
    parser.add_argument("released", type=Path, metavar="IN", help="the authors' checkpoint")
    parser.add_argument("ours", type=Path, metavar="OUT", help="the checkpoint to write")
    add_overwrite_option(parser)
    args = parser.parse_args()

    checkpoint = load(args.released)
    if checkpoint["model_name"] == "AVEL":
        raise UserError(f"{args.released}: is a checkpoint of this repository already")
    rebuild(checkpoint, args.released)      # refuses tensors that do not make up the network
    refuse_to_overwrite([args.ours], args.overwrite)
    save(args.ours, checkpoint)
    numbers = sum(weight.numel() for weight in checkpoint["weights"].values())
    print(f"{args.ours}: {checkpoint['setting']} supervised PSP, {numbers} weights, "
          f"threshold {checkpoint['network']['threshold']} (the paper's; the authors' files do not say theirs)")


if __name__ == "__main__":
    with one_line_errors():
        main()
