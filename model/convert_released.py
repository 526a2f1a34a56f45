"""Writes one of this repository's checkpoints from one of the authors' (or from a bare state dict with their names).

    python model/convert_released.py downloads/PSP_fully.pt model/PSP_fully.pt

The authors' file is a pickled module, which a current torch.load refuses, since loading it runs whatever code it holds.
Here nothing in it is run, see released.py. --trained_model_path takes such a file as it is, too.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import (OptionParser, add_overwrite_option, load_checkpoint, network_of_checkpoint, refuse_to_overwrite,  # noqa: E402
                   run_script, save_tensors)


def main():
    parser = OptionParser(__doc__)
    parser.add_argument("released", type=Path, metavar="IN", help="the authors' checkpoint")
    parser.add_argument("ours", type=Path, metavar="OUT", help="the checkpoint to write")
    add_overwrite_option(parser)
    args = parser.parse_args()

    checkpoint = load_checkpoint(args.released)
    network_of_checkpoint(checkpoint, args.released)      # refuses tensors that do not make up the network
    refuse_to_overwrite([args.ours], args.overwrite)
    save_tensors(args.ours, checkpoint)
    print(f"{args.ours}: {checkpoint['setting']} supervised PSP, {sum(w.numel() for w in checkpoint['weights'].values())} "
          f"weights, threshold {checkpoint['network']['threshold']} (the authors' files do not tell theirs, which is taken to be the paper's)")


if __name__ == "__main__":
    run_script(main)
