"""Does a long training keep its memory and its files? `fit` on the digits for an hour, validating every few minutes.

    python tools/benchmarks/soak.py --minutes 60

Every ten seconds it reads what the training and its workers hold: memory (PSS, which counts a page that n processes share as 1/n each) and
open files. At the end come medians of the first and the last third of the time, after a warm-up of a tenth. Reads /proc: Linux only.
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
    """What is held at a moment: seconds from the start, megabytes of the training and of its workers, open files and processes of all."""

    seconds: float
    training: float
    workers: float
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
    for name in ("training", "workers", "files"):
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
    print(f"{'minutes':>7} {'training, MB':>13} {'workers, MB':>12} {'files':>6} {'processes':>10}")
    readings: list[Reading] = []
    start = time.monotonic()
    while run.poll() is None:
        reading = read(run.pid, time.monotonic() - start)
        if reading is not None:
            readings.append(reading)
            if len(readings) % 30 == 1:
                columns = f"{reading.training:13.0f} {reading.workers:12.0f} {reading.files:6} {reading.processes:10}"
                print(f"{reading.seconds / 60:7.1f} {columns}", flush=True)
        time.sleep(SECONDS)
    return readings


def read(root: int, seconds: float) -> Reading | None:
    """What a process and its descendants hold; None where one of them ended meanwhile."""
    try:
        pids = [root, *descendants(root)]
        megabytes = [memory(pid) for pid in pids]
        files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Reading(seconds, megabytes[0], sum(megabytes[1:]), files, len(pids))


def descendants(pid: int) -> list[int]:
    """Children, and theirs."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [one for child in children for one in (child, *descendants(child))]


def memory(pid: int) -> float:
    """Proportional set size in megabytes."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    if found is None:  # it has ended and is not waited for yet
        raise ProcessLookupError(pid)
    return int(found[1]) / 1024


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
