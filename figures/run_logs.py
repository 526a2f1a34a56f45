"""Reads the logs of training runs, such as model/PSP_fully.jsonl."""
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.files import UserError  # noqa: E402


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


def common_curve(curves):
    """(epochs, mean, standard deviation) of several {epoch: value}, at the epochs that all of them have."""
    epochs = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
    return epochs, values.mean(axis=0), values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(epochs))
