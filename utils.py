"""What every script shares: errors in one line, options, the machine, files. It imports nothing else of ours."""
import argparse
import errno
import fcntl
import io
import math
import os
import random
import re
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
# In messages of PyTorch and of CUDA's libraries.
OUT_OF_MEMORY = "out of memory|can't allocate memory|could not (create|execute) a primitive|ALLOC(ATION)?_FAILED"


# ---------------------------------------------------------------------------------------------- errors and progress

class UserError(Exception):
    """A file or an option cannot be used; the text says which, what is wrong and what to do."""


def one_line(error):
    """The message of an error in printable characters on one line of at most 300."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(character for character in text if character.isprintable())[:300]


@contextmanager
def one_line_errors():
    """Around a script's main: errors that a user can fix end in one line and exit code 2.

    Joins the other processes if torchrun started the script; only the first one has standard output.
    """
    try:
        if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
            torch.distributed.init_process_group()      # NCCL for tensors on GPUs, gloo for tensors on CPUs
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")      # a terminal that lacks a character ends no run
        with redirect_stdout(sys.stdout if rank_and_world_size()[0] == 0 else io.StringIO()):
            yield
    except UserError as error:
        _end(str(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        _end(f"not enough memory ({one_line(error)}); try --features disk, or a smaller --batch_size")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        remedy = "; free some space and try again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        _end(f"{where}{error.strerror or one_line(error)}{remedy}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _end(message):
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(2)


def progress_bar(**options):
    """A tqdm bar on standard error: redrawn on a terminal; elsewhere, for example in a log file, a line every 30 s."""
    if sys.stderr is None:      # closed, as by 2>&-
        options["disable"] = True
    elif sys.stderr.isatty():
        return tqdm(mininterval=0.5, **options)
    lines = SimpleNamespace(write=lambda text: print(text.strip("\r "), end="", file=sys.stderr), flush=lambda: None)
    return tqdm(mininterval=30, file=lines, bar_format="{l_bar}{bar:20}{r_bar}\n", **options)


# ------------------------------------------------------------------------------------------------------- options

class OptionParser(argparse.ArgumentParser):
    """argparse with one-line errors, whole option names only, and the docstring as it is in --help."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        if message.endswith("expected one argument"):
            message += "; write a value that begins with a dash as --option=value"
        _end(f"{message} (see --help)")


def bounded(kind, low, high=10**9):
    """An argparse type: an int or float in low..high."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            whole = "a whole" if kind is int else "a"
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {whole} number in {low}..{high}")
        return value
    return parse


def add_overwrite_option(parser):
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist already")


def refuse_to_overwrite(paths, overwrite):
    """Raises UserError if one of the paths exists, unless overwrite is set."""
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(f"{', '.join(existing)}: exists already; choose another folder, or replace it with --overwrite")


# --------------------------------------------------------------------------------- device, precision, processes

def set_up_device(name, precision="fp32"):
    """The torch device of this name, set to the precision; 'cuda' is the first GPU, under torchrun one per process.

    Also sets PyTorch's current GPU and its default dtype. Prints a note if the device only emulates the precision, or
    if PyTorch cannot use the GPU of this machine.
    Raises UserError if this machine does not have the device, or the device does not support the precision.
    """
    world_size = rank_and_world_size()[1]
    if world_size > 1 and name.startswith("cuda:"):
        raise UserError(f"--device {name}: with torchrun, each process takes a GPU of its own; write --device cuda")
    if name == "cuda":
        name = f"cuda:{os.environ['LOCAL_RANK'] if world_size > 1 else 0}"
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:      # each backend has its own kind
        reason = one_line(str(error).partition("\n")[0])
        raise UserError(f"--device {name}: cannot be used here ({reason})") from error
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if precision in ("tf32", "bf16") and torch.cuda.get_device_capability(device)[0] < 8:
            print(f"note: this GPU is older than Ampere: it has no {precision}, so it is no faster")
    elif precision == "tf32":
        raise UserError(f"--precision tf32: only NVIDIA GPUs have it, not {device}; choose fp32 or bf16")
    if device.type == "cpu":
        cpuinfo = Path("/proc/cpuinfo")      # with flags such as amx_bf16
        if precision == "bf16" and cpuinfo.is_file() and "bf16" not in cpuinfo.read_text():
            print("note: this processor does not multiply bfloat16 itself; --precision bf16 is slower than fp32 here")
        if gpu_is_unusable(Path("/dev")):
            built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
            print(f"note: this machine has an NVIDIA GPU, but PyTorch, which is built for {built}, cannot use it; "
                  "update the GPU's driver, or install a PyTorch for its CUDA")
    # Initial weights and dropout are drawn in the default dtype.
    torch.set_default_dtype(torch.float64 if precision == "fp64" else torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return device


def gpu_is_unusable(devices):
    """Whether a folder of devices such as /dev has an NVIDIA GPU, which nobody hides, but PyTorch finds none."""
    hidden = "CUDA_VISIBLE_DEVICES" in os.environ
    return not hidden and not torch.cuda.is_available() and any(devices.glob("nvidia[0-9]*"))


def set_seed(seed):
    """Seeds Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class InPrecision(nn.Module):
    """Computes a network's forward pass in a precision; all it returns comes out in the default dtype."""

    def __init__(self, network, precision):
        super().__init__()
        self.network, self.bf16 = network, precision == "bf16"

    def forward(self, *features):
        with torch.autocast(features[0].device.type, torch.bfloat16, enabled=self.bf16):
            output = self.network(*features)
        return tree_map(in_default_dtype, output)


def in_default_dtype(value):
    """A floating tensor in PyTorch's default dtype; anything else as it is."""
    floating = torch.is_tensor(value) and value.is_floating_point()
    return value.to(torch.get_default_dtype()) if floating else value


def wrap_for_training(network, precision):
    """The network in a precision; under torchrun in DistributedDataParallel, each process with dropout of its own."""
    network = InPrecision(network, precision)
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return network
    torch.manual_seed(torch.initial_seed() + rank)
    return nn.parallel.DistributedDataParallel(network)


def rank_and_world_size():
    """(rank, number) of this process among those that torchrun started; (0, 1) without it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


# ------------------------------------------------------------------------------------------------------- files

def write_atomically(path, content):
    """Writes text or bytes; at any moment, `path` is either the former file or the whole new one."""
    partial = Path(f"{path}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:      # of a failed write, it names no file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path):
    """Makes this file and holds a lock on it, if the file system has locks; UserError if another process holds it."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"{path.parent}: another run is writing there; wait for it, or choose another "
                            "--output_dir") from error
        except OSError:      # of a file system without locks
            pass
        yield


def back_up(paths):
    """Renames the files that exist to `name.1.suffix`, with the first number that is free for all of them."""
    number = 1
    while any(path.with_name(f"{path.stem}.{number}{path.suffix}").exists() for path in paths):
        number += 1
    for path in paths:
        if path.exists():
            kept = path.rename(path.with_name(f"{path.stem}.{number}{path.suffix}"))
            print(f"kept the file of an earlier run: {kept}")
