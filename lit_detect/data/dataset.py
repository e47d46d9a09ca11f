"""What a data set is, and everything that is the same for all of them: reading images, augmenting, checking boxes."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from lit_detect.data.transforms import compose
from lit_detect.errors import InputError

if TYPE_CHECKING:
    import albumentations as A

__all__ = ["Concatenation", "DetectionDataset", "EpochSampler", "Feed", "read_image"]

log = logging.getLogger(__name__)

Target = dict[str, Any]
FIELDS = {"area": np.float32, "iscrowd": np.int64, "difficult": np.int64}  # beside boxes and labels, one value a box
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class DetectionDataset(ABC):
    """Images with boxes.

    A subclass sets `classes` and implements `__len__` and `load`; everything else is done elsewhere, once.

    Attributes:
        classes: names of the labels 1..C.
        category_ids: the format's own ids of the classes, for prediction files; 1..C where it has none.
    """

    classes: list[str]

    @property
    def category_ids(self) -> list[int]:
        return list(range(1, len(self.classes) + 1))

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def load(self, index: int) -> tuple[np.ndarray, Target]:
        """Read one image and its target.

        Returns:
            The image, ``(H, W, 3)`` uint8 RGB, and a dict of ``boxes`` ``(M, 4)`` xyxy in pixels, ``labels`` ``(M,)`` 1..C and
            ``image_id``; where the format has them ``iscrowd``, ``area`` and ``difficult``, ``(M,)`` each. M may be 0.
        """

    def read_annotations(self) -> None:
        """Read and check all annotations. Called once, so that faults show before a training starts and workers share the result."""
        return  # a data set whose `load` reads them has nothing to do here

    def num_boxes(self, index: int) -> int:
        """Boxes to learn on an image. Readers that know without decoding the image override this."""
        return len(self.load(index)[1]["labels"])

    def file_name(self, index: int) -> str:
        """What to call an image in messages and prediction files."""
        return f"{type(self).__name__}[{index}]"


class Concatenation(DetectionDataset):
    """Several data sets of the same classes as one: VOC 07+12.

    Args:
        parts: the data sets. Image ids are renumbered, since they may repeat.

    Raises:
        InputError: classes that differ.
    """

    def __init__(self, parts: Sequence[DetectionDataset]) -> None:
        self.parts = list(parts)

    @property
    def classes(self) -> list[str]:  # type: ignore[override]
        first = self.parts[0]
        for part in self.parts[1:]:
            if part.classes != first.classes:
                raise InputError(f"Expected data sets of the same classes but {first} has {first.classes} and {part} has {part.classes}.")
        return first.classes

    @property
    def category_ids(self) -> list[int]:
        return self.parts[0].category_ids

    def locate(self, index: int) -> tuple[DetectionDataset, int]:
        """The data set an index falls into, and the index there."""
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(index)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def load(self, index: int) -> tuple[np.ndarray, Target]:
        part, own = self.locate(index)
        image, target = part.load(own)
        return image, {**target, "image_id": index}

    def read_annotations(self) -> None:
        for part in self.parts:
            part.read_annotations()

    def num_boxes(self, index: int) -> int:
        part, own = self.locate(index)
        return part.num_boxes(own)

    def file_name(self, index: int) -> str:
        part, own = self.locate(index)
        return part.file_name(own)


class Feed(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """A data set as the network is fed: tensors, augmented if asked.

    The random numbers of a sample are a function of the seed, the epoch and its index, whatever the worker or rank that draws it
    and however the epoch began.

    Args:
        dataset: where images and targets come from.
        transforms: albumentations transforms, none for evaluation.
        train: leave out what is not to be learnt (crowd boxes).
        min_visibility: leave out boxes of which a transform keeps a smaller share, 0..1.
        seed: of the augmentations.
        indices: the data set's images to use, all by default.
        skip_unreadable: give None for an image that cannot be read, and warn, instead of raising.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        transforms: Sequence[A.BasicTransform] = (),
        train: bool = False,
        min_visibility: float = 0.0,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        skip_unreadable: bool = False,
    ) -> None:
        self.dataset, self.train, self.seed, self.skip_unreadable = dataset, train, seed, skip_unreadable
        self.indices = range(len(dataset)) if indices is None else indices
        self.augment = compose(transforms, min_visibility) if transforms else None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]] | None:  # type: ignore[override]
        epoch, position = key if isinstance(key, tuple) else (0, key)
        index = self.indices[position]
        try:
            image, target = self.dataset.load(index)
        except InputError as error:
            if not self.skip_unreadable:
                raise
            log.warning("Skipped: %s", error)
            return None
        fields = self._checked(image, target, index)
        if self.train and "iscrowd" in fields:
            fields = take(fields, np.flatnonzero(fields["iscrowd"] == 0))
        if self.augment is not None:
            self.augment.set_random_seed(int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0]))
            augmented = self.augment(image=image, bboxes=fields["boxes"], kept=np.arange(len(fields["boxes"])))
            image = augmented["image"]
            self._check_image(image, index)
            fields = take(fields, np.asarray(augmented["kept"], dtype=np.int64))
            fields["boxes"] = np.asarray(augmented["bboxes"], dtype=np.float32).reshape(-1, 4)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return pixels, {name: torch.as_tensor(value) for name, value in fields.items()}

    def _checked(self, image: np.ndarray, target: Target, index: int) -> dict[str, np.ndarray]:
        """The target as arrays, its boxes clipped to the image; what a network could not learn from is refused."""
        self._check_image(image, index)
        height, width = image.shape[:2]
        fields = {"image_id": np.asarray(index), **{name: np.asarray(value) for name, value in target.items()}}
        boxes, labels = fields["boxes"].reshape(-1, 4), fields["labels"].astype(np.int64)
        clipped = valid_boxes(boxes, width, height)
        wrong = np.isnan(clipped).any(axis=1) | (labels < 1) | (labels > len(self.dataset.classes))
        if wrong.any():
            raise InputError(
                f"Expected boxes inside the {width} x {height} pixels of {self.dataset.file_name(index)}, "
                f"and labels 1 to {len(self.dataset.classes)}, but got "
                f"{boxes[wrong][0].tolist()} with label {labels[wrong][0]} in {self.dataset}."
            )
        types = {name: fields[name].astype(dtype) for name, dtype in FIELDS.items() if name in fields}
        return {**fields, **types, "boxes": clipped, "labels": labels}

    def _check_image(self, image: np.ndarray, index: int) -> None:
        """Refuse what the network would take for something else."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"Expected {self.dataset.file_name(index)} as uint8 RGB (H, W, 3), which the network itself normalises, "
                f"but got {image.dtype} {image.shape}; is there a transform that normalises or makes a tensor?"
            )


def take(fields: dict[str, np.ndarray], kept: np.ndarray) -> dict[str, np.ndarray]:
    """The target with some of its boxes, every field alike."""
    return {name: value[kept] if value.ndim else value for name, value in fields.items()}


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Shuffled indices of one rank, each with its epoch, so that a sample knows which epoch it is drawn for.

    Lightning calls `set_epoch`, and leaves a `DistributedSampler` in place on any number of ranks.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())  # type: ignore[misc]


def read_image(path: Path, exif_rotation: bool = False) -> np.ndarray:
    """Read an image file as RGB, whatever it holds: grey, alpha (dropped), CMYK or 16 bits.

    Args:
        path: the file.
        exif_rotation: turn the image as its EXIF tag says. Annotated images are not turned: their boxes are of the stored pixels.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        InputError: no such file, or not an image.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"Expected an image but could not read {path}: {error.strerror}.") from error
    flags = cv2.IMREAD_COLOR_RGB if exif_rotation else cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        raise InputError(f"Expected an image but {path} ({data.size} bytes) cannot be decoded.")
    return image


def valid_boxes(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes ``(M, 4)`` clipped to the image, in float32, with NaN for those that are then without area."""
    clipped = np.clip(boxes.astype(np.float64), 0, [width, height, width, height]).astype(np.float32)
    clipped[(clipped[:, 2:] <= clipped[:, :2]).any(axis=1)] = np.nan
    return clipped


def report_dropped(where: str, total: int, dropped: Sequence[str]) -> None:
    """Say once which boxes are left out and why, so that none goes missing silently."""
    if dropped:
        more = f" and {len(dropped) - 5} more" if len(dropped) > 5 else ""
        log.warning(
            "%s: %d of %d boxes have no area inside their image and are left out: %s%s",
            where,
            len(dropped),
            total,
            ", ".join(dropped[:5]),
            more,
        )
