"""What both main scripts share: options, where to compute, evaluation, the report over seeds."""
import argparse
import errno
import json
import math
import os
import random
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from data.annotations import names_and_ids
from data.batches import TrainingBatches, read_ahead
from data.files import UserError, keep_aside, one_line, write_atomically
from data.memory import choose_place
from data.progress import progress_bar
from dataset import AVE_FILES, SPLITS, AVEDataset, find_files, has_labels, required_files, visual_values
from model import processes
from model.ablations import ATTENTIONS, MODALITIES, PROPAGATION_THRESHOLD
from model.checkpoint import SETTINGS, load, network_sizes, rebuild
from model.metrics import Predictions, bootstrap_interval
from model.predictions import check_predictions_path, print_found_classes, print_scores, save_predictions
from model.run import settings_of
from psp_model import PAPER_THRESHOLD


# ------------------------------------------------------------------------------------------- a script's run

@contextmanager
def one_line_errors():
    """Around a script's main: a user's error ends in one line and exit code 2.

    SIGTERM ends the script as Ctrl-C does, with what is open closed in order.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")      # names that the terminal cannot show end no run
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with processes.joined():
            yield
    except UserError as error:
        _end(str(error))
    except (MemoryError, torch.OutOfMemoryError) as error:
        _end(f"not enough memory ({one_line(error)}); try a smaller --batch_size, or smaller sizes")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        hint = "; free some space and try again (training: with --resume)" if error.errno == errno.ENOSPC else ""
        _end(f"{where}{error.strerror or error}{hint}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)      # a second one would disturb the end
        sys.exit(128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, handler)


def _end(message):
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(2)


# --------------------------------------------------------------------------------------------- options

class OptionParser(argparse.ArgumentParser):
    """argparse with one-line errors, whole option names only, and the docstring as it stands in --help."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
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


_QUIRKS = {
    "fixed_batches": "only the first batch of an epoch is drawn anew",
    "initial_weights": "initial weights are drawn in the order of the authors' layers",
}
QUIRKS = {"fully": {"stale_avps": "targets of L_avps are never cleared", **_QUIRKS}, "weakly": _QUIRKS}


def quirks(setting):
    """An argparse type: names of QUIRKS[setting], separated by commas; 'all': those of the released script."""
    def parse(text):
        if text == "all":
            return ["initial_weights", {"fully": "stale_avps", "weakly": "fixed_batches"}[setting]]
        names = sorted(set(filter(None, text.split(","))))
        unknown = [name for name in names if name not in QUIRKS[setting]]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0][:40]!r} is an unknown quirk; {setting} supervised "
                                             f"training has: {', '.join(QUIRKS[setting])}")
        return names
    return parse


_FILES = {"dir_video": "visual", "dir_audio": "audio", **{f"dir_order_{split}": f"order_{split}" for split in SPLITS}}
FILE_OPTIONS = {      # of each setting: the name in dataset.AVE_FILES
    "fully": {**_FILES, "dir_labels": "labels"},
    "weakly": {**_FILES, "dir_labels": "video_labels", "prob_dir_labels": "label_share", "dir_labels_gt": "labels",
               "dir_video_bg": "visual_bg", "dir_audio_bg": "audio_bg", "dir_labels_bg": "labels_bg"},
}


def main_options(description, setting):
    """The options that both main scripts have; the defaults are the paper's."""
    parser = OptionParser(description)
    task = parser.add_argument_group("what to do (one of the two)")
    task.add_argument("--train", action="store_true", help="train, and score validation and test at intervals")
    task.add_argument("--trained_model_path", type=Path, metavar="FILE", help="evaluate this checkpoint")

    model = parser.add_argument_group("model")
    model.add_argument("--model_name", choices=["PSP", "AVEL"],
                       help="AVEL is the baseline of Tian et al., ECCV 2018 (default: PSP; in evaluation, the "
                            "checkpoint's own)")
    model.add_argument("--threshold", type=bounded(float, 0, 1), metavar="TAU",
                       help="similarities of PSP that are not above it are pruned, in 0..1 "
                            f"(default: {PAPER_THRESHOLD[setting]}, the paper's; in evaluation, the checkpoint's own)")

    parser.ablations = parser.add_argument_group("ablations", "Parts of PSP to leave out in training. "
                                                              "The checkpoint records them.")
    parser.ablations.add_argument("--attention", choices=ATTENTIONS, default="audio-guided",
                                  help="mean: all regions have the same weight (default: %(default)s)")
    parser.ablations.add_argument("--propagation", choices=["psp", *PROPAGATION_THRESHOLD], default="psp",
                                  help="all-pairs: nothing is pruned, as with --threshold 0; none: nothing is "
                                       "propagated, as with --threshold 1 (default: %(default)s)")
    parser.ablations.add_argument("--modality", choices=MODALITIES, default="both",
                                  help="audio, visual: the other one is silenced (default: %(default)s)")
    for option, name, what in (
            ("--second_normalisation", "renormalise", "divide the pruned similarities by their sum"),
            ("--weighting", "weighting", "the branch that weights the segments")):
        parser.ablations.add_argument(option, choices=["on", "off"], default="on" if SETTINGS[setting][name] else "off",
                                      help=f"{what} (default: %(default)s)")

    parser.training = parser.add_argument_group("training")
    add = parser.training.add_argument
    add("--nb_epoch", type=bounded(int, 1), default=300, metavar="N", help="epochs (default: %(default)s)")
    add("--batch_size", type=bounded(int, 1), metavar="N",
        help="videos in a batch (default: 128; AVEL: 64, as published)")
    add("--batches", choices=["shuffled", "in-order", "released"],
        help="shuffled: drawn anew each epoch; in-order: always as the order file has them; released: drawn as the "
             "released fully supervised code does (default: shuffled; AVEL: in-order, as published; with the quirk "
             "stale_avps: released)")
    add("--lr", type=bounded(float, 0), default=1e-3, help="learning rate of Adam (default: %(default)s)")
    add("--check_epoch", type=bounded(int, 1), default=5, metavar="N",
        help="score validation and test every N epochs (default: %(default)s)")
    add("--save_epoch", type=bounded(int, 1), default=5, metavar="N",
        help="save the state for --resume every N epochs, and whenever a minute has passed (default: %(default)s)")
    add("--released_quirks", type=quirks(setting), default=[], metavar="QUIRKS",
        help="what the released code does differently from the paper, separated by commas: "
             + ", ".join(f"{name} ({what})" for name, what in QUIRKS[setting].items())
             + "; all: as the released script of this setting trains (default: none)")
    add("--seed", type=bounded(int, 0, 2**32 - 1), default=123,
        help="seed of Python, NumPy, torch and the order of the videos (default: %(default)s)")
    add("--runs", type=bounded(int, 1, 1000), default=1, metavar="N",
        help="train with each of the seeds SEED .. SEED+N-1, into OUTPUT_DIR/seed<i>, and report mean, spread and "
             "interval (default: %(default)s)")
    add("--resume", action="store_true",
        help="continue the run in --output_dir that was stopped or killed; same options otherwise")

    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, default=Path("model"), metavar="DIR",
                        help=f"for the checkpoint PSP_{setting}.pt, the log PSP_{setting}.jsonl and the state of the "
                             "run; files of an earlier run are kept under a numbered name (default: %(default)s)")
    output.add_argument("--save_predictions", type=Path, metavar="FILE",
                        help="evaluation: write label and probability of each segment as JSON")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                         help="cpu, cuda, cuda:1, ... (default here: %(default)s)")
    machine.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp64"],
                         help="precision of matrix products; bf16 also halves the memory of the features; fp64: "
                              "all of it in float64, for comparisons that rounding must not decide; twice the memory "
                              "(default: fp32; in evaluation, that of the checkpoint's training)")
    machine.add_argument("--features", choices=["auto", "memory", "disk"], default="auto",
                         help="memory: read once and held in main memory; disk: each batch is read when it is needed; "
                              "auto: held on the GPU if they fit, else in main memory if they fit, else disk "
                              "(default: %(default)s)")

    parser.data = parser.add_argument_group("data", "Each file is looked for in --data_dir under its published name; "
                                                    "its own option overrides that.")
    parser.data.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR",
                             help="(default: %(default)s)")
    parser.data.add_argument("--annotations", type=Path, metavar="FILE",
                             help="names of videos and categories (default: DATA_DIR/Annotations.txt, if it exists)")
    for option, name in FILE_OPTIONS[setting].items():
        file = AVE_FILES[name]
        parser.data.add_argument(f"--{option}", type=Path, metavar="FILE",
                                 help=f"{file.content} (default: DATA_DIR/{file.names[0]})")
    return parser


def given_files(args, setting):
    """Paths that the options give, by their names in `dataset.AVE_FILES`; None where an option is not given."""
    return {name: getattr(args, option) for option, name in FILE_OPTIONS[setting].items()}


def parse_options(parser):
    """The options, with defaults that depend on others filled in; ends where they do not go together."""
    args = parser.parse_args()
    if args.train == (args.trained_model_path is not None):
        parser.error("give either --train, to train, or --trained_model_path FILE, to evaluate a checkpoint")
    if args.resume and not args.train:
        parser.error("--resume goes with --train")
    if args.seed + args.runs > 2**32:
        parser.error("--seed and --runs go beyond the largest seed, 2^32 - 1")
    if args.save_predictions and args.train:
        parser.error("--save_predictions goes with --trained_model_path: evaluate the checkpoint of the run")
    of_psp = ["attention", "propagation", "modality", "second_normalisation", "weighting", "weak_labels", "LAMBDA"]
    changed = [name for name in [*of_psp, "background_videos"] if getattr(args, name, None) != parser.get_default(name)]
    if changed and not args.train:
        parser.error(f"--{changed[0]} goes with --train; a checkpoint knows how its network was built")
    avel = args.model_name == "AVEL"
    quirks_of_psp = {"stale_avps", "initial_weights"} & set(args.released_quirks)
    if avel and ({*of_psp} & {*changed} or quirks_of_psp or args.threshold is not None):
        parser.error("AVEL has no --threshold, no --LAMBDA, no ablations, and of the quirks only fixed_batches")
    if "initial_weights" in args.released_quirks and {"attention", "modality", "weighting"} & {*changed}:
        parser.error("the quirk initial_weights needs all layers of PSP: not with --attention, --modality, --weighting")
    if args.propagation != "psp" and args.threshold is not None:
        parser.error(f"--propagation {args.propagation} sets the threshold as well; give one of them")
    if args.batches and "fixed_batches" in args.released_quirks:
        parser.error("the quirk fixed_batches says which batches there are; leave out --batches")
    if args.batches is None:
        args.batches = ("fixed" if "fixed_batches" in args.released_quirks else "in-order" if avel else
                        "released" if "stale_avps" in args.released_quirks else "shuffled")
    args.batch_size = args.batch_size or (64 if avel else 128)
    if args.train:
        args.model_name = args.model_name or "PSP"
        args.precision = args.precision or "fp32"
    return args


def network_config(args, setting, sizes):
    """The arguments of `build_network` that the options and the data ask for."""
    if args.model_name == "AVEL":
        return network_sizes(sizes)
    threshold = PAPER_THRESHOLD[setting] if args.threshold is None else args.threshold
    changed = dict(renormalise=args.second_normalisation == "on", weighting=args.weighting == "on")
    return dict(**network_sizes(sizes), threshold=PROPAGATION_THRESHOLD.get(args.propagation, threshold),
                **{**SETTINGS[setting], **changed}, attention=args.attention, modality=args.modality)


def add_overwrite_option(parser):
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist already")


# ------------------------------------------------------------------------------------- device and data

def select_device(args):
    """The torch device of --device, of this process if there are several, set to --precision.

    Raises UserError where this machine does not have the device, or the device not the precision.
    """
    name = f"cuda:{os.environ['LOCAL_RANK']}" if args.device == "cuda" and processes.world_size() > 1 else args.device
    try:
        made = torch.zeros(1, device=name)
        made.item()      # some devices hold no numbers
    except Exception as error:      # each backend has its own kind
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"--device {name}: cannot be used here ({reason})") from error
    if made.device.type == "cuda":
        torch.cuda.set_device(made.device)
    elif args.precision == "tf32":
        raise UserError(f"--precision tf32: only NVIDIA GPUs have it, and the device is {made.device}; "
                        "choose fp32 or bf16")
    # Initial weights and dropout are drawn in this type, too.
    torch.set_default_dtype(torch.float64 if args.precision == "fp64" else torch.float32)
    # Whether float32 products and LSTMs may round their factors to 10 bits; bf16 is left to `forward`.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
    return made.device


def set_seed(seed):
    """Seeds Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def read_data(args, setting, splits, device):
    """{split: AVEDataset}, from the files that the options name; of the training split with what the setting needs."""
    weak = setting == "weakly" and "train" in splits
    names = required_files(splits, weak, background_videos=weak and args.background_videos == "on")
    files = find_files(args.data_dir, names, given_files(args, setting))
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(args.precision, torch.float32)
    needed = visual_values(files, splits) * dtype.itemsize
    features, place = args.features, torch.device("cpu")
    if features == "auto":
        features, place = choose_place(needed, device)
    where = "read from disk batch by batch" if features == "disk" else f"held in memory ({place})"
    print(f"features: {needed / 1e9:.1f} GB, {where}")
    data = {split: AVEDataset(files, split, weak and split == "train", features, dtype, place)
            for split in splits}
    for split, dataset in data.items():
        if len(dataset) < processes.world_size():
            raise UserError(f"the {split} split has {len(dataset)} videos, fewer than there are processes")
    if any(dataset.random_weights for dataset in data.values()):
        print(f"WARNING: the features in {args.data_dir} were made with --random_weights; no result on them means "
              "anything", file=sys.stderr)
    return data


def training_batches(args, dataset, device):
    """The batches that the options ask for, of this process if there are several."""
    return TrainingBatches(dataset, args.batch_size, args.batches, args.seed, device,
                           "stale_avps" in args.released_quirks, processes.rank(), processes.world_size())


# ------------------------------------------------------------------------------------------ evaluation

def forward(network, batch, precision):
    """The network's output for a batch; logits and similarity, of which losses are computed, in the default dtype."""
    bf16 = precision == "bf16"
    audio = batch["audio"].bfloat16() if bf16 else batch["audio"]      # some CPUs' LSTM fails to convert it itself
    with torch.autocast(audio.device.type, torch.bfloat16, enabled=bf16):
        output = network(audio, batch["visual"])
    dtype = torch.get_default_dtype()
    similarity = None if output.similarity is None else output.similarity.to(dtype)
    return output._replace(logits=output.logits.to(dtype), similarity=similarity)


@torch.inference_mode()
def predict(network, dataset, batch_size, precision="fp32", progress=None):
    """`Predictions` for all videos of the dataset, the last short batch included.

    Raises UserError where the network's output is not finite.
    """
    network.eval()
    device = next(network.parameters()).device
    positions = torch.arange(len(dataset), device=dataset.device).tensor_split(processes.world_size())[processes.rank()]
    predicted, probability = [], []
    for batch in read_ahead(dataset, positions.split(batch_size), device):
        logits = forward(network, batch, precision).logits
        label = logits.argmax(dim=-1, keepdim=True)
        predicted.append(label.squeeze(-1))
        probability.append(logits.softmax(dim=-1).gather(-1, label).squeeze(-1))
        if progress is not None:
            progress.update(len(label))
    predicted, probability = (processes.gather(torch.cat(shares).cpu().numpy()) for shares in (predicted, probability))
    video = dataset.values["video"].cpu().numpy()
    labels = dataset.values["labels"].cpu().numpy() if "labels" in dataset.values else None
    finite = np.isfinite(probability).all(axis=1)
    if not finite.all():
        raise UserError(f"the network's output for video row {video[finite.argmin()]} is NaN or infinite: "
                        "its weights or the features are too large")
    return Predictions(video, labels, predicted, probability)


def evaluate_checkpoint(args, setting):
    """Scores args.trained_model_path on validation and test, prints the tables and writes the predictions asked for.

    Where the folder has features but neither label nor order files, all its videos are labelled and nothing is scored.
    """
    if processes.world_size() > 1:
        raise UserError("evaluation runs in one process; start it without torchrun")
    check_predictions_path(args.save_predictions, args.trained_model_path)
    checkpoint = load(args.trained_model_path, setting)
    if args.model_name not in (None, checkpoint["model_name"]):
        raise UserError(f"{args.trained_model_path}: is a checkpoint of {checkpoint['model_name']}, "
                        f"not of --model_name {args.model_name}")
    args.precision = args.precision or trained_precision(checkpoint, args.device)
    device = select_device(args)
    labelled = has_labels(args.data_dir, given_files(args, setting))
    data = read_data(args, setting, ["val", "test"] if labelled else [None], device)
    sizes = next(iter(data.values())).sizes
    network = rebuild(checkpoint, args.trained_model_path, sizes, args.threshold).to(device)
    names, ids = names_and_ids(args.data_dir, args.annotations, sizes.num_videos, checkpoint["network"]["num_classes"])

    with progress_bar(total=sum(map(len, data.values())), desc="evaluating", unit="video", leave=False,
                      delay=1) as progress:
        results = {split: predict(network, dataset, args.batch_size, args.precision, progress)
                   for split, dataset in data.items()}

    saved = f"saved after epoch {checkpoint['epoch']}, " if "epoch" in checkpoint else ""
    print(f"{args.trained_model_path}: {setting} supervised {checkpoint['model_name']}, {saved}"
          + about_network(checkpoint, args.threshold))
    if None in results:
        print(f"{args.data_dir}: no label or order files, so its {len(data[None])} videos are labelled and not scored")
        print_found_classes(results[None], names)
    else:
        print_scores(results, names)
    if args.save_predictions:
        save_predictions(args.save_predictions, results, names, ids)


def about_network(checkpoint, threshold):
    """'threshold 0.099' and what is taken out; of AVEL, which has neither, that there is no propagation.

    threshold: that of the option, which replaces the checkpoint's own.
    """
    if checkpoint["model_name"] == "AVEL":
        return "no propagation"
    config = checkpoint["network"]
    parts = [f"threshold {config['threshold'] if threshold is None else threshold}"]
    for name, whole in (("attention", "audio-guided"), ("modality", "both")):
        if config.get(name, whole) != whole:
            parts.append(f"{name} {config[name]}")
    return ", ".join(parts)


def trained_precision(checkpoint, device_name):
    """The precision that a checkpoint was trained in, fp32 where that is not known or the device does not have it."""
    settings = checkpoint.get("settings")
    precision = settings.get("precision") if isinstance(settings, dict) else None
    return precision if precision in ("bf16", "fp64") or (precision == "tf32" and device_name.startswith("cuda")) else "fp32"


# -------------------------------------------------------------------------------------------- several seeds

def each_seed(args):
    """The options of each run: args themselves or, with --runs, those of each seed with a folder of its own."""
    if args.runs == 1:
        yield args
        return
    if processes.rank() == 0 and not args.resume:
        keep_aside([runs_path(args)])
    for seed in range(args.seed, args.seed + args.runs):
        print(f"seed {seed}:")
        yield argparse.Namespace(**{**vars(args), "seed": seed, "output_dir": args.output_dir / f"seed{seed}"})


def runs_path(args):
    """The file of the results of --runs."""
    return args.output_dir / f"{args.model_name}_runs.json"


def report_runs(args, rows, test_set):
    """Prints each seed's row and their mean, spread and interval; writes them to OUTPUT_DIR/<model>_runs.json.

    rows: what `Run.report` returned for each seed. Prints nothing without --runs.
    """
    if args.runs == 1:
        return
    print("seed   best epoch     val    test   test, last epoch")
    for row in rows:
        val, test, last = (100 * row[name] for name in ("val", "test", "last_test"))
        print(f"{row['seed']:<6} {row['best_epoch']:>10}  {val:6.2f}  {test:6.2f}   {last:16.2f}")
    test = np.array([row["test"] for row in rows])
    by_video = np.array([row["test_correct"] for row in rows]) / test_set.sizes.num_segments      # [runs, videos]
    low, high = bootstrap_interval(by_video.mean(axis=0))
    summary = {"n": len(rows), "mean": float(test.mean()), "std": float(test.std(ddof=1)), "low": low, "high": high}
    print(f"test accuracy at the best validation epoch: {100 * summary['mean']:.2f} ± {100 * summary['std']:.2f} % "
          f"(mean and sample standard deviation of n = {len(rows)} seeds: "
          f"{', '.join(f'{100 * value:.2f}' for value in test)})")
    print(f"95 % interval over the {by_video.shape[1]} test videos (bootstrap, mean of the seeds): "
          f"{100 * low:.2f} to {100 * high:.2f} %")
    path = runs_path(args)
    if processes.rank() == 0:
        write_atomically(path, json.dumps({
            "settings": settings_of(args), "summary": summary, "segments": test_set.sizes.num_segments,
            "test_videos": test_set.values["video"].tolist(), "test_digest": test_set.digest, "runs": rows}) + "\n")
    print(f"results of all seeds: {path}")
