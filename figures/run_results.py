"""Reads logs and results of trainings; statistics and text of tables, in % and points.

An estimate is a dict: mean, and its 95 % interval low..high.
"""
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from model.class_names import read_lines  # noqa: E402
from utils import UserError, one_line  # noqa: E402


class Log(NamedTuple):
    """What the log of a training says: {epoch: value}."""
    loss: dict
    val: dict       # accuracy in %
    test: dict
    kept: int       # epoch of the checkpoint; None until the training has ended
    revision: str   # of the code, as git describes it
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
    training = {name: header.get(name) for name in ("setting", "model_name", "network_args")}
    training |= {**header.get("options", header.get("settings", {})), "seed": None}      # settings: in earlier logs
    return Log(loss, val, test, best and best["epoch"], header.get("versions", {}).get("git") or "unknown", training)


def read_result(folder):
    """(result, logs of the seeds) of the --output_dir of a finished training with --runs; else UserError.

    result: the content of the file, and name (such as PSP_fully), folder, revisions, validation [seeds, checks] in %.
    """
    paths = list(folder.glob("*_runs.json"))
    if len(paths) != 1:
        raise UserError(f"{folder}: has {len(paths)} files *_runs.json, not one; give the --output_dir of one finished "
                        "training with --runs")
    name = paths[0].name.removesuffix("_runs.json")
    result = json.loads(paths[0].read_text())
    logs = [read_log(folder / f"seed{seed}" / f"{name}.jsonl") for seed in run_seeds(result)]
    return {**result, "name": name, "folder": str(folder), "revisions": sorted({log.revision for log in logs}),
            "validation": [list(log.val.values()) for log in logs]}, logs


def run_seeds(result):
    return [run["seed"] for run in result["runs"]]


def accuracies(result, metric="test"):
    """[seeds, videos] accuracy on each test video; metric: 'test', or 'best_test' for the check with the best one."""
    return 100 * np.array([run[f"{metric}_correct"] for run in result["runs"]]) / result["segments"]


@lru_cache(maxsize=2)
def resampling_counts(seeds, videos, resamples=10_000):
    """How often each resample draws each seed [resamples, seeds] and, independently, each video [resamples, videos]."""
    generator = np.random.default_rng(0)
    return tuple(generator.multinomial(n, np.full(n, 1 / n), size=resamples) for n in (seeds, videos))


def estimate(values):
    """Mean of values [seeds, videos] and its 95 % bootstrap interval, with seeds and videos resampled together."""
    seed_counts, video_counts = resampling_counts(*values.shape)
    means = ((seed_counts @ values) * video_counts).sum(axis=1) / values.size
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def difference(result, baseline, metric="test"):
    """Estimate of the test accuracy minus the baseline's, seed by seed in their order and video by video.

    paired: whether both have the same seeds. measurable: whether zero is outside the interval.
    """
    data, baseline_data = (found.get("test_fingerprint") or found["test_digest"]      # its name in earlier results
                           for found in (result, baseline))
    if data != baseline_data or len(result["runs"]) != len(baseline["runs"]):
        raise UserError(f"{result['folder']} and {baseline['folder']}: cannot be compared, since they differ in test "
                        "videos or in the number of seeds; train one of them again")
    found = estimate(accuracies(result, metric) - accuracies(baseline))
    return {**found, "paired": run_seeds(result) == run_seeds(baseline),
            "measurable": found["low"] > 0 or found["high"] < 0}


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
    """'+1.2 (+0.3 to +2.1)', bold if measurable, and its other marks; '-' for None."""
    if found is None:
        return "-"
    text = "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(**found)
    text = f"**{text}**" if found.get("measurable") else text
    return text + ("" if found.get("paired", True) else ", not paired") + (", rising" if found.get("rising") else "")


HEAD = """\
Data: {data}. Test accuracy of segments in %, at the best validation epoch ('chosen on test': the best test accuracy).

- **accuracy**: mean ± sample standard deviation over n seeds, and a 95 % bootstrap interval of the mean that resamples
  seeds and test videos together.
- **difference** to PSP of the same setting, in points, with the same kind of interval; bold if it excludes zero (no
  correction for the number of rows; 'chosen on test' exceeds zero by construction). Runs of the same seed are paired.
  'PSP once more' has other seeds, so it is not paired: it shows what seeds alone change.
- **gain**: mean validation accuracy of the last third of the checks minus the mean of the third before, with an
  interval over seeds. 'Rising': the interval is above zero, so training was not over.
"""


def tables_content(stored, tables):
    """The content of tables.json, from that of results.json.gz; tables: {name: (title, rows)}."""
    results = [row["result"] for row in stored["rows"].values() if "result" in row]
    # The results in figures/rehearsal do not name their revision.
    revisions = {revision for result in results for revision in result.get("revisions", ["f752341"])}
    entries = {name: {"title": tables[name][0], "rows": [table_entry(row, stored["rows"]) for row in tables[name][1]]}
               for name in stored["tables"]}
    return {"data": stored["data"], "revisions": sorted(revisions), "tables": entries}


def table_entry(row, stored):
    """The row's entry of tables.json; stored: {name of a row: its command, and its result or error}."""
    curve = "stale targets" if "stale_avps" in row.options else "PSP"
    entry = {"label": row.label, "setting": row.setting, "value": row.value, "curve": curve, **stored[row.name]}
    if "error" in entry:
        return entry
    result, psp = entry.pop("result"), stored[row.setting].get("result")      # PSP's row has the setting's name
    compared = psp is not None and row.label != "PSP"
    values = [100 * run[row.metric] for run in result["runs"]]
    return {**entry, "n": len(values), "std": np.std(values, ddof=1), "values": values, "seeds": run_seeds(result),
            **estimate(accuracies(result, row.metric)), "gain": gain(result),
            "difference": difference(result, psp, row.metric) if compared else None}


def markdown(content):
    """The text of tables.md, from the content of tables.json."""
    lines, commands = [HEAD.format(data=content["data"])], {}
    for table in content["tables"].values():
        lines += [f"### {table['title']}", "", "|  | setting | n | accuracy | difference | gain |", f"|{' --- |' * 6}"]
        for entry in table["rows"]:
            commands[entry["command"]] = None      # each once
            cells = [entry["label"], entry["setting"]]
            if "error" in entry:
                cells.append(f"failed: {entry['error']}")
            else:
                cells += [str(entry["n"]), "{mean:.1f} ± {std:.1f} ({low:.1f} to {high:.1f})".format(**entry),
                          format_estimate(entry["difference"]), format_estimate(entry["gain"])]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    revisions = " and ".join(content["revisions"])
    return "\n".join([*lines, f"### Commands of revision {revisions}", "", "```bash", *commands, "```", ""])
