"""Trainings with --runs side by side: accuracies, differences, curves, and how similar they make sound and picture.

    python figures/compare_runs.py FOLDER FOLDER --names baseline changed --data_dir data

FOLDER is the --output_dir of such a training; differences are to the first one, as in the tables of paper_tables.py.
Curves show mean and standard deviation over the seeds, of the loss: of its logarithm. From the checkpoints, over all
segments of a split: the cross entropy of their labels, and the cosine of visual and audio features (that of L_avps).
"""
import sys
from pathlib import Path

import numpy as np
import torch
from drawing import BLUE, GREEN, ORANGE, draw_band, pyplot, save
from run_logs import log_files, read_log, read_result
from table_report import difference, format_difference, format_last_third, last_third

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.files import UserError  # noqa: E402
from dataset import AVEDataset, find_files, required_files  # noqa: E402
from model.checkpoint import load, rebuild  # noqa: E402
from psp_model import fully_supervised_loss  # noqa: E402
from utils import OptionParser, one_line_errors  # noqa: E402

SPLITS = ("train", "test")
MEASURED = ("cross entropy", "similarity, event", "similarity, background")
STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"), ("0.3", "-."))      # of the folders


def print_differences(names, results, logs):
    """Accuracies at the best validation epoch, the difference to the first folder, and whether training was over."""
    print("| | validation | test | difference | 95 % over seeds | 95 % over test videos | last third |")
    print("|---" * 7 + "|")
    for name, result, of_folder in zip(names, results, logs):
        accuracies = [np.array([100 * run[split] for run in result["runs"]]) for split in ("val", "test")]
        cells = [name, *(f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" for values in accuracies), "-", "-", "-"]
        if result is not results[0]:
            found = difference("test", result, results[0])
            cells[3:] = [format_difference(found), *("{:+.2f} to {:+.2f}".format(*found[interval])
                                                     for interval in ("t_interval", "video_interval"))]
        cells.append(format_last_third(last_third([list(log.val.values()) for log in of_folder])))
        print("| " + " | ".join(cells) + " |")
    print()


@torch.inference_mode()
def measure(path, dataset):
    """The values of `MEASURED` for the checkpoint at `path`, over all segments of the dataset."""
    network = rebuild(load(path), path, dataset.sizes).eval()
    output = network(dataset.values["audio"], dataset.values["visual"])
    if output.similarity is None:
        raise UserError(f"{path}: is of a network without L_avps, so it has no similarity to show")
    labels, similarity = dataset.values["labels"], output.similarity
    event = labels != dataset.sizes.background
    return (fully_supervised_loss(output, labels, LAMBDA=0).item(), similarity[event].mean().item(),
            similarity[~event].mean().item())


def draw(names, logs, measured, path):
    """Training loss and accuracies by epoch; the similarities as bars."""
    figure, ((loss, similarity), (val, test)) = pyplot.subplots(2, 2, figsize=(7, 4.6), constrained_layout=True)
    test.sharey(val)
    for axes, value, label in ((loss, "loss", "training loss"), (val, "val", "validation accuracy, %"),
                               (test, "test", "test accuracy, %")):
        for of_folder, name, (colour, style) in zip(logs, names, STYLES):
            draw_band(axes, [getattr(log, value) for log in of_folder], style, colour, name, logarithmic=axes is loss)
        axes.set(xlabel="epoch", ylabel=label)
    loss.set_title(f"mean ± standard deviation of {len(logs[0])} seeds (loss: of its logarithm)", loc="left")
    groups = [f"{split}\n{kind}" for split in SPLITS for kind in ("event", "background")]
    width = 0.8 / len(names)
    for number, (of_folder, (colour, _)) in enumerate(zip(measured, STYLES)):
        values = of_folder[:, :, 1:].reshape(len(of_folder), -1)      # [seeds, groups]
        similarity.bar(np.arange(len(groups)) + (number + 0.5) * width - 0.4, values.mean(axis=0), width,
                       yerr=values.std(axis=0, ddof=1), color=colour, error_kw={"linewidth": 0.8})
    similarity.set_xticks(range(len(groups)), groups)
    similarity.set_ylabel("cosine of audio and visual")
    similarity.axhline(0, color="0.3", linewidth=0.6)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper center", ncols=len(names))
    save(figure, path)


def print_measured(names, measured):
    """Mean and standard deviation over the seeds, as a Markdown table."""
    print("| | " + " | ".join(f"{value}, {split}" for split in SPLITS for value in MEASURED) + " |")
    print("|---" * (1 + len(SPLITS) * len(MEASURED)) + "|")
    for name, of_folder in zip(names, measured):
        values = of_folder.reshape(len(of_folder), -1)
        print(f"| {name} | " + " | ".join(f"{mean:.3f} ± {std:.3f}" for mean, std in
                                          zip(values.mean(axis=0), values.std(axis=0, ddof=1))) + " |")


def main():
    parser = OptionParser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the folders (default: as they are)")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("compare.png"), metavar="FILE",
                        help="the PNG (default: %(default)s here)")
    args = parser.parse_args()
    names = args.names or [folder.name for folder in args.folders]
    if len(names) != len(args.folders):
        parser.error(f"--names gives {len(names)} names for {len(args.folders)} folders")
    if len(names) > len(STYLES):
        parser.error(f"{len(names)} folders are too many for one picture; give {len(STYLES)} at most")
    results = [read_result(folder) for folder in args.folders]
    paths = [log_files(folder, result) for folder, result in zip(args.folders, results)]
    if len({(len(result["runs"]), result["test_digest"]) for result in results}) > 1:
        raise UserError(f"{', '.join(map(str, args.folders))}: must be of the same number of seeds and the same test "
                        "videos, and are not")
    logs = [[read_log(path) for path in of_folder] for of_folder in paths]
    files = find_files(args.data_dir, required_files(SPLITS))
    datasets = {split: AVEDataset(files, split) for split in SPLITS}
    if datasets["test"].digest != results[0]["test_digest"]:
        raise UserError(f"{args.data_dir}: is not the data that {args.folders[0]} was tested on; give that with "
                        "--data_dir")
    measured = [np.array([[measure(path.with_suffix(".pt"), datasets[split]) for split in SPLITS]
                          for path in of_folder]) for of_folder in paths]      # [seeds, splits, MEASURED] each
    print_differences(names, results, logs)
    print_measured(names, measured)
    draw(names, logs, measured, args.output)


if __name__ == "__main__":
    with one_line_errors():
        main()
