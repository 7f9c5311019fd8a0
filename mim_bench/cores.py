"""Number of CPU cores that this process may use: by its affinity and its container's quota."""

import math
import os
from functools import lru_cache
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


@lru_cache(maxsize=1)
def num_cores() -> int:
    """Cores by affinity, and no more than the CPU quota of the control group (Linux; elsewhere all)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(cores or 1, cpu_quota(_CGROUP))))


def cpu_quota(folder: Path) -> float:
    """Cores that the control group at `folder` (version 2 or 1) may keep busy; inf without a limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
