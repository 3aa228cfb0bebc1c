"""How many cores a process may use, and torch's threads on them."""

from __future__ import annotations

import os
from pathlib import Path

import torch

QUOTAS = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us")
"""Where a container says how much time it has: microseconds of all cores together, and the period they are counted in."""


def usable_cpus() -> int:
    """Cores that this process may use: in a container often fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(limit for files in QUOTAS if (limit := _quota(files)))]))


def _quota(files: str) -> int:
    """Whole cores that a quota amounts to; 0 for none."""
    try:
        share, period = (int(text) for file in files.split() for text in Path(file).read_text().split())
    # no such file, or no number in it: no quota
    except (OSError, ValueError):
        return 0
    return max(1, share // period) if share > 0 else 0


def fit_threads(processes: int = 1) -> None:
    """Share the cores among so many processes of the same kind."""
    torch.set_num_threads(max(1, usable_cpus() // processes))
