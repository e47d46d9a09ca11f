"""What a run leaves behind: a table of results, a picture of detections."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lit_detect.visualize import draw_detections, montage

__all__ = ["DetectionPictures", "ResultsTable"]

log = logging.getLogger(__name__)

Detections = list[dict[str, Tensor]]

ROWS = {
    "map": "AP",
    "map_50": "AP50",
    "map_75": "AP75",
    "map_small": "AP small (under 32² pixels)",
    "map_medium": "AP medium (to 96²)",
    "map_large": "AP large (over 96²)",
}


class ResultsTable(Callback):
    """Print the results of `validate` and `test` as a table, and where the best checkpoint is."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.print(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.print(trainer, "test")

    def print(self, trainer: Trainer, stage: str) -> None:
        """Print what was logged for a stage."""
        if not trainer.is_global_zero:
            return
        console = Console()
        console.print(results_table(trainer.callback_metrics, stage))
        checkpoint = trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path:
            print(f"best checkpoint: {checkpoint.best_model_path}")


def results_table(metrics: Mapping[str, Tensor], stage: str) -> Table:
    """COCO's averages, and AP by class, of the metrics logged for a stage; a value that does not exist is left out."""
    table = Table("", stage, title=f"{stage}: average precision over IoU .50 to .95 unless said otherwise")
    table.columns[1].justify = "right"
    for key, name in ROWS.items():
        if f"{stage}/{key}" in metrics:
            table.add_row(name, f"{metrics[f'{stage}/{key}']:.3f}")
    table.add_section()
    for key, value in metrics.items():
        if key.startswith(f"{stage}/ap/"):
            table.add_row(f"AP {key.removeprefix(f'{stage}/ap/')}", f"{value:.3f}")
    return table


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files go. To be asked for on all ranks at once, since the first tells the others."""
    return Path(trainer.log_dir or trainer.default_root_dir)


class DetectionPictures(Callback):
    """Draw the detections on the first images of `validate` and `test` into one ``detections.png`` beside the run.

    Args:
        images: how many; 0 for none.
        score_threshold: draw detections that score at least this, 0..1.
    """

    def __init__(self, images: int = 12, score_threshold: float = 0.5) -> None:
        self.images, self.score_threshold = images, score_threshold
        self.pictures: list[Image.Image] = []
        self.drawn = 0

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.draw(pl_module, outputs["detections"], batch)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        self.draw(pl_module, outputs["detections"], batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def draw(self, module: Any, detections: Detections, batch: Any) -> None:
        """Draw as many images of a batch as are still wanted."""
        for image, found in zip(batch[0], detections, strict=True):
            if len(self.pictures) < self.images:
                self.drawn += int((found["scores"] >= self.score_threshold).sum())
                self.pictures.append(draw_detections(image, found, module.classes, self.score_threshold))

    def save(self, trainer: Trainer) -> None:
        """Write the picture, and say where."""
        path = run_folder(trainer) / "detections.png"
        if self.pictures and trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            montage(self.pictures).save(path)
            print(f"detections drawn: {path} ({self.drawn} that score {self.score_threshold} or more on {len(self.pictures)} images)")
        self.pictures, self.drawn = [], 0
