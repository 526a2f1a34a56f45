"""Runs the paper's tables, each row with several seeds, and sets every row beside that of PSP.

    python figures/paper_tables.py --data_dir data --jobs 2                        # all tables, two rows side by side
    python figures/paper_tables.py main quirks --data_dir data/synthetic --runs 3 --nb_epoch 20 --batch_size 32

Every row is one command of the main scripts, with --runs, on one thread, in a folder of its own under OUTPUT_DIR/rows.
Finished rows are kept, interrupted ones are resumed, and failed ones are reported while the others continue.
Written to OUTPUT_DIR: tables.json, tables.md and <table>.png of the sweeps (needs matplotlib).

A difference to the PSP row of the same setting is called measurable if zero lies neither in the 95 % t-interval of the
differences seed by seed, nor in the 95 % bootstrap interval over the test videos of the difference of the mean over
seeds. 'PSP once more' is PSP with other seeds: what two trainings that differ by nothing else differ by.
"""
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from data.files import UserError, keep_aside, lock, write_atomically  # noqa: E402
from run_logs import log_files, read_log, read_result  # noqa: E402
from table_report import (BASELINE, NOISE_FLOOR, by_size, draw_sweep, figures_of, last_third,  # noqa: E402
                          markdown)
from utils import OptionParser, bounded, one_line_errors  # noqa: E402

OF_MAIN = ("nb_epoch", "check_epoch", "batch_size", "device", "precision", "features")      # options that are passed on


class Row(NamedTuple):
    """One command; metric 'test' is accuracy at the best validation epoch, 'best_test' the best test accuracy."""
    label: str
    setting: str
    options: tuple = ()
    published: float = None
    metric: str = "test"
    value: float = None       # of the option that the table sweeps
    seed_shift: int = 0


# ---------------------------------------------------------------------------------------------- the rows

PSP = {setting: Row(BASELINE, setting) for setting in ("fully", "weakly")}
# With the batches of PSP, so that the two differ in nothing but the targets.
STALE = Row("stale targets of L_avps", "fully", ("--released_quirks", "stale_avps", "--batches", "shuffled"))


def psp_twice(setting, **fields):
    """The row that all others are compared with, and the same with other seeds: the noise floor."""
    return [PSP[setting]._replace(**fields), Row(NOISE_FLOOR, setting, seed_shift=1000)]


def sweep(option, values):
    return [Row(f"{option} {value}", "fully", (f"--{option}", str(value)), value=value) for value in values]


TABLES = {
    "main": ("Main result", [
        *psp_twice("fully", published=77.8), Row("AVEL", "fully", ("--model_name", "AVEL"), published=72.7),
        *psp_twice("weakly", published=73.5), Row("AVEL", "weakly", ("--model_name", "AVEL"))]),
    "propagation": ("Propagation", [
        row for setting, switched in (("fully", "off"), ("weakly", "on")) for row in (
            *psp_twice(setting),
            Row("all pairs, not pruned", setting, ("--propagation", "all-pairs")),
            Row("no propagation", setting, ("--propagation", "none")),
            Row(f"second normalisation {switched}", setting, ("--second_normalisation", switched)))]),
    "threshold": ("Pruning threshold", [
        *psp_twice("fully", value=0.099), *sweep("threshold", (0.05, 0.09, 0.11, 0.13, 0.2)),
        Row("threshold 0 (all pairs)", "fully", ("--propagation", "all-pairs"), value=0)]),
    "avps": ("Weight of L_avps, with its own and with stale targets", [
        *psp_twice("fully", value=100), *sweep("LAMBDA", (0, 1, 10, 1000)), STALE,
        *(Row(f"stale targets, LAMBDA {value}", "fully", (*STALE.options, "--LAMBDA", str(value)))
          for value in (1, 10, 1000))]),
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
        *psp_twice("fully"),
        STALE,
        Row("chosen on test", "fully", metric="best_test"),
        Row("stale targets, chosen on test", "fully", STALE.options, metric="best_test"),
        *psp_twice("weakly"),
        Row("fixed batches", "weakly", ("--released_quirks", "fixed_batches")),
        Row("chosen on test", "weakly", metric="best_test"),
        Row("fixed batches, chosen on test", "weakly", ("--released_quirks", "fixed_batches"), metric="best_test")]),
}
SWEPT = {"threshold": "pruning threshold", "avps": "weight of L_avps"}


# ------------------------------------------------------------------------------------------- running them

def command_of(row, args):
    """What a person would type for this row behind `python`."""
    given = {name: getattr(args, name) for name in OF_MAIN}
    if "AVEL" in row.options and args.avel_epochs is not None:
        given["nb_epoch"] = args.avel_epochs
    options = [*row.options, "--data_dir", args.data_dir, "--runs", args.runs, "--seed", args.seed + row.seed_shift]
    for name, value in given.items():
        options += [] if value is None else [f"--{name}", value]
    return [f"{row.setting}_supervised_main.py", "--train", *map(str, options)]


def folder_of(row, args):
    name = "_".join([row.setting, *row.options, *(["once_more"] if row.seed_shift else [])])
    return args.output_dir / "rows" / name.replace("--", "").replace(".", "p")


def finished(row, args):
    """What the row's command wrote at its end; None where it has not ended, or was another command."""
    folder = folder_of(row, args)
    command = folder / "command.txt"
    if not command.is_file() or command.read_text() != shlex.join(command_of(row, args)):
        return None
    try:
        return read_result(folder)
    except UserError:      # not there yet, or damaged: the row goes on, and writes it again
        return None


def start(row, args):
    """The process of the row's command, which goes on where it was stopped."""
    folder, (script, *options) = folder_of(row, args), command_of(row, args)
    text, command = shlex.join([script, *options]), folder / "command.txt"
    same = command.is_file() and command.read_text() == text
    if not same:
        keep_aside([folder])      # of another command
        folder.mkdir(parents=True)
        write_atomically(command, text)
    with open(folder / "output.txt", "a") as output, open(folder / "errors.txt", "w") as errors:
        return subprocess.Popen(
            [sys.executable, ROOT / script, *options, "--output_dir", folder, *(["--resume"] if same else [])],
            stdout=output, stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1"})      # same sums with any --jobs


def run_all(rows, args):
    """Runs args.jobs rows at a time and returns {folder: error} of those that failed.

    On SIGTERM or Ctrl-C, the rows under way end, too; they go on from the state that they saved last.
    """
    todo = {}
    for row in rows:
        if finished(row, args) is None:
            todo.setdefault(folder_of(row, args), row)      # tables share rows
    waiting, running, errors, started = list(todo), {}, {}, time.monotonic()
    print(f"{len(todo)} rows of {args.runs} runs to do, {args.jobs} at a time", flush=True)
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                folder = waiting.pop(0)
                running[folder] = start(todo[folder], args)
            time.sleep(0.1)
            for folder in [folder for folder, script in running.items() if script.poll() is not None]:
                if running.pop(folder).returncode:
                    errors[folder] = last_line(folder / "errors.txt")
                show_progress(todo, folder, len(waiting) + len(running), time.monotonic() - started, errors)
    except (KeyboardInterrupt, SystemExit):
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        for script in running.values():
            script.terminate()
        for script in running.values():
            script.wait()
        add_time(args, time.monotonic() - started)
    return errors


def last_line(path):
    lines = path.read_text(errors="replace").replace("\r", "\n").split("\n")      # \r: of progress bars
    return next((line for line in reversed(lines) if line.strip()), "ended without a message")


def show_progress(todo, folder, left, seconds, errors):
    done, row = len(todo) - left, todo[folder]
    print(f"[{done}/{len(todo)}] {row.setting}: {row.label}: {errors.get(folder, 'done')}"
          + (f"   (about {seconds / done * left / 60:.0f} min left)" if left else ""), flush=True)


def add_time(args, seconds):
    """Adds to the time that the rows of this folder took, over all calls, and prints it."""
    path = args.output_dir / "rows" / "seconds.txt"
    total = seconds + (float(path.read_text()) if path.is_file() else 0)
    write_atomically(path, f"{total:.1f}")
    print(f"{seconds / 60:.1f} min; with all earlier calls {total / 60:.1f} min", flush=True)


# ------------------------------------------------------------------------------------------- what they gave

def entry_of(row, args, errors):
    """The row's entry of tables.json."""
    entry = {**row._asdict(), "command": shlex.join(["OMP_NUM_THREADS=1", "python", *command_of(row, args)])}
    result, psp = finished(row, args), finished(PSP[row.setting], args)
    if result is None:
        return {**entry, "error": errors.get(folder_of(row, args), "not run")}
    if psp is not None and result["test_digest"] != psp["test_digest"]:
        return {**entry, "error": f"was run on other data than the row of PSP; delete {folder_of(row, args)} or "
                                  f"{folder_of(PSP[row.setting], args)}, whichever is the older, and run it again"}
    try:
        accuracies = [list(read_log(path).val.values()) for path in log_files(folder_of(row, args), result)]      # in %
    except UserError as error:
        return {**entry, "error": str(error)}
    return {**entry, **figures_of(row.metric, result, None if row.label == BASELINE else psp),
            "last_third": last_third(accuracies)}


def options():
    parser = OptionParser(__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--output_dir", type=Path, default=Path("figures/tables"), metavar="DIR",
                        help="(default: %(default)s)")
    parser.add_argument("--note", help="what the data is, for the heads of tables and plots (default: the folder)")
    parser.add_argument("--runs", type=bounded(int, 2, 1000), default=10, metavar="N",
                        help="seeds of each row (default: %(default)s)")
    parser.add_argument("--jobs", type=bounded(int, 1, 1000), default=1, metavar="N",
                        help="rows side by side, each on one thread (default: %(default)s)")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=123, help="the first one (default: %(default)s)")
    parser.add_argument("--avel_epochs", metavar="N", help="epochs of AVEL's rows (default: as --nb_epoch)")
    for name in OF_MAIN:
        parser.add_argument(f"--{name}", help="as in the main scripts")
    args = parser.parse_args()
    unknown = [name for name in args.tables if name not in TABLES]
    if unknown:
        parser.error(f"{unknown[0]!r} is no table; there are {', '.join(TABLES)}")
    args.tables = args.tables or list(TABLES)
    return args


def main():
    args = options()
    chosen = {name: TABLES[name] for name in TABLES if name in args.tables}
    rows = [row for _, rows in chosen.values() for row in rows]
    lock_path = args.output_dir / "rows" / "lock"
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with lock(open(lock_path, "ab"), lock_path):
        errors = run_all(rows, args)
    tables = {name: {"title": title, "rows": by_size([entry_of(row, args, errors) for row in rows])}
              for name, (title, rows) in chosen.items()}
    report({"data": args.note or str(args.data_dir), "tables": tables}, args.output_dir)
    failed = {entry["command"] for table in tables.values() for entry in table["rows"] if "error" in entry}
    if failed:
        raise UserError(f"{len(failed)} of the rows failed; see above, and errors.txt in their folders under "
                        f"{args.output_dir}/rows")


def report(content, folder):
    """Writes and prints the tables."""
    text, as_json = markdown(content), json.dumps(content, indent=1) + "\n"
    write_atomically(folder / "tables.json", as_json)
    write_atomically(folder / "tables.md", text)
    for name in SWEPT.keys() & content["tables"].keys():
        draw_sweep(folder / f"{name}.png", SWEPT[name], content["tables"][name]["rows"], content["data"])
    print(text)


if __name__ == "__main__":
    with one_line_errors():
        main()
