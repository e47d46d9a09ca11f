"""How long a command takes before it does anything, against what importing Lightning's command line takes: fresh processes, in turns.

    python tools/benchmarks/startup.py --json startup.json

The first round is not counted: it compiles all modules to bytecode, into a folder of its own, and brings the files into memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import lightning.pytorch.cli": ["-c", "import lightning.pytorch.cli"],
    "import lit_detect": ["-c", "import lit_detect"],
    "from lit_detect import SSD": ["-c", "from lit_detect import SSD"],
    "python -m lit_detect --help": ["-m", "lit_detect", "--help"],
    "python -m lit_detect audit --help": ["-m", "lit_detect", "audit", "--help"],
    "python -m lit_detect fit --help": ["-m", "lit_detect", "fit", "--help"],
}
REFERENCE = "import lightning.pytorch.cli"


class Took(NamedTuple):
    """Seconds of one process."""

    wall: float
    cpu: float


def children_cpu() -> float:
    """Seconds that finished child processes computed, in user and in system mode."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(arguments: list[str], environment: dict[str, str]) -> Took:
    """Run Python once."""
    start, before = time.perf_counter(), children_cpu()
    subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)
    return Took(time.perf_counter() - start, children_cpu() - before)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    took: dict[str, list[Took]] = {command: [] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = bytecode
        for counted in range(arguments.rounds + 1):
            for command, line in COMMANDS.items():
                once = measure(line, environment)
                if counted:
                    took[command].append(once)
    medians = {command: Took(*map(statistics.median, zip(*rounds, strict=True))) for command, rounds in took.items()}
    print(f"| | s | of them computing | times `{REFERENCE}` |\n|---|---|---|---|")
    for command, median in medians.items():
        print(f"| `{command}` | {median.wall:.2f} | {median.cpu:.2f} | {median.cpu / medians[REFERENCE].cpu:.3f} |")
    if arguments.json:
        rows = {command: {"wall": [one.wall for one in rounds], "cpu": [one.cpu for one in rounds]} for command, rounds in took.items()}
        arguments.json.write_text(json.dumps({"python": sys.version.split()[0], "rounds": arguments.rounds, "seconds": rows}, indent=1))


if __name__ == "__main__":
    main()
