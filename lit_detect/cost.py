"""What a detector costs: latency, images a second, operations, memory and energy, of a pass from uint8 pixels to detections."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    "PeakMemory",
    "detection_pass",
    "energy_counter",
    "gflops",
    "images_per_second",
    "in_turn",
    "machine",
    "proposals",
    "proposals_of",
]

Key = TypeVar("Key", bound=Hashable)
Pass = Callable[[Sequence[Tensor]], Any]

WORTH = 1.05  # a batch size is worth it that gives so many times the images a second of the best smaller one
DTYPES = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def detection_pass(network: nn.Module, device: str | torch.device = "cpu", precision: str = "32-true") -> Pass:
    """What is timed: images from the CPU's memory through the network and its post-processing, until the device has done it.

    The network is moved to the device, set to eval, and laid out in memory as a training does it.

    Args:
        network: gives detections of images.
        device: where it runs.
        precision: ``32-true``, ``16-mixed`` or ``bf16-mixed``.

    Returns:
        A function of a list of uint8 images ``(3, H, W)``.
    """
    device = torch.device(device)
    dtype = DTYPES[precision]
    network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: Sequence[Tensor]) -> Any:
        same = len({image.shape for image in images}) == 1
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            found = network(torch.stack(list(images)).to(device) if same else [image.to(device) for image in images])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return found

    return run


def in_turn(
    runs: Mapping[Key, Callable[[int], Any]],
    rounds: int,
    warm_up: int = 1,
    limit: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, list[float]]:
    """Time several things in turn, so that what else the machine does slows all of them alike.

    Args:
        runs: what to time, by name; called with the number of the round, from 0 on.
        rounds: how often each is timed.
        warm_up: rounds before that which do not count; they have the last numbers.
        limit: seconds after which something is timed no more, but once at least.
        clock: gives seconds.

    Returns:
        Milliseconds of each round, by name.

    >>> ticks = iter(range(100))
    >>> in_turn({"a": abs, "b": abs}, rounds=2, warm_up=0, clock=lambda: next(ticks))
    {'a': [1000, 1000], 'b': [1000, 1000]}
    """
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for number in range(-warm_up, rounds):
        for key, run in runs.items():
            if sum(times[key]) < 1000 * limit:
                start = clock()
                run(number % rounds)
                if number >= 0:
                    times[key].append(1000 * (clock() - start))
    return times


def images_per_second(
    run: Pass,
    images: Sequence[Tensor],
    most: int = 64,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    available: Callable[[], float | None] | None = None,
) -> dict[int, float]:
    """Images a second in batches of 1, 2, 4, ..., until two batch sizes in a row bring hardly anything, or the memory is full.

    A GPU says that its memory is full. On a CPU the process would be killed: there the search stops before a batch that would need more
    than the machine has left, if it takes twice what the last one took. A container's own limit is not seen.

    Args:
        run: see `detection_pass`.
        images: to make batches of, from the first on if they are fewer.
        most: the largest batch.
        repeats: of each batch size after one that does not count; the fastest counts.
        clock: gives seconds.
        available: gives the megabytes that the CPU's memory has left; by default what Linux says.

    Returns:
        Images a second by batch size.
    """
    available = available or memory_left
    speeds: dict[int, float] = {}
    size = worth = 1
    while size <= most and size <= 4 * worth:
        batch = [images[index % len(images)] for index in range(size)]
        try:
            with PeakMemory() as memory:
                times = in_turn({size: lambda _: run(batch)}, repeats, clock=clock)[size]  # noqa: B023  # called before the batch changes
        except torch.OutOfMemoryError:
            break
        speeds[size] = 1000 * size / min(times)
        if speeds[size] >= WORTH * speeds[worth]:
            worth = size
        left = available()
        if left is not None and memory.megabytes is not None and 2 * memory.megabytes > left:
            break
        size *= 2
    return speeds


def gflops(run: Callable[[], Any]) -> float:
    """Floating-point operations in billions, a multiplication and an addition as two.

    Torch's `FlopCounterMode` counts convolutions, matrix products and attention. It does not count norms, activations, resizing, pooling
    of regions, position-sensitive voting, decoding of boxes and non-maximum suppression.

    >>> layer = nn.Conv2d(3, 8, 3, bias=False)
    >>> gflops(lambda: layer(torch.zeros(1, 3, 12, 12))) == 2 * 8 * 3 * 3 * 3 * 10 * 10 / 1e9
    True
    """
    with FlopCounterMode(display=False) as counter:
        run()
    total: int = counter.get_total_flops()
    return total / 1e9


class PeakMemory:
    """The most memory in use in a ``with`` block, on top of what was in use before it.

    On a GPU, the tensors'. On a CPU, what the process holds in memory, as Linux counts it.

    Args:
        device: which memory.

    Attributes:
        megabytes: the result, after the block; None where it cannot be had.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.megabytes: float | None = None
        self._before = self._peak_before = 0.0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device) / 1e6
        else:
            with contextlib.suppress(OSError):  # sets the peak to what is in use now, where Linux lets a process do so
                Path("/proc/self/clear_refs").write_text("5")
            self._before, self._peak_before = process_memory("VmRSS") or 0.0, process_memory("VmHWM") or 0.0
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self.device) / 1e6 - self._before
        else:
            peak = process_memory("VmHWM")
            # an old peak that was neither set back nor passed says nothing
            self.megabytes = None if peak is None or peak <= self._peak_before else peak - self._before


def process_memory(field: str, file: str = "/proc/self/status") -> float | None:
    """A line of ``/proc/self/status`` in megabytes; None where there is none."""
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def memory_left() -> float | None:
    """Megabytes of the machine's memory that processes can still have; None where Linux does not say."""
    return process_memory("MemAvailable", "/proc/meminfo")


def energy_counter(device: str | torch.device, powercap: str = "/sys/class/powercap") -> Callable[[], float] | None:
    """Joules that the device has used, as it counts them itself: all of it, whatever else it does, and idling too.

    Args:
        device: a GPU, counted by NVML (``pip install nvidia-ml-py``), or the CPU's packages, counted by RAPL, which Linux shows to
            administrators only.
        powercap: where Linux keeps RAPL's counters.

    Returns:
        A function that gives joules since the first call; None where nothing counts them.
    """
    device = torch.device(device)
    if device.type == "cuda":
        try:
            import pynvml  # type: ignore[import-not-found]

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            start = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except Exception:  # not installed, or not counted by this GPU: each has an exception of its own
            return None
        return lambda: (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - start) / 1e3
    packages = sorted(Path(powercap).glob("intel-rapl:?"))
    try:
        ranges = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        before = [int((package / "energy_uj").read_text()) for package in packages]
    except OSError:
        return None
    used = 0.0

    def joules() -> float:
        nonlocal used, before
        now = [int((package / "energy_uj").read_text()) for package in packages]
        used += sum((b - a) % most for a, b, most in zip(before, now, ranges, strict=True)) / 1e6  # the counters start again at 0
        before = now
        return used

    return joules if packages else None


@contextlib.contextmanager
def proposals(network: Any, count: int) -> Iterator[None]:
    """Give a two-stage network's second stage so many proposals an image, or as many as there are anchors; others are left as they are."""
    rpn = getattr(network, "rpn", None)
    if rpn is None:
        yield
        return
    names = ("_pre_nms_top_n", "_post_nms_top_n", "nms_thresh", "score_thresh")
    before = {name: getattr(rpn, name) for name in names}
    top = {"training": count, "testing": count}
    vars(rpn).update(_pre_nms_top_n=top, _post_nms_top_n=top, nms_thresh=2.0, score_thresh=0.0)  # nothing is left out but by the count
    try:
        yield
    finally:
        vars(rpn).update(before)


def proposals_of(network: Any, images: Sequence[Tensor]) -> int:
    """How many proposals reach a two-stage network's second stage, of all images together."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        inputs = network.inputs([image.to(device) for image in images])
        _, found = network.propose(inputs, network.features(inputs), None)
    return sum(len(of_image) for of_image in found)


def machine(device: str | torch.device, precision: str = "32-true") -> dict[str, Any]:
    """What was measured on: names and versions."""
    found = {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.device(device).type,
        "precision": precision,
    }
    if torch.device(device).type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def processor() -> str:
    """The CPU's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
