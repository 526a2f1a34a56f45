"""How fast training and evaluation are, beside the machine's own matrix products measured in the same run.

    python tests/benchmark.py                                     # makes synthetic sets of 512, 1024 and 2048 videos
    python tests/benchmark.py --data_dir data/full                # measures on these files
    python tests/benchmark.py --data_dir data/full --device cuda --precision bf16 --setting weakly

Each row is measured in a process of its own:

first batch   seconds from the start of Python until the first batch of a training run is ready
data, forward, backward, optimiser    milliseconds of a step of the shipped training loop (medians); data is what the
              step waits for its batch, forward includes the loss
train, eval   videos per second
AVGA          milliseconds of the two products of its first layer that no implementation can avoid, H_v = U_v V and the
              gradient of U_v, of just these shapes and precision, on their own; its share: theirs of the step
products      milliseconds of every matrix product that the step computes (without those inside the Bi-LSTMs), each on
              its own on operands of the same shapes and precision, and their share of the step
peak          of the process's memory (and of the GPU's), in GB
"""
import argparse
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils  # noqa: E402
from model.checkpoint import build_network  # noqa: E402
from model.run import Run, device_name, versions  # noqa: E402

COLUMNS = {"videos": "videos", "features": "features", "first_batch_s": "first batch s", "data_ms": "data ms",
           "forward_ms": "forward ms", "backward_ms": "backward ms", "optimiser_ms": "optimiser ms",
           "step_ms": "step ms",
           "avga_ms": "AVGA ms", "avga_share": "share", "products_ms": "products ms", "products_share": "share",
           "train_per_s": "train /s", "eval_per_s": "eval /s", "peak_gb": "peak GB", "peak_gpu_gb": "GPU GB"}


def finish(device):
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class MatrixProducts(TorchDispatchMode):
    """Entered, notes each matrix product: the operation, and what it takes to make its operands anew."""

    OPERATIONS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket in self.OPERATIONS:
            self.found.append((operation, [(arg.shape, arg.stride(), arg.dtype, arg.device) for arg in args]))
        return operation(*args, **(kwargs or {}))


def milliseconds_of(products, device):
    """Median time of all these (operation, [(shape, stride, dtype, device) of each operand])."""
    operands = {layout: torch.empty_strided(layout[0], layout[1], dtype=layout[2], device=layout[3]).normal_()
                for _, layouts in products for layout in layouts}
    times = []
    for _ in range(7):
        start = finish(device)
        for operation, layouts in products:
            operation(*(operands[layout] for layout in layouts))
        times.append(finish(device) - start)
    return 1000 * median(times[2:])


def avga_products(rows, width, hidden, dtype, device):
    """V U^T and G^T V: V [rows, width], U [hidden, width], G [rows, hidden]."""
    V, U_transposed = ((rows, width), (width, 1), dtype, device), ((width, hidden), (1, width), dtype, device)
    G_transposed = ((hidden, rows), (1, hidden), dtype, device)
    return [(torch.ops.aten.mm.default, [V, U_transposed]), (torch.ops.aten.mm.default, [G_transposed, V])]


class Enough(Exception):
    """Ends a training run after the steps that were asked for."""


class Clock:
    """Entered, notes when the parts of each step of a training run begin: the loop itself is the shipped one.

    wait: whether each part ends only when the device is done with it.
    """

    def __init__(self, device, steps, wait):
        self.device, self.steps, self.wait = device, steps, wait
        self.first_batch, self.laps, self.times = None, [], []

    def note(self):
        self.times.append(finish(self.device) if self.wait else time.perf_counter())

    def __enter__(self):
        self.patches = [mock.patch.object(utils, "forward", self.around(utils.forward, before=True)),
                        mock.patch.object(torch.Tensor, "backward", self.around(torch.Tensor.backward, True, True)),
                        mock.patch.object(Run, "add", lambda run, loss: self.end_of_step())]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *exception):
        for patch in self.patches:
            patch.stop()

    def around(self, function, before, after=False):
        def timed(*arguments, **options):
            self.first_batch = self.first_batch or time.time()
            if before:
                self.note()
            value = function(*arguments, **options)
            if after:
                self.note()
            return value
        return timed

    def end_of_step(self):
        self.note()
        self.laps.append(self.times)
        self.times = self.times[-1:]
        if len(self.laps) == self.steps:
            raise Enough


def train(script, args, data, device, wait):
    """The `Clock` of a run of the script's own training section; its first three steps are a warm-up."""
    with Clock(device, args.steps + 3, wait) as clock, tempfile.TemporaryDirectory() as folder:
        script_args = script.options()
        script_args.output_dir = Path(folder)
        try:
            script.train(script_args, data, device)
        except Enough:
            finish(device)
    return clock


def measure(args):
    """One row of the table."""
    script = importlib.import_module(f"{args.setting}_supervised_main")
    sys.argv = [f"{args.setting}_supervised_main.py", "--train", "--data_dir", str(args.data_dir),
                "--features", args.features, "--precision", args.precision, "--device", args.device,
                "--batch_size", str(args.batch_size)]
    script_args = script.options()
    device = utils.select_device(script_args)
    data = utils.read_data(script_args, args.setting, ["train", "val", "test"], device)
    sizes = data["train"].sizes

    clock = train(script, args, data, device, wait=True)
    row = {"videos": len(data["train"]), "features": str(data["train"].device) if data["train"].in_memory else "disk",
           "first_batch_s": clock.first_batch - args.started}
    laps = np.diff(clock.laps[3:], axis=1)      # [steps, parts]
    for name, values in zip(("data", "forward", "backward", "optimiser"), laps.T):
        row[f"{name}_ms"] = 1000 * median(values)
    row["step_ms"] = 1000 * median(laps.sum(axis=1))

    laps = train(script, args, data, device, wait=False).laps      # as a training run does it: nothing is waited for
    row["train_per_s"] = args.steps * args.batch_size / (finish(device) - laps[2][-1])

    config = utils.network_config(script_args, args.setting, sizes)
    network = build_network("PSP", config).to(device)
    start = finish(device)
    for split in ("val", "test"):
        utils.predict(network, data[split], args.batch_size, args.precision)
    row["eval_per_s"] = sum(len(data[split]) for split in ("val", "test")) / (finish(device) - start)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    row["peak_gb"] = peak / 1e9
    row["peak_gpu_gb"] = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None

    batch = next(iter(utils.training_batches(script_args, data["train"], device).epoch(0)))
    with MatrixProducts() as products:
        utils.forward(network.train(), batch, args.precision).logits.square().sum().backward()
    rows = args.batch_size * sizes.num_segments * sizes.map_size[0] * sizes.map_size[1]
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    avga = avga_products(rows, sizes.visual_dim, network.attention.U_v.out_features, dtype, device)
    for name, found in (("avga", avga), ("products", products.found)):
        row[f"{name}_ms"] = milliseconds_of(found, device)
        row[f"{name}_share"] = row[f"{name}_ms"] / row["step_ms"]
    return row


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path,
                        help="a folder of all files (default: synthetic ones, made for the measurement)")
    parser.add_argument("--setting", choices=["fully", "weakly"], default="fully")
    parser.add_argument("--features", nargs="+", choices=["auto", "memory", "disk"], default=["memory", "disk"])
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12,
                        help="training steps of each measurement (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("benchmark.json"), help="(default: %(default)s)")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)      # set in the processes that measure
    return parser.parse_args()


def run_measurement(args, folder, features):
    """`measure` in a process of its own; its row, or None where it failed."""
    command = [sys.executable, __file__, "--data_dir", folder, "--setting", args.setting, "--features", features,
               "--precision", args.precision, "--device", args.device, "--batch_size", args.batch_size,
               "--steps", args.steps, "--started", time.time()]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def print_table(rows):
    shown = {name: title for name, title in COLUMNS.items() if any(row[name] is not None for row in rows)}
    cells = [list(shown.values())]
    for row in rows:
        cells.append([f"{row[name]:.2f}" if isinstance(row[name], float) and row[name] < 10 else
                      f"{row[name]:.0f}" if isinstance(row[name], float) else str(row[name]) for name in shown])
    widths = [max(map(len, column)) for column in zip(*cells)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))


def main():
    args = options()
    if args.started:
        args.features = args.features[0]
        print(json.dumps(measure(args)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=".") as made:
        for videos in [None] if args.data_dir else (512, 1024, 2048):
            folder = args.data_dir
            if folder is None:
                folder = Path(made) / str(videos)
                make = Path(__file__).parents[1] / "data" / "synthetic.py"
                subprocess.run([sys.executable, make, "--output_dir", folder, "--train", str(videos), "--val", "128",
                                "--test", "128"], check=True, stdout=subprocess.DEVNULL)
            rows += [run_measurement(args, folder, features) for features in args.features]
    if None in rows:
        sys.exit("benchmark.py: a measurement failed, see above")
    about = {"device": device_name(torch.device(args.device)), "threads": torch.get_num_threads(),
             "versions": versions(), "setting": args.setting, "precision": args.precision,
             "batch_size": args.batch_size}
    print(f"{args.setting} supervised, {args.precision}, batches of {args.batch_size}, {about['device']}, "
          f"{about['threads']} threads, torch {about['versions']['torch']}")
    print_table(rows)
    args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
