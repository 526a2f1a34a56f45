"""Compares trainings with --runs: accuracies, their difference to the first one, and curves (needs matplotlib).

    python figures/compare_runs.py FOLDER FOLDER --names baseline changed

FOLDER is the --output_dir of such a training or, if it has several, the file there, such as FOLDER/PSP_fully_runs.json.
Differences, p and gains: as in paper_tables.py, p adjusted for those printed. Different training losses are not drawn.
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from drawing import PANELS, STYLES, draw_logs  # noqa: E402
from model import avel  # noqa: E402
from model.evaluate import note_few_seeds  # noqa: E402
from model.options import group_options  # noqa: E402
from model.released_training import MAINS  # noqa: E402
from run_results import adjust, difference, read_result, result_cells  # noqa: E402
from utils import OptionParser, one_line_errors  # noqa: E402


def loss_options(result):
    """What the training loss depends on: name of the result, stale targets, options of the loss or of other code."""
    model_name, setting = result["name"].rsplit("_", 1)
    parser = (avel if model_name == "AVEL" else MAINS[setting]).options()
    others = {"quirks", *(action.dest for action in parser._actions)} - {*group_options(parser.loss)}
    options = {name: value for name, value in result["options"].items() if name not in others}
    return result["name"], "stale_avps" in result["options"].get("quirks", []), options


def main():
    parser = OptionParser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the folders (default: as they are)")
    parser.add_argument("--output", type=Path, default=Path("compare.png"), metavar="FILE",
                        help="such as .png, .pdf or .svg (default: %(default)s here)")
    args = parser.parse_args()
    names = args.names or [folder.name.removesuffix("_runs.json") for folder in args.folders]
    if len(names) != len(args.folders) or len(names) > len(STYLES):
        parser.error(f"give at most {len(STYLES)} folders, and a name for each or none")
    results, logs = zip(*map(read_result, args.folders))

    print("| | validation | n | test | difference | gain |\n|---|---|---|---|---|---|")
    differences = [None, *adjust([difference(result, results[0]) for result in results[1:]])]
    for name, result, found in zip(names, results, differences):
        val = [100 * run["val"] for run in result["runs"]]
        cells = name, f"{np.mean(val):.1f} ± {np.std(val, ddof=1):.1f}", *result_cells(result, "test", found)
        print(f"| {' | '.join(cells)} |")
    described = [{**result["options"], "test_features": result.get("test_features"),
                  "code": sorted({run.get("code", "unknown") for run in result["runs"]})} for result in results]
    for name in sorted({name for one in described for name in one}):
        values = [one.get(name) for one in described]
        if any(value != values[0] for value in values):
            print(f"{name}: {' / '.join(map(str, values))}")
    note_few_seeds(min(len(result["runs"]) for result in results))

    panels = list(PANELS)
    if any(loss_options(result) != loss_options(results[0]) for result in results):
        print("training losses are not drawn: they are different ones")
        panels.remove("loss")
    draw_logs(names, logs, panels, args.output)


if __name__ == "__main__":
    with one_line_errors():
        main()
