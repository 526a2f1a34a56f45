"""The data that the options name: its files, its splits, and whether the features are held or read from disk."""
import math
import re
import sys
from pathlib import Path

import torch

from dataset import AVE_FILES, FEATURES, SPLITS, AVEDataset, find_files, open_file, read_shape, required_files
from model.options import FILE_OPTIONS
from psp_model import PAPER_THRESHOLD
from utils import UserError

PAPER_SEGMENTS = 10      # for which the paper's threshold was chosen
LABELS = ("labels", *(f"order_{split}" for split in SPLITS))


def given_files(args):
    """{name in `dataset.AVE_FILES`: path or None} of the options that name a file."""
    return {name: getattr(args, option, None) for option, name in FILE_OPTIONS[args.setting].items()}


def has_labels(data_dir, given=None, names=LABELS):
    """Whether one of these files is given, or exists; without any label and order file, there are features alone."""
    return any((given or {}).get(name) is not None or (Path(data_dir) / file_name).exists()
               for name in names for file_name in AVE_FILES[name].names)


def scored_splits(data_dir, given=None):
    """What evaluation scores: val and test; without order files test alone or all rows; [None] without labels."""
    if not has_labels(data_dir, given):
        return [None]
    train, val, test = (has_labels(data_dir, given, [f"order_{split}"]) for split in SPLITS)
    return ["test"] if test and not val else ["val", "test"] if train or val else ["all"]


def read_data(args, splits, device):
    """{split: AVEDataset}, from the files that the options name; weak training adds its labels and videos."""
    weak = args.setting == "weakly" and "train" in splits
    background_videos = weak and getattr(args, "background_videos", "on") == "on"
    files = find_files(args.data_dir, required_files(splits, weak, background_videos), given_files(args))
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(args.precision, torch.float32)
    counted = [f"order_{split}" if split in SPLITS else "visual" for split in splits]
    videos = sum(read_shape(files, name)[0] for name in [*counted, "visual_bg"] if name in files)
    per_video = sum(math.prod(read_shape(files, name)[1:]) for name in FEATURES)      # values
    features, place = choose_place(args.features, videos * per_video * dtype.itemsize,
                                   args.batch_size * per_video * 4, device)
    data = {split: AVEDataset(files, split, weak and split == "train", features, dtype, place,
                              pinned=device.type == "cuda" and place.type == "cpu") for split in splits}
    for split, dataset in data.items():
        if dataset.without_features:
            print(f"note: {dataset.without_features} of {len(dataset)} videos of {split or args.data_dir} have no "
                  "features, only zeros, since their video files were missing")
    with open_file(files, "visual") as visual:
        in_chunk = visual.chunks[0] if visual.chunks else 1
    if features == "disk" and in_chunk > 4:
        path, new_path = files["visual"], files["visual"].with_suffix(".contiguous.h5")
        print(f"note: {path}: its chunks hold {in_chunk} videos: a contiguous file is read about {in_chunk} times as "
              f"fast; write one: python -c \"import h5py; a = h5py.File('{path}')['avadataset']; "
              f"b = h5py.File('{new_path}', 'x').create_dataset('avadataset', a.shape, a.dtype); "
              f"[b.__setitem__(slice(i, i + {in_chunk}), a[i:i + {in_chunk}]) for i in range(0, len(a), {in_chunk})]\"")
    rows = [row for dataset in data.values() for row in dataset.tensors["video"].tolist()]
    shared = len(rows) - len(set(rows))
    if shared:
        print(f"note: {shared} videos are in more than one split ({', '.join(data)}); check the order files")
    if any(dataset.random_weights for dataset in data.values()):
        print(f"WARNING: the features in {args.data_dir} were made with --random_weights; results on them are "
              "meaningless", file=sys.stderr)
    num_segments = data[splits[0]].sizes.num_segments
    if num_segments != PAPER_SEGMENTS and getattr(args, "threshold", None) == PAPER_THRESHOLD[args.setting]:
        print(f"note: these videos have {num_segments} segments; the paper's threshold, for {PAPER_SEGMENTS}, "
              f"corresponds to --threshold {args.threshold * PAPER_SEGMENTS / num_segments:.3g}")
    return data


def choose_place(features, needed, batch, device):
    """('memory', device) or ('disk', cpu) for the features; 'auto' takes the first place that has room.

    needed: bytes of all features; batch: bytes of the features of a batch in float32.
    """
    place, total, available = torch.device("cpu"), *main_memory()
    if features == "memory" and needed > total:
        raise UserError(f"--features memory: the features need {needed / 1e9:.1f} GB, and this process may use "
                        f"{total / 1e9:.1f} GB; use --features disk")
    # A step takes 4.1 times the features of its batch (a pretended GPU, 8 to 32 videos). The 1 GB is for CUDA itself.
    if features == "auto" and device.type == "cuda" and needed + 5 * batch + 1e9 < torch.cuda.mem_get_info(device)[0]:
        features, place = "memory", device
    elif features == "auto":
        features = "memory" if needed + 2e9 < available else "disk"
    where = "read from disk batch by batch" if features == "disk" else f"held in memory ({place})"
    print(f"features: {needed / 1e9:.1f} GB, {where}")
    return features, place


CONTROL_GROUPS = {      # of version 2 and 1: where the system says what a container, SLURM or systemd allows
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}


def main_memory(root=Path("/")):
    """(bytes of main memory, bytes that are available) to this process; infinite if the system does not say.

    The smallest limit of its control groups counts. Their usage counts files that can be dropped, `inactive_file`.
    """
    try:
        found = dict(re.findall(r"(\w+): *(\d+) kB", (root / "proc/meminfo").read_text()))
        total, available = 1024 * int(found["MemTotal"]), 1024 * int(found["MemAvailable"])
    except (OSError, KeyError):      # not Linux
        return math.inf, math.inf
    path = root / "proc/self/cgroup"
    for line in path.read_text().splitlines() if path.exists() else []:
        _, controllers, place = line.split(":", 2)
        for controller in CONTROL_GROUPS.keys() & controllers.split(","):
            base, limit, usage, inactive = CONTROL_GROUPS[controller]
            group = root / base / place.lstrip("/")
            for folder in (group, *group.parents):
                try:
                    limited, used = (int((folder / name).read_text()) for name in (limit, usage))
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                except (OSError, ValueError):      # not visible from here, or 'max'
                    continue
                total = min(total, limited)
                available = min(available, limited - used + int(stat.get(inactive, 0)))
    return total, available
