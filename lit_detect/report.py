"""The verb ``report``: one self-contained HTML page about a trained detector."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import torch
from jinja2 import Environment, StrictUndefined
from lightning.pytorch.utilities import move_data_to_device
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

import lit_detect
from lit_detect.analysis import image_counts, match_detections
from lit_detect.checkpoints import best_or_last, load_checkpoint
from lit_detect.data.dataset import DetectionDataset
from lit_detect.data.feed import Feed
from lit_detect.detector import Detector
from lit_detect.errors import InputError, printable
from lit_detect.report_history import History, read_history, why_no_history
from lit_detect.report_sections import best_threshold, class_rows, confusions, curves, data_figures, error_rows, score_figures, size_rows
from lit_detect.visualize import draw_against_targets

__all__ = ["Evaluation", "evaluate", "render", "report"]

THUMBNAIL = 480  # pixels of width
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "faster-coco-eval", "albumentations")


def report(
    run: str | None = None,
    config: str | None = None,
    ckpt_path: str | None = None,
    out: str | None = None,
    split: Literal["val", "test"] | None = None,
    images: int = 8,
    score_threshold: float | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Evaluate a trained detector and write a page about it: one HTML file that opens anywhere, without a network.

    It has the results by class and size, the training's curves, precision and recall, confusions, types of errors, calibration, the
    worst and the best images, and what it was made with.

    Args:
        run: a run's folder, with ``config.yaml``, ``checkpoints`` (of a resumed run those of the first) and the training's metrics.
        config: in place of a run: a training config.
        ckpt_path: the checkpoint; of a run ``best.ckpt`` by default, or else ``last.ckpt``.
        out: the file to write; by default ``report.html`` in the run's folder, or here.
        split: the data to evaluate on; by default ``val``, or ``test`` where there is none.
        images: how many of the worst and of the best to show.
        score_threshold: detections that score at least this are shown and counted, 0..1; by default where F1 is largest.
        device: what to evaluate on; by default a GPU if there is one.

    Raises:
        InputError: not one of run and config; files that are missing or do not fit each other.
    """
    folder = None if run is None else Path(run)
    files = {"run": run, "config": config, "ckpt_path": ckpt_path, "out": out}
    settings = {"split": split, "images": images, "score_threshold": score_threshold, "device": device}
    config_file, checkpoint_file = run_files(folder, config, ckpt_path)
    path = Path(out) if out is not None else (folder or Path()) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):  # to be said before an evaluation that may take long
        raise InputError(f"Expected to be allowed to write in {path.parent} but was not: give --out.")
    evaluation, chosen, checkpoint = evaluate_checkpoint(config_file, checkpoint_file, split, device)
    history = read_history(folder) if folder is not None else {}
    about = {
        "title": f"{type(evaluation.detector).__name__} on {chosen}, {folder or config_file}",
        "split": chosen,
        "data": str(evaluation.dataset),
        "checkpoint": str(checkpoint_file),
        "epoch": checkpoint.get("epoch"),
        "step": checkpoint.get("global_step"),
        "config": config_file.read_text(encoding="utf-8", errors="replace"),
        "command": command(files | settings),
        "no_history": why_no_history(folder) if folder is not None and not history else "",
    }
    # a file's name that is not UTF-8 has halves of surrogate pairs in it
    path.write_text(render(evaluation, history, about, images, score_threshold), encoding="utf-8", errors="backslashreplace")
    without = f", without the training's curves: {about['no_history']}" if about["no_history"] else ""
    print(printable(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB){without}"))


def run_files(folder: Path | None, config: str | None, ckpt_path: str | None) -> tuple[Path, Path]:
    """The config and the checkpoint to read."""
    if (folder is None) == (config is None) or (config is not None and ckpt_path is None):
        raise InputError("Expected either --run, or --config and --ckpt_path.")
    if folder is None:
        return Path(str(config)), Path(str(ckpt_path))
    if not (folder / "config.yaml").is_file():
        raise InputError(f"Expected the folder of a run, such as lightning_logs/version_0, but there is no {folder / 'config.yaml'}.")
    return folder / "config.yaml", Path(ckpt_path) if ckpt_path is not None else best_or_last(folder)


def evaluate_checkpoint(config: Path, ckpt_path: Path, split: str | None, device: str) -> tuple[Evaluation, str, dict[str, Any]]:
    """Evaluate a config's detector with a checkpoint's weights: the evaluation, its split, and the rest of the checkpoint."""
    from lit_detect.lightning_cli import read_config

    data, detector = read_config(config)
    if detector is None:
        raise InputError(f"Expected a model in {config} but there is none.")
    checkpoint = load_checkpoint(detector, ckpt_path)
    split = split or ("test" if data.splits["val"] is None else "val")
    data.setup("validate" if split == "val" else "test")
    loader = cast("DataLoader[Any]", data.val_dataloader() if split == "val" else data.test_dataloader())
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return evaluate(detector, loader, chosen), split, checkpoint


def command(given: dict[str, Any]) -> str:
    """The command line that makes the same page."""
    return shlex.join(
        ["python", "-m", "lit_detect", "report", *(f"--{name}={value}" for name, value in given.items() if value is not None)]
    )


@dataclass(frozen=True)
class Evaluation:
    """What a detector found on a data set.

    Attributes:
        detector: with its classes.
        dataset: the images, in the order of the lists.
        detections: one dict an image, on the CPU.
        targets: likewise.
        values: of the detector's metrics, by name.
    """

    detector: Detector
    dataset: DetectionDataset
    detections: list[dict[str, Tensor]]
    targets: list[dict[str, Tensor]]
    values: dict[str, float]


@torch.inference_mode()
def evaluate(detector: Detector, loader: DataLoader[Any], device: str = "cpu") -> Evaluation:
    """Run a detector over a loader's images, and its metrics over what it finds.

    Args:
        detector: any, trained.
        loader: of a `Feed` without augmentation, in order.
        device: where to run.
    """
    detector.to(device).eval()
    detections: list[dict[str, Tensor]] = []
    targets: list[dict[str, Tensor]] = []
    for images, of_images in track(loader, "evaluating"):
        detections += move_data_to_device(detector(move_data_to_device(images, torch.device(device))), torch.device("cpu"))
        targets += of_images
    values: dict[str, float] = {}
    for metric in detector.metrics["val"]:
        metric.update(detections, targets)
        values |= metric.compute()
        metric.reset()
    feed = cast(Feed, loader.dataset)
    return Evaluation(detector, feed.dataset, detections, targets, values)


def render(evaluation: Evaluation, history: History, about: dict[str, Any], images: int = 8, score_threshold: float | None = None) -> str:
    """The page.

    Args:
        evaluation: from `evaluate`.
        history: the training's metrics by name, from `read_history`; may be empty.
        about: texts by name: ``title``, ``split``, ``data``, ``checkpoint``, ``epoch``, ``step``, ``config``, ``command``, and
            ``no_history``: why there is no history, empty where none is expected.
        images: how many of the worst and of the best to show.
        score_threshold: see `report`.

    Returns:
        HTML, in which all that comes from data is escaped.
    """
    detector, classes = evaluation.detector, evaluation.detector.classes
    matches = match_detections(evaluation.detections, evaluation.targets, classes)
    point = best_threshold(matches, score_threshold)
    counts = image_counts(matches, point.threshold)
    worst, best = counts.worst(images).tolist(), counts.best(images).tolist()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.render(
        about=about,
        values=evaluation.values,
        point=point,
        counts={"images": len(evaluation.targets), "boxes": int(matches.target_counts().sum()), "classes": len(classes)},
        parameters=sum(parameter.numel() for parameter in detector.parameters()),
        detector=type(detector).__name__,
        curves=curves(history, about["step"], about["epoch"]),
        class_rows=class_rows(matches, evaluation.values),
        size_rows=size_rows(evaluation.values),
        score_figures=score_figures(matches),
        data_figures=data_figures(evaluation.targets),
        confusions=confusions(evaluation.detections, evaluation.targets, classes, point.threshold),
        errors=error_rows(matches),
        worst=thumbnails(evaluation, worst, point.threshold),
        best=thumbnails(evaluation, [index for index in best if index not in worst], point.threshold),
        versions=versions(),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def versions() -> dict[str, str]:
    """What the page was made with; packages that are there without their metadata are left out."""
    found = {"lit_detect": lit_detect.__version__, "Python": platform.python_version(), "OpenCV": cv2.__version__}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def thumbnails(evaluation: Evaluation, indices: Sequence[int], score_threshold: float) -> list[dict[str, str]]:
    """Images with what is right and wrong on them, as data URLs, each with its file's name and a line about it."""
    shown = []
    as_it_is = Feed(evaluation.dataset)
    for index in indices:
        image, _ = cast("tuple[Tensor, dict[str, Tensor]]", as_it_is[index])
        found, target = evaluation.detections[index], evaluation.targets[index]
        picture, counts = draw_against_targets(image, found, target, evaluation.detector.classes, score_threshold)
        picture.thumbnail((THUMBNAIL, THUMBNAIL * 2))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80)
        text = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda item: item[0] != "true"))
        url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        shown.append({"name": evaluation.dataset.file_name(index), "text": text, "url": url})
    return shown
