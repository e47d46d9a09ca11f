"""Pictures of a run: detections against targets, on the same images at the end of each validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from lit_detect.callbacks import run_folder
from lit_detect.errors import InputError
from lit_detect.loggers import log_picture
from lit_detect.visualize import FALSE, MISSED, TRUE, draw_against_targets, montage, with_caption

__all__ = ["DetectionPictures"]


class DetectionPictures(Callback):
    """Draw detections against targets on the first images of each validation, always the same ones, so that progress shows.

    True detections are solid, false ones dashed, missed targets dotted. In a training each validation has its
    ``pictures/epoch=00-step=000375.png`` beside the run; `validate` and `test` have one ``detections.png``. Loggers that take images
    have them too, as ``val/detections``.

    Args:
        images: how many; 0 for none.
        score_threshold: draw detections that score at least this, 0..1.
        every_n_epochs: in a training, draw at the end of every n-th epoch.

    A module whose steps give no ``detections``, as a `Detector`'s do, is not drawn.

    Raises:
        InputError: fewer images than none, or every n-th epoch for an n under 1.
    """

    def __init__(self, images: int = 12, score_threshold: float = 0.5, every_n_epochs: int = 1) -> None:
        if images < 0 or every_n_epochs < 1:
            raise InputError(f"Expected images from 0 and every_n_epochs from 1 but got {images} and {every_n_epochs}.")
        self.images, self.score_threshold, self.every_n_epochs = images, score_threshold, every_n_epochs
        self.pictures: list[Image.Image] = []
        self.counts: Counter[str] = Counter()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        asked = trainer.state.fn != TrainerFn.FITTING or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if asked and not trainer.sanity_checking:
            self.draw(trainer, pl_module, outputs, batch)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        self.draw(trainer, pl_module, outputs, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        moment = f"epoch={trainer.current_epoch:02d}-step={trainer.global_step:06d}"
        self.save(trainer, "val", moment if trainer.state.fn == TrainerFn.FITTING else "")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, "test")

    def draw(self, trainer: Trainer, module: Any, outputs: Any, batch: Any) -> None:
        """Draw as many images of a batch as are still wanted; the first rank's, whose order is the same each time."""
        if not trainer.is_global_zero or not isinstance(outputs, Mapping) or "detections" not in outputs:
            return
        wanted = self.images - len(self.pictures)
        for image, target, found in list(zip(*batch, outputs["detections"], strict=True))[:wanted]:
            picture, counts = draw_against_targets(image, found, target, module.classes, self.score_threshold)
            self.pictures.append(picture)
            self.counts.update(counts)

    def save(self, trainer: Trainer, stage: str, moment: str = "") -> None:
        """Write the picture and show it in the loggers; say where, unless it is of one moment of many."""
        path = run_folder(trainer) / (f"pictures/{moment}.png" if moment else "detections.png")
        if self.pictures:
            colours = {"true": TRUE, "false": FALSE, "missed": MISSED}
            parts = [(f"{self.counts[kind]} {kind}", colour) for kind, colour in colours.items()]
            caption = f"at a score of {self.score_threshold} and an IoU of 0.5{moment and ', '}{moment}"
            sheet = with_caption(montage(self.pictures), [*parts, (caption, (90, 90, 90))])
            write(sheet, path)
            for logger in trainer.loggers:
                log_picture(logger, f"{stage}/detections", sheet, trainer.global_step)
            if not moment:
                print(f"detections drawn: {path} ({', '.join(text for text, _ in parts)} on {len(self.pictures)} images)")
        self.pictures, self.counts = [], Counter()


def write(picture: Image.Image, path: Path) -> None:
    """Write a picture, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
