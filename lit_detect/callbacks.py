"""What a run leaves behind: its results; files of predictions are in `lit_detect.predictions`, pictures in `lit_detect.pictures`."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from lit_detect.results import coco_results, results, results_tables

__all__ = ["ResultsTable", "TrainingTime"]

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
        # what is not a number is absent, here and in the file
        values = {name.removeprefix(f"{stage}/"): value for name, value in logged.items() if math.isfinite(value)}
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


class TrainingTime(Callback):
    """Log ``train/seconds``: how long training has taken until each validation, which is left out of it. A resumed run goes on."""

    def __init__(self) -> None:
        self.seconds, self.since = 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.since:  # not before a training, to see that validation works, nor after it
            self.seconds += time.perf_counter() - self.since

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.since:
            pl_module.log("train/seconds", self.seconds)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.since:
            self.since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files go. To be asked for on all ranks at once, since the first tells the others."""
    return Path(trainer.log_dir or trainer.default_root_dir)
