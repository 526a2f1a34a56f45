"""Times training steps, their parts, and their largest matrix products alone; prints one row.

    python tests/benchmark.py --data_dir data/full --setting weakly --device cuda --precision bf16

Step: of many steps, with no wait for the device between them. Parts: medians of as many steps more, with a wait after
each part; forward: with the loss.
Products: of AVGA's first layer, H_v = V U_v^T and the gradient of U_v; every implementation has to compute them.
Kernels: operations of a step but views; on a GPU, each launches a kernel, and each LSTM some more.
Peak: memory of the GPU, without one that of the process (on Linux).
"""
import os
import resource
import sys
import time
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset import FEATURES, TrainingBatches, network_inputs  # noqa: E402
from model.data import read_data  # noqa: E402
from model.evaluate import predict  # noqa: E402
from model.options import data_sizes  # noqa: E402
from psp_model import PUBLISHED, PSPNetwork, avps_target, fully_supervised_loss, weakly_supervised_loss  # noqa: E402
from utils import OptionParser, bounded, one_line_errors, set_up_device, wrap_for_training  # noqa: E402


class CountKernels(TorchDispatchMode):
    """Counts the operations that are neither views nor allocations."""
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        view = any(value.alias_info and not value.alias_info.is_write for value in function._schema.returns)
        self.count += not view and "empty" not in function._schema.name
        return function(*args, **kwargs or {})


def main():
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("--data_dir", type=Path, metavar="DIR", required=True, help="with all files")
    add("--setting", choices=PUBLISHED, default="fully")
    add("--features", choices=["auto", "memory", "disk"], default="auto")
    add("--precision", choices=["fp32", "tf32", "bf16", "fp64"], default="fp32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--steps", type=bounded(int, 1), default=12, help="that are timed (default: %(default)s)")
    parser.set_defaults(batch_size=128)
    args = parser.parse_args()
    device = set_up_device(args.device, args.precision)

    def now():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    data = read_data(args, ["train", "val"], device)
    sizes = data["train"].sizes
    network = PSPNetwork(**data_sizes(sizes), **PUBLISHED[args.setting]).to(device)
    model = wrap_for_training(network, args.precision)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    target = {"fully": "labels", "weakly": "label_share"}[args.setting]
    batches = TrainingBatches(data["train"].only(*FEATURES, target), args.batch_size, seed=0, device=device)
    batches = chain.from_iterable(map(batches.epoch, count()))

    def step(lap=lambda: None):
        batch = next(batches)
        lap()
        output = model(*network_inputs(batch))
        if args.setting == "fully":
            labels = batch["labels"]
            loss = fully_supervised_loss(output, labels, avps_target(labels, sizes.background), LAMBDA=100)
        else:
            loss = weakly_supervised_loss(output, batch["label_share"])
        lap()
        optimizer.zero_grad()
        loss.backward()
        lap()
        optimizer.step()
        return batch

    for _ in range(3):      # to warm up
        step()
    start = now()
    for _ in range(args.steps):
        step()
    step_ms = 1000 * (now() - start) / args.steps
    laps = []
    for _ in range(args.steps):
        laps.append([])
        step(lambda: laps[-1].append(now()))
    forward, backward = 1000 * np.median(np.diff(laps, axis=1), axis=0)
    with CountKernels() as kernels:
        batch = step()

    V = batch["visual"].flatten(0, 3)
    U_v = torch.rand(network.attention.U_v.out_features, sizes.visual_dim, dtype=V.dtype, device=device)
    times = [now()]
    for _ in range(8):      # the first three to warm up
        H_v = torch.mm(V, U_v.T)
        torch.mm(H_v.T, V)      # the gradient of U_v has these shapes
        times.append(now())
    products = 1000 * np.median(np.diff(times)[3:])

    start = now()
    predict(model, data["val"], args.batch_size)
    evaluated = len(data["val"]) / (now() - start)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} CPU threads"
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{name}, torch {torch.__version__}, batches of {args.batch_size}")
    print("| setting | precision | forward ms | backward ms | step ms | kernels | products ms | train /s | eval /s "
          "| peak GB |")
    print(f"| {args.setting} | {args.precision} | {forward:.0f} | {backward:.0f} | {step_ms:.0f} | {kernels.count} "
          f"| {products:.0f} | {1000 * args.batch_size / step_ms:.0f} | {evaluated:.0f} | {peak / 1e9:.1f} |")


if __name__ == "__main__":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")      # as in the main scripts
    with one_line_errors():
        main()
