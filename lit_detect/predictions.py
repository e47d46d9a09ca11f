"""What `predict` leaves behind: files of detections, images and videos with boxes drawn on them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from lit_detect.callbacks import run_folder
from lit_detect.data.video import Video
from lit_detect.errors import InputError
from lit_detect.results import coco_results
from lit_detect.visualize import draw_detections

__all__ = ["PredictionWriter"]

Output = Literal["json", "csv", "yolo", "images"]
COLUMNS = ("image_id", "file_name", "category_id", "category_name", "x", "y", "width", "height", "score")


class PredictionWriter(Callback):
    """Write what `predict` finds, in one or several forms.

    - ``json``: ``predictions.json`` in COCO's results format: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels) and
      ``score``, and also ``category_name`` and ``file_name``. Images are numbered from 0 in the order of their paths, frames in time.
    - ``csv``: the same as a table, ``predictions.csv``.
    - ``yolo``: in ``labels`` a text file for each image or frame, with a row ``class x y width height score`` for each detection: classes
      from 0, the centre of the box, in widths and heights of the image. Without detections the file is empty.
    - ``images``: in ``images`` the images with boxes drawn on them; of a video a video, without sound.

    Args:
        folder: where to write; by default ``predictions`` beside the run.
        outputs: which of these: ``json``, ``csv``, ``yolo``, ``images``.
        score_threshold: write detections that score at least this, 0..1, or by class, as in ``{person: 0.3}``. By default, and for
            classes that are not named, files have all that the detector gives, and 0.5 and more is drawn.
        classes: write detections of these classes only; by default of all.

    Raises:
        InputError: in use, with a class that the detector does not know.
    """

    def __init__(
        self,
        folder: str | None = None,
        outputs: Sequence[Output] = ("json", "images"),
        score_threshold: float | dict[str, float] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.folder, self.outputs, self.score_threshold, self.classes = folder, list(outputs), score_threshold, classes
        self.output = Path()
        self.written, self.drawn = torch.zeros(0), torch.zeros(0)
        self.found: dict[int, dict[str, Tensor]] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        beside_the_run = run_folder(trainer) / "predictions"
        self.output = Path(self.folder) if self.folder else beside_the_run
        self.written, self.drawn = (
            thresholds(pl_module.classes, self.score_threshold, default, self.classes)  # type: ignore[arg-type]
            for default in (0.0, 0.5)
        )
        if "yolo" in self.outputs:
            dataset = trainer.datamodule.splits["predict"]  # type: ignore[attr-defined]
            check_names([dataset.file_name(index) for index in range(len(dataset))])

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        dataset = trainer.datamodule.splits["predict"]  # type: ignore[attr-defined]
        for image, found, target in zip(batch[0], outputs, batch[1], strict=True):
            index = int(target["image_id"])
            name = dataset.file_name(index)
            kept = self.found[index] = above({key: value.cpu() for key, value in found.items()}, self.written)
            if "yolo" in self.outputs:
                path = made(self.output / "labels" / yolo_name(name))
                path.write_text(yolo_rows(kept, *image.shape[-2:]), encoding="utf-8")
            if "images" in self.outputs and not isinstance(dataset, Video):
                picture = draw_detections(image, above(kept, self.drawn), pl_module.classes, 0.0)  # type: ignore[arg-type]
                picture.save(made(self.output / "images" / f"{name}.png"))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        everything = dict(sorted(dict(gathered(list(self.found.items()))).items()))  # in one order, however many ranks
        self.found = {}
        if not trainer.is_global_zero:
            return
        dataset = trainer.datamodule.splits["predict"]  # type: ignore[attr-defined]
        names = {index: dataset.file_name(index) for index in range(len(dataset))}
        results = [
            {**result, "file_name": names[index], "category_name": pl_module.classes[label - 1]}  # type: ignore[index]
            for index, found in everything.items()
            for label, result in zip(found["labels"].tolist(), coco_results(found, index, pl_module.category_ids), strict=True)  # type: ignore[arg-type]
        ]
        self.output.mkdir(parents=True, exist_ok=True)
        if "json" in self.outputs:
            (self.output / "predictions.json").write_text(json_rows(results), encoding="utf-8")
        if "csv" in self.outputs:
            write_csv(self.output / "predictions.csv", results)
        if "images" in self.outputs and isinstance(dataset, Video):
            drawn = {index: above(found, self.drawn) for index, found in everything.items()}
            write_video(made(self.output / "images" / f"{dataset.path.stem}.mp4"), dataset, drawn, pl_module.classes)  # type: ignore[arg-type]
        print(f"predictions: {self.output} ({', '.join(self.outputs)}: {len(results)} detections on {len(everything)} images)")
        unread = [name for index, name in names.items() if index not in everything]
        if unread:
            print(f"could not read {len(unread)} of {len(dataset)} images, which were skipped: {', '.join(unread)}")


def thresholds(
    classes: Sequence[str], score_threshold: float | dict[str, float] | None, default: float, only: Sequence[str] | None = None
) -> Tensor:
    """The least score of each class ``(C,)``; that of a class that is not asked for is never reached.

    Raises:
        InputError: a class that is not among the classes.

    >>> thresholds(["cat", "dog", "cow"], {"dog": 0.25}, default=0.5, only=["cat", "dog"])
    tensor([0.5000, 0.2500,    inf])
    """
    by_class = score_threshold if isinstance(score_threshold, dict) else {}
    unknown = [name for name in (*by_class, *(only or [])) if name not in classes]
    if unknown:
        raise InputError(f"Expected classes of the detector, {', '.join(classes)}, but got {', '.join(unknown)}.")
    least = score_threshold if isinstance(score_threshold, int | float) else default
    return torch.tensor([by_class.get(name, least) if only is None or name in only else torch.inf for name in classes])


def above(found: dict[str, Tensor], least: Tensor) -> dict[str, Tensor]:
    """Detections that score at least what is asked of their class."""
    kept = found["scores"] >= least[found["labels"] - 1]
    return {name: value[kept] for name, value in found.items()}


def json_rows(results: Sequence[dict[str, Any]]) -> str:
    """A JSON list with a line for each result."""
    return "[" + ",\n ".join(json.dumps(result, ensure_ascii=False) for result in results) + "]\n"


def write_csv(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """The results as a table, the box in four columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for result in results:
            box = dict(zip(("x", "y", "width", "height"), result["bbox"], strict=True))
            table.writerow({name: value for name, value in {**result, **box}.items() if name != "bbox"})


def yolo_rows(found: dict[str, Tensor], height: int, width: int) -> str:
    """Detections as YOLO's text, with the score last.

    >>> found = {"boxes": torch.tensor([[10.0, 20, 30, 60]]), "labels": torch.tensor([2]), "scores": torch.tensor([0.75])}
    >>> print(yolo_rows(found, height=80, width=40), end="")
    1 0.5 0.5 0.5 0.5 0.75
    """
    boxes = found["boxes"].double() / torch.tensor([width, height] * 2)
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    rows = zip(found["labels"].tolist(), torch.cat([centres, sides], dim=1).tolist(), found["scores"].numpy(), strict=True)
    return "".join(f"{label - 1} {' '.join(f'{value:.10g}' for value in box)} {score!s}\n" for label, box, score in rows)


def yolo_name(name: str) -> str:
    """The text file of an image."""
    return os.path.splitext(name)[0] + ".txt"


def check_names(names: Sequence[str]) -> None:
    """Refuse images whose text files would be one.

    Raises:
        InputError: two images whose names differ in their suffix alone.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(yolo_name(name), name)
        if other != name:
            raise InputError(
                f"Expected images that differ in more than their suffix for yolo but {other} and {name} both have {yolo_name(name)}."
            )


def write_video(path: Path, video: Video, drawn: dict[int, dict[str, Tensor]], classes: Sequence[str]) -> None:
    """Write a video with detections drawn on its frames, as MP4 (MPEG-4 part 2, which OpenCV always can encode).

    Args:
        path: of the file to be written.
        video: what is drawn on; frames that cannot be read are left out.
        drawn: detections by frame.
        classes: names of the labels 1..C.

    Raises:
        InputError: the file cannot be written.
    """
    writer = None
    for index, found in sorted(drawn.items()):
        image = torch.from_numpy(video.load(index)[0]).permute(2, 0, 1)
        picture: Image.Image = draw_detections(image, found, classes, 0.0)
        if writer is None:
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), video.rate, picture.size)
            if not writer.isOpened():
                raise InputError(f"Expected to write the video {path} but OpenCV could not.")
        writer.write(cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()


def made(path: Path) -> Path:
    """The path of a file whose folder is there now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def gathered(items: list[Any]) -> list[Any]:
    """The items of all ranks in the order of ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items
    parts: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
