"""Detections on whatever holds images, from Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_detect.data.batches import collate
from lit_detect.data.dataset import Concatenation, DetectionDataset, Target, nothing_to_find
from lit_detect.data.feed import Feed
from lit_detect.data.folder import to_predict
from lit_detect.data.workers import start_worker
from lit_detect.errors import InputError
from lit_detect.tiles import Tiled

__all__ = ["predict"]


def predict(
    detector: Any,
    images: Any,
    batch_size: int = 8,
    num_workers: int = 0,
    tile: int | None = None,
    overlap: float = 0.25,
    whole: bool = True,
    score_threshold: float | dict[str, float] = 0.0,
    classes: Sequence[str] | None = None,
    skip_unreadable: bool = False,
    progress: bool = False,
) -> list[dict[str, Tensor]]:
    """Detections of a detector on images, in eval and inference mode, on its device; it is left in the mode it was in.

    Args:
        detector: a `Detector`.
        images: an image, or any sequence of them: the path of an image, a folder (searched to any depth, in the order of paths) or a
            video (frame by frame); an array ``(H, W, 3)`` uint8 RGB; a tensor ``(3, H, W)`` uint8 RGB; a PIL image, turned as its EXIF
            tag says; a `DetectionDataset`. An array or a tensor with one more dimension in front is a sequence.
        batch_size: images that go through the network at once.
        num_workers: processes that read files; 0 for none.
        tile: side in pixels of the tiles in which large images are looked at; none for images as they are: see `Tiled`.
        overlap: of neighbouring tiles, at least, as a share of their side, 0 to under 1.
        whole: look at the whole of a large image too, for objects that are larger than the overlap.
        score_threshold: leave out detections that score less, 0..1, beside what the detector leaves out; or by class, as in
            ``{"person": 0.3}``.
        classes: give detections of these classes only; by default of all.
        skip_unreadable: give no detections for a file that cannot be read, and warn, instead of raising.
        progress: show a progress bar.

    Returns:
        For each image a dict of ``boxes`` ``(D, 4)`` xyxy in its pixels, ``labels`` ``(D,)`` and ``scores`` ``(D,)``, best first.

    Raises:
        InputError: something that is no image, a file that cannot be read, or a class that the detector does not know.
    """
    dataset = Unlabelled(to_dataset(images))
    feed = Feed(dataset, skip_unreadable=skip_unreadable)
    loader = DataLoader(feed, batch_size, num_workers=num_workers, collate_fn=collate, worker_init_fn=start_worker)
    network = detector.network if tile is None else Tiled(detector.network, tile, overlap, whole, batch_size)
    device = detector.device
    least = thresholds(detector.classes, score_threshold, 0.0, classes).to(device)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    detections = [{name: value.to(device) for name, value in nothing.items()} for _ in range(len(dataset))]
    with evaluating(detector), torch.inference_mode():
        for batch, targets in track(loader, "predict", disable=not progress):
            inputs = batch.to(device) if isinstance(batch, Tensor) else [image.to(device) for image in batch]
            for target, found in zip(targets, network(inputs) if len(inputs) else [], strict=True):
                detections[int(target["image_id"])] = above(found, least)
    return detections


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
    least = default if score_threshold is None or isinstance(score_threshold, dict) else float(score_threshold)
    return torch.tensor([by_class.get(name, least) if only is None or name in only else torch.inf for name in classes])


def above(found: dict[str, Tensor], least: Tensor) -> dict[str, Tensor]:
    """Detections that score at least what is asked of their class."""
    kept = found["scores"] >= least[found["labels"] - 1]
    return {name: value[kept] for name, value in found.items()}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in eval mode, whose parts are put back into the mode that each was in: frozen ones are in eval mode in training too."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def to_dataset(images: Any) -> DetectionDataset:
    """A data set of whatever holds images: see `predict`."""
    if isinstance(images, DetectionDataset):
        return images
    if isinstance(images, str | Path):
        return to_predict(str(images))
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray | Tensor) and images.ndim <= 3):
        return Pixels([images])
    if isinstance(images, np.ndarray | Tensor):
        return Pixels(images)
    if not isinstance(images, Sequence):
        raise InputError(f"Expected images, paths or a sequence of them to predict on but got {type(images).__name__}.")
    if any(isinstance(image, str | Path | DetectionDataset | Sequence) for image in images):
        return Concatenation([to_dataset(image) for image in images])
    return Pixels(images)


class Unlabelled(DetectionDataset):
    """The images of a data set by their numbers, so that neither its own ids nor its classes nor its boxes matter."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset
        self.classes: list[str] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int) -> tuple[np.ndarray, Target]:
        return self.dataset.load(index)[0], nothing_to_find(index)

    def file_name(self, index: int) -> str:
        return self.dataset.file_name(index)


class Pixels(DetectionDataset):
    """Images that are in memory: arrays, tensors or PIL images: see `predict`.

    Args:
        images: any number of them.
    """

    def __init__(self, images: Any) -> None:
        self.images = images
        self.classes: list[str] = []

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> tuple[np.ndarray, Target]:
        return pixels(self.images[index]), nothing_to_find(index)

    def file_name(self, index: int) -> str:
        return f"image {index}"


def pixels(image: Any) -> np.ndarray:
    """An image's pixels ``(H, W, 3)`` uint8 RGB.

    Raises:
        InputError: anything else than an image, not in 8 bits, or damaged.
    """
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise InputError(f"Expected an image of 8 bits a colour to predict on but got a PIL image of mode {image.mode}.")
        try:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except Exception as error:  # an image that was opened is decoded here; see `read_header`
            name = getattr(image, "filename", "") or "a PIL image"
            raise InputError(f"Expected an image to predict on but {name} cannot be decoded: {error}.") from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3:
        return image.permute(1, 2, 0).cpu().numpy()
    got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, np.ndarray | Tensor) else ""
    raise InputError(
        "Expected an image to predict on as an array (H, W, 3) or a tensor (3, H, W), both uint8 RGB, a PIL image or a path, "
        f"but got {type(image).__name__} {got}".rstrip()
        + "."
    )
