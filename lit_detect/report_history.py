"""What a run has logged: from the CSV file or from TensorBoard's events, whichever its logger wrote."""

from __future__ import annotations

import csv
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lit_detect.errors import InputError

__all__ = ["History", "read_history", "why_no_history"]

History = dict[str, tuple[np.ndarray, np.ndarray]]
Points = dict[str, list[tuple[float, float]]]
EVENTS = "events.out.tfevents.*"


def read_history(folder: Path) -> History:
    """The metrics of a run.

    Args:
        folder: the run's; in it, at any depth, is ``metrics.csv`` (Lightning's `CSVLogger`) or TensorBoard's ``events.out.tfevents.*``.
            Of several, as of a training that was resumed, the later ones go on from the earlier.

    Returns:
        For each metric the steps and its values there ``(K,)``; nothing where neither file is there, or TensorBoard is not installed.

    Raises:
        InputError: a CSV file without steps, or of other than numbers.
    """
    points: Points = defaultdict(list)
    for path in in_time(folder, "metrics.csv"):
        read_csv(path, points)
    if not points:
        for events in dict.fromkeys(path.parent for path in in_time(folder, EVENTS)):
            read_events(events, points)
    return {name: as_arrays(of_name) for name, of_name in points.items()}


def why_no_history(folder: Path) -> str:
    """What to say of a run for which `read_history` finds nothing."""
    if in_time(folder, EVENTS) and find_spec("tensorboard") is None:
        return f"TensorBoard's events in {folder} cannot be read, since tensorboard is not installed"
    return f"there is no metrics.csv in {folder}, nor TensorBoard's events"


def in_time(folder: Path, pattern: str) -> list[Path]:
    """Files at any depth, in the order in which they were last written."""
    return sorted(folder.rglob(pattern), key=lambda path: (path.stat().st_mtime, path))


def read_csv(path: Path, points: Points) -> None:
    """Add metrics as `CSVLogger` writes them: a row for each time that something was logged, empty where something else was."""
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "step" and value:
                        points[name].append((float(row["step"]), float(value)))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"Expected metrics with their steps in {path} but got: {error!r}.") from error


def read_events(folder: Path, points: Points) -> None:
    """Add metrics of TensorBoard's events."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        return
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    for name in events.Tags()["scalars"]:
        points[name] += [(event.step, event.value) for event in events.Scalars(name)]


def as_arrays(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, in the order of steps; of several values at one step the last."""
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*sorted(dict(points).items()), strict=True))
    return steps, values
