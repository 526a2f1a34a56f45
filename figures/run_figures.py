"""Pictures of a run: what it learned, where it looks and where it errs. Each command writes one PNG (needs matplotlib).

    python figures/run_figures.py curves model/PSP_fully.jsonl
    python figures/run_figures.py video model/PSP_fully.pt --data_dir data --video 17        # a row of the files
    python figures/run_figures.py categories model/PSP_fully.pt --data_dir data
    python figures/run_figures.py confusion model/PSP_fully.pt --data_dir data
    python figures/run_figures.py boundaries model/PSP_fully.pt --data_dir data
    python figures/run_figures.py attention model/PSP_fully.pt --data_dir data/synthetic      # needs its true_cells.h5
"""
import json
import sys
from pathlib import Path

import h5py
import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.files import UserError  # noqa: E402
from dataset import SPLITS, AVEDataset, find_files, required_files  # noqa: E402
from model.checkpoint import load, rebuild  # noqa: E402
from model.metrics import events_of  # noqa: E402
from utils import OptionParser, bounded, names_and_ids, one_line_errors, predict  # noqa: E402

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"      # of Okabe and Ito: told apart by the colour-blind


def save(figure, path):
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)
    print(path)


# --------------------------------------------------------------------------------------------- the run

def draw_curves(args):
    """Training loss of each epoch, and the accuracies of the checks, from the log of a run."""
    try:
        records = [json.loads(line) for line in args.file.read_text().splitlines()]
        epochs = [record for record in records if "epoch" in record]
        checks = [record for record in epochs if "val_accuracy" in record]
        loss = [(int(record["epoch"]), float(record["loss"])) for record in epochs]
        accuracy = {split: [100 * float(check[f"{split}_accuracy"]) for check in checks] for split in ("val", "test")}
        result = records[-1].get("result") if records else None
        kept = result["best_validation"]["epoch"] if result else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{args.file}: is no log of a run, such as model/PSP_fully.jsonl ({error})") from error
    if not loss:
        raise UserError(f"{args.file}: holds no finished epoch yet")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    left.plot(*zip(*loss), color=BLUE)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    for split, color, style in (("val", ORANGE, "o-"), ("test", GREEN, "s--")):
        right.plot([check["epoch"] for check in checks], accuracy[split], style, color=color,
                   markersize=3, label={"val": "validation", "test": "test"}[split])
    if kept is not None:
        right.axvline(kept, color="0.5", linestyle=":", label="checkpoint kept")
    right.set(xlabel="epoch", ylabel="segment accuracy, %")
    right.legend()
    save(figure, args.output)


# ------------------------------------------------------------------------------------------- one video

def draw_video(args, network, names, ids):
    """Labels, similarities before and after pruning, and attention of the ten segments of one video."""
    files = find_files(args.data_dir, required_files(SPLITS))
    for split in SPLITS:
        dataset = AVEDataset(files, split, features="disk")
        position = (dataset.values["video"] == args.video).nonzero().flatten().tolist()
        if position:
            break
    else:
        raise UserError(f"--video {args.video}: is in none of the splits of {args.data_dir}, whose rows are 0 to {dataset.sizes.num_videos - 1}")
    batch = dataset[position]
    with torch.inference_mode():
        output = network(batch["audio"], batch["visual"])
    probability, predicted = output.logits[0].softmax(-1).max(-1)
    true, segments = batch["labels"][0], dataset.sizes.num_segments
    true_cells = true_cells_of(args.data_dir, args.video, dataset.sizes)
    frames = frames_of(args.frames, segments)

    figure = pyplot.figure(figsize=(1.25 * segments + 1, 8.2), constrained_layout=True)
    rows = figure.add_gridspec(3, 1, height_ratios=[1.1, 3, 1.6])
    draw_labels(figure.add_subplot(rows[0]), names, true, predicted, probability)
    matrices = [] if output.psp is None else [
        ("visual segments (rows) to audio, before pruning", output.psp.beta_va), ("after", output.psp.gamma_va),
        ("audio segments (rows) to visual, before pruning", output.psp.beta_av), ("after", output.psp.gamma_av)]
    places = rows[1].subgridspec(1, max(1, len(matrices)))
    for place, (title, matrix) in enumerate(matrices):
        axes = figure.add_subplot(places[place])
        image = axes.imshow(matrix[0].numpy(), cmap="cividis", vmin=0)
        axes.set_title(title, fontsize=8)
        figure.colorbar(image, ax=axes, shrink=0.6)
    maps = rows[2].subgridspec(1, segments)
    for t, attention in enumerate(output.attention[0].numpy()):
        axes = figure.add_subplot(maps[t])
        height, width = attention.shape
        if frames is not None:
            axes.imshow(frames[t], extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        axes.imshow(attention, cmap="cividis", vmin=0, vmax=float(output.attention.max()), alpha=1 if frames is None else 0.55)
        for y, x in np.argwhere(true_cells[t]) if true_cells is not None else ():
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.5))
        axes.set(xticks=[], yticks=[], title=f"{t}")
    figure.suptitle(f"video row {args.video} ({split})" + (f", {ids[args.video]}" if ids else "") + "; below: attention of each segment"
                    + ("; framed: where its source is seen" if true_cells is not None else ""), fontsize=9)
    save(figure, args.output)


def draw_labels(axes, names, true, predicted, probability):
    """Two rows of segments: true and predicted label, the latter with its probability."""
    background = len(names) - 1
    for t in range(len(true)):
        right = true[t] == predicted[t]
        for y, label, text in ((1, true[t], ""), (0, predicted[t], f"\n{100 * float(probability[t]):.0f} %")):
            color = "0.85" if label == background else "#a6d0e8" if y or right else "#f2b690"
            axes.add_patch(Rectangle((t, y), 1, 1, facecolor=color, edgecolor="white", hatch="" if right or y else "//"))
            axes.text(t + 0.5, y + 0.5, names[label].split(",")[0] + text, ha="center", va="center", fontsize=6.5)
    axes.set(xlim=(0, len(true)), ylim=(0, 2), xticks=np.arange(len(true)) + 0.5, yticks=[0.5, 1.5])
    axes.set_xticklabels(range(len(true)))
    axes.set_yticklabels(["predicted\n(hatched: wrong)", "true"], fontsize=7)


def true_cells_of(folder, row, sizes):
    """[T, h, w] of a synthetic video, None of a real one."""
    path = folder / "true_cells.h5"
    return read_true_cells(path, sizes)[row] if path.is_file() else None


def read_true_cells(path, sizes):
    """[videos, T, h, w] bool of true_cells.h5, which data/synthetic.py writes."""
    try:
        with h5py.File(path) as file:
            cells = file["avadataset"][:].astype(bool)
    except Exception as error:      # h5py raises nearly all of them on broken files
        raise UserError(f"{path}: holds no true cells, such as data/synthetic.py writes ({error})") from error
    expected = (sizes.num_videos, sizes.num_segments, *sizes.map_size)
    if cells.shape != expected:
        raise UserError(f"{path}: has shape {cells.shape}, but the data asks for {expected}; the two are not of the same data")
    return cells


def frames_of(folder, segments):
    """One picture for each segment, from a folder that holds as many, in the order of their names; None without a folder."""
    if folder is None:
        return None
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if len(paths) != segments:
        raise UserError(f"--frames {folder}: holds {len(paths)} PNG or JPEG files; one for each of the {segments} segments is needed")
    frames = []
    for path in paths:
        try:
            frames.append(pyplot.imread(path))
        except Exception as error:      # of a broken picture, its reader raises nearly all of them
            raise UserError(f"--frames: {path} cannot be read ({error})") from error
    return frames


# ------------------------------------------------------------------------------------------- all videos

def draw_categories(args, result, names):
    """Accuracy of each label, with its number of segments."""
    figure, axes = pyplot.subplots(figsize=(7, 0.24 * len(names) + 1), constrained_layout=True)
    for y, name in enumerate(names):
        accuracy, count = result.label_accuracy(y)
        axes.barh(y, 100 * (accuracy or 0), color=ORANGE if y == len(names) - 1 else BLUE)
        axes.text(101, y, f"{count}", va="center", fontsize=7)
    axes.set(yticks=range(len(names)), xlim=(0, 110), xlabel=f"accuracy on {args.split} segments, % (right: their number)")
    axes.set_yticklabels(names, fontsize=7)
    axes.axvline(100 * result.accuracy, color="0.3", linestyle="--", label=f"all: {100 * result.accuracy:.1f} %")
    axes.invert_yaxis()
    axes.legend(loc="upper left", fontsize=7)
    save(figure, args.output)


def draw_confusion(args, result, names):
    """What the segments of each true label are called, in % of them."""
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (result.labels.ravel(), result.predicted.ravel()), 1)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = pyplot.subplots(figsize=(9, 8), constrained_layout=True)
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=100)
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted", ylabel="true")
    axes.set_xticklabels(names, rotation=90, fontsize=7)
    axes.set_yticklabels(names, fontsize=7)
    for true, predicted in np.argwhere(share >= 10):
        axes.text(predicted, true, f"{share[true, predicted]:.0f}", ha="center", va="center", fontsize=5,
                  color="black" if share[true, predicted] > 50 else "white")
    figure.colorbar(image, ax=axes, shrink=0.7, label=f"% of the {args.split} segments of the true label")
    save(figure, args.output)


def boundary_errors(result, background):
    """(start errors, end errors, missed): predicted minus true, in segments, of the true events that a predicted one overlaps.

    Of several predicted events of the category, the one with the largest overlap counts.
    """
    starts, ends, missed = [], [], 0
    for labels, predicted in zip(result.labels, result.predicted):
        candidates = events_of(predicted, background)
        for category, start, end in events_of(labels, background):
            overlaps = [(min(end, b) - max(start, a), a, b) for c, a, b in candidates if c == category]
            overlap, a, b = max(overlaps, default=(0, 0, 0))
            if overlap <= 0:
                missed += 1
                continue
            starts.append(a - start)
            ends.append(b - end)
    return starts, ends, missed


def draw_boundaries(args, result, names):
    """By how many segments events begin and end too early or too late."""
    starts, ends, missed = boundary_errors(result, len(names) - 1)
    segments = result.labels.shape[1]
    figure, axes = pyplot.subplots(figsize=(7, 3.4), constrained_layout=True)
    values = np.arange(-segments + 1, segments)
    for errors, color, shift, hatch, name in ((starts, BLUE, -0.2, "", "start"), (ends, ORANGE, 0.2, "//", "end")):
        counts = [errors.count(value) for value in values]
        axes.bar(values + shift, counts, width=0.4, color=color, hatch=hatch, edgecolor="white", label=name)
    axes.set(xlabel="predicted minus true boundary, segments (left: too early)", ylabel=f"{args.split} events", yscale="symlog", xticks=values,
             title=f"{len(starts)} events found, {missed} missed")
    axes.title.set_fontsize(9)
    axes.legend()
    save(figure, args.output)


# ------------------------------------------------------------------------------------------- attention

def attention_hits(network, dataset, cells_path, batch_size=64):
    """(label, hit, chance) of all event segments of a split of synthetic data, [segments] each.

    hit: whether the region of the largest attention is one of the true ones; chance: the share of true ones in the map.
    """
    cells = read_true_cells(cells_path, dataset.sizes)
    labels, hits, chance = [], [], []
    with torch.inference_mode():
        for positions in torch.arange(len(dataset)).split(batch_size):
            batch = dataset[positions]
            true_cells = cells[batch["video"].numpy()].reshape(len(positions), dataset.sizes.num_segments, -1)      # [B, T, R]
            looked_at = network(batch["audio"], batch["visual"]).attention.flatten(2).argmax(-1)   # [B, T]
            event = (batch["labels"] != dataset.sizes.background).numpy()
            labels.append(batch["labels"].numpy()[event])
            hits.append(np.take_along_axis(true_cells, looked_at.numpy()[..., None], axis=2)[..., 0][event])
            chance.append(true_cells.mean(axis=2)[event])
    if not sum(map(len, hits)):
        raise UserError(f"{cells_path}: the videos asked for hold no event to look at; choose another --split")
    return tuple(map(np.concatenate, (labels, hits, chance)))


def draw_attention(args, network, dataset, names):
    """Share of each category's event segments in which attention is largest where the event truly is."""
    labels, hits, chance = attention_hits(network, dataset, args.data_dir / "true_cells.h5")
    print(f"{args.split}: attention is largest in a true cell in {100 * hits.mean():.1f} % of {len(hits)} event segments "
          f"(by chance: {100 * chance.mean():.1f} %)")
    categories = np.unique(labels)
    figure, axes = pyplot.subplots(figsize=(7, 0.24 * len(categories) + 1), constrained_layout=True)
    axes.barh(range(len(categories)), [100 * hits[labels == category].mean() for category in categories], color=BLUE)
    axes.axvline(100 * hits.mean(), color="0.3", linestyle="--", label=f"all: {100 * hits.mean():.1f} %")
    axes.axvline(100 * chance.mean(), color=ORANGE, linestyle=":", label=f"chance: {100 * chance.mean():.1f} %")
    axes.set(yticks=range(len(categories)), xlim=(0, 100), xlabel=f"{args.split} event segments with the largest attention in a true cell, %")
    axes.set_yticklabels([names[category] for category in categories], fontsize=7)
    axes.invert_yaxis()
    axes.legend(loc="upper left", fontsize=7)
    save(figure, args.output)


# ---------------------------------------------------------------------------------------------- options

OF_SPLIT = {"categories": draw_categories, "confusion": draw_confusion, "boundaries": draw_boundaries}


def options():
    parser = OptionParser(__doc__)
    parser.add_argument("figure", choices=["curves", "video", "attention", *OF_SPLIT])
    parser.add_argument("file", type=Path, metavar="FILE", help="a log (of curves) or a checkpoint (of all others)")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="for names and ids (default: DATA_DIR/Annotations.txt, if there)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="(default: %(default)s)")
    parser.add_argument("--video", type=bounded(int, 0), default=0, metavar="ROW", help="of `video` (default: %(default)s)")
    parser.add_argument("--frames", type=Path, metavar="DIR", help="of `video`: pictures to lay under the maps, one a segment")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the PNG (default: <figure>.png here)")
    args = parser.parse_args()
    args.output = args.output or Path(f"{args.figure}.png")
    return args


def main():
    args = options()
    if args.figure == "curves":
        draw_curves(args)
        return
    checkpoint = load(args.file)
    dataset = AVEDataset(find_files(args.data_dir, required_files([args.split])), args.split, features="disk")
    network = rebuild(checkpoint, args.file, dataset.sizes).eval()
    names, ids = names_and_ids(args, dataset.sizes)
    names = [name.replace("$", r"\$") for name in names]      # which matplotlib would take for a formula
    if args.figure == "video":
        draw_video(args, network, names, ids)
    elif args.figure == "attention":
        draw_attention(args, network, dataset, names)
    else:
        OF_SPLIT[args.figure](args, predict(network, dataset, batch_size=64), names)


if __name__ == "__main__":
    with one_line_errors():
        main()
