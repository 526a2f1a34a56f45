"""Runs the paper's tables, each row with several seeds, and sets every row beside that of PSP.

    python figures/paper_tables.py --data_dir data --runs 5                       # all tables
    python figures/paper_tables.py main quirks --data_dir data/synthetic --runs 3 --nb_epoch 20 --batch_size 32

Every row is one command of the main scripts, with --runs, in a folder of its own under OUTPUT_DIR/rows. A row that is
finished is not run again, one that was killed goes on where it stood, one that fails is reported and the others go on.
Written to OUTPUT_DIR: tables.md, tables.json and, for the sweeps, <table>.png (matplotlib).

A difference to the PSP row of the same setting is called measurable if zero lies neither in the 95 % t-interval of the
differences seed by seed, nor in the 95 % bootstrap interval over the test videos of the difference of the mean over seeds.
"""
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from data.files import UserError, keep_aside, lock, write_atomically  # noqa: E402
from model.metrics import bootstrap_interval  # noqa: E402
from utils import OptionParser, bounded, one_line_errors  # noqa: E402

METRICS = {"event_or_background": "event or background", "video_category": "video category", "segment_f1": "segment F1",
           "event_f1": "event F1"}

# Two-sided 95 % quantile of Student's t for n seeds; 2.26 to 1.96 from ten on.
T_QUANTILE = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31}


class Row(NamedTuple):
    """One command; figure 'test' is accuracy at the best validation epoch, 'best_test' the best test accuracy."""
    label: str
    setting: str
    options: tuple = ()
    published: float = None
    figure: str = "test"


def sweep(setting, option, values):
    return [Row(f"{option} {value}", setting, (f"--{option}", str(value))) for value in values]


PSP = {setting: Row(f"PSP, {setting}", setting) for setting in ("fully", "weakly")}
TABLES = {
    "main": ("Main result", [
        PSP["fully"]._replace(published=77.8), Row("AVEL, fully", "fully", ("--model_name", "AVEL"), 72.7),
        PSP["weakly"]._replace(published=73.5), Row("AVEL, weakly", "weakly", ("--model_name", "AVEL"))]),
    "propagation": ("Propagation", [
        row for setting in ("fully", "weakly") for row in (
            PSP[setting], Row("all pairs, not pruned", setting, ("--propagation", "all-pairs")),
            Row("no propagation", setting, ("--propagation", "none")),
            Row("second normalisation " + ("off" if setting == "fully" else "on"), setting,
                ("--second_normalisation", "off" if setting == "fully" else "on")))]),
    "threshold": ("Pruning threshold", [PSP["fully"], *sweep("fully", "threshold", (0.0, 0.05, 0.09, 0.11, 0.13, 0.2))]),
    "avps": ("Weight of L_avps", [PSP["fully"], *sweep("fully", "LAMBDA", (0, 1, 10, 1000))]),
    "weak": ("Weak supervision", [
        PSP["weakly"], Row("no weighting branch", "weakly", ("--weighting", "off")),
        Row("category instead of shares", "weakly", ("--weak_labels", "tag")),
        Row("no background videos", "weakly", ("--background_videos", "off"))]),
    "modality": ("Attention and modality", [
        PSP["fully"], Row("mean over regions", "fully", ("--attention", "mean")),
        Row("audio only", "fully", ("--modality", "audio")), Row("visual only", "fully", ("--modality", "visual"))]),
    "quirks": ("Quirks of the released code, and the choice of the checkpoint", [
        PSP["fully"], Row("stale targets of L_avps", "fully", ("--released_quirks", "stale_avps")),
        Row("chosen on test", "fully", figure="best_test"),
        Row("stale targets, chosen on test", "fully", ("--released_quirks", "stale_avps"), figure="best_test"),
        PSP["weakly"], Row("fixed batches", "weakly", ("--released_quirks", "fixed_batches")),
        Row("chosen on test", "weakly", figure="best_test"),
        Row("fixed batches, chosen on test", "weakly", ("--released_quirks", "fixed_batches"), figure="best_test")]),
}
CURVES = {"threshold": ("threshold", 0.099), "avps": ("LAMBDA", 100)}      # tables of one option, and its value in the PSP row


def command_of(row, args):
    """What a person would type for this row."""
    options = [*row.options, "--data_dir", args.data_dir, "--runs", args.runs, "--seed", args.seed]
    for name in ("nb_epoch", "check_epoch", "batch_size", "device", "precision", "features"):
        if getattr(args, name) is not None:
            options += [f"--{name}", getattr(args, name)]
    return [f"{row.setting}_supervised_main.py", "--train", *map(str, options)]


def folder_of(row, args):
    name = "_".join([row.setting, *row.options]).replace("--", "").replace(",", "+").replace(".", "p")
    return args.output_dir / "rows" / name


def finished(row, args):
    """What the row's command wrote at its end; None where it has not ended, or was another command."""
    folder = folder_of(row, args)
    written = list(folder.glob("*_runs.json"))
    command = folder / "command.txt"
    if not written or not command.is_file() or command.read_text() != shlex.join(command_of(row, args)):
        return None
    return json.loads(written[0].read_text())


def run(row, args):
    """Runs the row's command, going on where it was stopped; '' or the last line of what went wrong."""
    folder = folder_of(row, args)
    text = shlex.join(command_of(row, args))
    command = folder / "command.txt"
    same = command.is_file() and command.read_text() == text
    if not same:
        keep_aside([folder])      # of another command
        folder.mkdir(parents=True)
        write_atomically(command, text)
    with open(folder / "output.txt", "a") as output:
        script = subprocess.Popen([sys.executable, ROOT / command_of(row, args)[0], *command_of(row, args)[1:], "--output_dir", folder,
                                   *(["--resume"] if same else [])], stdout=output, stderr=subprocess.PIPE, text=True)
        try:
            _, errors = script.communicate()
        except BaseException:      # a signal: the run saves its state at the next batch and ends, too
            script.terminate()
            script.communicate()
            raise
    lines = [line for line in errors.replace("\r", "\n").splitlines() if line.strip()]
    return "" if script.returncode == 0 else (lines[-1] if lines else f"exit code {script.returncode}")


def run_all(rows, args):
    """{command: error} of the rows that failed; shows what is done and how long the rest takes."""
    errors, started = {}, time.monotonic()
    waiting = {}
    for row in rows:
        if finished(row, args) is None:
            waiting.setdefault(tuple(command_of(row, args)), row)      # tables share rows
    print(f"{len(waiting)} rows of {args.runs} runs to do")
    for number_done, row in enumerate(waiting.values()):
        left = (time.monotonic() - started) / number_done * (len(waiting) - number_done) if number_done else None
        print(f"[{number_done + 1}/{len(waiting)}] {row.setting}: {row.label}"
              + (f"   (about {left / 60:.0f} min left)" if left is not None else ""), flush=True)
        error = run(row, args)
        if error:
            errors[tuple(command_of(row, args))] = error
            print(f"    failed: {error}", flush=True)
    return errors


def figures(row, args, errors):
    """The row's entry of tables.json."""
    entry = {"label": row.label, "setting": row.setting, "options": row.options, "figure": row.figure, "published": row.published,
             "command": shlex.join(["python", *command_of(row, args)])}
    result = finished(row, args)
    if result is None:
        return {**entry, "error": errors.get(tuple(command_of(row, args)), "not run")}
    psp = finished(PSP[row.setting], args)
    if psp is not None and not same_test_data(result, psp):
        return {**entry, "error": f"was run on other data than the row of PSP; delete {folder_of(row, args)} or "
                                  f"{folder_of(PSP[row.setting], args)}, whichever is the older, and run the table again"}
    values = np.array([100 * one[row.figure] for one in result["runs"]])
    entry.update(n=len(values), mean=values.mean(), std=values.std(ddof=1), values=values.tolist(),
                 seeds=[one["seed"] for one in result["runs"]])
    entry["interval"] = bootstrap_interval(100 * by_video(result, row.figure).mean(axis=0))
    if row.figure == "test":      # of the other one there is no checkpoint to measure more on
        entry["metrics"] = {name: mean_of([one["metrics"][name] for one in result["runs"]]) for name in METRICS}
    entry["difference"] = difference(row, result, psp)
    return entry


def same_test_data(result, other):
    """Whether two rows were scored on the same videos."""
    return result["test_digest"] == other["test_digest"]


def mean_of(values):
    """In %; None where a value is missing."""
    return None if None in values else 100 * sum(values) / len(values)


def by_video(result, figure):
    """[runs, videos]: accuracy on each test video, in 0..1."""
    return np.array([one[f"{figure}_correct"] for one in result["runs"]]) / result["segments"]


def difference(row, result, psp):
    """Of this row to that of PSP; None for that row itself, or where it is missing."""
    if psp is None or (not row.options and row.figure == "test"):
        return None
    by_seed = np.array([100 * (one[row.figure] - other["test"]) for one, other in zip(result["runs"], psp["runs"])])
    margin = T_QUANTILE.get(len(by_seed), 2.26) * by_seed.std(ddof=1) / len(by_seed) ** 0.5
    over_videos = 100 * (by_video(result, row.figure) - by_video(psp, "test")).mean(axis=0)
    intervals = {"t_interval": [by_seed.mean() - margin, by_seed.mean() + margin], "video_interval": bootstrap_interval(over_videos)}
    return {"mean": by_seed.mean(), "std": by_seed.std(ddof=1), **intervals,
            "measurable": bool(all(low > 0 or high < 0 for low, high in intervals.values()))}


def markdown(tables, args):
    lines = [f"Test accuracy in % at the best validation epoch; mean ± sample standard deviation over seeds, 95 % bootstrap interval "
             f"over the test videos, difference to PSP seed by seed; other metrics as in the README, means. Data: {args.note or args.data_dir}.", ""]
    for title, entries in tables.values():
        published = any(entry["published"] for entry in entries)
        heads = ["", "setting", *(["published on AVE"] if published else []), "n", "mean ± std", "all", "interval", "difference",
                 *METRICS.values()]
        lines += [f"### {title}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for entry in entries:
            cells = [entry["label"], entry["setting"], *([str(entry["published"] or "-")] if published else [])]
            if "error" in entry:
                cells += ["-", f"failed: {entry['error']}", *["-"] * (3 + len(METRICS))]
            else:
                cells += [str(entry["n"]), f"{entry['mean']:.1f} ± {entry['std']:.1f}", ", ".join(f"{value:.1f}" for value in entry["values"]),
                          "{:.1f} to {:.1f}".format(*entry["interval"]), told(entry["difference"]),
                          *("-" if value is None else f"{value:.1f}" for value in (entry.get("metrics", {}).get(name) for name in METRICS))]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", "Commands:", "", "```bash", *dict.fromkeys(entry["command"] for entry in entries), "```", ""]
    return "\n".join(lines)


def told(entry):
    if entry is None:
        return "-"
    figures = f"{entry['mean']:+.1f} ± {entry['std']:.1f}"
    return figures if entry["measurable"] else f"{figures}: no measurable difference"


def draw(name, entries, args):
    """A sweep as a curve with a band of one standard deviation."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    option, of_psp = CURVES[name]
    points = sorted((float(entry["options"][-1] if entry["options"] else of_psp), entry["mean"], entry["std"])
                    for entry in entries if "error" not in entry and entry["figure"] == "test")
    if len(points) < 2:
        return
    value, mean, std = map(np.array, zip(*points))
    figure, axes = pyplot.subplots(figsize=(5, 3.2), constrained_layout=True)
    axes.plot(value, mean, "o-", color="#0072b2", label="mean")
    axes.fill_between(value, mean - std, mean + std, color="#0072b2", alpha=0.2, label="± standard deviation")
    axes.axvline(of_psp, color="#d55e00", linestyle="--", label=f"the paper's {of_psp}")
    if max(value) > 10:
        axes.set_xscale("symlog")
        axes.set_xlim(left=0)
    axes.set(xlabel={"LAMBDA": "weight of L_avps", "threshold": "pruning threshold"}[option], ylabel="test accuracy, %")
    axes.set_title(args.note or "", fontsize=8)
    axes.legend()
    figure.savefig(args.output_dir / f"{name}.png", dpi=150)
    pyplot.close(figure)


def options():
    parser = OptionParser(__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--output_dir", type=Path, default=Path("figures/tables"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--note", help="what the data is, for the heads of tables and plots (default: the folder)")
    parser.add_argument("--runs", type=bounded(int, 2, 1000), default=5, help="seeds of each row (default: %(default)s)")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=123, help="the first one (default: %(default)s)")
    for name in ("nb_epoch", "check_epoch", "batch_size", "device", "precision", "features"):
        parser.add_argument(f"--{name}", help="as in the main scripts")
    args = parser.parse_args()
    unknown = [name for name in args.tables if name not in TABLES]
    if unknown:
        parser.error(f"{unknown[0]!r} is no table; there are {', '.join(TABLES)}")
    args.tables = args.tables or list(TABLES)
    return args


def main():
    args = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))      # as Ctrl-C: `run` ends the script that it started
    chosen = {name: TABLES[name] for name in TABLES if name in args.tables}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows = [row for _, rows in chosen.values() for row in rows]
    rows = [PSP[setting] for setting in ("fully", "weakly") if any(row.setting == setting for row in rows)] + rows
    (args.output_dir / "rows").mkdir(exist_ok=True)
    lock_path = args.output_dir / "rows" / "lock"
    with lock(open(lock_path, "ab"), lock_path):
        errors = run_all(rows, args)
    tables = {name: (title, [figures(row, args, errors) for row in rows]) for name, (title, rows) in chosen.items()}
    text = markdown(tables, args)
    write_atomically(args.output_dir / "tables.md", text)
    content = json.dumps({name: {"title": title, "rows": entries} for name, (title, entries) in tables.items()}, indent=1)
    write_atomically(args.output_dir / "tables.json", content + "\n")
    for name in set(CURVES) & set(chosen):
        draw(name, tables[name][1], args)
    print(text)
    failed = {entry["command"]: entry["error"] for _, entries in tables.values() for entry in entries if "error" in entry}
    if failed:
        raise UserError(f"{len(failed)} of the rows failed; see above, and output.txt in their folders under {args.output_dir}/rows")


if __name__ == "__main__":
    with one_line_errors():
        main()
