"""Several things timed in one process, in turn: what slows the machine down for a while slows all of them."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision


def take_turns(
    runs: Mapping[Any, Callable[[], Any]], rounds: int, device: str = "cpu", most_seconds: float = 10.0
) -> dict[Any, list[float]]:
    """Milliseconds of each run in each round, after one round that is not counted.

    Args:
        runs: what to time, by name.
        rounds: so many of each, but fewer of what has taken `most_seconds` in all.
        device: ``cuda`` waits for the GPU before the clock is read.
        most_seconds: see `rounds`; two are always timed.
    """
    times: dict[Any, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name, run in runs.items():
            if index < 3 or sum(times[name]) < 1000 * most_seconds:
                wait(device)
                start = time.perf_counter()
                run()
                wait(device)
                if index:
                    times[name].append(1000 * (time.perf_counter() - start))
    return times


def wait(device: str) -> None:
    """Until a GPU has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def medians(times: Mapping[Any, list[float]]) -> dict[Any, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(times: Mapping[Any, list[float]], above: Any, below: Any) -> float:
    """How many times longer one takes than another: the ratio of medians."""
    return statistics.median(times[above]) / statistics.median(times[below])


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "processor": name,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
