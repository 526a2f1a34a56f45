"""What a training run writes to its output folder, how a stopped run continues from there, and which code ran."""
import ast
import hashlib
import json
import math
import platform
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

from model.checkpoint import read_content, save_tensors
from model.metrics import percent, pruning_note
from utils import ROOT, UserError, back_up, progress_bar, rank_and_world_size, write_atomically

KEPT = ("checks", "best", "best_test", "last", "custom_score")      # attributes in the state file
RESERVED = {"epoch", "loss", "losses", "lr", "score", "val_accuracy", "test_accuracy", "kept_pairs",
            "weights", "assumed"}      # in the log or the checkpoint


class Run:
    """A training run: its log, its state for --resume, and its best checks so far. `with` starts or continues it.

        <model>_<setting>.pt         checkpoint of the best check, which the main script saves
        <model>_<setting>.jsonl      log: a line with the header, one for each epoch, one with the result
        <model>_<setting>_state.pt   all that --resume needs

    header: dict of plain values that describes the run. others: what else --resume must restore, such as an average of
    the weights; each has state_dict() and load_state_dict().
    start: the epoch to begin with. writes: whether this process evaluates and writes the files; of several, the first.
    best, best_test: {record, correct} of the check in the checkpoint, and of the one with the highest test accuracy;
    None before the first check.
    Raises UserError if --resume finds a run with other network, options or data, or without its log or checkpoint.
    """

    def __init__(self, args, header, network, optimizer, schedule, steps, **others):
        self.args, self.header, self.steps = args, header, steps
        rank, self.world_size = rank_and_world_size()
        self.writes = rank == 0
        self.parts = dict(weights=network, optimizer=optimizer, schedule=schedule, **others)
        self.start = self.saved = self.checks = 0
        self.best = self.best_test = self.last = None
        self.custom_score = False
        self.device = next(network.parameters()).device
        self.added, self.losses, self.lr = {}, [], None
        optimizer.register_step_post_hook(self._note_rate)
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

    def __exit__(self, kind, error, _):
        self.bar.close()
        causes = error, getattr(error, "__cause__", None)      # such as a full disk, or a network share that is gone
        if self.writes and any(isinstance(cause, (KeyboardInterrupt, OSError)) for cause in causes):
            print(f"stopped; repeat the command with --resume to continue with epoch {self.saved}", file=sys.stderr)

    def _continue(self):
        state = read_content(self.state_path, remedy="start again without --resume")
        needed = {"random", "header", *KEPT, *self.parts}
        known = isinstance(state, dict) and needed <= state.keys()
        if not known or not self.header.keys() <= state["header"].keys():
            raise UserError(f"{self.state_path}: is not the state of a run of this code; start again without --resume")
        before, now = ({**header["data"], **header["network_args"], **header["options"],
                        **{f"class {number}": name for number, name in enumerate(header["class_names"])}}
                       for header in (state["header"], self.header))
        changed = [f"{name}: {before.get(name)} -> {now.get(name)}" for name in sorted({*before, *now})
                   if before.get(name) != now.get(name)]
        if changed:
            raise UserError(f"--resume: the run in {self.args.output_dir} is another one ({', '.join(changed)}); "
                            "repeat its command, or choose another --output_dir")
        now = {**self.header["versions"], "processor": self.header["processor"]}
        self.header |= state["header"]      # in place: the main script puts it into the checkpoint
        before = {**self.header["versions"], "processor": self.header["processor"]}
        if now != before:
            print(f"note: since the run began, {', '.join(name for name in now if now[name] != before[name])} changed; "
                  "its log has both")
            self.header["resumed_with"] = now
        log = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        lines = state["epochs"] + 1      # of the log: the header, and one for each epoch
        if len(log) < lines or (state["best"] and not self.checkpoint_path.exists()):
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
            if state["random"]["cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random"]["cuda"])
            log[0] = json.dumps({"run": self.header})
            write_atomically(self.log_path, "".join(f"{line}\n" for line in log[:lines]))
        print(f"continuing the run in {self.args.output_dir} with epoch {self.start}")

    def _save_state(self, epochs):
        kind, keys, *rest = np.random.get_state()
        drawn = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "torch": torch.get_rng_state(),
                 "cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None}
        save_tensors(self.state_path, dict(
            header=self.header, epochs=epochs, random=drawn,
            **{name: getattr(self, name) for name in KEPT},
            **{name: part.state_dict() for name, part in self.parts.items()}))
        self.saved = epochs

    def _log(self, record):
        with open(self.log_path, "a") as log:
            log.write(json.dumps(record) + "\n")

    def _note_rate(self, optimizer, *_):
        self.lr = optimizer.param_groups[0]["lr"]

    def add(self, loss, **parts):
        """Adds the loss of a step, and parts of it under their names; no device sync."""
        for name in parts:
            if name in RESERVED or name in self.header:
                raise ValueError(f"run.add: a part of the loss cannot be named {name!r}; the log has another one")
        for name, value in {"loss": loss, **parts}.items():
            self.added.setdefault(name, []).append(torch.as_tensor(value).detach().clone())
        self.bar.update()

    def end_steps(self, epoch):
        """The record of an epoch: mean losses over all processes, the last learning rate; UserError if not finite."""
        record = {"epoch": epoch}
        for name, values in self.added.items():
            total = sum(values)
            if self.world_size > 1:
                torch.distributed.all_reduce(total)
            record[name] = total.item() / (len(values) * self.world_size)
            if not math.isfinite(record[name]):
                raise UserError(f"the {name} of epoch {epoch} is {record[name]}; try a lower --lr")
        self.losses, self.added = self.added["loss"], {}
        return {**record, "lr": self.lr}

    @property
    def best_score(self):
        """The score of the check in the checkpoint; None before the first check, or if that had none."""
        return self.best["record"]["score"] if self.best else None

    def note_check(self, record, test, kept):
        """Notes a check, and whether the checkpoint has its weights; test: `Predictions`. UserError if score is NaN."""
        if record["score"] is not None and math.isnan(record["score"]):
            raise UserError(f"the score of epoch {record['epoch']} is NaN; give a number, or None if there is none")
        self.checks += 1
        self.custom_score = self.custom_score or record["score"] != record["val_accuracy"]
        if kept:
            self.best = {"record": record, "correct": test.correct_segments}
        if self.best_test is None or test.accuracy > self.best_test["record"]["test_accuracy"]:
            self.best_test = {"record": record, "correct": test.correct_segments}

    def end_epoch(self, record):
        """Logs the epoch and prints its scores; saves the state after a check and every save_epoch epochs."""
        if not self.writes:
            return
        steps = {"losses": torch.stack(self.losses).tolist()} if self.args.log_steps else {}
        text = f"epoch {record['epoch']}: loss {record['loss']:.4f}"
        if "val_accuracy" in record:
            text += f"  val {percent(record['val_accuracy'])}  test {percent(record['test_accuracy'])}"
            note = pruning_note(record.get("kept_pairs"), self.header["network_args"].get("threshold"))
            if note and self.last is None:
                tqdm.write(note, file=sys.stdout)
            self.last = record
            tqdm.write(text, file=sys.stdout)
        self.bar.set_postfix_str(text, refresh=False)
        self._log(record | steps)
        done = record["epoch"] + 1
        if "val_accuracy" in record or done % self.args.save_epoch == 0:
            self._save_state(epochs=done)

    def report(self):
        """Prints and logs the result of the run, and returns it for `--runs`; None in other processes."""
        if not self.writes:
            return None
        best, best_test = self.best["record"], self.best_test["record"]
        self._log({"result": {"best": best, "best_test": best_test, "last": self.last, "checks": self.checks}})
        if not self.custom_score:
            print(f"best validation accuracy: {percent(best['val_accuracy'])} (epoch {best['epoch']})")
            print(f"test accuracy at the best validation epoch: {percent(best['test_accuracy'])}")
        else:
            print(f"best score: {best['score']} (epoch {best['epoch']}); validation and test accuracy at that epoch: "
                  f"{percent(best['val_accuracy'])}, {percent(best['test_accuracy'])}")
        print(f"test accuracy after the last epoch: {percent(self.last['test_accuracy'])}")
        print(f"best test accuracy over all {self.checks} check{'s' * (self.checks != 1)}: "
              f"{percent(best_test['test_accuracy'])} (epoch {best_test['epoch']}; chosen on the test set, "
              "as the released code does, so it is too high)")
        print(f"checkpoint: {self.checkpoint_path}   log: {self.log_path}")
        versions = self.header["versions"]
        return {"seed": self.args.seed, "revision": versions["git"] or "unknown", "code": versions["code"],
                "processor": self.header["processor"], "best_epoch": best["epoch"], "score": best["score"],
                "val": best["val_accuracy"], "test": best["test_accuracy"], "last_test": self.last["test_accuracy"],
                "best_test": best_test["test_accuracy"], "checks": self.checks,
                "test_correct": self.best["correct"], "best_test_correct": self.best_test["correct"]}


def processor(device):
    """The name of the GPU or, of the device 'cpu', of this machine's processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text()) if path.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def versions(script):
    """Versions of Python and the libraries, the git revision of a checkout, and checksums of the code.

    code: of the main script, see `code_checksum`; started: of what was started, which may call the main script.
    """
    revision, started = None, Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    if (ROOT / ".git").exists() and shutil.which("git"):      # an enclosing repository is not this code's
        revision = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=ROOT, text=True,
                                  capture_output=True).stdout.strip() or None
    return {"python": platform.python_version(), "torch": str(torch.__version__), "cuda": torch.version.cuda,
            "numpy": np.__version__, "h5py": h5py.__version__, "code": code_checksum(script), "git": revision,
            "started": code_checksum(started) if started.is_file() else None}


def code_checksum(script):
    """SHA-256 of a script and of all modules of this repository that it imports, directly or not."""
    todo, found = [Path(script).resolve()], {}
    while todo:
        path = todo.pop()
        found[path] = path.read_bytes()
        for node in ast.walk(ast.parse(found[path])):
            names = [name.name for name in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
            paths = [ROOT / f"{name.replace('.', '/')}.py" for name in names]
            todo += [path for path in paths if path.is_file() and path not in found]
    return hashlib.sha256(b"".join(found[path] for path in sorted(found))).hexdigest()[:16]
