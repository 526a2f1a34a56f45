"""Compares trainings with --runs: accuracies, their difference to the first one, and curves (needs matplotlib).

    python figures/compare_runs.py FOLDER FOLDER --names baseline changed

FOLDER is the --output_dir of such a training or, if it has several, the file there, such as FOLDER/PSP_fully_runs.json.
Differences, p and gains are those of paper_tables.py, p adjusted for the differences that are printed. Different
training losses are not drawn.
"""
import sys
from pathlib import Path

import numpy as np
from drawing import PANELS, STYLES, draw_logs, picture_path
from run_results import accuracies, adjust, difference, estimate, format_estimate, gain, read_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from model import avel  # noqa: E402
from model.evaluate import note_few_seeds  # noqa: E402
from model.options import group_options  # noqa: E402
from model.released_training import MAINS  # noqa: E402
from utils import OptionParser, one_line_errors  # noqa: E402


def print_comparison(names, results):
    """Accuracies at the best validation epoch, difference to the first training, and gain late in training."""
    print("| | validation | test | difference | gain |")
    print("|---" * 5 + "|")
    differences = [None, *adjust([difference(result, results[0]) for result in results[1:]])]
    for name, result, found in zip(names, results, differences):
        values = (100 * np.array([run[split] for run in result["runs"]]) for split in ("val", "test"))
        val, test = (f"{value.mean():.2f} ± {value.std(ddof=1):.2f}" for value in values)
        interval = "({low:.1f} to {high:.1f})".format(**estimate(accuracies(result)))
        print(f"| {name} | {val} | {test} {interval} | {format_estimate(found)} | {format_estimate(gain(result))} |")
    first = results[0]["options"]
    for name, result in zip(names[1:], results[1:]):
        options = result["options"]
        changed = [f"{key} {first.get(key)} / {options.get(key)}" for key in sorted({*first, *options})
                   if first.get(key) != options.get(key)]
        print(f"{names[0]} / {name}: {', '.join(changed) or 'the same options'}")
    note_few_seeds(min(len(result["runs"]) for result in results))


def loss_options(result):
    """What the training loss depends on: name of the result, stale targets, options that change the loss or are new."""
    model_name, setting = result["name"].rsplit("_", 1)
    parser = (avel if model_name == "AVEL" else MAINS[setting]).options()
    defaults = {action.dest: action.default for action in parser._actions}
    no_matter = {"quirks", *defaults} - {*group_options(parser.loss)}
    options = {name: value for name, value in {**defaults, **result["options"]}.items() if name not in no_matter}
    return result["name"], "stale_avps" in (result["options"].get("quirks") or []), options


def main():
    parser = OptionParser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the folders (default: as they are)")
    parser.add_argument("--output", type=picture_path, default=Path("compare.png"), metavar="FILE",
                        help=".png, .pdf or .svg (default: %(default)s here)")
    args = parser.parse_args()
    names = args.names or [folder.name.removesuffix("_runs.json") for folder in args.folders]
    if len(names) != len(args.folders) or len(names) > len(STYLES):
        parser.error(f"give at most {len(STYLES)} folders, and a name for each or none")
    results, logs = zip(*map(read_result, args.folders))
    print_comparison(names, results)
    panels = list(PANELS)
    if any(loss_options(result) != loss_options(results[0]) for result in results):
        print("training losses are not drawn: they are different ones")
        panels.remove("loss")
    draw_logs(names, logs, panels, args.output)


if __name__ == "__main__":
    with one_line_errors():
        main()
