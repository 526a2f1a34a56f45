"""Evaluation: predictions of a split, scores of a checkpoint, results of several seeds."""
import argparse
import inspect
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dataset import FEATURES, fingerprint, load_batches, network_inputs
from model.checkpoint import load_checkpoint, rebuild
from model.class_names import class_names, match_classes, names_and_ids
from model.data import given_files, read_data, scored_splits
from model.metrics import Predictions, bootstrap_interval, percent, pruning_note
from model.run import code_checksum
from psp_model import PUBLISHED
from utils import (UserError, back_up, locked, progress_bar, rank_and_world_size, set_up_device,
                   wrap_for_training, write_atomically)


@torch.no_grad()
def predict(network, dataset, batch_size):
    """`Predictions` for all videos of the dataset, the last short batch included; leaves the network in eval mode.

    Raises UserError if the network's output is not finite.
    """
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    network.eval()
    device = next(network.parameters()).device
    predicted, probability, kept_pairs = [], [], []
    positions = torch.arange(len(dataset), device=dataset.device).split(batch_size)
    batches = load_batches(dataset.only(*FEATURES), positions, device)
    for batch in progress_bar(iterable=batches, total=len(positions), desc="evaluating", leave=False, delay=1):
        output = network(*network_inputs(batch))
        label = output.logits.argmax(dim=-1, keepdim=True)
        predicted.append(label.squeeze(-1))
        probability.append(output.logits.softmax(dim=-1).gather(-1, label).squeeze(-1))
        if output.psp is not None:
            kept_pairs.append((output.psp.gamma_va > 0).float().mean(dim=(1, 2)))
    predicted, probability = torch.cat(predicted).cpu().numpy(), torch.cat(probability).cpu().numpy()
    video = dataset.tensors["video"].cpu().numpy()
    labels = dataset.tensors["labels"].cpu().numpy() if "labels" in dataset.tensors else None
    finite = np.isfinite(probability).all(axis=1)
    if not finite.all():
        raise UserError(f"the network's output for video row {video[finite.argmin()]} is NaN or infinite: "
                        "its weights or the features are too large")
    return Predictions(video, labels, predicted, probability,
                       torch.cat(kept_pairs).mean().item() if kept_pairs else None)


def evaluate_checkpoint(args, network_class, script):
    """Evaluates args.trained_model_path on validation and test, prints the scores and writes --save_predictions.

    If the folder has features but neither label nor order files, all its videos are labelled and nothing is scored.
    script: the main script.
    """
    path, output = args.trained_model_path, args.save_predictions
    if output and output.exists() and not (output.is_file() and output.read_bytes()[:14] in (b"", b'{"label_names"')):
        raise UserError(f"--save_predictions {output}: exists already, and holds no predictions; choose another name")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = load_checkpoint(path, args.setting)
    if args.model_name != checkpoint["model_name"]:
        raise UserError(f"{path}: is a checkpoint of {checkpoint['model_name']}, not of {args.model_name}; "
                        "evaluate it with the script that trained it (model/avel.py for AVEL)")
    if "assumed" in checkpoint:
        print(f"note: {path} holds weights alone; threshold and switches are assumed to be the paper's")
    code = code_checksum(script)
    trained_by = [checkpoint.get(name, {}).get("code", code) for name in ("versions", "resumed_with")]
    if trained_by != [code, code]:
        print("note: this checkpoint was trained by other code than this")
    args.precision = args.precision or checkpoint.get("options", {}).get("precision", "fp32")
    device = set_up_device(args.device, args.precision)
    data = read_data(args, scored_splits(args.data_dir, given_files(args)), device)
    sizes = next(iter(data.values())).sizes
    if getattr(args, "threshold", None) is not None:
        checkpoint["network_args"] = {**checkpoint["network_args"], "threshold": args.threshold}
    for split, dataset in data.items():
        before = checkpoint.get("data", {}).get(f"fingerprint_{split}", dataset.fingerprint)
        if before != dataset.fingerprint:
            print(f"note: {split} has other features, labels or videos than in the training of this checkpoint")
    network = rebuild(checkpoint, path, network_class, sizes).to(device)
    names, ids = match_labels(checkpoint, path, data, args.data_dir, args.annotations)

    model = wrap_for_training(network, args.precision)
    results = {split: predict(model, dataset, args.batch_size) for split, dataset in data.items()}

    saved = f", saved after epoch {checkpoint['epoch']}" if "epoch" in checkpoint else ""
    print(", ".join([f"{path}: {args.setting} supervised {args.model_name}{saved}",
                     *unpublished_args(checkpoint, network_class)]))
    note = pruning_note(next(iter(results.values())).kept_pairs, checkpoint["network_args"].get("threshold"))
    if note:
        print(note)
    trained = checkpoint.get("val_accuracy")
    if "val" in results and trained is not None and abs(results["val"].accuracy - trained) > 0.01:
        print(f"note: in its training, the accuracy on val was {percent(trained)}")
    if None in results:
        print(f"{args.data_dir}: no label or order files, so its {len(data[None])} videos are labelled and not scored")
        print_found_classes(results[None], names)
    else:
        print_scores(results, names)
    if output:
        save_predictions(output, results, names, ids)


def unpublished_args(checkpoint, network_class):
    """'name value' of each argument of the network that is neither the published one nor decided by the data."""
    defaults = {name: argument.default for name, argument in inspect.signature(network_class).parameters.items()
                if argument.default is not argument.empty}
    published = PUBLISHED[checkpoint["setting"]] if checkpoint["model_name"] == "PSP" else {}
    expected = {**defaults, **published}
    return [f"{name} {value}" for name, value in checkpoint["network_args"].items()
            if name in expected and value != expected[name]]


def match_labels(checkpoint, path, data, data_dir, annotations):
    """Numbers the labels of the data as the checkpoint's classes are; (class names, name of the video in each row).

    Prints a note if they can only be matched by number. Raises UserError if the data has other classes.
    """
    sizes = next(iter(data.values())).sizes
    trained = checkpoint.get("class_names")
    names, ids = names_and_ids(data_dir, annotations, sizes)
    if sizes.num_classes is not None:
        try:
            numbers = match_classes(trained, names)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if numbers is None:
            print("note: the classes of the checkpoint or of the data have no names of their own; they are matched by "
                  "number")
        else:
            for dataset in data.values():
                numbers = torch.as_tensor(numbers).to(dataset.device)
                dataset.tensors["labels"] = numbers[dataset.tensors["labels"]]
    num_classes = checkpoint["network_args"]["num_classes"]
    if names and len(names) != num_classes:      # of videos without labels
        names = None
    return trained or names or class_names(num_classes=num_classes), ids


def print_scores(results, names):
    """Prints the accuracy of each class, then accuracy and the other metrics of each split."""
    width, background = max(map(len, names)), len(names) - 1
    print(" " * width + "".join(f"  {split + ' segments':>14}  {'accuracy':>8}" for split in results))
    for label, name in enumerate(names):
        found = [result.label_accuracy(label) for result in results.values()]
        print(f"{name:{width}}" + "".join(f"  {segments:>14}  {percent(accuracy):>8}" for accuracy, segments in found))
    for split, result in results.items():
        shown = {name: percent(value) for name, value in result.metrics(background).items()}
        print(f"{split} accuracy: {percent(result.accuracy)} of {result.labels.size} segments")
        print(f"{split} event or background: {shown['event_or_background']}; video category: "
              f"{shown['video_category']}; segment F1: {shown['segment_f1']}; event F1: {shown['event_f1']}")
        print(f"{split} for reference: always background {shown['always_background']}; "
              f"right category in all segments {shown['category_everywhere']}")


def print_found_classes(result, names):
    """Prints how many videos and segments were given each label."""
    for label, name in enumerate(names):
        found = result.predicted == label
        if found.any():
            print(f"{name:{max(map(len, names))}}  {found.any(axis=1).sum():>6} videos  {found.sum():>7} segments")


def save_predictions(path, results, names, ids):
    """Writes, as JSON, label_names and for each video its split, row, id (if known), labels and probabilities."""
    videos = [{"split": split or "all", "video": int(row), **({"id": ids[row]} if ids else {}),
               "labels": labels.tolist(), "probabilities": [round(float(p), 6) for p in probabilities]}
              for split, result in results.items()
              for row, labels, probabilities in zip(result.video, result.predicted, result.probability)]
    lines = ",\n".join("  " + json.dumps(video) for video in videos)
    write_atomically(path.resolve(), f'{{"label_names": {json.dumps(names)},\n "videos": [\n{lines}\n]}}\n')
    print(f"predictions of {len(videos)} videos: {path}")


# -------------------------------------------------------------------------------------------- several seeds

def train_seeds(args, train, data, device):
    """Calls train(args, data, device) once or, with --runs, for each seed with a folder of its own, and reports all."""
    first, results = rank_and_world_size()[0] == 0, []
    name = f"{args.model_name}_{args.setting}"

    def lock(folder):
        """Keeps other runs out of a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        return locked(folder / f"{name}.lock") if first else nullcontext()

    with lock(args.output_dir):
        if args.runs == 1:
            train(args, data, device)
            return
        for seed in range(args.seed, args.seed + args.runs):
            print(f"seed {seed}:")
            own = {"seed": seed, "output_dir": args.output_dir / f"seed{seed}"}
            with lock(own["output_dir"]):
                results.append(train(argparse.Namespace(**{**vars(args), **own}), data, device))
        if first:
            report_runs(args.output_dir / f"{name}_runs.json", args, results, data["test"])


def report_runs(path, args, rows, test_set):
    """Prints and writes the results of all seeds; rows: what `train` returned for each."""
    test = np.array([row["test"] for row in rows])
    accuracy = np.array([row["test_correct"] for row in rows]) / test_set.sizes.num_segments      # [runs, videos]
    low, high = bootstrap_interval(accuracy)
    summary = {"n": len(rows), "mean": float(test.mean()), "std": float(test.std(ddof=1)), "low": low, "high": high}
    back_up([path])
    options = {name: value for name, value in sorted(vars(args).items())
               if name != "resume" and not isinstance(value, Path)}      # results tell nothing of the user's folders
    labels = {name: test_set.tensors[name].cpu() for name in ("labels", "video")}
    content = {"options": options, "summary": summary, "segments": test_set.sizes.num_segments,
               "revisions": sorted({row["revision"] for row in rows}),
               "processors": sorted({row["processor"] for row in rows}),
               "test_fingerprint": fingerprint({}, labels), "test_features": test_set.fingerprint, "runs": rows}
    write_atomically(path, json.dumps(content, default=str) + "\n")
    print("seed   best epoch     val    test   test, last epoch")
    for row in rows:
        accuracies = [100 * row[name] for name in ("val", "test", "last_test")]
        print(f"{row['seed']:<6} {row['best_epoch']:>10}  " + "{:6.2f}  {:6.2f}   {:16.2f}".format(*accuracies))
    print(f"test accuracy at the chosen epoch: {100 * summary['mean']:.2f} ± {100 * summary['std']:.2f} % "
          f"(mean and sample standard deviation of n = {len(rows)} seeds)")
    print(f"95 % interval over seeds and the {accuracy.shape[1]} test videos (bootstrap): "
          f"{100 * low:.2f} to {100 * high:.2f} %")
    note_few_seeds(len(rows))
    print(f"results of all seeds: {path}")


def note_few_seeds(seeds):
    """Prints that an interval of few seeds misleads."""
    if seeds < 5:
        print(f"note: {seeds} seeds; with fewer than five, intervals are far too narrow: use ten")
