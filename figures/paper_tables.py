"""Trains the rows of the paper's tables with several seeds each, and compares every row with PSP.

    python figures/paper_tables.py --data_dir data --jobs 2                        # all tables, two rows side by side
    python figures/paper_tables.py main quirks --data_dir data/synthetic --runs 3 --nb_epoch 20 --batch_size 32
    python figures/paper_tables.py --report_only --output_dir figures/rehearsal    # compute the tables once more

Each row is one command with --runs, on one thread, in its own folder under OUTPUT_DIR/rows. Repeat the command after a
stop: rows with a result are skipped, unfinished ones are resumed. A failed row is reported while the others continue.
Written to OUTPUT_DIR: results.json.gz (of all rows, down to the correct segments of each video) and, computed from it,
tables.json, tables.md and <table>.png of the sweeps. Needs matplotlib.
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from drawing import draw_sweep  # noqa: E402
from run_results import markdown, read_result, table_entry  # noqa: E402
from utils import OptionParser, UserError, bounded, one_line_errors, write_atomically  # noqa: E402

REHEARSAL_REVISION = "f752341"      # of the stored results in figures/rehearsal, which do not name theirs
PASSED_ON = ("nb_epoch", "check_epoch", "batch_size", "device", "precision")      # options of the rows' scripts


class Row(NamedTuple):
    """One command; metric: 'test' for accuracy at the best validation epoch, 'best_test' for the best test accuracy."""
    label: str
    setting: str
    options: tuple = ()
    model: str = "PSP"
    quirks: str = ""         # of the released code
    metric: str = "test"
    value: float = None      # of the option that the table sweeps
    curve: str = "PSP"       # of the sweep
    seed_shift: int = 0

    @property
    def name(self):
        """Of its folder and its stored result, such as fully_threshold_0p05; rows of the same training share it."""
        parts = [self.setting, *([] if self.model == "PSP" else [self.model]),
                 *(["released_quirks", self.quirks] if self.quirks else []), *self.options,
                 *(["once_more"] if self.seed_shift else [])]
        return "_".join(parts).replace("--", "").replace(".", "p")


STALE = Row("stale targets of L_avps", "fully", quirks="stale_avps", value=100, curve="stale targets")
FIXED = Row("fixed batches", "weakly", quirks="fixed_batches")


def psp_twice(setting, value=None):
    """The row that all others are compared with, and the same with other seeds."""
    return [Row("PSP", setting, value=value), Row("PSP once more", setting, seed_shift=1000)]


def sweep(option, *values):
    return [Row(f"{option} {value}", "fully", (f"--{option}", str(value)), value=value) for value in values]


TABLES = {
    "main": ("Main result", [
        *psp_twice("fully"), Row("AVEL", "fully", model="AVEL"),
        *psp_twice("weakly"), Row("AVEL", "weakly", model="AVEL")]),
    "propagation": ("Propagation", [
        row for setting, switched in (("fully", "off"), ("weakly", "on")) for row in (
            *psp_twice(setting),
            Row("all pairs, not pruned", setting, ("--threshold", "0")),
            Row("no propagation", setting, ("--threshold", "1")),
            Row(f"second normalisation {switched}", setting, ("--second_normalisation", switched)))]),
    "threshold": ("Pruning threshold", [
        *psp_twice("fully", value=0.099), *sweep("threshold", 0.05, 0.09, 0.11, 0.13, 0.2),
        Row("threshold 0 (all pairs)", "fully", ("--threshold", "0"), value=0)]),
    "avps": ("Weight of L_avps, with its own and with stale targets", [
        *psp_twice("fully", value=100), *sweep("LAMBDA", 0, 1, 10, 1000), STALE,
        *(row._replace(label=f"stale targets, {row.label}", quirks=STALE.quirks, curve=STALE.curve)
          for row in sweep("LAMBDA", 1, 10, 1000))]),
    "weak": ("Weak supervision", [
        *psp_twice("weakly"),
        Row("no weighting branch", "weakly", ("--weighting", "off")),
        Row("category instead of shares", "weakly", ("--weak_labels", "tag")),
        Row("no background videos", "weakly", ("--background_videos", "off"))]),
    "modality": ("Attention and modality", [
        *psp_twice("fully"),
        Row("mean over regions", "fully", ("--attention", "mean")),
        Row("audio only", "fully", ("--modality", "audio")),
        Row("visual only", "fully", ("--modality", "visual"))]),
    "quirks": ("Quirks of the released code, and the choice of the checkpoint", [
        *psp_twice("fully"), STALE, Row("chosen on test", "fully", metric="best_test"),
        STALE._replace(label="stale targets, chosen on test", metric="best_test"),
        *psp_twice("weakly"), FIXED, Row("chosen on test", "weakly", metric="best_test"),
        FIXED._replace(label="fixed batches, chosen on test", metric="best_test")]),
}
SWEPT = {"threshold": ("pruning threshold", 0.099), "avps": ("weight of L_avps", 100)}      # and the paper's value


def row_command(row, args):
    """The command line of this row, without `python`."""
    given = {name: getattr(args, name) for name in ("data_dir", "runs", "seed", *PASSED_ON)}
    given["seed"] += row.seed_shift
    if row.model == "AVEL":
        script = ["model/avel.py", "--setting", row.setting]
        given["nb_epoch"] = args.avel_epochs or args.nb_epoch
    elif row.quirks:
        script = ["model/released_training.py", "--setting", row.setting, "--quirks", row.quirks]
    else:
        script = [f"{row.setting}_supervised_main.py"]
    passed_on = [text for name, value in given.items() if value is not None for text in (f"--{name}", str(value))]
    return [*script, "--train", *row.options, *passed_on]


def start_row(folder, command):
    """The process of a row's command; it continues what an earlier one left."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "command.txt", shlex.join(command))
    with open(folder / "output.txt", "a") as output, open(folder / "errors.txt", "w") as errors:
        return subprocess.Popen(
            [sys.executable, ROOT / command[0], *command[1:], "--resume", "--output_dir", folder],
            stdout=output, stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1"})      # same sums with any --jobs


def run_rows(commands, jobs):
    """Runs the commands {folder: command} that have no result, so many at a time; they end with this process.

    Returns {folder: last line of its error} of failed ones. Raises UserError if a folder belongs to another command.
    """
    for folder, command in commands.items():
        path = folder / "command.txt"
        if path.is_file() and path.read_text() != shlex.join(command):
            raise UserError(f"{path}: belongs to another command; remove the folder, or choose another --output_dir")
    waiting = [folder for folder in commands if not list(folder.glob("*_runs.json"))]
    running, errors = {}, {}
    print(f"{len(waiting)} rows to do, {jobs} at a time", flush=True)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                folder = waiting.pop(0)
                running[folder] = start_row(folder, commands[folder])
            time.sleep(0.1)
            for folder in [folder for folder, process in running.items() if process.poll() is not None]:
                if running.pop(folder).returncode:
                    lines = (folder / "errors.txt").read_text().splitlines()
                    errors[folder] = lines[-1] if lines else "ended without a message"
                print(f"{folder.name}: {errors.get(folder, 'done')}; {len(waiting) + len(running)} left", flush=True)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
    return errors


def report_tables(folder):
    """Computes tables.json, tables.md and the sweeps from the folder's results.json.gz, and prints the tables."""
    path = folder / "results.json.gz"
    if not path.is_file():
        raise UserError(f"{path}: does not exist; run the tables first, without --report_only")
    stored = json.loads(gzip.decompress(path.read_bytes()))
    results = [row["result"] for row in stored["rows"].values() if "result" in row]
    revisions = {revision for result in results for revision in result.get("revisions", [REHEARSAL_REVISION])}
    tables = {name: {"title": TABLES[name][0], "rows": [table_entry(row, stored["rows"]) for row in TABLES[name][1]]}
              for name in stored["tables"]}
    content = {"data": stored["data"], "revisions": sorted(revisions), "tables": tables}
    write_atomically(folder / "tables.json", json.dumps(content, indent=1) + "\n")
    write_atomically(folder / "tables.md", markdown(content))
    print(markdown(content))
    for name in SWEPT.keys() & tables.keys():
        draw_sweep(folder / f"{name}.png", *SWEPT[name], tables[name]["rows"], stored["data"])


def options():
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
    return parser


def main():
    args = options().parse_args()
    if args.report_only:
        report_tables(args.output_dir)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))      # `run_rows` then ends its rows
    names = [name for name in TABLES if name in args.tables or "all" in args.tables]
    rows = {row.name: row for name in names for row in TABLES[name][1]}      # tables share some of them
    commands = {args.output_dir / "rows" / name: row_command(row, args) for name, row in rows.items()}
    errors = run_rows(commands, args.jobs)
    stored = {}
    for folder, command in commands.items():
        found = {"error": errors[folder]} if folder in errors else {"result": read_result(folder)[0]}
        stored[folder.name] = {"command": shlex.join(["OMP_NUM_THREADS=1", "python", *command]), **found}
    content = {"data": args.note or str(args.data_dir), "tables": names, "rows": stored}
    write_atomically(args.output_dir / "results.json.gz", gzip.compress(json.dumps(content).encode(), mtime=0))
    report_tables(args.output_dir)
    if errors:
        raise UserError(f"{len(errors)} of the rows failed; see above, and errors.txt in their folders")


if __name__ == "__main__":
    with one_line_errors():
        main()
