"""Converts the authors' checkpoints; the scripts' --trained_model_path also takes them unconverted.

    python model/convert_checkpoint.py downloads/PSP_fully.pt model/PSP_fully.pt
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from model.checkpoint import load_checkpoint, rebuild, save_tensors  # noqa: E402
from psp_model import PSPNetwork  # noqa: E402
from utils import OptionParser, UserError, add_overwrite_option, one_line_errors, refuse_to_overwrite  # noqa: E402


def main():
    parser = OptionParser(__doc__)
    parser.add_argument("released", type=Path, metavar="IN", help="the authors' checkpoint")
    parser.add_argument("ours", type=Path, metavar="OUT", help="the checkpoint to write")
    add_overwrite_option(parser)
    args = parser.parse_args()

    checkpoint = load_checkpoint(args.released)
    if not checkpoint.pop("assumed", False):
        raise UserError(f"{args.released}: is a checkpoint of this repository already")
    rebuild(checkpoint, args.released, PSPNetwork)      # refuses tensors that do not make up the network
    refuse_to_overwrite([args.ours], args.overwrite)
    save_tensors(args.ours, checkpoint)
    print(f"{args.ours}: {checkpoint['setting']} supervised PSP, "
          f"threshold {checkpoint['network_args']['threshold']} (the paper's; the authors' files do not say theirs)")


if __name__ == "__main__":
    with one_line_errors():
        main()
