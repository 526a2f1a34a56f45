"""What a training run writes to its output folder, and how a stopped run continues from there."""
import json
import math
import platform
import random
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

from dataset import UserError, progress_bar
from model.checkpoint import read_content, save, write_atomically
from model.metrics import percent, pruning_note

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("lines", "checks", "best", "best_test", "last")      # attributes of a run that its state file holds


class Run:
    """A training run: its log, its state for --resume, and its best checks so far. Entered, it starts or continues.

        <model>_<setting>.pt         checkpoint of the best check, which the main script saves
        <model>_<setting>.jsonl      log: a line with the header, one for each epoch, one with the result
        <model>_<setting>_state.pt   all that --resume needs

    header: dict of plain values that describes the run. writes: whether this process writes the files.
    start: the epoch to begin with. best, best_test: {score, record, correct} of the check with the highest score and
    of the one with the highest test accuracy; None before the first check.
    Raises UserError if --resume finds a run with other network, options or data, or without its log or checkpoint.
    """

    def __init__(self, args, header, network, optimizer, schedule, steps, writes=True):
        self.args, self.header, self.steps, self.writes = args, header, steps, writes
        self.parts = {"weights": network, "optimizer": optimizer, "schedule": schedule}
        self.start, self.saved, self.lines, self.checks = 0, 0, 0, 0
        self.best = self.best_test = self.last = None
        self.loss_sum, self.losses = torch.zeros((), device=next(network.parameters()).device), []
        name = f"{header['model_name']}_{header['setting']}"
        self.checkpoint_path = args.output_dir / f"{name}.pt"
        self.log_path = args.output_dir / f"{name}.jsonl"
        self.state_path = args.output_dir / f"{name}_state.pt"

    def __enter__(self):
        self.args.output_dir.mkdir(parents=True, exist_ok=True)
        if self.args.resume and self.state_path.exists():
            self._continue()
        elif self.writes:
            if self.args.resume:
                print(f"{self.state_path}: does not exist, so there is nothing to resume; starting with epoch 0")
            back_up([self.state_path, self.checkpoint_path, self.log_path])      # first what --resume looks for
            self._log({"run": self.header})
            self._save_state(epochs=0)
        self.bar = progress_bar(total=self.args.nb_epoch * self.steps, initial=self.start * self.steps, unit="batch",
                                disable=not self.writes)
        return self

    def __exit__(self, kind, *_):
        self.bar.close()
        if kind is KeyboardInterrupt and self.writes:
            print(f"stopped; repeat the command with --resume to continue with epoch {self.saved}", file=sys.stderr)

    def _continue(self):
        state = read_content(self.state_path)
        if "random" not in state:
            raise UserError(f"{self.state_path}: is not the state of a run; start again without --resume")
        for key in ("network", "options", "data"):
            before, now = state["header"][key], self.header[key]
            changed = [f"{name}: {before.get(name)} -> {now.get(name)}" for name in sorted({*before, *now})
                       if before.get(name) != now.get(name)]
            if changed:
                raise UserError(f"--resume: the run in {self.args.output_dir} has other {key} ({', '.join(changed)}); "
                                "repeat its command, or choose another --output_dir")
        if state["header"]["versions"] != self.header["versions"]:
            print("note: the code or a library has changed since the run began; its log has the old versions")
        log = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        if len(log) < state["lines"] or (state["best"] and not self.checkpoint_path.exists()):
            raise UserError(f"--resume: the log or the checkpoint in {self.args.output_dir} is missing or cut short; "
                            "start again without --resume")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        for name in KEPT:
            setattr(self, name, state[name])
        self.start = self.saved = state["epochs"]
        if self.writes:
            random.setstate(state["random"]["python"])
            np.random.set_state(state["random"]["numpy"])
            torch.set_rng_state(state["random"]["torch"])
            if state["random"]["cuda"] is not None and self.loss_sum.is_cuda:
                torch.cuda.set_rng_state(state["random"]["cuda"])
            write_atomically(self.log_path, "".join(f"{line}\n" for line in log[:self.lines]))
        print(f"continuing the run in {self.args.output_dir} with epoch {self.start}")

    def _save_state(self, epochs):
        kind, keys, *rest = np.random.get_state()
        drawn = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "torch": torch.get_rng_state(),
                 "cuda": torch.cuda.get_rng_state() if self.loss_sum.is_cuda else None}
        save(self.state_path, {
            "header": self.header, "epochs": epochs, "random": drawn,
            **{name: getattr(self, name) for name in KEPT},
            **{name: part.state_dict() for name, part in self.parts.items()}})
        self.saved = epochs

    def _log(self, record):
        with open(self.log_path, "a") as log:
            log.write(json.dumps(record) + "\n")
        self.lines += 1

    def add(self, loss):
        """Adds the loss of a step; nothing waits for the device."""
        self.loss_sum += loss.detach()
        if self.args.log_steps and self.writes:
            self.losses.append(loss.detach())
        self.bar.update()

    def mean_loss(self, epoch):
        """The mean loss of the steps since the last call, over all processes; UserError if it is not finite."""
        world_size = rank_and_world_size()[1]
        if world_size > 1:
            torch.distributed.all_reduce(self.loss_sum)
        loss = self.loss_sum.item() / (self.steps * world_size)
        self.loss_sum.zero_()
        if not math.isfinite(loss):
            kept = f". {self.checkpoint_path} keeps epoch {self.best['record']['epoch']}" if self.best else ""
            raise UserError(f"the loss of epoch {epoch} is {loss}; try a lower --lr{kept}")
        return loss

    @property
    def best_score(self):
        return self.best["score"] if self.best else -math.inf

    def add_check(self, record, test):
        """Counts a check, and notes it if its test accuracy is the best so far; test: its `Predictions`."""
        self.checks += 1
        note = pruning_note(test.kept_pairs, self.header["network"].get("threshold"))
        if note and self.checks == 1:
            tqdm.write(note, file=sys.stdout)
        if self.best_test is None or test.accuracy > self.best_test["score"]:
            self.best_test = {"score": test.accuracy, "record": record, "correct": test.correct_segments}

    def set_best(self, score, record, test):
        """Notes the check whose weights the checkpoint holds."""
        self.best = {"score": float(score), "record": record, "correct": test.correct_segments}

    def end_epoch(self, record):
        """Logs the epoch; saves the state every save_epoch epochs and after the last one."""
        if not self.writes:
            return
        steps = {"losses": torch.stack(self.losses).tolist()} if self.losses else {}
        self.losses = []
        epoch, scores = record["epoch"], f"loss {record['loss']:.4f}"
        if "val_accuracy" in record:
            self.last = record
            scores += f"  val {percent(record['val_accuracy'])}  test {percent(record['test_accuracy'])}"
            tqdm.write(f"epoch {epoch}: {scores}", file=sys.stdout)
        self.bar.set_postfix_str(f"epoch {epoch}: {scores}", refresh=False)
        self._log(record | steps)
        if (epoch + 1) % self.args.save_epoch == 0 or epoch + 1 == self.args.nb_epoch:
            self._save_state(epoch + 1)

    def report(self):
        """Prints and logs the result of the run, and returns it for `utils.report_runs`; None in other processes."""
        if not self.writes:
            return None
        best, best_test = self.best["record"], self.best_test["record"]
        result = {"best_validation": best, "best_test": best_test, "last": self.last, "checks": self.checks}
        self._log({"result": result})
        chosen = "" if self.best["score"] == best["val_accuracy"] else f", chosen by score {self.best['score']:.4f}"
        print(f"best validation accuracy: {percent(best['val_accuracy'])} (epoch {best['epoch']}{chosen})")
        print(f"test accuracy at the best validation epoch: {percent(best['test_accuracy'])}")
        print(f"test accuracy after the last epoch: {percent(self.last['test_accuracy'])}")
        print(f"best test accuracy over all {self.checks} check{'s' * (self.checks != 1)}: "
              f"{percent(best_test['test_accuracy'])} (epoch {best_test['epoch']}; chosen on the test set, "
              "as the released code does, so it is too high)")
        print(f"checkpoint: {self.checkpoint_path}   log: {self.log_path}")
        return {"seed": self.args.seed, "best_epoch": best["epoch"], "val": best["val_accuracy"],
                "test": best["test_accuracy"], "last_test": self.last["test_accuracy"],
                "best_test": best_test["test_accuracy"], "checks": self.checks,
                "test_correct": self.best["correct"], "best_test_correct": self.best_test["correct"]}


def rank_and_world_size():
    """(rank, number) of this process among those that torchrun started; (0, 1) without it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def back_up(paths):
    """Renames the files that exist to `name.1.suffix`, with the first number that is free for all of them."""
    number = 1
    while any(path.with_name(f"{path.stem}.{number}{path.suffix}").exists() for path in paths):
        number += 1
    for path in paths:
        if path.exists():
            kept = path.rename(path.with_name(f"{path.stem}.{number}{path.suffix}"))
            print(f"kept the file of an earlier run: {kept}")


def versions():
    """Versions of Python and the libraries, and the git revision of this code if it is a checkout."""
    revision = None
    if (ROOT / ".git").exists():      # an enclosing repository is not this code's
        try:
            revision = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=ROOT, text=True,
                                      capture_output=True, timeout=10).stdout.strip() or None
        except (OSError, subprocess.TimeoutExpired):
            pass
    return {"python": platform.python_version(), "torch": str(torch.__version__), "cuda": torch.version.cuda,
            "numpy": np.__version__, "h5py": h5py.__version__, "git": revision}
