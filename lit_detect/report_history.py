"""What a run has logged: from the CSV file or from TensorBoard's events, whichever its logger wrote."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from lit_detect.errors import InputError

__all__ = ["History", "read_history"]

History = dict[str, tuple[np.ndarray, np.ndarray]]


def read_history(folder: Path) -> History:
    """The metrics of a run.

    Args:
        folder: the run's, with ``metrics.csv`` (Lightning's `CSVLogger`) or TensorBoard's ``events.out.tfevents.*``.

    Returns:
        For each metric the steps and its values there ``(K,)``; nothing where neither file is there, or TensorBoard is not installed.

    Raises:
        InputError: a CSV file without steps, or of other than numbers.
    """
    if (folder / "metrics.csv").is_file():
        return read_csv(folder / "metrics.csv")
    return read_events(folder) if any(folder.glob("events.out.tfevents.*")) else {}


def read_csv(path: Path) -> History:
    """Metrics as `CSVLogger` writes them: a row for each time that something was logged, empty where something else was."""
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "step" and value:
                        points.setdefault(name, []).append((float(row["step"]), float(value)))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"Expected metrics with their steps in {path} but got: {error!r}.") from error
    return {name: as_arrays(of_name) for name, of_name in points.items()}


def read_events(folder: Path) -> History:
    """Metrics of TensorBoard's events."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    names = events.Tags()["scalars"]
    return {name: as_arrays([(event.step, event.value) for event in events.Scalars(name)]) for name in names}


def as_arrays(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, in the order of steps; of several values at one step the last."""
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*sorted(dict(points).items()), strict=True))
    return steps, values
