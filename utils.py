"""What both main scripts need: options, device, training with its checks and log, evaluation, checkpoints.

In the order in which a run uses it:  options -> data -> train() or evaluate_checkpoint() -> files.
"""
import argparse
import errno
import io
import json
import math
import os
import platform
import random
import re
import signal
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import count, cycle, islice, repeat
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

from dataset import (SPLITS, AVEDataset, DataError, find_files, label_names, visual_values, read_annotations,
                     required_files)
from model.released import CheckpointError, read_file, released_setting, released_weights, state_of
from psp_model import (ATTENTIONS, FULLY_SUPERVISED, MODALITIES, PAPER_THRESHOLD, PROPAGATIONS, WEAKLY_SUPERVISED,
                       AllPairPropagation, AVELNetwork, MeanOverRegions, NoPropagation, PSPNetwork, Silenced)

try:
    import fcntl
except ImportError:      # not on Windows: two runs in one folder are not noticed there
    fcntl = None


NETWORKS = {"PSP": PSPNetwork, "AVEL": AVELNetwork}
SETTINGS = {"fully": FULLY_SUPERVISED, "weakly": WEAKLY_SUPERVISED}


class UserError(Exception):
    """Something that the user gave cannot be used; the text says what and what to do."""


def run_script(main):
    """Runs a script's main function; an error that a user can mend ends in one line and exit code 2."""
    script = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")      # names that the terminal cannot show end no run
    try:
        with processes():
            main()
    except (MemoryError, torch.OutOfMemoryError) as error:
        sys.exit(_fail(f"{script}: error: not enough memory ({' '.join(str(error).split())[:120] or 'MemoryError'}); "
                       "try a smaller --batch_size, or smaller sizes"))
    except (UserError, DataError) as error:
        sys.exit(_fail(f"{script}: error: {error}"))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        hint = "; make room and try again (a training run goes on with --resume)" if error.errno == errno.ENOSPC else ""
        sys.exit(_fail(f"{script}: error: {where}{error.strerror or error}{hint}"))
    except KeyboardInterrupt:
        sys.exit(_fail(f"{script}: interrupted", 130))


def _fail(message, code=2):
    print(message, file=sys.stderr)
    return code


# --------------------------------------------------------------------------------------------- options

class OptionParser(argparse.ArgumentParser):
    """argparse with one-line errors, whole option names only, and the defaults in --help."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        sys.exit(_fail(f"{self.prog}: error: {message} (see --help)"))


def number(kind, low, high=10**9):
    """An argparse type: an int or float in low..high."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {'a whole' if kind is int else 'a'} number in {low}..{high}")
        return value
    return parse


QUIRKS = {
    "fully": {"stale_avps": "targets of L_avps are never cleared", "fixed_batches": "only the first batch of an epoch is drawn anew"},
    "weakly": {"fixed_batches": "only the first batch of an epoch is drawn anew"},
}


def quirks(setting):
    """An argparse type: names of QUIRKS[setting], separated by commas."""
    def parse(text):
        names = sorted(set(filter(None, text.split(","))))
        unknown = [name for name in names if name not in QUIRKS[setting]]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0][:40]!r} is no quirk of {setting} supervised training, which has: "
                                             + ", ".join(QUIRKS[setting]))
        return names
    return parse


def main_options(description, setting):
    """The options that both main scripts have; the defaults are the paper's."""
    parser = OptionParser(description)
    task = parser.add_argument_group("what to do (one of the two)")
    task.add_argument("--train", action="store_true", help="train, and score validation and test on the way")
    task.add_argument("--trained_model_path", type=Path, metavar="FILE", help="evaluate this checkpoint")

    model = parser.add_argument_group("model")
    model.add_argument("--model_name", choices=sorted(NETWORKS, reverse=True), default="PSP",
                       help="AVEL is the baseline of Tian et al., ECCV 2018 (default: %(default)s)")
    model.add_argument("--threshold", type=number(float, 0, 1), metavar="TAU",
                       help=f"similarities of PSP that are not above it are pruned, in 0..1 (default: {PAPER_THRESHOLD[setting]}, the "
                            "paper's; in evaluation, the checkpoint's own)")

    ablations = parser.add_argument_group("ablations", "What to take out of PSP when it is trained; a checkpoint remembers it.")
    ablations.add_argument("--attention", choices=list(ATTENTIONS), default="audio-guided",
                           help="mean: all regions weigh the same (default: %(default)s)")
    ablations.add_argument("--propagation", choices=list(PROPAGATIONS), default="psp",
                           help="all-pairs: nothing is pruned; none: nothing is propagated (default: %(default)s)")
    ablations.add_argument("--modality", choices=MODALITIES, default="both",
                           help="audio, visual: the other one is silenced (default: %(default)s)")
    for option, name in (("--second_normalisation", "renormalise"), ("--weighting", "weighting")):
        default = SETTINGS[setting][name]
        ablations.add_argument(option, choices=["on", "off"], default="on" if default else "off",
                               help={"renormalise": "of the similarities that pruning leaves",
                                     "weighting": "branch that weighs the segments"}[name] + " (default: %(default)s)")
    parser.ablations = ablations

    training = parser.add_argument_group("training")
    parser.training = training
    training.add_argument("--nb_epoch", type=number(int, 1), default=300, metavar="N", help="epochs (default: %(default)s)")
    training.add_argument("--batch_size", type=number(int, 1), metavar="N",
                          help="videos in a batch (default: 128; of AVEL 64, as published)")
    training.add_argument("--batches", choices=["shuffled", "in-order"],
                          help="in-order: the same in each epoch, as the order file has them (default: shuffled; of AVEL in-order, "
                               "as published)")
    training.add_argument("--lr", type=number(float, 0), default=1e-3, help="learning rate of Adam (default: %(default)s)")
    training.add_argument("--check_epoch", type=number(int, 1), default=5, metavar="N",
                          help="score validation and test every N epochs (default: %(default)s)")
    training.add_argument("--save_epoch", type=number(int, 1), default=5, metavar="N",
                          help="save the state that --resume goes on from every N epochs (default: %(default)s)")
    training.add_argument("--released_quirks", type=quirks(setting), default=[], metavar="QUIRKS",
                          help="what the released code does otherwise than the paper, separated by commas: "
                               + ", ".join(f"{name} ({what})" for name, what in QUIRKS[setting].items()) + " (default: none)")
    training.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=123,
                          help="of Python, NumPy, torch and the order of the videos (default: %(default)s)")
    training.add_argument("--runs", type=number(int, 1, 1000), default=1, metavar="N",
                          help="train with each of the seeds SEED .. SEED+N-1, into OUTPUT_DIR/seed<i>, and report mean, spread and "
                               "interval (default: %(default)s)")
    training.add_argument("--resume", action="store_true",
                          help="go on with the run in --output_dir that was stopped or killed; same options otherwise")

    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, default=Path("model"), metavar="DIR",
                        help=f"for the checkpoint PSP_{setting}.pt, the log PSP_{setting}.jsonl and the state of the run; "
                             "files of an earlier run are kept under a numbered name (default: %(default)s)")
    output.add_argument("--save_predictions", type=Path, metavar="FILE",
                        help="evaluation: write label and probability of each segment as JSON")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                         help="cpu, cuda, cuda:1, ... (default here: %(default)s)")
    machine.add_argument("--precision", choices=["fp32", "tf32", "bf16"],
                         help="of matrix products; bf16 also halves the features in memory (default: fp32; in evaluation, that "
                              "of the checkpoint's training)")
    machine.add_argument("--features", choices=["auto", "memory", "disk"], default="auto",
                         help="memory: read them once and hold them in main memory; disk: read each batch when it is needed; "
                              "auto: hold them on the GPU if they fit there, else in main memory, else disk (default: %(default)s)")

    data = parser.add_argument_group("data", "Each file is looked for in --data_dir under its published name; "
                                             "an option of its own goes before that.")
    data.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    data.add_argument("--annotations", type=Path, metavar="FILE",
                      help="for video ids and category names in what is written (default: DATA_DIR/Annotations.txt, if there)")
    add_file_option(data, "--dir_video", "visual_feature.h5", "visual features")
    add_file_option(data, "--dir_audio", "audio_feature.h5", "audio features")
    for split in SPLITS:
        add_file_option(data, f"--dir_order_{split}", f"{split}_order.h5", f"rows of the {split} videos")
    parser.data = data
    return parser


def add_file_option(group, option, name, what):
    """An option for the path of one data file."""
    group.add_argument(option, type=Path, metavar="FILE", help=f"{what} (default: DATA_DIR/{name})")


def parse_options(parser):
    """The options, once it is clear what to do."""
    args = parser.parse_args()
    if args.train == (args.trained_model_path is not None):
        parser.error("give either --train, to train, or --trained_model_path FILE, to evaluate a checkpoint")
    args.batch_size = args.batch_size or {"PSP": 128, "AVEL": 64}[args.model_name]
    args.batches = args.batches or {"PSP": "shuffled", "AVEL": "in-order"}[args.model_name]
    if args.train:
        args.precision = args.precision or "fp32"
    if args.model_name == "AVEL" and any(getattr(args, name) != parser.get_default(name) for name in
                                         ("threshold", "attention", "propagation", "modality", "second_normalisation", "weighting")):
        parser.error("--threshold and the ablations are of PSP; AVEL has none of them")
    if args.resume and not args.train:
        parser.error("--resume goes with --train")
    if args.save_predictions and args.train:
        parser.error("--save_predictions goes with --trained_model_path: evaluate the checkpoint of the run")
    return args


def add_overwrite_option(parser):
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def refuse_to_overwrite(paths, overwrite):
    """Raises UserError if one of the paths exists, unless overwrite is set."""
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        raise UserError(f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already; "
                        "choose another folder, or give --overwrite to replace")


def select_device(args):
    """The torch device of --device, of this process if there are several, set to --precision.

    Raises UserError where this machine has none such, or the device has no such precision.
    """
    name = f"cuda:{os.environ['LOCAL_RANK']}" if args.device == "cuda" and process_count() > 1 else args.device
    try:
        made = torch.zeros(1, device=name)
        made.item()      # some devices hold no numbers
    except Exception as error:      # each backend has its own kind
        raise UserError(f"--device {name}: cannot be used here ({(str(error) or type(error).__name__).splitlines()[0]})") from error
    if made.device.type == "cuda":
        torch.cuda.set_device(made.device)
    elif args.precision == "tf32":
        raise UserError(f"--precision tf32: only NVIDIA GPUs have it, and the device is {made.device}; choose fp32 or bf16")
    # Whether float32 products and LSTMs may round their factors to 10 bits; bf16 is left to `run_network`.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
    return made.device


def set_seed(seed):
    """Seeds Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def read_data(args, given, splits, device, weak_training=False, background_videos=True):
    """{split: AVEDataset}; `given` holds the paths of the file options by their names in `dataset.AVE_FILES`."""
    names = required_files(splits, weak_training, background_videos)
    files = find_files(args.data_dir, names, given)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    needed = visual_values(files, splits) * dtype.itemsize
    features, place = args.features, torch.device("cpu")
    if features == "auto":
        features, place = choose_place(needed, device)
    print(f"features: {needed / 1e9:.1f} GB, " + ("read from disk batch by batch" if features == "disk" else f"held in memory ({place})"))
    return {split: AVEDataset(files, split, weak_training and split == "train", features, dtype, place) for split in splits}


def avel_decay(args, data):
    """AVEL's learning rate falls to a tenth every 15,000 steps; here with the end of the epoch that they end in."""
    steps = max(1, len(data["train"]) // args.batch_size)
    return dict(gamma=0.1, milestones=[-(-15000 * n // steps) for n in range(1, args.nb_epoch * steps // 15000 + 1)])


def choose_place(needed, device):
    """('memory', the device), ('memory', cpu) or ('disk', cpu): the first that has room for so many bytes of features."""
    if device.type == "cuda" and needed + 8e9 < torch.cuda.mem_get_info(device)[0]:      # 8 GB for a step on them
        return "memory", device
    return ("memory" if needed + 2e9 < available_memory() else "disk"), torch.device("cpu")


def available_memory():
    """Bytes of main memory that this process may still take; infinite where the system does not tell."""
    available = math.inf
    try:
        meminfo = Path("/proc/meminfo").read_text()
        available = 1024 * int(re.search(r"MemAvailable: *(\d+) kB", meminfo)[1])
        group = Path("/sys/fs/cgroup")      # of a container
        in_use = int(re.search(r"^anon (\d+)", (group / "memory.stat").read_text())[1])
        available = min(available, int((group / "memory.max").read_text()) - in_use)
    except (OSError, TypeError, ValueError):      # another system, or no limit
        pass
    return available


def batches_on(device, dataset, batches):
    """Yields dataset[positions] on the device for the positions of each batch; each is valid until the next is asked for.

    What is not in memory is read one batch ahead, while the caller computes.
    """
    if dataset.place is not None and dataset.place.type != "cpu":      # it lies where it is computed on
        yield from map(dataset.__getitem__, batches)
        return
    sizes = dataset.sizes
    shape = (max(map(len, batches), default=0), sizes.segments, *sizes.map_size, sizes.visual_dim)
    dtype = dataset.visual.dtype if dataset.place is not None else torch.float32
    if dataset.place == device:
        visual = torch.empty(shape, dtype=dtype)
        for positions in batches:
            yield dataset.batch(positions, visual[:len(positions)])
        return
    now_and_next = [torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda") for _ in range(2)]

    def read(positions, visual):
        return {name: value.to(device) for name, value in dataset.batch(positions, visual[:len(positions)]).items()}

    with ThreadPoolExecutor(1) as reader:
        upcoming = deque()
        for positions, visual in zip(batches, cycle(now_and_next)):
            upcoming.append(reader.submit(read, positions, visual))
            if len(upcoming) > 1:
                yield upcoming.popleft().result()
        while upcoming:
            yield upcoming.popleft().result()


# -------------------------------------------------------------------------------------- several processes
# Started by torchrun, each process works on its part of every batch; the first of them, rank 0, writes the files.

def process_count():
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def process_rank():
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


@contextmanager
def processes():
    """Joins the other processes where PyTorch's launcher started several; only the first one prints."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    torch.distributed.init_process_group()      # NCCL for tensors on GPUs, gloo for those on CPUs
    try:
        with redirect_stdout(sys.stdout if process_rank() == 0 else io.StringIO()):
            yield
    finally:
        torch.distributed.destroy_process_group()


def part_of_process(values, dim=0):
    """This process's part of a tensor that all have."""
    return values.tensor_split(process_count(), dim)[process_rank()]


def sum_over_processes(value):
    """The sum of a tensor over all processes, to each of them."""
    if process_count() > 1:
        torch.distributed.all_reduce(value)
    return value


def gather_from_processes(values):
    """The parts of all processes, one behind the other."""
    if process_count() == 1:
        return values
    parts = [None] * process_count()
    torch.distributed.all_gather_object(parts, values)
    return np.concatenate(parts)


class DropoutOfWholeBatch(torch.nn.Dropout):
    """Dropout that draws for the batch of all processes and keeps its part, so that one process would draw the same."""

    def forward(self, values):
        if not self.training:
            return values
        whole = values.new_ones(process_count() * len(values), *values.shape[1:])
        return values * part_of_process(super().forward(whole))


def across_processes(network):
    """The network whose gradients are averages over all processes: over the whole batch, since their parts are equal."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, torch.nn.Dropout):
                setattr(parent, name, DropoutOfWholeBatch(layer.p))
    return torch.nn.parallel.DistributedDataParallel(network)


# ------------------------------------------------------------------------------------------ evaluation

@dataclass
class Predictions:
    """Labels of a split's segments, true and predicted."""
    video: np.ndarray         # [videos] row in the files
    labels: np.ndarray        # [videos, T] true
    predicted: np.ndarray     # [videos, T] arg-max of the network's logits
    probability: np.ndarray   # [videos, T] softmax of the logits at the predicted label

    @property
    def accuracy(self):
        """Segment-level accuracy in 0..1: the share of all segments of all videos whose label is right."""
        return float((self.predicted == self.labels).mean())

    @property
    def right_segments(self):
        """[videos]: how many segments of each video have the right label."""
        return (self.predicted == self.labels).sum(axis=1).tolist()

    def metrics(self, background):
        """What else tells how good the labels are, each in 0..1; None where there is nothing to count.

        event_or_background: share of segments of which it is told rightly whether there is an event.
        video_category: share of videos with an event whose category is the most frequent one among the predicted events.
        segment_f1: F1 of the segments' event labels: a right one is a hit, any other event label, true or predicted, a miss.
        event_f1: F1 of events, the runs of segments of one category: a predicted one is right if it overlaps a true one of
            its category with an intersection over union of 0.5 or more.
        """
        event, predicted_event = self.labels != background, self.predicted != background
        hits = int((event & (self.predicted == self.labels)).sum())
        true_events = [events_of(labels, background) for labels in self.labels]
        predicted_events = [events_of(labels, background) for labels in self.predicted]
        event_hits = sum(matched_events(true, predicted) for true, predicted in zip(true_events, predicted_events))
        categories = [(most_frequent(true[true != background]), most_frequent(labels[labels != background]))
                      for true, labels in zip(self.labels, self.predicted) if (true != background).any()]
        return {
            "event_or_background": float((event == predicted_event).mean()),
            "video_category": sum(true == predicted for true, predicted in categories) / len(categories) if categories else None,
            "segment_f1": f1(hits, int(event.sum()), int(predicted_event.sum())),
            "event_f1": f1(event_hits, sum(map(len, true_events)), sum(map(len, predicted_events))),
        }

    def references(self, background):
        """Accuracy of always saying background, and of knowing each video's category but localising nothing."""
        event = self.labels != background
        without_event = ~event.any(axis=1, keepdims=True)      # such a video's category is background
        return {"always_background": float((~event).mean()), "category_everywhere": float((event | without_event).mean())}

    def label_accuracy(self, label):
        """(accuracy on the segments that truly have the label, their number); accuracy is None where there are none."""
        of_label = self.labels == label
        count = int(of_label.sum())
        return (float((self.predicted[of_label] == label).mean()) if count else None), count


def run_network(network, batch, precision):
    """The network's output, in float32 what losses and labels are computed from."""
    with torch.autocast(batch["visual"].device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = network(batch["audio"], batch["visual"])
    return output._replace(**{name: getattr(output, name).float() for name in ("logits", "similarity") if hasattr(output, name)})


def f1(hits, true, predicted):
    """Harmonic mean of hits / true and hits / predicted; None where both are empty."""
    return 2 * hits / (true + predicted) if true + predicted else None


def most_frequent(labels):
    """The label that stands most often in labels, the smallest of several; None where there is none."""
    return int(np.bincount(labels).argmax()) if len(labels) else None


def events_of(labels, background):
    """The events (category, start, end) of one video's labels [T]: its longest runs of one category."""
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return [(int(labels[start]), start, end) for start, end in zip(edges, edges[1:]) if labels[start] != background]


def matched_events(true, predicted):
    """How many predicted events overlap a true one of their category with an intersection over union of 0.5 or more.

    No two can overlap the same one so far, but with exactly half of it each; then one of them counts.
    """
    matched = set()
    for category, start, end in predicted:
        for number, (true_category, true_start, true_end) in enumerate(true):
            intersection = min(end, true_end) - max(start, true_start)
            union = (end - start) + (true_end - true_start) - intersection
            if number not in matched and category == true_category and 2 * intersection >= union:
                matched.add(number)
                break
    return len(matched)


@torch.inference_mode()
def predict(network, dataset, batch_size, precision="fp32", progress=None, stop=lambda: False):
    """`Predictions` for all videos of the dataset, the last short batch included.

    Returns None, unfinished, once stop() is true. Raises UserError where the network's output is not finite.
    """
    network.eval()
    device = next(network.parameters()).device
    positions = torch.arange(len(dataset), device=dataset.place)
    predicted, probability = [], []
    for batch in batches_on(device, dataset, part_of_process(positions).split(batch_size)):
        logits = run_network(network, batch, precision).logits
        label = logits.argmax(dim=-1, keepdim=True)
        predicted.append(label.squeeze(-1))
        probability.append(logits.softmax(dim=-1).gather(-1, label).squeeze(-1))
        if progress is not None:
            progress.update(len(label))
        if stop():
            return None
    predicted, probability = (gather_from_processes(torch.cat(parts).cpu().numpy()) for parts in (predicted, probability))
    video, labels = dataset.video.cpu().numpy(), dataset.labels.cpu().numpy()
    finite = np.isfinite(probability).all(axis=1)
    if not finite.all():
        raise UserError(f"the network's output for video row {video[finite.argmin()]} is NaN or infinite: "
                        "its weights or the features are too large")
    return Predictions(video, labels, predicted, probability)


def evaluate_checkpoint(args, given, setting):
    """Scores args.trained_model_path on validation and test, prints the tables and writes the predictions if asked to."""
    if process_count() > 1:
        raise UserError("evaluation runs in one process; start it without torchrun")
    check_predictions_path(args.save_predictions, args.trained_model_path)
    checkpoint = load_checkpoint(args.trained_model_path, setting)
    args.precision = args.precision or trained_precision(checkpoint, args.device)
    device = select_device(args)
    data = read_data(args, given, ["val", "test"], device)
    network = network_of_checkpoint(checkpoint, args.trained_model_path, data["val"].sizes, args.threshold).to(device)
    names, ids = names_and_ids(args, data["val"].sizes)

    with tqdm(total=sum(map(len, data.values())), desc="evaluating", unit="video", leave=False) as progress:
        results = {split: predict(network, dataset, args.batch_size, args.precision, progress) for split, dataset in data.items()}

    saved = f"saved after epoch {checkpoint['epoch']}, " if "epoch" in checkpoint else ""
    print(f"{args.trained_model_path}: {setting} supervised {checkpoint['model_name']}, {saved}" + about_network(network))
    print_label_table(results, names)
    for split, result in results.items():
        recall, background = result.label_accuracy(len(names) - 1)
        print(f"{split} accuracy: {100 * result.accuracy:.2f} % of {result.labels.size} segments; background recall: "
              + (f"{100 * recall:.2f} % of {background}" if background else "no background segments"))
        print_metrics(split, result, len(names) - 1)
    if args.save_predictions:
        save_predictions(args.save_predictions, results, names, ids)


def about_network(network):
    """'threshold 0.099', and what is taken out; of AVEL, which has neither, that there is no propagation."""
    if isinstance(network, AVELNetwork):
        return "no propagation"
    parts = [type(part).__name__ for part in (network.attention, network.psp, network.audio_in, network.visual_in)
             if isinstance(part, (MeanOverRegions, AllPairPropagation, NoPropagation, Silenced))]
    return ", ".join([f"threshold {network.psp.threshold}", *parts])


def trained_precision(checkpoint, device_name):
    """The precision that a checkpoint was trained in, fp32 where that is not known or the device does not have it."""
    settings = checkpoint.get("settings")
    precision = settings.get("precision") if isinstance(settings, dict) else None
    return precision if precision == "bf16" or (precision == "tf32" and device_name.startswith("cuda")) else "fp32"


def print_metrics(split, result, background):
    """What `Predictions.metrics` and `references` say, on two lines."""
    def percent(value):
        return "-" if value is None else f"{100 * value:.2f} %"
    metrics, references = result.metrics(background), result.references(background)
    print(f"{split} event or background: {percent(metrics['event_or_background'])}; video category: {percent(metrics['video_category'])}; "
          f"segment F1: {percent(metrics['segment_f1'])}; event F1: {percent(metrics['event_f1'])}")
    print(f"{split} for reference: always background {percent(references['always_background'])}; "
          f"right category in all segments {percent(references['category_everywhere'])}")


def print_label_table(results, names):
    """Accuracy and number of segments of each label, for each split."""
    width = max(map(len, names))
    print(" " * width + "".join(f"  {split + ' segments':>14}  {'accuracy':>8}" for split in results))
    for label, name in enumerate(names):
        row = f"{name:{width}}"
        for result in results.values():
            accuracy, count = result.label_accuracy(label)
            row += f"  {count:>14}  " + (f"{100 * accuracy:>6.2f} %" if count else f"{'-':>8}")
        print(row)


def check_predictions_path(path, checkpoint_path):
    """Raises UserError, before any work, where predictions cannot be written or would replace what they must not."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UserError(f"--save_predictions {path}: there is no folder {path.parent}")
    if path.exists() and (path.suffix != ".json" or not path.is_file() or path.samefile(checkpoint_path)):
        raise UserError(f"--save_predictions {path}: is there already; only a .json file is replaced, choose another name")


def save_predictions(path, results, names, ids):
    """JSON: label_names, and for each video its split, row, id (where known), labels and their probabilities."""
    videos = [{
        "split": split,
        "video": int(row),
        **({"id": ids[row]} if ids else {}),
        "labels": labels.tolist(),
        "probabilities": [round(float(p), 6) for p in probabilities],
    } for split, result in results.items()
      for row, labels, probabilities in zip(result.video, result.predicted, result.probability)]
    lines = ",\n".join("  " + json.dumps(video) for video in videos)
    text = f'{{"label_names": {json.dumps(names)},\n "videos": [\n{lines}\n]}}\n'
    write_atomically(path, lambda partial: partial.write_text(text))
    print(f"predictions of {len(videos)} videos: {path}")


def names_and_ids(args, sizes):
    """Label names, and the video ids by row (None without annotations)."""
    default = args.data_dir / "Annotations.txt"
    path = args.annotations or (default if default.is_file() else None)
    if path is None:
        return label_names(labels=sizes.labels), None
    annotations = read_annotations(path)
    if len(annotations) != sizes.videos:
        raise UserError(f"{path}: has {len(annotations)} lines, but the data has {sizes.videos} videos; "
                        "line i must be video row i (name the right file with --annotations)")
    return label_names(annotations, sizes.labels), [annotation.video_id for annotation in annotations]


# -------------------------------------------------------------------------------------------- training

def train(args, setting, network, network_options, loss_function, optimizer, schedule, data):
    """Trains the network and keeps the checkpoint of the best validation accuracy.

    loss_function(output, batch) -> scalar; data: {"train", "val", "test": AVEDataset}; network_options rebuild it.
    Each epoch draws the batches anew and drops the last short one. Validation and test are scored every
    args.check_epoch epochs; the last epoch is scored in any case, but chosen from only if it is such a check, or the only one.
    Stopped by SIGINT or SIGTERM it finishes the step and saves its state; with args.resume it goes on from there.
    Raises UserError for a batch size over the training set and for a loss that is not finite.
    """
    device = next(network.parameters()).device
    train_set = data["train"]
    steps = len(train_set) // args.batch_size
    if steps == 0:
        raise UserError(f"--batch_size {args.batch_size} is larger than the training set ({len(train_set)} videos)")
    if args.batch_size % process_count():
        raise UserError(f"--batch_size {args.batch_size} does not divide among {process_count()} processes")
    run = Run(args, setting, network, network_options, optimizer, schedule, data)
    parallel_network = across_processes(network) if process_count() > 1 else network
    epochs = islice(batches_of_epochs(args, train_set), run.epoch, None)

    with StopSignals() as stop, \
         tqdm(total=args.nb_epoch * steps, initial=run.epoch * steps + run.step, unit="batch",
              mininterval=0.5 if sys.stderr.isatty() else 30, disable=process_rank() > 0) as bar:
        while run.epoch < args.nb_epoch:
            bar.set_description(f"epoch {run.epoch}", refresh=False)
            batches, targets = next(epochs)
            batches = part_of_process(batches, dim=1).to(train_set.place)
            network.train()
            for batch in batches_on(device, train_set, batches[run.step:]):
                if targets is not None:
                    batch["avps_target"] = part_of_process(targets[run.step]).to(device)
                loss = loss_function(run_network(parallel_network, batch, args.precision), batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.loss_sum += loss.detach()
                run.step += 1
                bar.update()
                if stop.received and process_count() == 1:      # several end together, with the epoch
                    run.stop(stop.received)

            loss = sum_over_processes(run.loss_sum).item() / (steps * process_count())
            if not math.isfinite(loss):
                raise UserError(f"the loss of epoch {run.epoch} is {loss}; try a lower --lr. "
                                f"The best checkpoint so far is kept")
            record = {"epoch": run.epoch, "loss": loss, "lr": optimizer.param_groups[0]["lr"]}

            last = run.epoch == args.nb_epoch - 1
            check = run.epoch > 0 and run.epoch % args.check_epoch == 0
            if check or last:
                results = {split: predict(network, data[split], args.batch_size, args.precision,
                                          stop=lambda: stop.received and process_count() == 1) for split in ("val", "test")}
                if None in results.values():
                    run.stop(stop.received)
                record.update({f"{split}_accuracy": result.accuracy for split, result in results.items()})
                run.check(record, eligible=check or run.best is None, test_right=results["test"].right_segments)
                tqdm.write(f"epoch {run.epoch}: loss {loss:.4f}  val {100 * record['val_accuracy']:.2f} %  "
                           f"test {100 * record['test_accuracy']:.2f} %", file=sys.stdout)
            schedule.step()
            run.end_epoch(record)
            if process_count() > 1 and sum_over_processes(torch.tensor(stop.received or 0, device=device)):
                run.stop(stop.received or signal.SIGTERM)
            bar.set_postfix_str(run.summary(loss), refresh=False)
    run.report()
    return run


def train_each_seed(args, data, device, train):
    """train(args, data, device) -> Run, once; or, with --runs, for each seed, and a report over all of them."""
    if args.runs == 1:
        train(args, data, device)
        return
    rows = []
    for seed in range(args.seed, args.seed + args.runs):
        print(f"seed {seed}:")
        of_seed = argparse.Namespace(**{**vars(args), "seed": seed, "output_dir": args.output_dir / f"seed{seed}"})
        run = train(of_seed, data, device)
        if process_count() > 1:
            torch.distributed.barrier()      # until the checkpoint is written
        network = network_of_checkpoint(load_checkpoint(run.checkpoint_path), run.checkpoint_path).to(device)
        test = predict(network, data["test"], args.batch_size, args.precision)
        rows.append({"seed": seed, "best_epoch": run.best["epoch"], "val": run.best["val_accuracy"],
                     "test": run.best["test_accuracy"], "last_test": run.last["test_accuracy"],
                     "best_test": run.best_test["test_accuracy"], "checks": run.checks,
                     "test_right": test.right_segments, "best_test_right": run.best_test_right,
                     "metrics": test.metrics(data["test"].sizes.background)})
    report_runs(args, rows, data["test"])


def report_runs(args, rows, test_set):
    """Prints a line for each seed and the figures over all, and writes them to OUTPUT_DIR/<model>_runs.json."""
    print("seed   best epoch     val    test   test, last epoch")
    for row in rows:
        print(f"{row['seed']:<6} {row['best_epoch']:>10}  {100 * row['val']:6.2f}  {100 * row['test']:6.2f}   {100 * row['last_test']:16.2f}")
    test = np.array([row["test"] for row in rows])
    right = np.array([row["test_right"] for row in rows]) / test_set.sizes.segments
    low, high = bootstrap_interval(right.mean(axis=0))
    summary = {"n": len(rows), "mean": float(test.mean()), "std": float(test.std(ddof=1)), "low": low, "high": high}
    print(f"test accuracy at the best validation epoch: {100 * summary['mean']:.2f} ± {100 * summary['std']:.2f} % (mean and sample "
          f"standard deviation of n = {len(rows)} seeds: {', '.join(f'{100 * value:.2f}' for value in test)})")
    print(f"95 % interval over the {right.shape[1]} test videos (bootstrap, mean of the seeds): {100 * low:.2f} to {100 * high:.2f} %")
    path = args.output_dir / f"{args.model_name}_runs.json"
    if process_rank() == 0:
        text = json.dumps({"settings": settings_of(args), "summary": summary, "segments": test_set.sizes.segments,
                           "test_videos": test_set.video.tolist(), "test_digest": test_set.digest(), "runs": rows})
        write_atomically(path, lambda partial: partial.write_text(text + "\n"))
    print(f"all figures: {path}")


def bootstrap_interval(values, resamples=10000, coverage=0.95):
    """(low, high) of the mean of values [n], by the percentiles of means of n values drawn with replacement."""
    generator = np.random.default_rng(0)
    counts = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    low, high = np.quantile(counts @ values / len(values), [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def batches_of_epochs(args, train_set):
    """Yields for each epoch the positions of the videos of its batches [steps, B] and, with the quirk, the targets of L_avps."""
    videos, size = len(train_set), args.batch_size
    if "fixed_batches" in args.released_quirks:
        epochs = fixed_batches(videos, size, args.seed)
    elif "stale_avps" in args.released_quirks:
        epochs = released_batches(videos, size, args.seed)
    elif args.batches == "in-order":
        epochs = repeat(in_batches(torch.arange(videos), size))
    else:
        epochs = (shuffled_batches(videos, size, args.seed, epoch) for epoch in count())
    if "stale_avps" in args.released_quirks:
        yield from stale_targets(epochs, train_set.labels.cpu(), train_set.sizes.background)
    else:
        yield from zip(epochs, repeat(None))


def in_batches(order, batch_size):
    """[videos] -> [batches, batch_size]; the last short one is dropped."""
    return order[:len(order) // batch_size * batch_size].view(-1, batch_size)


def released_batches(videos, batch_size, seed):
    """Yields the batches of each epoch as the released fully supervised code draws them: one list, shuffled again and again."""
    generator, order = random.Random(seed), list(range(videos))
    while True:
        generator.shuffle(order)
        yield in_batches(torch.tensor(order), batch_size)


def fixed_batches(videos, batch_size, seed):
    """Yields the batches of each epoch as the released weakly supervised code has them: only the first one is drawn."""
    generator = random.Random(seed)
    while True:
        order = list(range(videos))
        generator.shuffle(order)
        batches = in_batches(torch.arange(videos), batch_size)
        batches[0] = torch.tensor(order[:batch_size])
        yield batches


def stale_targets(epochs, labels, background):
    """Yields (batches, targets [steps, B, T]) with the targets of L_avps as the released code has them.

    It writes 1/n into a buffer at the n event segments of each video and never clears it, so that each row keeps what videos
    of earlier batches left there. A video without an event writes 1/T into all its segments.
    """
    buffer = None
    for batches in epochs:
        targets = []
        for positions in batches:
            of_batch = labels[positions]
            written = (of_batch != background) | (of_batch == background).all(dim=1, keepdim=True)
            value = (1 / written.sum(dim=1, keepdim=True)).expand(of_batch.shape)
            buffer = torch.where(written, value, 0 if buffer is None else buffer)
            targets.append(buffer)
        yield batches, torch.stack(targets)


def shuffled_batches(videos, batch_size, seed, epoch):
    """Positions of the videos of each batch of an epoch, int64 [batches, batch_size]; depends on nothing else."""
    return in_batches(torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(videos)), batch_size)


class StopSignals:
    """While it is entered, SIGINT and SIGTERM are noted in `received` instead of ending the program at once."""

    def __init__(self):
        self.received = None

    def __enter__(self):
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self.received = number

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Run:
    """What a training run keeps in its output folder, and where it stands.

        PSP_fully.pt         checkpoint of the best validation accuracy
        PSP_fully.jsonl      log: one line on the run, one for each epoch, one with the result
        PSP_fully_state.pt   all that --resume needs to go on as if the run had not been stopped

    epoch, step: finished epochs, and finished batches of the epoch under way; loss_sum: their summed loss.
    best, best_test, last: records of the check of best validation accuracy, of best test accuracy, of the last epoch.
    best_test_right: `Predictions.right_segments` of the test videos at best_test.
    """

    def __init__(self, args, setting, network, network_options, optimizer, schedule, data):
        self.args, self.network, self.optimizer, self.schedule = args, network, optimizer, schedule
        self.about = {
            "setting": setting,
            "model_name": args.model_name,
            "network": network_options,
            "settings": settings_of(args),
            "versions": versions(),
            "device": device_name(next(network.parameters()).device),
            "data": {**data["train"].sizes._asdict(), **{split: len(dataset) for split, dataset in data.items()},
                     "digest": {split: dataset.digest() for split, dataset in data.items()}},
        }
        self.epoch, self.step, self.checks = 0, 0, 0
        self.writes = process_rank() == 0      # the files; the other processes only follow
        self.loss_sum = torch.zeros((), device=next(network.parameters()).device)
        self.best = self.best_test = self.best_test_right = self.last = None

        name = f"{args.model_name}_{setting}"
        self.checkpoint_path = args.output_dir / f"{name}.pt"
        self.log_path = args.output_dir / f"{name}.jsonl"
        self.state_path = args.output_dir / f"{name}_state.pt"
        args.output_dir.mkdir(parents=True, exist_ok=True)
        if args.resume and self.state_path.exists():
            self._resume()
        else:
            self._start()

    def _start(self):
        if self.args.resume:
            print(f"{self.state_path}: not there, so there is nothing to resume; starting from the first epoch")
        if not self.writes:
            return
        if self.log_path.exists():
            lock(self.log_path.open("rb"), self.log_path).close()
        keep_aside([self.state_path, self.checkpoint_path, self.log_path])      # the state first: it says what to resume
        self.log = lock(self.log_path.open("ab", buffering=0), self.log_path)
        self._log({"run": self.about})
        self._save_state()

    def _resume(self):
        try:
            state = read_file(self.state_path)
            if not isinstance(state, dict) or state.keys() != self._state(0).keys():
                raise CheckpointError("is not the state of a run")
            for key in ("setting", "network", "settings", "data"):
                before, now = state["about"][key], self.about[key]
                if key == "settings":
                    before, now = comparable(before), comparable(now)
                if key == "data":
                    before, now = with_digests_of(now, before), with_digests_of(before, now)
                changed = differences(before, now)
                if changed:
                    raise UserError(f"--resume: the run in {self.args.output_dir} was started with other options or data "
                                    f"({changed}); give the same, or choose another --output_dir")
            self._restore(state)
        except (CheckpointError, *_WRONG_CONTENT) as error:
            raise UserError(f"{self.state_path}: cannot be resumed from ({_one_line(error)}); "
                            "start again without --resume, the files here are kept under a numbered name") from error
        for path, wanted in ((self.log_path, state["log_bytes"]), (self.checkpoint_path, 1 if self.best else 0)):
            if (path.stat().st_size if path.exists() else 0) < wanted:
                raise UserError(f"{path}: is missing or cut short, so the run cannot go on; start again without --resume")
        if self.writes:
            self.log = lock(self.log_path.open("ab", buffering=0), self.log_path)
            self.log.truncate(state["log_bytes"])
        print(f"going on with the run in {self.args.output_dir} at epoch {self.epoch}, batch {self.step}")

    def _restore(self, state):
        for name in ("epoch", "step", "checks", "best", "best_test", "best_test_right", "last"):
            setattr(self, name, state[name])
        if not (0 <= self.epoch <= self.args.nb_epoch and 0 <= self.step and 0 <= state["log_bytes"]):
            raise ValueError("its position is impossible")
        self.loss_sum += state["loss_sum"]
        self.network.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        set_random_state(state["random"])

    def _save_state(self):
        if self.writes:
            save_tensors(self.state_path, self._state(self.log.tell()))

    def _state(self, log_bytes):
        return {
            "about": self.about,
            "epoch": self.epoch, "step": self.step, "checks": self.checks,
            "best": self.best, "best_test": self.best_test, "best_test_right": self.best_test_right, "last": self.last,
            "loss_sum": self.loss_sum,
            "weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random_state(),
            "log_bytes": log_bytes,
        }

    def _log(self, record):
        if not self.writes:
            return
        with naming(self.log_path):
            self.log.write(json.dumps(record).encode() + b"\n")

    def check(self, record, eligible, test_right):
        """Takes in the scores of an epoch; the checkpoint is kept if an eligible one is the best on validation."""
        self.last = record
        if not eligible:
            return
        self.checks += 1
        if self.best_test is None or record["test_accuracy"] > self.best_test["test_accuracy"]:
            self.best_test, self.best_test_right = record, test_right
        if self.best is None or record["val_accuracy"] > self.best["val_accuracy"]:
            self.best = record
            if self.writes:
                save_tensors(self.checkpoint_path, {**self.about, **record, "weights": self.network.state_dict()})

    def end_epoch(self, record):
        """Logs the epoch and moves on to the next."""
        self._log(record)
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum.zero_()
        if self.epoch % self.args.save_epoch == 0 or self.epoch == self.args.nb_epoch:
            self._save_state()

    def stop(self, signal_number):
        """Saves the state and ends the program, as the signal asked for."""
        self._save_state()
        tqdm.write(f"stopped in epoch {self.epoch} after batch {self.step}; give the same command with --resume to go on",
                   file=sys.stderr)
        sys.exit(128 + signal_number)

    def summary(self, loss):
        """Loss and last accuracies, for the progress bar."""
        if self.last is None:
            return f"loss {loss:.4f}"
        return f"loss {loss:.4f}, val {100 * self.last['val_accuracy']:.2f} %, test {100 * self.last['test_accuracy']:.2f} %"

    def report(self):
        """Prints and logs the figures of the whole run."""
        self._log({"result": {"best_validation": self.best, "best_test": self.best_test, "last": self.last,
                              "checks": self.checks}})
        def percent(value):
            return f"{100 * value:.2f} %"
        print(f"best validation accuracy: {percent(self.best['val_accuracy'])} (epoch {self.best['epoch']})")
        print(f"test accuracy at the best validation epoch: {percent(self.best['test_accuracy'])}")
        print(f"test accuracy after the last epoch: {percent(self.last['test_accuracy'])}")
        print(f"best test accuracy over all {self.checks} check{'s' * (self.checks != 1)}: {percent(self.best_test['test_accuracy'])} (epoch "
              f"{self.best_test['epoch']}; chosen on the test set, as the released code does, so it is too high)")
        print(f"checkpoint: {self.checkpoint_path}   log: {self.log_path}")


def settings_of(args):
    """The options that decide what a run computes, as plain values."""
    elsewhere = {"train", "trained_model_path", "resume", "runs", "output_dir", "save_predictions", "annotations", "device", "features"}
    return {name: str(value) if isinstance(value, Path) else value
            for name, value in sorted(vars(args).items()) if name not in elsewhere}


def comparable(settings):
    """Settings without what may be written in several ways: paths (the data has a digest), tau (the network has it)."""
    return {name: value for name, value in settings.items() if "dir_" not in name and name not in ("data_dir", "threshold")}


def with_digests_of(other, data):
    """The data of a run without the checksums that the other's has not: of features on disk only a sample is taken."""
    return {**data, "digest": {split: digest[:len(other["digest"][split])] for split, digest in data["digest"].items()}}


def differences(before, now):
    """'name: before -> now, ...' of what differs between two dicts or values; '' where nothing does."""
    if not isinstance(before, dict):
        return "" if before == now else f"{before} -> {now}"
    return ", ".join(f"{name}: {before.get(name)} -> {now.get(name)}"
                     for name in sorted({*before, *now}) if before.get(name) != now.get(name))


def versions():
    """Versions of what a run stands on, and the git revision of this code."""
    try:
        revision = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], text=True,
                                  cwd=Path(__file__).parent, capture_output=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        revision = ""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "cuda": torch.version.cuda,
            "numpy": np.__version__, "h5py": h5py.__version__, "git": revision or None}


def device_name(device):
    """'cpu', or the name of the accelerator."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def random_state():
    """The state of every random generator that a run draws from, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state):
    """Puts back what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


# --------------------------------------------------------------------------------------------- files

def load_checkpoint(path, setting=None):
    """The checkpoint at `path`, a dict as `Run` saves it; the authors' checkpoints and bare state dicts are made into one.

    setting: 'fully' or 'weakly', if it must be that. Nothing that the file names is run, see model/released.py.
    Raises UserError where the file is broken, no checkpoint of these networks, or not of this setting.
    """
    try:
        content = read_file(path)
        state = state_of(content)
        if state is not None:
            content = _checkpoint_of_state(path, state, setting)
    except CheckpointError as error:
        raise UserError(f"{path}: {error}") from error
    wrong = _wrong_in_checkpoint(content)
    if wrong:
        raise UserError(f"{path}: is not a checkpoint of these networks: {wrong}")
    if setting is not None and content["setting"] != setting:
        raise UserError(f"{path}: is a {content['setting']} supervised checkpoint; "
                        f"evaluate it with the other script, not the {setting} supervised one")
    return content


def _wrong_in_checkpoint(content):
    """What is wrong with the plain values of a checkpoint, '' where nothing is."""
    def whole(value, high):
        return type(value) is int and 1 <= value <= high
    def one_of(choices):
        return lambda value: isinstance(value, str) and value in choices
    kinds = {"audio_dim": lambda value: whole(value, 10**6), "visual_dim": lambda value: whole(value, 10**6),
             "labels": lambda value: whole(value, 10**6),
             "map_size": lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and all(whole(n, 1000) for n in value),
             "threshold": lambda value: type(value) in (int, float) and 0 <= value <= 1,
             **{name: lambda value: type(value) is bool for name in FULLY_SUPERVISED}}
    ablations = {"attention": one_of(ATTENTIONS), "propagation": one_of(PROPAGATIONS), "modality": one_of(MODALITIES)}
    if not isinstance(content, dict) or not {"setting", "model_name", "network", "weights"} <= content.keys():
        return "it has no setting, model_name, network or weights"
    if content["setting"] not in ("fully", "weakly") or content["model_name"] not in ("PSP", "AVEL"):
        return "its setting or model_name is unknown"
    if content["model_name"] == "AVEL":
        kinds = {name: kinds[name] for name in ("audio_dim", "visual_dim", "map_size", "labels")}
        ablations = {}
    if not isinstance(content["network"], dict) or not kinds.keys() <= content["network"].keys() <= {**kinds, **ablations}.keys():
        return "its network has other options"
    for name, fits in {**kinds, **ablations}.items():
        if name in content["network"] and not fits(content["network"][name]):
            return f"its network's {name} is impossible"
    if type(content.get("epoch", 0)) is not int or not 0 <= content.get("epoch", 0) < 10**9:
        return "its epoch is impossible"
    if not isinstance(content["weights"], dict) or not all(
            isinstance(name, str) and isinstance(weight, torch.Tensor) for name, weight in content["weights"].items()):
        return "its weights are not named tensors"
    return ""


def _checkpoint_of_state(path, state, wanted):
    """A checkpoint from bare tensors with the authors' names or ours; what is not in them has the paper's value."""
    setting = released_setting(state)
    if setting is None:      # our names
        setting, weights = "weakly" if "weighting.weight" in state else "fully", state
    else:
        if wanted not in (None, setting):
            raise UserError(f"{path}: is a {setting} supervised checkpoint; "
                            f"evaluate it with the other script, not the {wanted} supervised one")
        weights = released_weights(state, setting)
    try:
        regions, visual_dim = weights["attention.w_h.weight"].shape[1], weights["attention.U_v.weight"].shape[1]
        labels = weights["classifier.2.weight"].shape[0]
        audio_dim = weights["audio_in.0.weight" if setting == "fully" else "attention.U_a.weight"].shape[1]
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"is not a checkpoint of these networks: {error} is missing") from error
    side = math.isqrt(regions)
    options = dict(audio_dim=audio_dim, visual_dim=visual_dim, map_size=(side, side), labels=labels,
                   threshold=PAPER_THRESHOLD[setting], **SETTINGS[setting])
    return {"setting": setting, "model_name": "PSP", "network": options, "weights": weights}


def network_of_checkpoint(checkpoint, path, sizes=None, threshold=None):
    """The network of a checkpoint, on the CPU.

    sizes: those of the data that it is meant for; threshold: the pruning threshold, if not the checkpoint's own.
    Raises UserError where the checkpoint's parts do not fit each other, or not these sizes.
    """
    options = dict(checkpoint["network"])
    for name, needed in (network_sizes(sizes) if sizes else {}).items():
        if options[name] != needed and options[name] != list(np.ravel(needed)):
            raise UserError(f"{path}: was trained with {name} {options[name]}, but the data has {needed}")
    if threshold is not None:
        if "threshold" not in options:
            raise UserError(f"{path}: is a checkpoint of {checkpoint['model_name']}, which has no --threshold")
        options["threshold"] = threshold
    weights = checkpoint["weights"]
    try:
        with torch.device("meta"):      # shapes only: the tensors are the checkpoint's own
            network = NETWORKS[checkpoint["model_name"]](**options)
        if any(weight.dtype != torch.float32 for weight in weights.values()):
            raise ValueError("its weights are not float32")
        network.load_state_dict(weights, strict=True, assign=True)
    except _WRONG_CONTENT as error:
        raise UserError(f"{path}: does not hold the network that it says it holds ({_one_line(error)})") from error
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(f"{path}: its weight {name} is NaN or infinite; the file is broken, or its training failed")
    return network


def network_options(args, setting, sizes):
    """The arguments of the network that the options and the data ask for."""
    if args.model_name == "AVEL":
        return network_sizes(sizes)
    changed = dict(renormalise=args.second_normalisation == "on", weighting=args.weighting == "on")
    return dict(**network_sizes(sizes), threshold=PAPER_THRESHOLD[setting] if args.threshold is None else args.threshold,
                **{**SETTINGS[setting], **changed}, attention=args.attention, propagation=args.propagation, modality=args.modality)


def network_sizes(sizes):
    """The arguments of `PSPNetwork` that the data decides."""
    return dict(audio_dim=sizes.audio_dim, visual_dim=sizes.visual_dim, map_size=sizes.map_size, labels=sizes.labels)


# What Python and torch raise where a value is not of the kind, size or name that the code expects.
_WRONG_CONTENT = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)


def _one_line(error):
    """The message of an error in printable characters on one short line."""
    return "".join(character for character in " ".join(str(error).split()) if character.isprintable())[:200]


def save_tensors(path, content):
    """Writes tensors and plain values so that `path` holds, at any moment, either the former file or the whole new one."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, lambda partial: partial.write_bytes(buffer.getbuffer()))


def write_atomically(path, write):
    """write(partial path), then renames that to `path`; the former file stays if anything fails."""
    partial = Path(f"{path}.partial")
    with naming(path):
        try:
            write(partial)
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path):
    """Puts the file's path into an OSError; that of a failed write has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def keep_aside(paths):
    """Renames the files that exist to `name.1.suffix`, with the first number that is free for all of them."""
    def numbered(path, number):
        return path.with_name(f"{path.stem}.{number}{path.suffix}")
    there = [path for path in paths if path.exists()]
    number = 1
    while any(numbered(path, number).exists() for path in paths):
        number += 1
    for path in there:
        path.rename(numbered(path, number))
    if there:
        print(f"kept the files of an earlier run: {', '.join(str(numbered(path, number)) for path in there)}")


def lock(file, path):
    """Locks an open file for as long as it is open; UserError where another process holds it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path}: another run is writing to this folder; choose another --output_dir") from error
    return file
