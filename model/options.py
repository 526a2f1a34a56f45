"""The options that the training scripts share, what a run records of them, and the data that they name."""
import argparse
import math
import re
import sys
from pathlib import Path

import torch

from dataset import (AVE_FILES, FEATURES, SPLITS, AVEDataset, count_videos, find_files, open_file, read_shape,
                     required_files)
from model.class_names import class_names, names_and_ids
from model.run import versions
from psp_model import ATTENTIONS, MODALITIES, PAPER_THRESHOLD, PUBLISHED
from utils import OptionParser, UserError, bounded

PAPER_SEGMENTS = 10      # for which the paper's threshold was chosen

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

    Options in its groups `training`, `loss` and `ablations` are refused in evaluation. Trainings that differ in an
    option of `loss` have different losses, which figures/compare_runs.py does not draw.
    parser.for_training: {option: its value in training if it is not given}.
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
    add("--save_epoch", type=count, default=5, metavar="N",
        help="save the state for --resume every N epochs (default: %(default)s)")
    add("--seed", type=bounded(int, 0, 2**32 - 1), default=123,
        help="seed of all random numbers (default: %(default)s)")
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
    add("--model_name", type=psp_alone, default="PSP", metavar="PSP", help="(default: %(default)s)")
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


def psp_alone(name):
    """An argparse type."""
    if name != "PSP":
        raise argparse.ArgumentTypeError(f"{name[:40]!r} is not PSP; AVEL has a script of its own, model/avel.py")
    return name


def parse_options(parser):
    """The options; ends with one line if they conflict."""
    args = parser.parse_args()
    if args.train == (args.trained_model_path is not None):
        parser.error("give either --train, to train, or --trained_model_path FILE, to evaluate a checkpoint")
    if args.seed + args.runs > 2**32:
        parser.error("--seed and --runs go beyond the largest seed, 2^32 - 1")
    if args.save_predictions and args.train:
        parser.error("--save_predictions needs --trained_model_path: evaluate the checkpoint of the run")
    if args.train:
        for name, value in parser.for_training.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    else:
        for group in (parser.training, parser.loss, parser.ablations):
            for name in group_options(group):
                if getattr(args, name) != parser.get_default(name):
                    parser.error(f"--{name} needs --train; evaluation takes all but the data from the checkpoint")
    return args


def group_options(group):
    """Names of the options in a group of the parser."""
    return [action.dest for action in group._group_actions]


# ----------------------------------------------------------------------------------------- network and record

def data_sizes(sizes):
    """The arguments of a network that the data decides."""
    return dict(audio_dim=sizes.audio_dim, visual_dim=sizes.visual_dim, map_size=sizes.map_size,
                num_classes=sizes.num_classes)


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
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": versions(script),
    }


# -------------------------------------------------------------------------------------------------- data

def given_files(args):
    """{name in `dataset.AVE_FILES`: path or None} of the options that name a file."""
    return {name: getattr(args, option, None) for option, name in FILE_OPTIONS[args.setting].items()}


def read_data(args, splits, device):
    """{split: AVEDataset}, from the files that the options name; weak training adds its labels and videos."""
    weak = args.setting == "weakly" and "train" in splits
    background_videos = weak and getattr(args, "background_videos", "on") == "on"
    files = find_files(args.data_dir, required_files(splits, weak, background_videos), given_files(args))
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(args.precision, torch.float32)
    per_video = sum(math.prod(read_shape(files, name)[1:]) for name in FEATURES)      # values
    features, place = choose_place(args.features, count_videos(files, splits) * per_video * dtype.itemsize,
                                   args.batch_size * per_video * 4, device)
    data = {split: AVEDataset(files, split, weak and split == "train", features, dtype, place,
                              pinned=device.type == "cuda" and place.type == "cpu") for split in splits}
    for split, dataset in data.items():
        if dataset.without_features:
            print(f"note: {dataset.without_features} of {len(dataset)} videos of {split or args.data_dir} have no "
                  "features, only zeros, since their video files were missing")
    with open_file(files, "visual") as visual:
        in_chunk = visual.chunks[0] if visual.chunks else 1
    if features == "disk" and in_chunk > 4:
        path, new_path = files["visual"], files["visual"].with_suffix(".contiguous.h5")
        print(f"note: {path}: its chunks hold {in_chunk} videos, so to read a video takes about {in_chunk} times as "
              "long as from a contiguous file; write one: "
              f"python -c \"import h5py; a = h5py.File('{path}')['avadataset']; "
              f"b = h5py.File('{new_path}', 'x').create_dataset('avadataset', a.shape, a.dtype); "
              f"[b.__setitem__(slice(i, i + {in_chunk}), a[i:i + {in_chunk}]) for i in range(0, len(a), {in_chunk})]\"")
    rows = [row for dataset in data.values() for row in dataset.tensors["video"].tolist()]
    shared = len(rows) - len(set(rows))
    if shared:
        print(f"note: {shared} videos are in more than one split ({', '.join(data)}); check the order files")
    if any(dataset.random_weights for dataset in data.values()):
        print(f"WARNING: the features in {args.data_dir} were made with --random_weights; results on them are "
              "meaningless", file=sys.stderr)
    num_segments = next(iter(data.values())).sizes.num_segments
    if num_segments != PAPER_SEGMENTS and args.model_name == "PSP":
        scaled = PAPER_THRESHOLD[args.setting] * PAPER_SEGMENTS / num_segments
        print(f"note: these videos have {num_segments} segments; the paper's threshold, for {PAPER_SEGMENTS} "
              f"segments, corresponds to --threshold {scaled:.3g}")
    return data


def choose_place(features, needed, batch, device):
    """('memory', device) or ('disk', cpu) for the features; 'auto' takes the first place that has room.

    needed: bytes of all features; batch: bytes of the features of a batch in float32.
    """
    place, total, available = torch.device("cpu"), *main_memory()
    if features == "memory" and needed > total:
        raise UserError(f"--features memory: the features need {needed / 1e9:.1f} GB, and this process may use "
                        f"{total / 1e9:.1f} GB; use --features disk")
    # A step takes 4.1 times the features of its batch (a pretended GPU, 8 to 32 videos). The 1 GB is for CUDA itself.
    if features == "auto" and device.type == "cuda" and needed + 5 * batch + 1e9 < torch.cuda.mem_get_info(device)[0]:
        features, place = "memory", device
    elif features == "auto":
        features = "memory" if needed + 2e9 < available else "disk"
    where = "read from disk batch by batch" if features == "disk" else f"held in memory ({place})"
    print(f"features: {needed / 1e9:.1f} GB, {where}")
    return features, place


CONTROL_GROUPS = {      # where the system says what a container, SLURM or systemd allows, of version 2 and 1
    2: ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}


def main_memory(root=Path("/")):
    """(bytes of main memory, bytes that are available) to this process; infinite if the system does not say.

    The smallest limit of its control groups counts. Their usage counts files that can be dropped, `inactive_file`.
    """
    try:
        found = dict(re.findall(r"(\w+): *(\d+) kB", (root / "proc/meminfo").read_text()))
        total, available = 1024 * int(found["MemTotal"]), 1024 * int(found["MemAvailable"])
    except (OSError, KeyError):      # not Linux
        return math.inf, math.inf
    path = root / "proc/self/cgroup"
    groups = [line.split(":", 2) for line in path.read_text().splitlines()] if path.exists() else []
    for number, controllers, place in groups:
        if number == "0" or "memory" in controllers.split(","):
            base, limit, usage, inactive = CONTROL_GROUPS[2 if number == "0" else 1]
            for folder in (root / base / place.lstrip("/"), *(root / base / place.lstrip("/")).parents):
                try:
                    limited, used = (int((folder / name).read_text()) for name in (limit, usage))
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                except (OSError, ValueError):      # not visible from here, or 'max'
                    continue
                total = min(total, limited)
                available = min(available, limited - used + int(stat.get(inactive, 0)))
    return total, available
