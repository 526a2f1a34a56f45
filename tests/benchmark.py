"""Times training steps, their parts, and their largest matrix products alone, in one run; prints one row.

    python tests/benchmark.py --data_dir data/full --setting weakly --device cuda --precision bf16

Step: of many steps, with no wait for the device between them. Parts: medians of as many steps more, with a wait after
each part. Data: until the batch is there; forward: with the loss.
Products: of AVGA's first layer, H_v = V U_v^T and the gradient of U_v; every implementation has to compute them.
Kernels: operations of a step but views; on a GPU, each launches a kernel, and each LSTM some more.
First batch: seconds since the script was started. Peak: memory of the process; of the GPU: 0 without one.
"""
import time

STARTED = time.perf_counter()
import os  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from itertools import chain, count  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from dataset import FEATURES, TrainingBatches, network_inputs  # noqa: E402
from model.data import read_data  # noqa: E402
from model.evaluate import predict  # noqa: E402
from model.options import data_sizes  # noqa: E402
from psp_model import (PUBLISHED, PSPNetwork, avps_target, fully_supervised_loss,  # noqa: E402
                       weakly_supervised_loss)
from utils import OptionParser, bounded, one_line_errors, set_up_device, wrap_for_training  # noqa: E402

BATCH_SIZE, WARM_UP = 128, 3      # videos, steps


class CountKernels(TorchDispatchMode):
    """Counts the operations that are neither views nor allocations."""
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        view = any(value.alias_info and not value.alias_info.is_write for value in function._schema.returns)
        self.count += not view and "empty" not in function._schema.name
        return function(*args, **kwargs or {})


def main():
    parser = OptionParser(__doc__)
    parser.add_argument("--data_dir", type=Path, metavar="DIR", required=True, help="with all files")
    parser.add_argument("--setting", choices=PUBLISHED, default="fully")
    parser.add_argument("--features", choices=["auto", "memory", "disk"], default="auto")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp64"], default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=bounded(int, 1), default=12, help="that are timed (default: %(default)s)")
    parser.set_defaults(model_name="PSP", batch_size=BATCH_SIZE)
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
    batches = TrainingBatches(data["train"].only(*FEATURES, target), BATCH_SIZE, seed=0, device=device)
    batches = chain.from_iterable(map(batches.epoch, count()))

    def step(lap=lambda: None):
        batch = next(batches)
        lap()
        output = model(*network_inputs(batch))
        if args.setting == "fully":
            avps = avps_target(batch["labels"], sizes.background)
            loss = fully_supervised_loss(output, batch["labels"], avps, LAMBDA=100)
        else:
            loss = weakly_supervised_loss(output, batch["label_share"])
        lap()
        optimizer.zero_grad()
        loss.backward()
        lap()
        optimizer.step()
        lap()
        return batch

    first = []
    for _ in range(WARM_UP):
        step(lambda: first.append(now()))
    start = now()
    for _ in range(args.steps):
        step()
    step_ms = 1000 * (now() - start) / args.steps
    laps = []
    for _ in range(args.steps):
        laps.append([now()])
        step(lambda: laps[-1].append(now()))
    parts = 1000 * np.diff(laps, axis=1)      # [steps, parts]
    with CountKernels() as kernels:
        batch = step()

    V = batch["visual"].flatten(0, 3)
    U_v = torch.rand(network.attention.U_v.out_features, sizes.visual_dim, dtype=V.dtype, device=device)
    times = [now()]
    for _ in range(WARM_UP + 5):
        H_v = torch.mm(V, U_v.T)
        torch.mm(H_v.T, V)      # the gradient of U_v has these shapes
        times.append(now())
    products = 1000 * np.median(np.diff(times)[WARM_UP:])

    start = now()
    predict(model, data["val"], BATCH_SIZE)
    evaluated = len(data["val"]) / (now() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{name}, torch {torch.__version__}, batches of {BATCH_SIZE}")
    print("| setting | features | precision | first batch s | data ms | forward ms | backward ms | optimiser ms "
          "| step ms | kernels | products ms | share | train /s | eval /s | peak GB | GPU GB |")
    row = [args.setting, str(data["train"].device) if data["train"].in_memory else "disk", args.precision,
           f"{first[0] - STARTED:.1f}", *(f"{part:.1f}" for part in np.median(parts, axis=0)), f"{step_ms:.0f}",
           str(kernels.count), f"{products:.0f}", f"{products / step_ms:.2f}",
           f"{1000 * BATCH_SIZE / step_ms:.0f}", f"{evaluated:.0f}",
           f"{peak:.2f}", f"{torch.cuda.max_memory_allocated() / 1e9:.2f}"]
    print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")      # as in the main scripts
    with one_line_errors():
        main()
