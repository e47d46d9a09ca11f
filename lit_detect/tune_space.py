"""What `tune` searches: the file that says it, a trial's values, and a config with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_detect.compare_runs import TRAINING_KEYS, check_keys, laid_over
from lit_detect.data.yolo import read_yaml
from lit_detect.errors import InputError

if TYPE_CHECKING:
    from optuna import Trial

__all__ = ["Space", "read_space", "values", "with_values"]

Space = dict[str, dict[str, Any]]


def read_space(path: Path, base: Mapping[str, Any]) -> Space:
    """The ranges and choices by key path, checked."""
    space = {}
    for key, entry in read_yaml(path).items():
        where = f"{key} of {path}"
        check_keys(where, entry, {"low", "high", "log", "choices"})
        inside: Any = base
        parts = str(key).split(".")
        for part in parts[:-1]:
            inside = inside.get(part) if isinstance(inside, dict) else None
        if parts[0] not in TRAINING_KEYS or not isinstance(inside, dict):
            raise InputError(f"Expected {where} to be a key of the training config but {'.'.join(parts[:-1]) or key} is not there.")
        if isinstance(entry.get("choices"), list) and entry["choices"] and len(entry) == 1:
            space[key] = dict(entry)
            continue
        low, high = (number(entry.get(name)) for name in ("low", "high"))
        if "choices" in entry or low is None or high is None or low >= high or (entry.get("log") and low <= 0):
            raise InputError(f"Expected a list of choices, or numbers low < high, above 0 for log, as {where} but got {dict(entry)}.")
        space[key] = {"low": low, "high": high, "log": bool(entry.get("log", False))}
    if not space:
        raise InputError(f"Expected keys with low and high, or choices, in {path} but got none.")
    return space


def number(value: Any) -> int | float | None:
    """A number, also one as YAML 1.1 does not read it (``1e-4``); None for anything else."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def values(trial: Trial, space: Space) -> dict[str, Any]:
    """A trial's value for each key; for one that goes on those it had."""
    found: dict[str, Any] = {}
    for key, entry in space.items():
        if "choices" in entry:  # Optuna keeps names, and a choice may be a whole backbone
            named = {json.dumps(choice): choice for choice in entry["choices"]}
            found[key] = named[trial.suggest_categorical(key, list(named))]
        elif isinstance(entry["low"], int) and isinstance(entry["high"], int):
            found[key] = trial.suggest_int(key, entry["low"], entry["high"], log=entry["log"])
        else:
            found[key] = trial.suggest_float(key, entry["low"], entry["high"], log=entry["log"])
    return found


def with_values(base: Any, found: Mapping[str, Any]) -> Any:
    """A config with other values.

    >>> with_values({"data": {"batch_size": 8, "num_workers": 2}}, {"data.batch_size": 4})
    {'data': {'batch_size': 4, 'num_workers': 2}}
    """
    for key, value in found.items():
        above = value
        for part in reversed(key.split(".")):
            above = {part: above}
        base = laid_over(base, above)
    return base
