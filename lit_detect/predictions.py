"""What `predict` leaves behind: files of detections, images and videos with boxes drawn on them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from lit_detect.callbacks import run_folder
from lit_detect.data.datamodule import DetectionDataModule
from lit_detect.data.dataset import DetectionDataset
from lit_detect.data.feed import Feed
from lit_detect.data.images import IMAGE_SUFFIXES, inside
from lit_detect.data.video import Video
from lit_detect.errors import InputError, printable
from lit_detect.predict import above, thresholds, to_dataset
from lit_detect.ranks import gathered
from lit_detect.results import coco_results
from lit_detect.visualize import draw_detections

__all__ = ["PredictionFiles", "PredictionWriter", "write_predictions"]

LONGEST = 255  # bytes of a file's name
Output = Literal["json", "csv", "yolo", "images"]
COLUMNS = ("image_id", "file_name", "category_id", "category_name", "x", "y", "width", "height", "score")


class PredictionWriter(Callback):
    """Write what `predict` finds, in one or several forms.

    - ``json``: ``predictions.json`` in COCO's results format: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels) and
      ``score``, and also ``category_name`` and ``file_name``. Images are numbered from 0 in the order of their paths, frames in time.
    - ``csv``: the same as a table, ``predictions.csv``. A name that spreadsheets would take for a formula (``=``, ``+``, ``-``, ``@``) has
      ``'`` in front there.
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
        InputError: in use, with a class that the detector does not know, or without a `DetectionDataModule`.
    """

    def __init__(
        self,
        folder: str | None = None,
        outputs: Sequence[Output] = ("json", "images"),
        score_threshold: float | dict[str, float] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.folder, self.outputs, self.score_threshold, self.classes = folder, list(outputs), score_threshold, classes
        self.files: PredictionFiles | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        beside_the_run = run_folder(trainer) / "predictions"
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, DetectionDataModule):
            raise InputError(f"Expected a DetectionDataModule to predict on, which names the images, but got {type(data).__name__}.")
        folder = Path(self.folder) if self.folder else beside_the_run
        self.files = PredictionFiles(folder, pl_module, data.dataset("predict"), self.outputs, self.score_threshold, self.classes)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        assert self.files is not None  # noqa: S101  # for types: made at the start
        for image, found, target in zip(batch[0], outputs, batch[1], strict=True):
            self.files.add(int(target["image_id"]), image, found)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.files is not None  # noqa: S101  # likewise
        found = dict(gathered(list(self.files.found.items())))
        if trainer.is_global_zero:
            self.files.finish(found)
        self.files = None


def write_predictions(
    detector: Any,
    images: Any,
    detections: Sequence[dict[str, Tensor]],
    folder: str | Path = "predictions",
    outputs: Sequence[Output] = ("json", "images"),
    score_threshold: float | dict[str, float] | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write what `Detector.predict` has found, as the verb ``predict`` does.

    Args:
        detector: knows the names and ids of the classes.
        images: what was given to `Detector.predict`.
        detections: what came of it, on any device.
        folder: where to write.
        outputs: see `PredictionWriter`, and so are the other arguments.
        score_threshold: of what is written, and drawn.
        classes: those that are written.

    Raises:
        InputError: a class that the detector does not know, or images that would have one file.
    """
    dataset = to_dataset(images)
    files = PredictionFiles(Path(folder), detector, dataset, outputs, score_threshold, classes)
    feed = Feed(dataset, skip_unreadable=True)
    for index, found in enumerate(detections):
        sample = feed[index] if files.of_images else (None, {})
        if sample is not None:
            files.add(index, sample[0], found)
    files.finish(files.found)


class PredictionFiles:
    """The files of one prediction: those of an image are written when it comes, the others at the end.

    Args:
        folder: where to write.
        detector: knows the names and ids of the classes.
        dataset: the images, which have names here.
        outputs: see `PredictionWriter`, and so are the other arguments.
        score_threshold: of what is written, and drawn.
        classes: those that are written.

    Attributes:
        found: what is written of each image so far, by its index.

    Raises:
        InputError: a class that the detector does not know, or images that would have one file.
    """

    def __init__(
        self,
        folder: Path,
        detector: Any,
        dataset: DetectionDataset,
        outputs: Sequence[Output],
        score_threshold: float | dict[str, float] | None,
        classes: Sequence[str] | None,
    ) -> None:
        self.folder, self.detector, self.dataset, self.outputs = folder, detector, dataset, outputs
        self.written, self.drawn = (thresholds(detector.classes, score_threshold, default, classes) for default in (0.0, 0.5))
        self.of_images = "yolo" in outputs or ("images" in outputs and not isinstance(dataset, Video))  # whether pixels are needed
        self.names = [dataset.file_name(index) for index in range(len(dataset))]
        self.found: dict[int, dict[str, Tensor]] = {}
        check_names(self.names, outputs)

    def add(self, index: int, image: Tensor | None, found: dict[str, Tensor]) -> None:
        """Take the detections of an image ``(3, H, W)`` uint8 RGB, and write its own files; without those, it is not looked at."""
        kept = self.found[index] = above({key: value.cpu() for key, value in found.items()}, self.written)
        if image is None or not self.of_images:
            return
        if "yolo" in self.outputs:
            text = yolo_rows(kept, *image.shape[-2:])
            made(self.folder / "labels", yolo_name(self.names[index])).write_text(text, encoding="utf-8")
        if "images" in self.outputs and not isinstance(self.dataset, Video):
            picture = draw_detections(image, above(kept, self.drawn), self.detector.classes, 0.0)
            picture.save(made(self.folder / "images", picture_name(self.names[index])))

    def finish(self, found: Mapping[int, dict[str, Tensor]]) -> None:
        """Write the files of all images, and say what is where.

        Args:
            found: what is written of each image, in any order; images that are not among them could not be read.
        """
        found = dict(sorted(found.items()))  # in one order, however many ranks
        results = [
            {**result, "file_name": self.names[index], "category_name": self.detector.classes[label - 1]}
            for index, of_image in found.items()
            for label, result in zip(of_image["labels"].tolist(), coco_results(of_image, index, self.detector.category_ids), strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        if "json" in self.outputs:
            # half a surrogate pair, by which a name that is not UTF-8 comes, is written as JSON's escape, and so read back as it was
            (self.folder / "predictions.json").write_text(json_rows(results), encoding="utf-8", errors="backslashreplace")
        if "csv" in self.outputs:
            write_csv(self.folder / "predictions.csv", results)
        if "images" in self.outputs and isinstance(self.dataset, Video):
            drawn = {index: above(of_frame, self.drawn) for index, of_frame in found.items()}
            write_video(made(self.folder / "images", f"{self.dataset.path.stem}.mp4"), self.dataset, drawn, self.detector.classes)
        print(f"predictions: {printable(self.folder)} ({', '.join(self.outputs)}: {len(results)} detections on {len(found)} images)")
        unread = [name for index, name in enumerate(self.names) if index not in found]
        if unread:
            print(f"could not read {len(unread)} of {len(self.names)} images, which were skipped: {printable(', '.join(unread))}")


def json_rows(results: Sequence[dict[str, Any]]) -> str:
    """A JSON list with a line for each result."""
    return "[" + ",\n ".join(json.dumps(result, ensure_ascii=False) for result in results) + "]\n"


def write_csv(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """The results as a table, the box in four columns."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for result in results:
            box = dict(zip(("x", "y", "width", "height"), result["bbox"], strict=True))
            texts = {name: no_formula(result[name]) for name in ("file_name", "category_name")}
            table.writerow({name: value for name, value in {**result, **texts, **box}.items() if name != "bbox"})


def no_formula(name: str) -> str:
    """A name as a spreadsheet shows it, and does not calculate it.

    >>> no_formula("a.jpg"), no_formula("=1+2.jpg")
    ('a.jpg', "'=1+2.jpg")
    """
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


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
    """The text file of an image, or of a video's frame, whose name has no suffix.

    >>> yolo_name("cats/1.jpg"), yolo_name("2024 10.30.15_000001")
    ('cats/1.txt', '2024 10.30.15_000001.txt')
    """
    stem, suffix = os.path.splitext(name)
    return f"{stem if suffix.lower() in IMAGE_SUFFIXES else name}.txt"


def picture_name(name: str) -> str:
    """The picture of an image; its suffix stays, since a folder may have both ``a.jpg`` and ``a.png``."""
    return f"{name}.png"


def check_names(names: Sequence[str], outputs: Sequence[Output]) -> None:
    """Refuse images that would have one file, or one with too long a name, before the network looks at them.

    Raises:
        InputError: two images of one name, or for ``yolo`` of names that differ in their suffix alone; or a name of 252 bytes or more.
    """
    for output, file_of in (("yolo", yolo_name), ("images", picture_name)):
        seen: dict[str, str] = {}
        for name in names if output in outputs else ():
            file = file_of(name)
            if len(os.fsencode(os.path.basename(file))) > LONGEST:
                raise InputError(f"Expected names of images that leave room for a suffix but got {name} for {output}.")
            if file in seen:
                raise InputError(f"Expected images that have files of their own for {output} but {seen[file]} and {name} both have {file}.")
            seen[file] = name


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


def made(folder: Path, name: str) -> Path:
    """The path of a file in a folder that is there now.

    Raises:
        InputError: a name that leads out of it.
    """
    path = inside(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
