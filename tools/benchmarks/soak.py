"""Does a long training keep its memory and its files? `fit` on the digits for an hour, validating every few minutes.

    python tools/benchmarks/soak.py --minutes 60

Every ten seconds it reads what the training and its workers hold: open files, and memory that is not a file's (of files the kernel
keeps as much as it likes), as each process sees it, and with pages that they share counted once. The latter rises for a while though
nothing leaks: workers share the training's pages until one of them writes there. At the end come medians of the first and the last
third of the time, after a warm-up of a tenth. Reads /proc: Linux only.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from jsonargparse import auto_cli

WARM_UP = 0.1  # share of the time until caches are filled and workers started
SECONDS = 10.0  # between readings


class Reading(NamedTuple):
    """What the training and its workers hold at a moment, seconds from the start."""

    seconds: float
    training_mb: float
    workers_mb: float
    shared_once_mb: float
    files: int
    processes: int


def main(minutes: int = 60, workers: int = 2, epochs: int = 3, config: str = "quickstart.yaml") -> None:
    """Train, read, and say how flat it was.

    Args:
        minutes: how long to train.
        workers: of the data loader.
        epochs: between validations.
        config: of a training.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as output:
            run = subprocess.Popen(command(minutes, workers, epochs, config), stdout=output, stderr=subprocess.STDOUT, cwd=folder)
            readings = watch(run)
        if run.returncode:
            sys.exit(f"fit ended with status {run.returncode}:\n{log.read_text()[-3000:]}")
        steps = [int(path.stem.rpartition("=")[2]) for path in Path(folder).rglob("pictures/*.png")]
    print(f"{max(steps)} steps, {len(steps)} validations, {len(readings)} readings")
    steady = [reading for reading in readings if reading.seconds >= WARM_UP * readings[-1].seconds]
    third = len(steady) // 3
    for name in Reading._fields[1:]:
        first, last = (statistics.median(getattr(reading, name) for reading in part) for part in (steady[:third], steady[-third:]))
        print(f"{name}: {first:.0f} in the first third, {last:.0f} in the last: {100 * (last / first - 1):+.2f} %")


def command(minutes: int, workers: int, epochs: int, config: str) -> list[str]:
    """The training: it ends by time alone, so it has no schedule over the whole of it."""
    options = {
        "--trainer.max_epochs": -1,
        "--trainer.max_time": f"00:{minutes // 60:02d}:{minutes % 60:02d}:00",
        "--trainer.check_val_every_n_epoch": epochs,
        "--trainer.enable_progress_bar": "false",
        "--model.init_args.lr_scheduler": "null",
        "--data.num_workers": workers,
    }
    return [sys.executable, "-m", "lit_detect", "fit", "--config", config, *(str(part) for option in options.items() for part in option)]


def watch(run: subprocess.Popen[bytes]) -> list[Reading]:
    """Read until the training ends; print every thirtieth reading."""
    print("".join(f"{name:>16}" for name in Reading._fields))
    readings: list[Reading] = []
    start = time.monotonic()
    while run.poll() is None:
        reading = read(run.pid, time.monotonic() - start)
        if reading is not None:
            readings.append(reading)
            if len(readings) % 30 == 1:
                print("".join(f"{value:16.0f}" for value in reading), flush=True)
        time.sleep(SECONDS)
    return readings


def read(root: int, seconds: float) -> Reading | None:
    """What a process and its descendants hold; None where one of them ended meanwhile."""
    try:
        pids = [root, *descendants(root)]
        held = [memory(pid) for pid in pids]
        files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
    except (FileNotFoundError, ProcessLookupError):
        return None
    own, shared_once = zip(*held, strict=True)
    return Reading(seconds, own[0], sum(own[1:]), sum(shared_once), files, len(pids))


def descendants(pid: int) -> list[int]:
    """Children, and theirs."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [one for child in children for one in (child, *descendants(child))]


def memory(pid: int) -> tuple[float, float]:
    """Megabytes of a process that are no file's: all of them, and with those that it shares in its share."""
    found = re.findall(r"^(Anonymous|Pss_Anon):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    if not found:  # it has ended and is not waited for yet
        raise ProcessLookupError(pid)
    megabytes = {name: int(kilobytes) / 1024 for name, kilobytes in found}
    return megabytes["Anonymous"], megabytes["Pss_Anon"]


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
