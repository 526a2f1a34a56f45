"""Where features find room: on the GPU, in main memory, or on disk alone."""
import math
import re
from pathlib import Path

import torch


def choose_place(needed, device):
    """('memory', the device), ('memory', cpu) or ('disk', cpu): the first with room for so many bytes of features."""
    if device.type == "cuda" and needed + 8e9 < torch.cuda.mem_get_info(device)[0]:      # 8 GB for a step on them
        return "memory", device
    return ("memory" if needed + 2e9 < available_memory() else "disk"), torch.device("cpu")


def available_memory():
    """Bytes of main memory that this process may still take; infinite where the system does not say."""
    available = math.inf
    try:
        meminfo = Path("/proc/meminfo").read_text()
        available = 1024 * int(re.search(r"MemAvailable: *(\d+) kB", meminfo)[1])
        group = Path("/sys/fs/cgroup")      # of a container
        in_use = int(re.search(r"^anon (\d+)", (group / "memory.stat").read_text())[1])
        available = min(available, int((group / "memory.max").read_text()) - in_use)
    except (OSError, TypeError, ValueError):      # another system, or no limit
        pass
    return available
