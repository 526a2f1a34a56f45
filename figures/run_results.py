"""Reads logs and results of trainings; statistics and text of tables, in % and points."""
import json
from typing import NamedTuple

import numpy as np

from model.class_names import read_lines
from model.metrics import bootstrap_interval, bootstrap_means
from utils import UserError, one_line


class Log(NamedTuple):
    """What the log of a training says: {epoch: value}."""
    loss: dict
    val: dict       # accuracy in %
    test: dict
    kept: int       # epoch of the checkpoint; None until the training has ended
    training: dict  # {name: value} of what all seeds of a training share


def read_log(path):
    """The `Log` in a file such as model/PSP_fully.jsonl; UserError if it is not one, or has no epoch yet."""
    try:
        records = [json.loads(line) for line in read_lines(path)]
    except ValueError as error:
        raise UserError(f"{path}: is not a log such as model/PSP_fully.jsonl ({one_line(error)})") from error
    epochs = [record for record in records if "epoch" in record]
    if not epochs:
        raise UserError(f"{path}: has no finished epoch yet")
    loss, val, test = ({record["epoch"]: scale * record[name] for record in epochs if name in record}
                       for name, scale in (("loss", 1), ("val_accuracy", 100), ("test_accuracy", 100)))
    result = records[-1].get("result")
    best = result and (result.get("best") or result["best_validation"])      # its name in earlier logs
    header = records[0].get("run", {})
    training = {name: header.get(name) for name in ("setting", "model_name", "network_args", "data")}
    training |= {**header.get("options", header.get("settings", {})), "seed": None,      # settings: in earlier logs
                 "code": header.get("versions", {}).get("code")}
    return Log(loss, val, test, best and best["epoch"], training)


def read_result(path):
    """(result, logs of the seeds) of a finished training with --runs, from its --output_dir or its file there.

    result: the content of the file, and name (such as PSP_fully), folder (as given), validation [seeds, checks] in %.
    UserError if the folder has no such file or several, or a seed was trained again.
    """
    paths = [path] if path.name.endswith("_runs.json") else list(path.glob("*_runs.json"))
    if len(paths) != 1:
        raise UserError(f"{path}: has {len(paths)} files *_runs.json; give the folder of one training with --runs, "
                        "or its file")
    name, result = paths[0].name.removesuffix("_runs.json"), json.loads(paths[0].read_text())
    logs = [read_log(paths[0].parent / f"seed{run['seed']}" / f"{name}.jsonl") for run in result["runs"]]
    for run, log in zip(result["runs"], logs):
        if (log.kept, log.test.get(log.kept)) != (run["best_epoch"], 100 * run["test"]):
            raise UserError(f"{paths[0]}: seed {run['seed']} has another log; it was trained once more, alone")
    return {**result, "name": name, "folder": str(path), "validation": [list(log.val.values()) for log in logs]}, logs


def accuracies(result, metric="test"):
    """[seeds, videos] accuracy on each test video; metric: 'test', or 'best_test' for the check with the best one."""
    return 100 * np.array([run[f"{metric}_correct"] for run in result["runs"]]) / result["segments"]


def estimate(values):
    """mean of values [seeds, videos], and low and high of its 95 % interval, see `bootstrap_interval`, in a dict."""
    low, high = bootstrap_interval(values)
    return {"mean": float(values.mean()), "low": low, "high": high}


def difference(result, baseline, metric="test"):
    """Estimate of the test accuracy minus the baseline's, seed by seed in their order and video by video.

    paired: whether both have the same seeds. p: see `p_value`. Earlier results call the fingerprint test_digest.
    """
    data, baseline_data = (found.get("test_fingerprint") or found["test_digest"] for found in (result, baseline))
    seeds, baseline_seeds = ([run["seed"] for run in found["runs"]] for found in (result, baseline))
    if data != baseline_data or len(seeds) != len(baseline_seeds):
        raise UserError(f"{result['folder']}, {baseline['folder']}: differ in test videos or seed count; retrain one")
    values = accuracies(result, metric) - accuracies(baseline)
    return {**estimate(values), "paired": seeds == baseline_seeds, "p": p_value(values)}


def p_value(values):
    """Two-sided p of a mean of zero, at least 0.0002, from the interval's resamples: below 0.05 if it excludes zero."""
    means = bootstrap_means(values)
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return min(1.0, float(2 * (1 + beyond) / (len(means) + 1)))


def adjust(differences):
    """Gives the differences of a family adjusted_p (Holm), and measurable: whether that is below 0.05; returns them."""
    adjusted = 0.0
    for rank, found in enumerate(sorted(differences, key=lambda found: found["p"])):
        adjusted = min(1.0, max(adjusted, (len(differences) - rank) * found["p"]))
        found.update(adjusted_p=adjusted, measurable=adjusted < 0.05)
    return differences


def gain(result):
    """Estimate, over seeds, of mean validation accuracy in the last third of the checks minus that in the third before.

    None below three checks. rising: whether the interval is above zero, so that training was not over.
    """
    validation = np.array(result["validation"])
    third = validation.shape[1] // 3
    if third == 0:
        return None
    found = estimate((validation[:, -third:] - validation[:, -2 * third:-third]).mean(axis=1, keepdims=True))
    return {**found, "rising": found["low"] > 0}


def format_estimate(found):
    """'+1.2 (+0.3 to +2.1)', bold if measurable, its adjusted p and other marks; '-' for None."""
    if found is None:
        return "-"
    text = "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(**found)
    if "adjusted_p" in found:
        text = (f"**{text}**" if found["measurable"] else text) + f", p {found['adjusted_p']:.2g}"
    return text + ("" if found.get("paired", True) else ", not paired") + (", rising" if found.get("rising") else "")


HEAD = """\
Data: {data}. Test accuracy of segments in %, at the best validation epoch ('chosen on test': the best test accuracy).
One training set (of synthetic data: one data seed); what is said here holds for it.

- **accuracy**: mean ± sample standard deviation over n seeds, and a 95 % bootstrap interval of the mean that resamples
  seeds and test videos together.
- **difference** to PSP of the same setting, in points, with the same kind of interval. p is adjusted (Holm) for all
  differences of the setting, each counted once ({compared}); bold: below 0.05.
  Without bold, a row is not shown to equal PSP: its interval, taken alone, excludes a loss beyond its lower end and a
  gain beyond its upper end, nothing smaller. Runs of the same seed are paired. 'PSP once more' has other seeds, so it
  is not paired: it shows what seeds alone change. The two plain rows 'chosen on test' are never below PSP, by
  construction; their intervals may begin below zero, as single videos may lose.
- **gain**: mean validation accuracy of the last third of the checks minus the mean of the third before, with an
  interval over seeds. 'Rising': the interval is above zero, so training was not over.
"""


def tables_text(stored, tables):
    """The text of tables.md, from the content of results.json.gz; tables: {name: (title, rows)}."""
    results = {name: row["result"] for name, row in stored["rows"].items()}
    rows = [row for name in stored["tables"] for row in tables[name][1]]
    differences, compared = {}, []
    for setting in sorted({row.setting for row in rows}):      # also the name of PSP's row
        family = {(row.name, row.metric) for row in rows if row.setting == setting and row.label != "PSP"}
        found = [difference(results[name], results[setting], metric) for name, metric in family]
        differences |= zip(family, adjust(found))
        compared.append(f"{len(family)} {setting}")
    lines = [HEAD.format(data=stored["data"], compared=", ".join(compared))]
    for title, table_rows in map(tables.get, stored["tables"]):
        lines += [f"### {title}", "", "|  | setting | n | accuracy | difference | gain |", f"|{' --- |' * 6}"]
        for row in table_rows:
            found = differences.get((row.name, row.metric))
            cells = row.label, row.setting, *result_cells(results[row.name], row.metric, found)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    revisions, processors = (" and ".join(sorted({value for result in results.values() for value in result[key]}))
                             for key in ("revisions", "processors"))
    return "\n".join([*lines, f"### Commands of revision {revisions}, on {processors}", "", "```bash",
                      *(row["command"] for row in stored["rows"].values()), "```", ""])


def result_cells(result, metric, found):
    """n, accuracy, difference and gain of a row; found: its difference to PSP, None for PSP itself."""
    accuracy = estimate(accuracies(result, metric))
    std = np.std([100 * run[metric] for run in result["runs"]], ddof=1)
    return [str(len(result["runs"])), "{mean:.1f} ± {std:.1f} ({low:.1f} to {high:.1f})".format(std=std, **accuracy),
            format_estimate(found), format_estimate(gain(result))]
