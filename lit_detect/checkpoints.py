"""Checkpoints: read as plain data, loaded into a detector, and found in a run's folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from typing import Any

import torch

from lit_detect.data.yolo import read_yaml
from lit_detect.detector import Detector
from lit_detect.errors import InputError

__all__ = ["best_or_last", "load_checkpoint", "newest_last", "read_checkpoint"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU; code that is pickled into one is not run.

    Raises:
        InputError: no such file, or not a checkpoint of plain data.
    """
    if not path.is_file():
        raise InputError(f"Expected a checkpoint at {path} but there is no such file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputError(f"Expected a checkpoint but could not read {path}: {error.strerror}.") from error
    except Exception as error:  # on a damaged file torch.load raises anything, from OSError to KeyError
        raise InputError(f"Expected a checkpoint of plain data but {path} is damaged or holds code, which is not run.") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"Expected a checkpoint of a training but {path} has no state_dict.")
    return content


def load_checkpoint(detector: Detector, path: Path) -> dict[str, Any]:
    """Give a detector the weights of a checkpoint.

    Returns:
        The rest of the checkpoint.

    Raises:
        InputError: not a checkpoint, or one of another detector or of other classes.
    """
    checkpoint = read_checkpoint(path)
    classes = list(checkpoint.get("hyper_parameters", {}).get("classes", detector.classes))
    if classes != detector.classes:  # in another order the weights would fit, and be wrong
        raise InputError(f"Expected a checkpoint of the classes {detector.classes}, in this order, but {path} has {classes}.")
    try:
        detector.load_state_dict(checkpoint.pop("state_dict"))
    except RuntimeError as error:
        raise InputError(f"Expected a checkpoint of {type(detector).__name__} as configured but got {path}: {str(error)[:300]}") from error
    return checkpoint


def best_or_last(run: Path) -> Path:
    """A run's ``best.ckpt``, or else its ``last.ckpt``; of a run that was resumed in another's folder, where it went on saving them.

    Raises:
        InputError: neither is there.
    """
    folders = [run / "checkpoints"]
    if (run / "config.yaml").is_file():
        config = read_yaml(run / "config.yaml")
        folder, resumed = (config.get("checkpoint") or {}).get("dirpath"), str(config.get("ckpt_path") or "")
        folders += [Path(folder)] if folder else []
        folders += [Path(resumed).parent] if resumed.endswith(".ckpt") else []
    found = [folder / name for folder in folders for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()]
    if not found:
        raise InputError(f"Expected {folders[0] / 'best.ckpt'} or last.ckpt but there is neither: give --ckpt_path.")
    return found[0]


def newest_last(folders: Iterable[str]) -> Path | None:
    """Of the last checkpoints in folders the one that was written last; none where there is none.

    Args:
        folders: which may have ``*`` in them.
    """
    found = [Path(path) for folder in folders for path in glob(os.path.join(folder, "last*.ckpt"))]
    return max((path for path in found if re.fullmatch(r"last(-v\d+)?", path.stem)), key=lambda path: path.stat().st_mtime_ns, default=None)
