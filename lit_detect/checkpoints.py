"""Checkpoints: read as plain data, loaded into a detector, and found in a run's folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from typing import IO, Any, TypeVar

import torch

from lit_detect.data.yolo import read_yaml
from lit_detect.detector import Detector
from lit_detect.errors import InputError
from lit_detect.hyperparameters import built, known_class, made
from lit_detect.models.weights import read_plain

__all__ = ["best_or_last", "detector_of", "load_checkpoint", "newest_last", "read_checkpoint"]

log = logging.getLogger(__name__)

SomeDetector = TypeVar("SomeDetector", bound=Detector)
OF_LIGHTNING = "_instantiator"  # how Lightning's own load_from_checkpoint would build it


def read_checkpoint(path: Path | IO[bytes], map_location: Any = "cpu") -> dict[str, Any]:
    """What a checkpoint holds; code that is pickled into one is not run.

    Args:
        path: the file.
        map_location: where tensors go, as `torch.load` takes it.

    Raises:
        InputError: no such file, or not a checkpoint of plain data.
    """
    if isinstance(path, Path) and not path.is_file():
        raise InputError(f"Expected a checkpoint at {path} but there is no such file.")
    content = read_plain(path, f"a checkpoint of plain data but {path}", map_location)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"Expected a checkpoint of a training but {path} has no state_dict.")
    check_hyperparameters(content.get("hyper_parameters", {}), path)
    check_callbacks(content.get("callbacks", {}), path)
    return content


def check_hyperparameters(found: Any, path: Path | IO[bytes]) -> None:
    """Stop at what no training wrote.

    Raises:
        InputError: hyper-parameters without names, or classes that are no names or have no ids.
    """
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(f"Expected hyper-parameters by name in the checkpoint {path} but got {type(found).__name__}.")
    for name, kind in (("classes", str), ("category_ids", int)):
        if name in found and not (isinstance(found[name], list) and all(isinstance(one, kind) for one in found[name])):
            raise InputError(f"Expected {name} in the checkpoint {path} as a list of {kind.__name__} but got {str(found[name])[:200]}.")


def check_callbacks(found: Any, path: Path | IO[bytes]) -> None:
    """Stop at paths by which a resumed training would delete other files than its own: Lightning deletes what was best before.

    Raises:
        InputError: a path that is not in the folder that goes with it.
    """
    for state in found.values() if isinstance(found, dict) else ():
        if not isinstance(state, dict) or "best_k_models" not in state:
            continue
        names = [*state["best_k_models"], state.get("kth_best_model_path"), state.get("last_model_path")]
        for name in map(str, filter(None, names)):
            if not Path(name).is_relative_to(str(state.get("dirpath"))) or ".." in Path(name).parts:
                raise InputError(f"Expected checkpoints in {state.get('dirpath')}, as {path} has it, but it names {name!r}.")


def detector_of(
    cls: type[SomeDetector], path: Path | IO[bytes], map_location: Any = None, strict: bool | None = None, **arguments: Any
) -> SomeDetector:
    """The detector that a checkpoint describes, with its weights: see `Detector.load_from_checkpoint`."""
    checkpoint = read_checkpoint(path, map_location or where_it_was)
    described = {name: value for name, value in checkpoint.get("hyper_parameters", {}).items() if name != OF_LIGHTNING}
    kind = known_class(described.pop("_class_path"), cls) if "_class_path" in described else cls
    if kind is Detector:  # which has no network
        raise InputError(f"Expected a checkpoint of a Detector that can be imported but {path} names no class.")
    try:
        described = built(described)
    except RecursionError as error:
        raise InputError(f"Expected a detector's arguments in {path} but they are nested without end.") from error
    detector = made(kind, described | arguments)
    detector.on_load_checkpoint(checkpoint)
    state = checkpoint["state_dict"]
    left = detector.load_state_dict(state, strict=detector.strict_loading if strict is None else strict)
    if left.missing_keys or left.unexpected_keys:
        log.warning("%s lacks %s, and has %s besides.", path, left.missing_keys or "nothing", left.unexpected_keys or "nothing")
    return detector.to(next((value.device for value in state.values() if isinstance(value, torch.Tensor)), "cpu"))


def where_it_was(storage: Any, location: str) -> Any:
    """The device that a tensor was saved from, or the CPU where there is no such device."""
    kind, _, number = location.partition(":")
    there = kind == "cpu" or (kind == "cuda" and int(number or 0) < torch.cuda.device_count())
    return None if there else storage.cpu()


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
