"""What a run leaves behind: results, files of predictions; pictures are in `lit_detect.pictures`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from torch import Tensor

from lit_detect.results import results, results_tables
from lit_detect.visualize import draw_detections

__all__ = ["PredictionWriter", "ResultsTable"]

log = logging.getLogger(__name__)


class ResultsTable(Callback):
    """Print the results of `validate` and `test` as tables, and keep them beside the run.

    ``metrics.json`` has them under ``val`` and ``test`` (`lit_detect.results.results`), with the checkpoint that was evaluated;
    ``detections_val.json`` and ``detections_test.json`` have all detections, in COCO's results format.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.report(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report(trainer, pl_module, "test")

    def report(self, trainer: Trainer, detector: Any, stage: str) -> None:
        """Print and write what was found in a stage."""
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        metric = detector.metrics[stage][0]
        detections, targets = metric.detections, metric.targets
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(f"{stage}/")}
        values = {name.removeprefix(f"{stage}/"): value for name, value in logged.items()}
        found = results(values, detections, targets, detector.classes)
        Console().print(results_tables(found, stage))
        path = folder / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(path.read_text()) if path.exists() else {}
        checkpoint = str(trainer.ckpt_path) if trainer.ckpt_path else None
        path.write_text(json.dumps({**kept, stage: {"checkpoint": checkpoint, **found}}, indent=1))
        numbered = zip(detections, targets, range(len(targets)), strict=True)
        boxes = [coco_results(one, int(target.get("image_id", index)), detector.category_ids) for one, target, index in numbered]
        (folder / f"detections_{stage}.json").write_text(json.dumps([box for image in boxes for box in image]))
        print(f"results: {path}, detections_{stage}.json ({found['detections']} detections on {found['images']} images)")
        best = trainer.checkpoint_callback
        if isinstance(best, ModelCheckpoint) and best.best_model_path:
            print(f"best checkpoint: {best.best_model_path}")


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files go. To be asked for on all ranks at once, since the first tells the others."""
    return Path(trainer.log_dir or trainer.default_root_dir)


class PredictionWriter(Callback):
    """Write what `predict` finds: ``predictions.json`` in COCO's results format, and the images with boxes drawn on them.

    Each result has COCO's ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels) and ``score``, and also
    ``category_name`` and ``file_name``.

    Args:
        folder: where to write; by default ``predictions`` beside the run.
        draw: draw images too.
        score_threshold: draw detections that score at least this, 0..1; the JSON has all that the detector gives.
    """

    def __init__(self, folder: str | None = None, draw: bool = True, score_threshold: float = 0.5) -> None:
        self.folder, self.draw, self.score_threshold = folder, draw, score_threshold
        self.output = Path()
        self.results: list[dict[str, Any]] = []
        self.seen: list[int] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        beside_the_run = run_folder(trainer) / "predictions"
        self.output = Path(self.folder) if self.folder else beside_the_run

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        for image, found, target in zip(batch[0], outputs, batch[1], strict=True):
            index = int(target["image_id"])
            name = trainer.datamodule.splits["predict"].file_name(index)  # type: ignore[attr-defined]
            self.seen.append(index)
            found_here = coco_results(found, index, pl_module.category_ids)  # type: ignore[arg-type]
            names = [pl_module.classes[label - 1] for label in found["labels"].tolist()]  # type: ignore[index]
            named = zip(found_here, names, strict=True)
            self.results += [{**one, "file_name": name, "category_name": category} for one, category in named]
            if self.draw:
                path = self.output / "images" / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_detections(image, found, pl_module.classes, self.score_threshold).save(path)  # type: ignore[arg-type]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        results, seen = gathered(self.results), set(gathered(self.seen))
        self.results, self.seen = [], []
        if not trainer.is_global_zero:
            return
        dataset = trainer.datamodule.splits["predict"]  # type: ignore[attr-defined]
        path = self.output / "predictions.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1))
        print(f"predictions: {path} ({len(results)} detections on {len(seen)} images)")
        unread = [dataset.file_name(index) for index in range(len(dataset)) if index not in seen]
        if unread:
            print(f"could not read {len(unread)} of {len(dataset)} images, which were skipped: {', '.join(unread)}")


def coco_results(detections: dict[str, Tensor], image_id: int, category_ids: list[int]) -> list[dict[str, Any]]:
    """One image's detections in COCO's results format."""
    columns = (detections[name].tolist() for name in ("boxes", "labels", "scores"))
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
        }
        for (x1, y1, x2, y2), label, score in zip(*columns, strict=True)
    ]


def gathered(items: list[Any]) -> list[Any]:
    """The items of all ranks in the order of ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items
    parts: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
