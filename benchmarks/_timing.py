"""Alternating measurements on whatever device there is, and what they are compared with: a copy and a matrix product."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from _results import ROOT

PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""Dense bfloat16 operations per second by the data sheet, which model FLOPs utilisation (MFU) is relative to."""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    begun = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begun


def alternate(calls: Mapping[str, Callable[[], Any]], device: torch.device, runs: int, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of each call, ``runs`` of them; whoever goes first changes from run to run, and the first ``warm`` rounds do not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(runs + warm):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            taken = seconds(calls[name], device)
            if number >= warm:
                found[name].append(taken)
    return found


def medians(found: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in found.items()}


def ratio(found: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times as long ``slow`` takes: the median over rounds of the quotient within a round, which a machine's moods leave alone."""
    return statistics.median(a / b for a, b in zip(found[slow], found[fast], strict=True))


def milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median time of a short call; on CUDA by events, with the cache flushed between calls."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(call, warmup=10, rep=40, return_mode="median"))
    call()
    return 1e3 * statistics.median(seconds(call, device) for _ in range(5))


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second that a copy of ``size`` bytes reads and writes."""
    source = torch.empty(size // 4, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * size / (milliseconds(lambda: target.copy_(source), device) / 1e3)


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Floating-point operations per second of a square matrix product on random data."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / (milliseconds(lambda: a @ b, device) / 1e3)


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, attention and convolutions in a call, backward included."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak(device: torch.device) -> float | None:
    """The data sheet's dense bfloat16 rate; None for a device that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAKS.items() if part in name), None)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads)"


def versions(device: torch.device, seed: int = 0) -> dict[str, Any]:
    """What a result file says of where it comes from."""
    commit = (
        os.environ.get("GENRL_COMMIT")
        or subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    )
    found = {}
    for package in ("torch", "diffusers", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    given = re.sub(r"--out \S+ ?", "", " ".join(sys.argv[1:]))
    command = f"python benchmarks/{os.path.basename(sys.argv[0])} {given}".strip()
    said = {"command": command, "commit": commit or "unknown", "device": device_name(device), "seed": seed}
    return said | found | {"python": platform.python_version()}
