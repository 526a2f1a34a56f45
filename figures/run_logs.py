"""Reads what training runs leave behind: logs, such as model/PSP_fully.jsonl, and the results of --runs."""
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.files import UserError, one_line  # noqa: E402


class Log(NamedTuple):
    """What the log of a run says: {epoch: value}."""
    loss: dict
    val: dict             # accuracy in %
    test: dict
    kept: int = None      # the epoch of the checkpoint, once the run has ended


def read_log(path):
    """The `Log` of a file; UserError where it is none, or holds no epoch yet."""
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        epochs = [record for record in records if "epoch" in record]
        loss = {int(record["epoch"]): float(record["loss"]) for record in epochs}
        val, test = ({int(record["epoch"]): 100 * float(record[f"{split}_accuracy"])
                      for record in epochs if "val_accuracy" in record} for split in ("val", "test"))
        result = records[-1].get("result") if records else None
        kept = result["best_validation"]["epoch"] if result else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is no log of a run, such as model/PSP_fully.jsonl ({error})") from error
    if not loss:
        raise UserError(f"{path}: holds no finished epoch yet")
    return Log(loss, val, test, kept)


def common_curve(curves, logarithmic=False):
    """(epochs, mean, low, high) of several {epoch: value}, at the epochs that all of them have.

    low, high: one standard deviation below and above the mean. logarithmic: all of it of the values' logarithms.
    """
    epochs = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[epoch] for epoch in epochs] for curve in curves], float)
    values = np.log(values) if logarithmic else values
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=1) if len(curves) > 1 else 0
    band = mean, mean - std, mean + std
    return epochs, *(np.exp(band) if logarithmic else band)


def read_result(folder):
    """What a training with --runs into this folder wrote at its end, see `utils.report_runs`."""
    paths = list(folder.glob("*_runs.json"))
    if len(paths) != 1:
        raise UserError(f"{folder}: holds {len(paths)} *_runs.json, not one; give the --output_dir of a finished "
                        "training with --runs")
    path, = paths
    try:
        result = json.loads(path.read_text())
        numbers = np.array([[result["segments"], run["seed"], run["val"], run["test"], *run["test_correct"]]
                            for run in result["runs"]], float)
        if numbers.ndim != 2 or "test_digest" not in result:
            raise ValueError("runs or test_digest are missing")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: is no result of a training with --runs ({one_line(error)})") from error
    return result


def log_files(folder, result):
    """The log of each seed of a result; its checkpoint lies beside it, with the suffix .pt."""
    paths = []
    for run in result["runs"]:
        place = folder / f"seed{run['seed']}"
        found = [path for path in place.glob("*.jsonl") if "." not in path.stem]      # not one kept aside
        if len(found) != 1:
            raise UserError(f"{place}: holds {len(found)} logs (*.jsonl), not one; give each training with --runs an "
                            "--output_dir of its own")
        paths += found
    return paths
