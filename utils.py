"""What both main scripts share: options, device and precision, evaluation, several seeds."""
import argparse
import errno
import io
import json
import math
import os
import random
import re
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dataset import (AVE_FILES, FEATURES, SPLITS, AVEDataset, UserError, background_note, class_names, count_videos,
                     find_files, has_labels, layout_note, load_batches, names_and_ids, one_line, progress_bar,
                     required_files, shape_of)
from model.checkpoint import NETWORKS, load, rebuild, write_atomically
from model.metrics import Predictions, bootstrap_interval, percent, pruning_note
from model.released_training import QUIRKS
from model.run import back_up, rank_and_world_size, versions
from psp_model import ATTENTIONS, MODALITIES, PAPER_THRESHOLD

PAPER_SEGMENTS = 10      # that the paper's threshold was chosen for
# In messages of PyTorch and of CUDA's libraries.
OUT_OF_MEMORY = "out of memory|can't allocate memory|could not (create|execute) a primitive|ALLOC(ATION)?_FAILED"


# ------------------------------------------------------------------------------------------- a script's run

@contextmanager
def one_line_errors():
    """Around a script's main: errors that a user can fix end in one line and exit code 2.

    Joins the other processes if torchrun started the script; only the first one prints.
    """
    try:
        if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
            try:
                torch.distributed.init_process_group()      # NCCL for tensors on GPUs, gloo for tensors on CPUs
            except ValueError as error:
                raise UserError(f"TORCHELASTIC_RUN_ID is set, but torchrun did not start this ({one_line(error)}); "
                                "unset it, or start the script with torchrun") from error
        with redirect_stdout(sys.stdout if rank_and_world_size()[0] == 0 else io.StringIO()):
            yield
    except UserError as error:
        _end(str(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        _end(f"not enough memory ({one_line(error)}); try --features disk, or a smaller --batch_size")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _end(f"{where}{error.strerror or one_line(error)}"
             + ("; free some space and try again (training: with --resume)" if full else ""))
    except UnicodeEncodeError as error:
        _end(f"standard output cannot show {error.object[error.start:error.end]!a}; set PYTHONIOENCODING=utf-8")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _end(message):
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(2)


# --------------------------------------------------------------------------------------------- options

class OptionParser(argparse.ArgumentParser):
    """argparse with one-line errors, whole option names only, and the docstring as it is in --help."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        option = message.removeprefix("argument ").partition(":")[0]
        if message.endswith("expected one argument"):      # argparse takes a value with a dash for an option
            for before, value in zip(sys.argv, sys.argv[1:]):
                if before == option and value.startswith("-"):
                    message += f"; if {value} is a name, write {option}={value} or ./{value}"
        _end(f"{message} (see --help)")


def bounded(kind, low, high=10**9):
    """An argparse type: an int or float in low..high."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            whole = "a whole" if kind is int else "a"
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {whole} number in {low}..{high}")
        return value
    return parse


def add_overwrite_option(parser):
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist already")


def refuse_to_overwrite(paths, overwrite):
    """Raises UserError if one of the paths exists, unless overwrite is set."""
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(f"{', '.join(existing)}: exists already; choose another folder, or replace it with --overwrite")


_FILES = {"dir_video": "visual", "dir_audio": "audio", **{f"dir_order_{split}": f"order_{split}" for split in SPLITS}}
FILE_OPTIONS = {      # of each setting, named as in the released scripts: the file's name in dataset.AVE_FILES
    "fully": {**_FILES, "dir_labels": "labels"},
    "weakly": {**_FILES, "dir_labels": "video_labels", "prob_dir_labels": "label_share", "dir_labels_gt": "labels",
               "dir_video_bg": "visual_bg", "dir_audio_bg": "audio_bg", "dir_labels_bg": "labels_bg"},
}


def main_options(description, model_name, setting=None):
    """The options that all training scripts have; setting: whose files have an option each."""
    parser = OptionParser(description)
    add = parser.add_argument_group("what to do (one of the two)").add_argument
    add("--train", action="store_true", help="train, and evaluate on validation and test at intervals")
    add("--trained_model_path", type=Path, metavar="FILE", help="evaluate this checkpoint")

    count = bounded(int, 1)
    parser.training = parser.add_argument_group("training")
    add = parser.training.add_argument
    add("--nb_epoch", type=count, default=300, metavar="N", help="epochs (default: %(default)s)")
    add("--batch_size", type=count, default=128, metavar="N", help="videos in a batch (default: %(default)s)")
    add("--lr", type=bounded(float, 0), default=1e-3, help="learning rate of Adam (default: %(default)s)")
    add("--check_epoch", type=count, default=5, metavar="N", help="evaluate every N epochs (default: %(default)s)")
    add("--save_epoch", type=count, default=5, metavar="N",
        help="save the state for --resume every N epochs (default: %(default)s)")
    add("--seed", type=bounded(int, 0, 2**32 - 1), default=123,
        help="seed of all random numbers (default: %(default)s)")
    add("--runs", type=bounded(int, 1, 1000), default=1, metavar="N",
        help="train with the seeds SEED .. SEED+N-1 into OUTPUT_DIR/seed<i>; report mean, spread and interval")
    add("--resume", action="store_true", help="continue the stopped run in --output_dir; repeat its other options")
    add("--log_steps", action="store_true", help="also log the loss of every step")

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, default=Path("model"), metavar="DIR",
        help=f"for the checkpoint {model_name}_{setting or 'fully'}.pt, the log .jsonl and the state; files of an "
             "earlier run are kept under a number (default: %(default)s)")
    add("--save_predictions", type=Path, metavar="FILE",
        help="in evaluation, write label and probability of each segment as JSON")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (default here: %(default)s)")
    add("--precision", choices=["fp32", "tf32", "bf16", "fp64"],
        help="tf32, bf16: faster and less precise (bf16: half the memory); fp64: all in float64, for comparisons that "
             "rounding must not decide (twice the memory) (default: fp32; in evaluation, the checkpoint's)")
    add("--features", choices=["auto", "memory", "disk"], default="auto",
        help="hold the features in main memory, or read each batch from disk; auto: on the GPU if they fit, else "
             "in main memory if they fit (default: %(default)s)")

    parser.data = parser.add_argument_group("data")
    add = parser.data.add_argument
    add("--data_dir", type=Path, default=Path("data"), metavar="DIR",
        help="folder of the files under their published names (default: %(default)s)")
    add("--annotations", type=Path, metavar="FILE",
        help="names of videos and categories (default: DATA_DIR/Annotations.txt, if it exists)")
    for option, name in FILE_OPTIONS.get(setting, {}).items():
        file = AVE_FILES[name]
        add(f"--{option}", type=Path, metavar="FILE", help=f"{file.content} (default: DATA_DIR/{file.names[0]})")
    return parser


def psp_options(description, setting):
    """The options that both PSP scripts have; the defaults are the paper's."""
    parser = main_options(description, "PSP", setting)
    add = parser.add_argument_group("model").add_argument
    add("--model_name", choices=["PSP"], default="PSP", help="(default: %(default)s)")
    add("--threshold", type=bounded(float, 0, 1), metavar="TAU",
        help="similarities that are not above it become 0; 0 prunes nothing, 1 everything "
             f"(default: {PAPER_THRESHOLD[setting]}, the paper's; in evaluation, the checkpoint's)")
    parser.ablations = parser.add_argument_group("ablations (in training; the checkpoint records them)")
    add = parser.ablations.add_argument
    add("--attention", choices=ATTENTIONS, default=ATTENTIONS[0],
        help="mean: all regions have the same weight (default: %(default)s)")
    add("--modality", choices=MODALITIES, default=MODALITIES[0],
        help="audio, visual: without the other one (default: %(default)s)")
    for option, name, what in (("--second_normalisation", "renormalise", "divide the pruned similarities by their sum"),
                               ("--weighting", "weighting", "the branch that weights the segments")):
        add(option, choices=["on", "off"], default="on" if NETWORKS[setting][name] else "off",
            help=f"{what} (default: %(default)s)")
    parser.training.add_argument(
        "--released_quirks", type=quirks(setting), default=[], metavar="QUIRKS",
        help="train as the released code does where it differs from the paper: all, or names separated by commas: "
             + ", ".join(f"{name} ({what})" for name, what in QUIRKS[setting].items()))
    return parser


def quirks(setting):
    """An argparse type: names of QUIRKS[setting], separated by commas, or 'all'."""
    def parse(text):
        names = sorted(QUIRKS[setting] if text == "all" else set(filter(None, text.split(","))))
        for name in names:
            if name not in QUIRKS[setting]:
                raise argparse.ArgumentTypeError(f"{name[:40]!r} is unknown; {setting} supervised training has: "
                                                 f"{', '.join(QUIRKS[setting])}, all")
        return names
    return parse


ONLY_IN_TRAINING = ("resume", "attention", "modality", "second_normalisation", "weighting", "LAMBDA", "released_quirks",
                    "weak_labels", "background_videos")


def parse_options(parser):
    """The options; ends with one line if they do not go together."""
    args = parser.parse_args()
    if args.train == (args.trained_model_path is not None):
        parser.error("give either --train, to train, or --trained_model_path FILE, to evaluate a checkpoint")
    if args.seed + args.runs > 2**32:
        parser.error("--seed and --runs go beyond the largest seed, 2^32 - 1")
    if args.save_predictions and args.train:
        parser.error("--save_predictions needs --trained_model_path: evaluate the checkpoint of the run")
    changed = [name for name in ONLY_IN_TRAINING if getattr(args, name, None) != parser.get_default(name)]
    if changed and not args.train:
        parser.error(f"--{changed[0]} needs --train; evaluation takes the network from the checkpoint")
    if {"attention", "modality", "weighting"} & {*changed} and "initial_weights" in args.released_quirks:
        parser.error("the quirk initial_weights needs all layers of PSP: not with --attention, --modality, --weighting")
    if args.train:
        args.precision = args.precision or "fp32"
    return args


def network_sizes(sizes):
    """The arguments of a network that the data decides."""
    return dict(audio_dim=sizes.audio_dim, visual_dim=sizes.visual_dim, map_size=sizes.map_size,
                num_classes=sizes.num_classes)


def network_arguments(args, setting, sizes):
    """The arguments of `PSPNetwork` that the options and the data ask for."""
    threshold = PAPER_THRESHOLD[setting] if args.threshold is None else args.threshold
    changed = dict(renormalise=args.second_normalisation == "on", weighting=args.weighting == "on",
                   attention=args.attention, modality=args.modality)
    return {**network_sizes(sizes), "threshold": threshold, **NETWORKS[setting], **changed}


def run_header(args, setting, arguments, data, device):
    """What `Run` writes about a run: network, options, data, versions. Paths are not among the options."""
    elsewhere = {"train", "trained_model_path", "resume", "runs", "output_dir", "save_predictions", "log_steps",
                 "annotations", "device", "features", "data_dir", "threshold", "save_epoch"}
    sizes = data["train"].sizes
    names, _ = names_and_ids(args.data_dir, args.annotations, sizes)
    return {
        "setting": setting,
        "model_name": args.model_name,
        "network": arguments,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in sorted(vars(args).items())
                    if name not in elsewhere and "dir_" not in name},
        "class_names": names or class_names(num_classes=sizes.num_classes),
        "data": {**sizes._asdict(), **{split: len(dataset) for split, dataset in data.items()},
                 **{f"digest_{split}": dataset.digest for split, dataset in data.items()},
                 "random_weights": any(dataset.random_weights for dataset in data.values())},
        "data_dir": str(args.data_dir),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": versions(),
    }


# ---------------------------------------------------------------------------------- device, precision and data

def set_up_device(name, precision="fp32"):
    """The torch device of this name, set to the precision; 'cuda' is the first GPU, under torchrun one per process.

    Also sets PyTorch's current GPU and its default dtype. Prints a note if the device only emulates the precision, or
    if PyTorch cannot use the GPU of this machine.
    Raises UserError if this machine does not have the device, or the device does not support the precision.
    """
    world_size = rank_and_world_size()[1]
    if world_size > 1 and name.startswith("cuda:"):
        raise UserError(f"--device {name}: with torchrun, each process takes a GPU of its own; write --device cuda")
    if name == "cuda":
        name = f"cuda:{os.environ['LOCAL_RANK'] if world_size > 1 else 0}"
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:      # each backend has its own kind
        reason = one_line(str(error).partition("\n")[0])
        raise UserError(f"--device {name}: cannot be used here ({reason})") from error
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if precision in ("tf32", "bf16") and torch.cuda.get_device_capability(device)[0] < 8:
            print(f"note: this GPU is older than Ampere: it has no {precision}, and "
                  + ("computes in fp32" if precision == "tf32" else "emulates it"))
    elif precision == "tf32":
        raise UserError(f"--precision tf32: only NVIDIA GPUs have it, not {device}; choose fp32 or bf16")
    if device.type == "cpu":
        if precision == "bf16" and not has_bf16(Path("/proc/cpuinfo")):
            print("note: this processor does not multiply bfloat16 itself; --precision bf16 is much slower than fp32 "
                  "here")
        if gpu_is_unusable(Path("/dev")):
            cuda = torch.version.cuda
            print("note: this machine has an NVIDIA GPU that PyTorch cannot use: "
                  + (f"its driver is too old for CUDA {cuda}, or the GPU is too old; update the driver, or install a "
                     "PyTorch for its CUDA" if cuda else "this PyTorch is built for CPUs; install one for CUDA"))
    # Initial weights and dropout are drawn in the default dtype.
    torch.set_default_dtype(torch.float64 if precision == "fp64" else torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return device


def gpu_is_unusable(devices):
    """Whether a folder of devices such as /dev has an NVIDIA GPU, which nobody hides, but PyTorch finds none."""
    hidden = "CUDA_VISIBLE_DEVICES" in os.environ
    return not hidden and not torch.cuda.is_available() and any(devices.glob("nvidia[0-9]*"))


def has_bf16(cpuinfo):
    """Whether a processor multiplies bfloat16 itself; True if its system does not say."""
    return not cpuinfo.is_file() or bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo.read_text()))


def set_seed(seed):
    """Seeds Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class InPrecision(nn.Module):
    """Computes a network's forward pass in a precision; logits and similarity come out in the default dtype."""

    def __init__(self, network, precision):
        super().__init__()
        self.network, self.bf16 = network, precision == "bf16"

    def forward(self, audio, *others):
        with torch.autocast(audio.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.network(audio, *others)
        dtype = torch.get_default_dtype()
        similarity = None if output.similarity is None else output.similarity.to(dtype)
        return output._replace(logits=output.logits.to(dtype), similarity=similarity)


def prepare(network, precision):
    """The network as a run computes it: in a precision, and under torchrun in DistributedDataParallel."""
    network = InPrecision(network, precision)
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return network
    torch.manual_seed(torch.initial_seed() + rank)      # each process draws its own dropout
    return nn.parallel.DistributedDataParallel(network)


def given_files(args, setting):
    return {name: getattr(args, option, None) for option, name in FILE_OPTIONS[setting].items()}


def read_data(args, setting, splits, device):
    """{split: AVEDataset}, from the files that the options name; weak training adds its labels and videos."""
    weak = setting == "weakly" and "train" in splits
    background_videos = weak and getattr(args, "background_videos", "on") == "on"
    files = find_files(args.data_dir, required_files(splits, weak, background_videos), given_files(args, setting))
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(args.precision, torch.float32)
    per_video = math.prod(shape_of(files, "visual")[1:])      # values
    features, place = choose_place(args.features, count_videos(files, splits) * per_video * dtype.itemsize,
                                   args.batch_size * per_video * 4, device)
    data = {split: AVEDataset(files, split, weak and split == "train", features, dtype, place,
                              pinned=place != device) for split in splits}
    sizes = next(iter(data.values())).sizes
    for split, dataset in data.items():
        if dataset.without_features:
            print(f"note: {dataset.without_features} of {len(dataset)} videos of {split or args.data_dir} have no "
                  "features, only zeros, since their video files were missing")
    labels = next(iter(data.values())).tensors.get("labels")
    for note in (layout_note(sizes), None if labels is None else background_note(labels, sizes)):
        if note:
            print(f"note: {note}")
    rows = [row for dataset in data.values() for row in dataset.tensors["video"].tolist()]
    shared = len(rows) - len(set(rows))
    if shared:
        print(f"note: {shared} videos are in more than one split ({', '.join(data)}); check the order files")
    if any(dataset.random_weights for dataset in data.values()):
        print(f"WARNING: the features in {args.data_dir} were made with --random_weights; no result on them means "
              "anything", file=sys.stderr)
    if sizes.num_segments != PAPER_SEGMENTS and args.model_name == "PSP":
        scaled = PAPER_THRESHOLD[setting] * PAPER_SEGMENTS / sizes.num_segments
        print(f"note: these videos have {sizes.num_segments} segments; the paper's threshold, for {PAPER_SEGMENTS} "
              f"segments, corresponds to --threshold {scaled:.3g}")
    return data


def choose_place(features, needed, batch, device):
    """('memory', device) or ('disk', cpu) for the features; 'auto' takes the first place that has room.

    needed: bytes of all features; batch: bytes of the features of a batch in float32.
    """
    place, total, available = torch.device("cpu"), *main_memory()
    if features == "memory" and needed > total:
        raise UserError(f"--features memory: the features need {needed / 1e9:.1f} GB, and this machine has "
                        f"{total / 1e9:.1f} GB; use --features disk")
    # A step takes 4.1 times the features of its batch (a pretended GPU, 8 to 32 videos). The 1 GB is for CUDA itself.
    if features == "auto" and device.type == "cuda" and needed + 5 * batch + 1e9 < torch.cuda.mem_get_info(device)[0]:
        features, place = "memory", device
    elif features == "auto":
        features = "memory" if needed + 2e9 < available else "disk"
    where = "read from disk batch by batch" if features == "disk" else f"held in memory ({place})"
    print(f"features: {needed / 1e9:.1f} GB, {where}")
    return features, place


def main_memory():
    """(bytes of main memory, bytes that are available); infinite if the system does not say."""
    try:
        found = dict(re.findall(r"(\w+): *(\d+) kB", Path("/proc/meminfo").read_text()))
        return 1024 * int(found["MemTotal"]), 1024 * int(found["MemAvailable"])
    except (OSError, KeyError):      # not Linux
        return math.inf, math.inf


# ------------------------------------------------------------------------------------------ evaluation

@torch.no_grad()
def predict(network, dataset, batch_size, progress=None):
    """`Predictions` for all videos of the dataset, the last short batch included; network: as `prepare` returns it.

    Raises UserError if the network's output is not finite.
    """
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    network.eval()
    device = next(network.parameters()).device
    predicted, probability, kept_pairs = [], [], []
    positions = torch.arange(len(dataset), device=dataset.device).split(batch_size)
    for batch in load_batches(dataset.only(*FEATURES), positions, device):
        output = network(batch["audio"], batch["visual"])
        label = output.logits.argmax(dim=-1, keepdim=True)
        predicted.append(label.squeeze(-1))
        probability.append(output.logits.softmax(dim=-1).gather(-1, label).squeeze(-1))
        if output.psp is not None:
            kept_pairs.append((output.psp.gamma_va > 0).float().mean(dim=(1, 2)))
        if progress is not None:
            progress.update(len(label))
    predicted, probability = torch.cat(predicted).cpu().numpy(), torch.cat(probability).cpu().numpy()
    video = dataset.tensors["video"].cpu().numpy()
    labels = dataset.tensors["labels"].cpu().numpy() if "labels" in dataset.tensors else None
    finite = np.isfinite(probability).all(axis=1)
    if not finite.all():
        raise UserError(f"the network's output for video row {video[finite.argmin()]} is NaN or infinite: "
                        "its weights or the features are too large")
    return Predictions(video, labels, predicted, probability,
                       torch.cat(kept_pairs).mean().item() if kept_pairs else None)


def evaluate_checkpoint(args, setting, network_class):
    """Evaluates args.trained_model_path on validation and test, prints the scores and writes --save_predictions.

    If the folder has features but neither label nor order files, all its videos are labelled and nothing is scored.
    """
    if rank_and_world_size()[1] > 1:
        raise UserError("evaluation runs in one process; start it without torchrun")
    check_predictions_path(args.save_predictions)
    checkpoint = load(args.trained_model_path, setting)
    if args.model_name != checkpoint["model_name"]:
        raise UserError(f"{args.trained_model_path}: is a checkpoint of {checkpoint['model_name']}, not of "
                        f"{args.model_name}; evaluate it with the script that trained it (model/avel.py for AVEL)")
    trained_in = checkpoint.get("options", {}).get("precision", "fp32")
    args.precision = args.precision or (trained_in if trained_in != "tf32" or args.device != "cpu" else "fp32")
    device = set_up_device(args.device, args.precision)
    splits = ["val", "test"] if has_labels(args.data_dir, given_files(args, setting)) else [None]
    data = read_data(args, setting, splits, device)
    sizes = next(iter(data.values())).sizes
    threshold = getattr(args, "threshold", None)
    network = rebuild(checkpoint, args.trained_model_path, network_class, sizes, threshold).to(device)
    names, ids = checkpoint_names(checkpoint, args.data_dir, args.annotations, sizes)

    total = sum(map(len, data.values()))
    with progress_bar(total=total, desc="evaluating", unit="video", leave=False, delay=1) as progress:
        results = {split: predict(prepare(network, args.precision), dataset, args.batch_size, progress)
                   for split, dataset in data.items()}

    saved = f", saved after epoch {checkpoint['epoch']}" if "epoch" in checkpoint else ""
    used = dict(checkpoint["network"])
    if threshold is not None:
        used["threshold"] = threshold
    about = f"{args.trained_model_path}: {setting} supervised {args.model_name}{saved}"
    for name, default in (("threshold", None), ("attention", ATTENTIONS[0]), ("modality", MODALITIES[0])):
        if used.get(name, default) != default:
            about += f", {name} {used[name]}"
    print(about)
    note = pruning_note(next(iter(results.values())).kept_pairs, used.get("threshold"))
    if note:
        print(note)
    if None in results:
        print(f"{args.data_dir}: no label or order files, so its {len(data[None])} videos are labelled and not scored")
        print_found_classes(results[None], names)
    else:
        print_scores(results, names)
    if args.save_predictions:
        save_predictions(args.save_predictions, results, names, ids)


def checkpoint_names(checkpoint, data_dir, annotations, sizes):
    """(class names, name of the video in each row or None): of the data folder, else of the checkpoint's training."""
    trained = checkpoint.get("class_names") or class_names(num_classes=checkpoint["network"]["num_classes"])
    names, ids = names_and_ids(data_dir, annotations, sizes, trained)
    return names if len(names) == len(trained) else trained, ids


def print_scores(results, names):
    """Prints the accuracy of each class, then accuracy and the other metrics of each split."""
    width, background = max(map(len, names)), len(names) - 1
    print(" " * width + "".join(f"  {split + ' segments':>14}  {'accuracy':>8}" for split in results))
    for label, name in enumerate(names):
        found = [result.label_accuracy(label) for result in results.values()]
        print(f"{name:{width}}" + "".join(f"  {segments:>14}  {percent(accuracy):>8}" for accuracy, segments in found))
    for split, result in results.items():
        recall, segments = result.label_accuracy(background)
        values = {**result.metrics(background), **result.references(background)}
        shown = {name: percent(value) for name, value in values.items()}
        print(f"{split} accuracy: {percent(result.accuracy)} of {result.labels.size} segments; background recall: "
              + (f"{percent(recall)} of {segments}" if segments else "no background segments"))
        print(f"{split} event or background: {shown['event_or_background']}; video category: "
              f"{shown['video_category']}; segment F1: {shown['segment_f1']}; event F1: {shown['event_f1']}")
        print(f"{split} mean over videos: segment F1 {shown['segment_f1_per_video']}; "
              f"event F1 {shown['event_f1_per_video']}")
        print(f"{split} for reference: always background {shown['always_background']}; "
              f"right category in all segments {shown['category_everywhere']}")


def print_found_classes(result, names):
    """Prints how many videos and segments were given each label, most videos first."""
    found = [(int((result.predicted == label).any(axis=1).sum()), int((result.predicted == label).sum()), name)
             for label, name in enumerate(names)]
    for videos, segments, name in sorted(found, key=lambda row: (-row[0], -row[1])):
        if videos:
            print(f"{name:{max(map(len, names))}}  {videos:>6} videos  {segments:>7} segments")


def check_predictions_path(path):
    """Raises UserError, before any work, if predictions cannot be written or would replace another file."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UserError(f"--save_predictions {path}: the folder {path.parent} does not exist")
    if path.exists() and (not path.is_file() or not path.read_bytes().startswith(b'{"label_names"')):
        raise UserError(f"--save_predictions {path}: exists already, and holds no predictions; choose another name")


def save_predictions(path, results, names, ids):
    """Writes, as JSON, label_names and for each video its split, row, id (if known), labels and probabilities."""
    videos = [{
        "split": split or "all",
        "video": int(row),
        **({"id": ids[row]} if ids else {}),
        "labels": labels.tolist(),
        "probabilities": [round(float(p), 6) for p in probabilities],
    } for split, result in results.items()
      for row, labels, probabilities in zip(result.video, result.predicted, result.probability)]
    lines = ",\n".join("  " + json.dumps(video) for video in videos)
    write_atomically(path, f'{{"label_names": {json.dumps(names)},\n "videos": [\n{lines}\n]}}\n')
    print(f"predictions of {len(videos)} videos: {path}")


# -------------------------------------------------------------------------------------------- several seeds

def each_seed(args, setting):
    """The options of each run: args themselves or, with --runs, a copy for each seed with a folder of its own."""
    if args.runs == 1:
        yield args
        return
    if rank_and_world_size()[0] == 0 and not args.resume:
        back_up([runs_path(args, setting)])
    for seed in range(args.seed, args.seed + args.runs):
        print(f"seed {seed}:")
        yield argparse.Namespace(**{**vars(args), "seed": seed, "output_dir": args.output_dir / f"seed{seed}"})


def runs_path(args, setting):
    return args.output_dir / f"{args.model_name}_{setting}_runs.json"


def report_runs(args, setting, rows, test_set):
    """With --runs, prints and writes the results of all seeds; rows: what `Run.report` returned for each."""
    if args.runs == 1 or rank_and_world_size()[0] > 0:
        return
    test = np.array([row["test"] for row in rows])
    by_video = np.array([row["test_correct"] for row in rows]) / test_set.sizes.num_segments      # [runs, videos]
    low, high = bootstrap_interval(by_video.mean(axis=0))
    summary = {"n": len(rows), "mean": float(test.mean()), "std": float(test.std(ddof=1)), "low": low, "high": high}
    path = runs_path(args, setting)
    options = {name: value for name, value in sorted(vars(args).items()) if name != "resume"}
    content = {"options": options, "summary": summary, "segments": test_set.sizes.num_segments,
               "test_digest": test_set.digest, "runs": rows}
    write_atomically(path, json.dumps(content, default=str) + "\n")
    print("seed   best epoch     val    test   test, last epoch")
    for row in rows:
        accuracies = [100 * row[name] for name in ("val", "test", "last_test")]
        print(f"{row['seed']:<6} {row['best_epoch']:>10}  " + "{:6.2f}  {:6.2f}   {:16.2f}".format(*accuracies))
    print(f"test accuracy at the best validation epoch: {100 * summary['mean']:.2f} ± {100 * summary['std']:.2f} % "
          f"(mean and sample standard deviation of n = {len(rows)} seeds: "
          f"{', '.join(f'{100 * value:.2f}' for value in test)})")
    print(f"95 % interval over the {by_video.shape[1]} test videos (bootstrap, mean of the seeds): "
          f"{100 * low:.2f} to {100 * high:.2f} %")
    print(f"results of all seeds: {path}")
