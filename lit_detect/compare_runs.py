"""What ``compare`` compares: training configs made from one shared part, and trained by the ordinary ``fit``."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_detect.checkpoints import best_or_last
from lit_detect.cli import find_configs
from lit_detect.data.yolo import read_yaml
from lit_detect.errors import InputError
from lit_detect.hyperparameters import class_at
from lit_detect.report_history import read_history

__all__ = ["Run", "call", "epochs", "laid_over", "names_of", "read_models", "read_training", "train"]

KEYS = {"config", "run", "ckpt_path", "sizes", "extractors"}  # of a model, beside those of a training's config
OF_A_TRAINING_THAT_IS_DONE = {"run": {"run", "ckpt_path", "data"}, "ckpt_path": {"ckpt_path", "config", "data"}}
# settings that do not change what is trained
ELSEWHERE = ("trainer.logger", "checkpoint.dirpath", "data.num_workers")
LETTERS = 400  # of a failure's reason
OF_A_RUN = {"ckpt_path", "weights_only", "predictions", "tiles"}
TRAINING_KEYS = {"seed_everything", "trainer", "model", "data", "checkpoint", "pictures", "faults"}


@dataclass
class Run:
    """One model of the comparison.

    Attributes:
        name: as it is shown.
        folder: where its training and its results go.
        config: a whole training config.
        checkpoint: of one that is trained already.
        trained_in: the folder of that training.
        extractor: the name that `extractors` gives it.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    checkpoint: Path | None = None
    trained_in: Path | None = None
    extractor: str | None = None

    @property
    def weights(self) -> Path:
        """The checkpoint that is measured: the best, or where none is chosen the last.

        Raises:
            InputError: the training left none.
        """
        return self.checkpoint or best_or_last(self.folder)

    @property
    def config_file(self) -> Path:
        """Where the config is written."""
        return self.folder / "config.yaml"


def names_of(runs: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Folders by their names: as many of each path's last parts as tell them apart, and from names that are taken.

    Raises:
        InputError: one folder twice.

    >>> names_of(["/a/ssd/version_0", "/a/fcos/version_0"], [])
    {'ssd/version_0': '/a/ssd/version_0', 'fcos/version_0': '/a/fcos/version_0'}
    """
    parts = [Path(run).resolve().parts for run in runs]
    for length in range(1, 1 + max(map(len, parts), default=0)):
        names = ["/".join(of_run[-length:]) for of_run in parts]
        if len({*names, *taken}) == len(names) + len(taken):
            return dict(zip(names, runs, strict=True))
    if runs:
        raise InputError(f"Expected runs of a folder of its own each but got {list(runs)}.")
    return {}


def laid_over(below: Any, above: Any) -> Any:
    """A config over another: mappings key by key, anything else replaced, and also what is of another class.

    >>> laid_over({"class_path": "SSD", "init_args": {"size": 300, "scales": "voc"}}, {"init_args": {"size": 96}})
    {'class_path': 'SSD', 'init_args': {'size': 96, 'scales': 'voc'}}
    >>> laid_over({"class_path": "SSD", "init_args": {"size": 300}}, {"class_path": "RFCN"})
    {'class_path': 'RFCN'}
    """
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if "class_path" in below and above.get("class_path", below["class_path"]) != below["class_path"]:
        return above
    return {**below, **{key: laid_over(below[key], value) if key in below else value for key, value in above.items()}}


def with_data_of(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A training config over another, whose folder goes where the upper one names data sets, and `zoom` where it lists transforms.

    >>> with_data_of({"data": {"folder": "cells", "batch_size": 4}}, {"data": {"val": "mine"}})
    {'data': {'batch_size': 4, 'val': 'mine'}}
    """
    old, new = below.get("data"), above.get("data")
    if isinstance(old, dict) and isinstance(new, dict):
        gone = {"folder", "on_invalid"} if {"train", "val", "test"} & {*new} else set()
        gone |= {"zoom"} if isinstance(new.get("transforms"), list) else set()
        below = {**below, "data": {key: value for key, value in old.items() if key not in gone}}
    whole: dict[str, Any] = laid_over(dict(below), dict(above))
    return whole


def read_models(shared: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], out: Path) -> list[Run]:
    """The runs of a comparison.

    Args:
        shared: a training config, or a part of one.
        models: by name, what is laid over it; see `lit_detect.compare.compare`.
        out: where each gets a folder.

    Raises:
        InputError: keys that no model has, files that are not there, or two models for one folder.
    """
    check_keys("shared", shared, TRAINING_KEYS)
    runs = []
    for name, entry in models.items():
        check_keys(f"models.{name}", entry, TRAINING_KEYS | KEYS)
        if done := next((key for key in OF_A_TRAINING_THAT_IS_DONE if key in entry), None):
            check_keys(f"models.{name}, which is trained already,", entry, OF_A_TRAINING_THAT_IS_DONE[done])
        below: dict[str, Any] = {}
        trained_in = Path(entry["run"]) if "run" in entry else None
        if trained_in is not None:
            below = read_training(trained_in / "config.yaml")
        elif "config" in entry:
            below = read_training(Path(find_configs(["--config", entry["config"]])[1]))
        parts = {key: value for key, value in entry.items() if key in TRAINING_KEYS}
        config = with_data_of(with_data_of(below, shared), parts)
        checkpoint = Path(entry["ckpt_path"]) if "ckpt_path" in entry else None
        if trained_in is not None and checkpoint is None:
            checkpoint = best_or_last(trained_in)
        if checkpoint is not None and not checkpoint.is_file():
            raise InputError(f"Expected a checkpoint of {name} at {checkpoint} but there is no such file.")
        if not isinstance(config.get("data"), dict):
            raise InputError(f"Expected data for {name}, in shared.data or in its own, but there is none.")
        if checkpoint is not None:
            runs.append(Run(name, folder_of(out, name), config, checkpoint, trained_in))
        else:
            runs += variants(name, config, out, entry)
    folders = [run.folder for run in runs]
    if twice := [run.name for run in runs if folders.count(run.folder) > 1]:
        raise InputError(f"Expected names of models that differ in letters or digits but got {twice}.")
    return runs


def read_training(path: Path) -> dict[str, Any]:
    """A training's config, without what a run's ``config.yaml`` has beside it: what was resumed from, and what is for predictions."""
    return {key: value for key, value in read_yaml(path).items() if key not in OF_A_RUN}


def check_keys(where: str, content: Any, known: set[str]) -> None:
    """Stop at a key that would be read by nobody."""
    if not isinstance(content, Mapping):
        raise InputError(f"Expected a mapping as {where} but got {content!r}.")
    if unknown := sorted(set(content) - known):
        raise InputError(f"Expected {', '.join(sorted(known))} in {where} but got {', '.join(unknown)}.")


def folder_of(out: Path, name: str) -> Path:
    """A model's folder."""
    return out / (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model")


def variants(name: str, config: dict[str, Any], out: Path, entry: Mapping[str, Any]) -> list[Run]:
    """A run of each extractor and each input size that an entry asks for."""
    model = config.get("model")
    if not isinstance(model, dict) or "class_path" not in model:
        raise InputError(f"Expected a model for {name}, with its class_path, but got {model!r}.")
    found = []
    for extractor, backbone in (entry.get("extractors") or {None: None}).items():
        for size in entry.get("sizes") or [None]:
            arguments = ({"backbone": backbone} if extractor else {}) | ({size_argument(model["class_path"]): size} if size else {})
            full_name = " ".join(str(part) for part in (name, extractor, size) if part)
            whole = laid_over(config, {"model": {"init_args": arguments}})
            found.append(Run(full_name, folder_of(out, full_name), whole, extractor=extractor))
    return found


def size_argument(class_path: str) -> str:
    """What a detector calls its input size: those of a fixed one ``size``, the others ``min_size``."""
    return "size" if "size" in inspect.signature(class_at(class_path)).parameters else "min_size"


def train(run: Run) -> None:
    """Train a run where it is not trained already, from where it stopped.

    Raises:
        InputError: the folder holds another training.
        RuntimeError: the training failed; with the last line of what it printed.
    """
    trained, last = run.folder / "trained", run.folder / "checkpoints" / "last.ckpt"
    config = run.config if run.checkpoint else in_folder(run.config, run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    if (trained.exists() or last.exists()) and (keys := differing(read_yaml(run.config_file), config)):
        raise InputError(
            f"Expected {run.folder} to hold this training but its config.yaml differs in {', '.join(keys)}: delete the folder."
        )
    run.config_file.write_text(yaml.safe_dump(config, sort_keys=False))
    if run.checkpoint is None and not trained.exists():
        print(f"{run.name}: training, {'from where it stopped, ' if last.exists() else ''}see {run.folder / 'fit.log'}", flush=True)
        resume = ["--ckpt_path", str(last)] if last.exists() else []
        call(["-m", "lit_detect", "fit", "--config", str(run.config_file), *resume], run.folder / "fit.log")
        trained.touch()


def in_folder(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A training config with what it leaves behind in a folder; loggers of its own come after the one that is read here."""
    trainer = config.get("trainer", {})
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder.resolve()), "name": ""}}
    others = trainer.get("logger")
    others = others if isinstance(others, list) else [others] if isinstance(others, dict) else []
    return {
        **config,
        "trainer": {**trainer, "logger": [logger, *others]},
        "checkpoint": {**config.get("checkpoint", {}), "dirpath": str(folder.resolve() / "checkpoints")},
    }


def differing(one: Any, other: Any, key: str = "") -> list[str]:
    """Keys of two configs whose values differ, but for those of `ELSEWHERE`.

    >>> differing({"trainer": {"max_epochs": 3, "logger": True}}, {"trainer": {"max_epochs": 4}, "data": {}})
    ['data', 'trainer.max_epochs']
    """
    if one == other or key in ELSEWHERE:
        return []
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [key]
    inner = {name: f"{key}.{name}".lstrip(".") for name in sorted({*one, *other}, key=str)}
    return [found for name, path in inner.items() for found in differing(one.get(name), other.get(name), path)]


def call(arguments: Sequence[str], log: Path) -> None:
    """Run Python in a process of its own, whose memory is given back and whose failure is one model's.

    Raises:
        RuntimeError: it failed; with the last line of what it printed.
    """
    with log.open("a") as file:
        # this Python with arguments of its own, and no shell
        status = subprocess.run([sys.executable, *arguments], stdout=file, stderr=subprocess.STDOUT, check=False).returncode  # noqa: S603
    if status:
        raise RuntimeError(last_line(log) if status > 0 else f"ended by signal {-status}; {last_line(log)}")


def last_line(log: Path) -> str:
    """The last line that is not empty."""
    lines = [" ".join(line.split()) for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("lit-detect: error: ")[:LETTERS] if lines else f"nothing was printed in {log}"


def epochs(folder: Path) -> list[tuple[float, float]]:
    """Seconds of training and AP of each validation that a training logged, also of one that was resumed."""
    history = read_history(folder)
    seconds, aps = (dict(zip(*history[name], strict=True)) if name in history else {} for name in ("train/seconds", "val/map"))
    return [(float(seconds[step]), float(aps[step])) for step in sorted(seconds) if step in aps]
