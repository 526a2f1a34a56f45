"""The options that the training scripts share, and what a run records of them."""
import sys
from pathlib import Path

import torch

from dataset import AVE_FILES, SPLITS
from model.class_names import class_names, names_and_ids
from model.run import processor, versions
from psp_model import ATTENTIONS, MODALITIES, PUBLISHED
from utils import OptionParser, bounded

_FILES = {"dir_video": "visual", "dir_audio": "audio", **{f"dir_order_{split}": f"order_{split}" for split in SPLITS}}
FILE_OPTIONS = {      # of each setting, named as in the released scripts: the file's name in dataset.AVE_FILES
    "fully": {**_FILES, "dir_labels": "labels"},
    "weakly": {**_FILES, "dir_labels": "video_labels", "prob_dir_labels": "label_share", "dir_labels_gt": "labels",
               "dir_video_bg": "visual_bg", "dir_audio_bg": "audio_bg", "dir_labels_bg": "labels_bg"},
}
PATHS = {"data_dir", "annotations", *FILE_OPTIONS["fully"], *FILE_OPTIONS["weakly"]}      # recorded, not compared
# Neither recorded nor compared: they do not change a run, or the network's arguments have them.
UNRECORDED = {"setting", "model_name", "train", "trained_model_path", "resume", "runs", "output_dir",
              "save_predictions", "log_steps", "device", "features", "threshold", "save_epoch"}


def main_options(description, model_name, setting=None):
    """The parser of a training script; setting: the one whose files have an option each.

    Options in its groups `training`, `loss` and `ablations` are refused in evaluation; `loss` is for those that make
    training losses incomparable. parser.for_training: {option: its value in training if it is not given}.
    """
    parser = OptionParser(description)
    parser.for_training = {"precision": "fp32"}
    add = parser.add_argument_group("what to do (one of the two)").add_argument
    add("--train", action="store_true", help="train, and evaluate on validation and test at intervals")
    add("--trained_model_path", type=Path, metavar="FILE", help="evaluate this checkpoint")

    count = bounded(int, 1)
    parser.training = parser.add_argument_group("training")
    add = parser.training.add_argument
    add("--nb_epoch", type=count, metavar="N", help="epochs (default: %(default)s)")
    add("--lr", type=bounded(float, 0), help="learning rate of Adam (default: %(default)s)")
    add("--check_epoch", type=count, default=5, metavar="N", help="evaluate every N epochs (default: %(default)s)")
    add("--save_epoch", type=count, default=5, metavar="N", help="save the state every N epochs (default: %(default)s)")
    add("--seed", type=bounded(int, 0, 2**31), default=123, help="seed of all random numbers (default: %(default)s)")
    add("--runs", type=bounded(int, 1, 1000), default=1, metavar="N",
        help="train with the seeds SEED .. SEED+N-1 into OUTPUT_DIR/seed<i>; report mean, spread and interval")
    add("--resume", action="store_true", help="continue the stopped run in --output_dir; repeat its other options")
    add("--log_steps", action="store_true", help="also log the loss of every step")
    parser.loss = parser.add_argument_group("loss (in training)")
    parser.ablations = parser.add_argument_group("ablations (in training; the checkpoint records them)")

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, default=Path("model"), metavar="DIR",
        help=f"for the checkpoint {model_name}_{setting or 'fully'}.pt, the log .jsonl and the state; files of an "
             "earlier run are kept under a number (default: %(default)s)")
    add("--save_predictions", type=Path, metavar="FILE",
        help="in evaluation, write label and probability of each segment as JSON")

    add = parser.add_argument_group("machine").add_argument
    add("--batch_size", type=count, metavar="N", help="videos in a batch (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (default here: %(default)s)")
    add("--precision", choices=["fp32", "tf32", "bf16", "fp64"],
        help="tf32, bf16: faster and less precise (bf16: half the memory); fp64: all in float64, for comparisons "
             "sensitive to rounding (twice the memory) (default: fp32; in evaluation, the checkpoint's)")
    add("--features", choices=["auto", "memory", "disk"], default="auto",
        help="hold the features in main memory, or read each batch from disk; auto: on the GPU if they fit, else "
             "in main memory if they fit (default: %(default)s)")

    add_data_options(parser, setting)
    parser.set_defaults(setting=setting)
    return parser


def add_data_options(parser, setting=None):
    """--data_dir, --annotations and, with a setting, an option for each file."""
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", type=Path, default=Path("data"), metavar="DIR",
        help="folder of the files under their published names (default: %(default)s)")
    add("--annotations", type=Path, metavar="FILE",
        help="names of videos and categories (default: DATA_DIR/Annotations.txt, if it exists)")
    for option, name in FILE_OPTIONS.get(setting, {}).items():
        file = AVE_FILES[name]
        add(f"--{option}", type=Path, metavar="FILE", help=f"{file.content} (default: DATA_DIR/{file.names[0]})")


def psp_options(description, setting, threshold):
    """The parser of both PSP scripts; threshold: tau if the option is not given."""
    parser = main_options(description, "PSP", setting)
    parser.for_training["threshold"] = threshold
    add = parser.add_argument_group("model").add_argument
    add("--model_name", default="PSP", metavar="PSP", help="(default: %(default)s)")
    add("--threshold", type=bounded(float, 0, 1), metavar="TAU",
        help="similarities that are not above it become 0; 0 prunes nothing, 1 everything "
             f"(default: {threshold}, the paper's; in evaluation, the checkpoint's)")
    add = parser.ablations.add_argument
    add("--attention", choices=ATTENTIONS, default=ATTENTIONS[0],
        help="mean: all regions have the same weight (default: %(default)s)")
    add("--modality", choices=MODALITIES, default=MODALITIES[0],
        help="audio, visual: without the other one (default: %(default)s)")
    for option, name, what in (("--second_normalisation", "renormalise", "divide the pruned similarities by their sum"),
                               ("--weighting", "weighting", "the branch that weights the segments")):
        add(option, choices=["on", "off"], default="on" if PUBLISHED[setting][name] else "off",
            help=f"{what} (default: %(default)s)")
    return parser


def parse_options(parser):
    """The options; ends with one line if they conflict."""
    args = parser.parse_args()
    if args.train == (args.trained_model_path is not None):
        parser.error("give either --train, to train, or --trained_model_path FILE, to evaluate a checkpoint")
    if args.model_name != parser.get_default("model_name"):
        parser.error("--model_name: this script has PSP alone; AVEL has a script of its own, model/avel.py")
    if args.save_predictions and args.train:
        parser.error("--save_predictions needs --trained_model_path: evaluate the checkpoint of the run")
    if args.train:
        for name, value in parser.for_training.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    else:
        given = {argument.partition("=")[0] for argument in sys.argv[1:]}
        for group in (parser.training, parser.loss, parser.ablations):
            for action in group._group_actions:
                for option in given.intersection(action.option_strings):
                    parser.error(f"{option} needs --train; evaluation takes all but the data from the checkpoint")
    return args


def group_options(group):
    """Names of the options in a group of the parser."""
    return [action.dest for action in group._group_actions]


# ----------------------------------------------------------------------------------------- network and record

def data_sizes(sizes):
    """The arguments of a network that the data decides."""
    return {name: getattr(sizes, name) for name in ("audio_dim", "visual_dim", "map_size", "num_classes")}


def chosen_args(args):
    """The arguments of `PSPNetwork` that options decide."""
    return dict(threshold=args.threshold, renormalise=args.second_normalisation == "on",
                weighting=args.weighting == "on", attention=args.attention, modality=args.modality)


def run_header(args, network_args, data, device, script):
    """What `Run` writes about a run: arguments of the network, options, data, versions; script: the main script."""
    sizes = data["train"].sizes
    names, _ = names_and_ids(args.data_dir, args.annotations, sizes)
    options = {name: str(value) if isinstance(value, Path) else value for name, value in sorted(vars(args).items())
               if name not in UNRECORDED}
    return {
        "setting": args.setting,
        "model_name": args.model_name,
        "network_args": network_args,
        "options": {name: value for name, value in options.items() if name not in PATHS},
        "paths": {name: value for name, value in options.items() if name in PATHS and value is not None},
        "class_names": names or class_names(num_classes=sizes.num_classes),
        "data": {**sizes._asdict(), **{split: len(dataset) for split, dataset in data.items()},
                 **{f"fingerprint_{split}": dataset.fingerprint for split, dataset in data.items()},
                 "random_weights": any(dataset.random_weights for dataset in data.values())},
        "processor": processor(device),
        "versions": versions(script),
    }
