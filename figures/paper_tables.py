"""Trains the rows of the paper's tables with several seeds each, and compares every row with PSP (needs matplotlib).

    python figures/paper_tables.py --data_dir data --jobs 2                        # all tables, two rows side by side
    python figures/paper_tables.py main quirks --data_dir data/synthetic --nb_epoch 20 --batch_size 32
    python figures/paper_tables.py --report_only --output_dir figures/rehearsal    # compute the tables once more

Each row is one command with --runs, on one thread, in its own folder under OUTPUT_DIR/rows. Repeat the command after a
stop: rows with a result are skipped, unfinished ones are resumed. If a row fails, the others continue.
Written to OUTPUT_DIR: results.json.gz and, computed from it, tables.md and <table>.png of the sweeps.
"""
import gzip
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from drawing import draw_sweep  # noqa: E402
from model.evaluate import note_few_seeds  # noqa: E402
from run_results import accuracies, estimate, read_result, tables_text  # noqa: E402
from utils import ROOT, OptionParser, UserError, bounded, one_line_errors, write_atomically  # noqa: E402

PASSED_ON = ("nb_epoch", "check_epoch", "batch_size", "device", "precision")      # options of the rows' scripts
STALE, FIXED = "--quirks stale_avps", "--quirks fixed_batches"


class Row(NamedTuple):
    """One command; metric: 'test' for accuracy at the best validation epoch, 'best_test' for the best test accuracy."""
    label: str               # 'AVEL' has another script, 'PSP once more' other seeds
    setting: str
    options: str = ""
    value: float = None      # of the option that the table sweeps
    metric: str = "test"

    @property
    def name(self):
        """Of its folder and its stored result, such as fully_threshold_0p05; rows of the same training share it."""
        kind = {"AVEL": "AVEL", "PSP once more": "once_more"}.get(self.label, "")
        options = self.options.replace("--quirks", "released_quirks").replace("--", "").replace(".", "p")
        return "_".join(f"{self.setting} {kind} {options}".split())


STALE_ROW = Row("stale targets of L_avps", "fully", STALE, 100)


def psp_twice(setting, value=None):
    """The row that all others are compared with, and the same with other seeds."""
    return [Row("PSP", setting, value=value), Row("PSP once more", setting)]


def sweep(option, *values, label="", options=""):
    return [Row(f"{label}{option} {value}", "fully", f"{options} --{option} {value}", value) for value in values]


TABLES = {
    "main": ("Main result", [
        *psp_twice("fully"), Row("AVEL", "fully"), *psp_twice("weakly"), Row("AVEL", "weakly")]),
    "propagation": ("Propagation", [
        row for setting, switched in (("fully", "off"), ("weakly", "on")) for row in (
            *psp_twice(setting),
            Row("all pairs, not pruned", setting, "--threshold 0"),
            Row("no propagation", setting, "--threshold 1"),
            Row(f"second normalisation {switched}", setting, f"--second_normalisation {switched}"))]),
    "threshold": ("Pruning threshold", [
        *psp_twice("fully", 0.099), *sweep("threshold", 0.05, 0.09, 0.11, 0.13, 0.2),
        Row("threshold 0 (all pairs)", "fully", "--threshold 0", 0)]),
    "avps": ("Weight of L_avps, with its own and with stale targets", [
        *psp_twice("fully", 100), *sweep("LAMBDA", 0, 1, 10, 1000), STALE_ROW,
        *sweep("LAMBDA", 1, 10, 1000, label="stale targets, ", options=STALE)]),
    "weak": ("Weak supervision", [
        *psp_twice("weakly"),
        Row("no weighting branch", "weakly", "--weighting off"),
        Row("category instead of shares", "weakly", "--weak_labels tag"),
        Row("no background videos", "weakly", "--background_videos off")]),
    "modality": ("Attention and modality", [
        *psp_twice("fully"),
        Row("mean over regions", "fully", "--attention mean"),
        Row("audio only", "fully", "--modality audio"),
        Row("visual only", "fully", "--modality visual")]),
    "quirks": ("Quirks of the released code, and the choice of the checkpoint", [
        *psp_twice("fully"), STALE_ROW, Row("chosen on test", "fully", metric="best_test"),
        Row("stale targets, chosen on test", "fully", STALE, 100, "best_test"),
        *psp_twice("weakly"), Row("fixed batches", "weakly", FIXED),
        Row("chosen on test", "weakly", metric="best_test"),
        Row("fixed batches, chosen on test", "weakly", FIXED, metric="best_test")]),
}
SWEPT = {"threshold": ("pruning threshold", 0.099), "avps": ("weight of L_avps", 100)}      # and the paper's value


def row_command(row, args):
    """The command line of this row, without `python`."""
    given = {name: getattr(args, name) for name in ("data_dir", "runs", "seed", *PASSED_ON)}
    script = f"{row.setting}_supervised_main.py"
    if row.label == "PSP once more":
        given["seed"] += 1000
    elif row.label == "AVEL":
        script = f"model/avel.py --setting {row.setting}"
        given["nb_epoch"] = args.avel_epochs or args.nb_epoch
    elif "--quirks" in row.options:
        script = f"model/released_training.py --setting {row.setting}"
    passed_on = [text for name, value in given.items() if value is not None for text in (f"--{name}", str(value))]
    return [*script.split(), "--train", *row.options.split(), *passed_on]


def run_rows(commands, jobs):
    """Runs the commands {folder: command} that have no result; returns how many failed."""
    for folder, command in commands.items():
        path = folder / "command.txt"
        if path.is_file() and path.read_text() != shlex.join(command):
            raise UserError(f"{path}: belongs to another command; remove the folder, or choose another --output_dir")
    waiting = [folder for folder in commands if not list(folder.glob("*_runs.json"))]
    running, failed = {}, 0
    print(f"{len(waiting)} rows to do, {jobs} at a time", flush=True)
    try:
        while waiting or running:
            if waiting and len(running) < jobs:
                folder = waiting.pop(0)
                running[folder] = start_row(folder, commands[folder])
            time.sleep(0.1)
            for folder in [folder for folder, process in running.items() if process.poll() is not None]:
                code = running.pop(folder).returncode
                failed += code != 0
                print(f"{folder.name}: " + (f"failed, see {folder / 'errors.txt'}" if code else "done"), flush=True)
    finally:      # also if this process is stopped
        for process in running.values():
            process.terminate()
            process.wait()
    return failed


def start_row(folder, command):
    """The process of a row's command; it continues what an earlier one left."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "command.txt", shlex.join(command))
    with open(folder / "output.txt", "a") as output, open(folder / "errors.txt", "w") as errors:
        return subprocess.Popen(
            [sys.executable, ROOT / command[0], *command[1:], "--resume", "--output_dir", folder],
            stdout=output, stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1"})      # same sums with any --jobs


def report_tables(folder):
    """Computes tables.md and the sweeps from the folder's results.json.gz, and prints the tables."""
    stored = json.loads(gzip.decompress((folder / "results.json.gz").read_bytes()))
    text = tables_text(stored, TABLES)
    write_atomically(folder / "tables.md", text)
    print(text)
    note_few_seeds(min(len(row["result"]["runs"]) for row in stored["rows"].values()))
    for name in SWEPT.keys() & stored["tables"]:
        curves = {}
        for row in sorted((row for row in TABLES[name][1] if row.value is not None), key=lambda row: row.value):
            points = curves.setdefault("stale targets" if "stale_avps" in row.options else "PSP", [])
            points.append((row.value, *estimate(accuracies(stored["rows"][row.name]["result"])).values()))
        draw_sweep(folder / f"{name}.png", *SWEPT[name], curves, stored["data"])


def main():
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("tables", nargs="*", metavar="TABLE", choices=["all", *TABLES], default="all",
        help=f"{', '.join(TABLES)} (default: all)")
    add("--report_only", action="store_true", help="run nothing; use OUTPUT_DIR/results.json.gz")
    add("--output_dir", type=Path, default=Path("figures/tables"), metavar="DIR", help="(default: %(default)s)")
    add("--note", help="what the data is, for the heads of tables and plots (default: the folder)")
    add("--runs", type=bounded(int, 2, 1000), default=10, metavar="N", help="seeds of each row (default: %(default)s)")
    add("--jobs", type=bounded(int, 1, 1000), default=1, metavar="N", help="rows side by side (default: %(default)s)")
    add("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    add("--seed", type=bounded(int, 0, 2**31), default=123, help="the first one (default: %(default)s)")
    add("--avel_epochs", metavar="N", help="epochs of AVEL's rows (default: as --nb_epoch)")
    for name in PASSED_ON:
        add(f"--{name}", help="as in the main scripts")
    args = parser.parse_args()

    if args.report_only:
        return report_tables(args.output_dir)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))      # `run_rows` then ends its rows
    names = [name for name in TABLES if name in args.tables or "all" in args.tables]
    commands = {args.output_dir / "rows" / row.name: row_command(row, args)      # tables share some of them
                for name in names for row in TABLES[name][1]}
    failed = run_rows(commands, args.jobs)
    if failed:
        raise UserError(f"{failed} of the rows failed, so there are no tables yet; see above, and repeat the command")
    rows = {folder.name: {"command": shlex.join(["OMP_NUM_THREADS=1", "python", *command]),
                          "result": read_result(folder)[0]} for folder, command in commands.items()}
    content = {"data": args.note or str(args.data_dir), "tables": names, "rows": rows}
    write_atomically(args.output_dir / "results.json.gz", gzip.compress(json.dumps(content).encode(), mtime=0))
    report_tables(args.output_dir)


if __name__ == "__main__":
    with one_line_errors():
        main()
