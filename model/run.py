"""What a training run keeps in its output folder, so that it can be read, evaluated and resumed."""
import json
import math
import operator
import platform
import random
import reprlib
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

from data.files import UserError, keep_aside, lock, naming, one_line
from data.progress import progress_bar
from model.checkpoint import WRONG_CONTENT, save
from model.processes import rank, sum_over_processes, world_size
from model.released import read_file

RECORD = {"epoch", "loss", "val_accuracy", "test_accuracy"}      # of a log line with scores
SCORES = {"name", "score", "record", "test_correct", "test_metrics"}
SAVE_SECONDS = 60      # the state is also saved at the first end of an epoch after so many seconds


class Run:
    """A training run; entered, it holds its log open and shows its progress.

        <model>_<setting>.pt         checkpoint of the best validation accuracy
        <model>_<setting>.jsonl      log: one line on the run, one for each epoch, one with the result
        <model>_<setting>_state.pt   all that --resume needs to go on as if the run had not been stopped

    epoch: finished epochs. record: the log line of the epoch under way. last: that of the last epoch scored.
    best, best_test: {name, score, record, test_correct, test_metrics} of the check with the highest score, and of that
        with the highest test accuracy.
    Raises UserError where --resume has nothing that fits to go on with, and where the folder is in use.
    """

    def __init__(self, args, setting, config, network, optimizer, schedule, data, steps):
        self.args, self.network, self.optimizer, self.schedule = args, network, optimizer, schedule
        self.steps, self.background = steps, data["test"].sizes.background
        device = next(network.parameters()).device
        self.config = {
            "setting": setting,
            "model_name": args.model_name,
            "network": config,
            "settings": settings_of(args),
            "versions": versions(),
            "device": device_name(device),
            "data": {**data["train"].sizes._asdict(), **{split: len(dataset) for split, dataset in data.items()},
                     "digest": {split: dataset.digest for split, dataset in data.items()},
                     "random_weights": any(dataset.random_weights for dataset in data.values())},
        }
        self.epoch, self.checks, self.saved_epoch, self.saved_at = 0, 0, 0, time.monotonic()
        self.record = self.best = self.best_test = self.last = None
        self.loss_sum = torch.zeros((), device=device)
        self.writes = rank() == 0      # the files; the other processes only follow

        name = f"{args.model_name}_{setting}"
        self.checkpoint_path = args.output_dir / f"{name}.pt"
        self.log_path = args.output_dir / f"{name}.jsonl"
        self.state_path = args.output_dir / f"{name}_state.pt"
        args.output_dir.mkdir(parents=True, exist_ok=True)
        if args.resume and self.state_path.exists():
            self._resume()
        else:
            self._start()

    # ------------------------------------------------------------------------------- what the loop calls

    def __enter__(self):
        self.bar = progress_bar(total=self.args.nb_epoch * self.steps, initial=self.epoch * self.steps, unit="batch",
                                disable=not self.writes)
        return self

    def __exit__(self, kind, error, traceback):
        self.bar.close()
        if self.writes:
            self.log.close()
            if kind in (KeyboardInterrupt, SystemExit):
                print(f"stopped in epoch {self.epoch}; give the same command with --resume to go on from epoch "
                      f"{self.saved_epoch}", file=sys.stderr)

    def epochs(self):
        """Yields the numbers of the remaining epochs; a resumed run begins after the last epoch that was saved."""
        for epoch in range(self.epoch, self.args.nb_epoch):
            self.record = {"epoch": epoch, "loss": None, "lr": self.optimizer.param_groups[0]["lr"]}
            self.bar.set_description(f"epoch {epoch}", refresh=False)
            yield epoch

    def add(self, loss):
        """Adds the loss of a step to that of the epoch; nothing waits for the device."""
        self.loss_sum += loss.detach()
        self.bar.update()

    def end_steps(self):
        """Reads the mean loss of the epoch's steps; UserError where it is not finite."""
        loss = sum_over_processes(self.loss_sum).item() / (self.steps * world_size())
        self.loss_sum.zero_()
        self.record["loss"] = loss
        if not math.isfinite(loss):
            raise UserError(f"the loss of epoch {self.epoch} is {loss}; try a lower --lr. "
                            "The best checkpoint so far is kept")

    def is_check(self, epoch):
        """Whether validation and test are scored after this epoch: every check_epoch epochs, and after the last one."""
        return self._may_be_kept(epoch) or epoch == self.args.nb_epoch - 1

    def _may_be_kept(self, epoch):
        return epoch > 0 and epoch % self.args.check_epoch == 0

    def keep_best(self, val, test, score, name):
        """Notes the `Predictions` of both splits; saves the checkpoint whenever the score of that name improves.

        A score of None is the lowest. The last epoch counts only where it is a check, or the only epoch scored, so that
        the number of epochs does not change the choice.
        """
        score = -math.inf if score is None else score
        if self.best and self.best["name"] != name:
            raise UserError(f"the checkpoint of this run was chosen by {self.best['name']}, not by {name}; "
                            "start again without --resume")
        self.record.update(val_accuracy=val.accuracy, test_accuracy=test.accuracy)
        self.last = self.record
        if self._may_be_kept(self.epoch) or self.best is None:
            self.checks += 1
            if self.best_test is None or test.accuracy > self.best_test["score"]:
                self.best_test = self._scores(test, test.accuracy, "test accuracy")
            if self.best is None or score > self.best["score"]:
                self.best = self._scores(test, score, name)
                if self.writes:
                    save(self.checkpoint_path, {**self.config, **self.record, "weights": self.network.state_dict()})
        tqdm.write(f"epoch {self.epoch}: loss {self.record['loss']:.4f}  val {percent(val.accuracy)}  "
                   f"test {percent(test.accuracy)}", file=sys.stdout)

    def _scores(self, test, score, name):
        return {"name": name, "score": score, "record": self.record, "test_correct": test.correct_segments,
                "test_metrics": test.metrics(self.background)}

    def end_epoch(self):
        """Logs the epoch; saves the state every save_epoch epochs, after the last one, and after a minute without."""
        self._log(self.record)
        self.epoch += 1
        waited = time.monotonic() - self.saved_at > SAVE_SECONDS
        if self.epoch % self.args.save_epoch == 0 or self.epoch == self.args.nb_epoch or waited:
            self._save_state()
        scores = ["loss {loss:.4f}".format(**self.record)]
        if self.last:
            scores += [f"{split} {percent(self.last[f'{split}_accuracy'])}" for split in ("val", "test")]
        self.bar.set_postfix_str(", ".join(scores), refresh=False)

    def report(self):
        """Prints and logs the result of the whole run; returns what `utils.report_runs` needs of it."""
        best, best_test = self.best["record"], self.best_test["record"]
        self._log({"result": {"best_validation": best, "best_test": best_test, "last": self.last,
                              "checks": self.checks}})
        print(f"best validation {self.best['name']}: {percent(self.best['score'])} (epoch {best['epoch']})")
        print(f"test accuracy at the best validation epoch: {percent(best['test_accuracy'])}")
        print(f"test accuracy after the last epoch: {percent(self.last['test_accuracy'])}")
        print(f"best test accuracy over all {self.checks} check{'s' * (self.checks != 1)}: "
              f"{percent(best_test['test_accuracy'])} (epoch {best_test['epoch']}; chosen on the test set, "
              "as the released code does, so it is too high)")
        print(f"checkpoint: {self.checkpoint_path}   log: {self.log_path}")
        return {"seed": self.args.seed, "best_epoch": best["epoch"], "val": best["val_accuracy"],
                "test": best["test_accuracy"], "last_test": self.last["test_accuracy"],
                "best_test": best_test["test_accuracy"], "checks": self.checks,
                "test_correct": self.best["test_correct"], "best_test_correct": self.best_test["test_correct"],
                "metrics": self.best["test_metrics"]}

    # --------------------------------------------------------------------------------- start and resume

    def _start(self):
        if self.args.resume:
            print(f"{self.state_path}: does not exist, so there is nothing to resume; starting from the first epoch")
        if not self.writes:
            return
        if self.log_path.exists():
            lock(self.log_path.open("rb"), self.log_path).close()
        keep_aside([self.state_path, self.checkpoint_path, self.log_path])      # first what a run is resumed from
        self.log = lock(self.log_path.open("ab", buffering=0), self.log_path)
        self._log({"run": self.config})
        self._save_state()

    def _resume(self):
        try:
            state = read_file(self.state_path)
            if not isinstance(state, dict) or state.keys() != self._state(0).keys():
                raise ValueError("is not the state of a run")
            self._check_same_run(state["config"])
            self._restore(state)
        except WRONG_CONTENT as error:
            raise UserError(f"{self.state_path}: cannot be resumed from ({one_line(error)}); "
                            "start again without --resume, the files here are kept under a numbered name") from error
        for path, wanted in ((self.log_path, state["log_bytes"]), (self.checkpoint_path, 1 if self.best else 0)):
            if (path.stat().st_size if path.exists() else 0) < wanted:
                raise UserError(f"{path}: is missing or cut short, so the run cannot go on; "
                                "start again without --resume")
        if self.writes:
            self.log = lock(self.log_path.open("ab", buffering=0), self.log_path)
            self.log.truncate(state["log_bytes"])
        self.saved_epoch = self.epoch
        print(f"going on with the run in {self.args.output_dir} from epoch {self.epoch}")

    def _check_same_run(self, before):
        for key in ("setting", "network", "settings", "data"):
            of_run, now = before[key], self.config[key]
            if key == "settings":
                of_run, now = comparable(of_run), comparable(now)
            changed = differences(of_run, now)
            if changed:
                raise UserError(f"--resume: the run in {self.args.output_dir} was started with other options or data "
                                f"({changed}); give the same, or choose another --output_dir")

    def _restore(self, state):
        if not all(type(state[name]) is int for name in ("epoch", "checks", "log_bytes")) or not (
                0 <= state["epoch"] <= self.args.nb_epoch and 0 <= state["checks"] and 0 <= state["log_bytes"]):
            raise ValueError("its position is impossible")
        for name, keys in (("best", SCORES), ("best_test", SCORES), ("last", RECORD)):
            if state[name] is not None and not keys <= state[name].keys():
                raise ValueError(f"its {name} is incomplete")
        if constants(state["optimizer"], state["schedule"]) != constants(self.optimizer.state_dict(),
                                                                         self.schedule.state_dict()):
            raise ValueError("its optimizer or schedule has other settings")
        for name in ("epoch", "checks", "best", "best_test", "last"):
            setattr(self, name, state[name])
        self.network.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        set_random_state(state["random"])

    def _save_state(self):
        if self.writes:
            save(self.state_path, self._state(self.log.tell()))
        self.saved_epoch, self.saved_at = self.epoch, time.monotonic()

    def _state(self, log_bytes):
        return {
            "config": self.config,
            "epoch": self.epoch, "checks": self.checks,
            "best": self.best, "best_test": self.best_test, "last": self.last,
            "weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random_state(),
            "log_bytes": log_bytes,
        }

    def _log(self, record):
        if self.writes:
            with naming(self.log_path):
                self.log.write(json.dumps(record).encode() + b"\n")


def constants(optimizer, schedule):
    """What no step changes in the state dicts of an optimizer and its schedule."""
    groups = [{name: value for name, value in group.items() if name != "lr"} for group in optimizer["param_groups"]]
    return groups, {name: schedule[name] for name in ("milestones", "gamma", "base_lrs")}


def percent(value):
    """'95.70 %', or '-' for None."""
    return "-" if value is None else f"{100 * value:.2f} %"


def settings_of(args):
    """The options that decide what a run computes, as plain values."""
    elsewhere = {"train", "trained_model_path", "resume", "runs", "output_dir", "save_predictions", "annotations",
                 "device", "features"}
    return {name: str(value) if isinstance(value, Path) else value
            for name, value in sorted(vars(args).items()) if name not in elsewhere}


def comparable(settings):
    """Settings without what may be written in several ways: paths (the data has a digest), tau (the network has it)."""
    return {name: value for name, value in settings.items()
            if "dir_" not in name and name not in ("data_dir", "threshold")}


def differences(before, now):
    """'name: before -> now, ...' of what differs between two dicts or values; '' where nothing does."""
    if not isinstance(before, dict):
        return "" if before == now else f"{reprlib.repr(before)} -> {reprlib.repr(now)}"
    return ", ".join(f"{name}: {reprlib.repr(before.get(name))} -> {reprlib.repr(now.get(name))}"
                     for name in sorted({*before, *now}) if before.get(name) != now.get(name))


def versions():
    """Versions of what a run stands on, and the git revision of this code."""
    try:
        revision = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], text=True,
                                  cwd=Path(__file__).parent, capture_output=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        revision = ""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "cuda": torch.version.cuda,
            "numpy": np.__version__, "h5py": h5py.__version__, "git": revision or None}


def device_name(device):
    """'cpu', or the name of the accelerator."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def random_state():
    """The state of every random generator that a run draws from, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state):
    """Puts back what `random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(map(operator.index, numbers)), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
