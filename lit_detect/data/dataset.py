"""What a data set is, and several as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lit_detect.data.images import ImageFile
from lit_detect.errors import InputError

__all__ = ["Concatenation", "DecodedImage", "DetectionDataset", "Fields", "Target", "checked", "nothing_to_find", "of_sizes"]

Target = dict[str, Any]
Fields = dict[str, np.ndarray]
FIELDS = {"area": np.float32, "iscrowd": np.int64, "difficult": np.int64}  # beside boxes and labels, one value a box
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}  # COCO's, in pixels of area


class DecodedImage(NamedTuple):
    """Pixels ``(H, W, 3)`` that are there already, where others have an `ImageFile`."""

    pixels: np.ndarray
    reductions: tuple[int, ...] = (1,)

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    def read(self, reduction: int = 1) -> np.ndarray:
        return self.pixels


class DetectionDataset(ABC):
    """Images with boxes.

    A subclass sets `classes` and implements `__len__` and `load`; everything else is done elsewhere, once.

    Attributes:
        classes: names of the labels 1..C.
        category_ids: the format's own ids of the classes, for prediction files; 1..C where it has none.
    """

    if TYPE_CHECKING:  # only to be read, so that a subclass may have a property

        @property
        def classes(self) -> list[str]: ...

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

    def open(self, index: int) -> tuple[ImageFile | DecodedImage, Target]:
        """The same with an image that need not be decoded yet. Readers of files override this."""
        image, target = self.load(index)
        return DecodedImage(image), target

    def read_annotations(self) -> None:
        """Read and check all annotations. Called once, so that faults show before a training starts and workers share the result."""
        return  # a data set whose `load` reads them has nothing to do here

    def num_boxes(self, index: int) -> int:
        """Boxes to learn on an image. Readers that know without decoding the image override this."""
        return len(self.load(index)[1]["labels"])

    def file_name(self, index: int) -> str:
        """What to call an image in messages and prediction files."""
        return f"{type(self).__name__}[{index}]"


def nothing_to_find(image_id: int) -> Target:
    """The target of an image that has no annotations, to predict on."""
    return {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64), "image_id": image_id}


def of_sizes(areas: np.ndarray) -> dict[str, np.ndarray]:
    """Which boxes are small, medium and large by COCO's areas.

    >>> {name: rows.tolist() for name, rows in of_sizes(np.array([100.0, 1024.0, 9216.0])).items()}
    {'small': [True, False, False], 'medium': [False, True, False], 'large': [False, False, True]}
    """
    return {name: (areas >= low) & (areas < high) for name, (low, high) in SIZES.items()}


def checked(dataset: DetectionDataset, index: int, image: ImageFile | DecodedImage, target: Target) -> Fields:
    """A data set's target as arrays, its boxes clipped to the image.

    Raises:
        InputError: boxes without area in the image, labels that stand for no class, or another number of values than of boxes.
    """
    fields = {name: np.asarray(value) for name, value in {"image_id": index, **target}.items()}
    classes = len(dataset.classes)
    boxes, labels = fields["boxes"].reshape(-1, 4), fields["labels"].astype(np.int64)
    for field in ("labels", *FIELDS):
        if field in fields and fields[field].shape != (len(boxes),):
            raise InputError(f"Expected {field} for {len(boxes)} boxes of {dataset.file_name(index)} but got {np.size(fields[field])}.")
    clipped = boxes.astype(np.float64).clip(0, [image.width, image.height] * 2).astype(np.float32)
    wrong = ~(clipped[:, 2:] > clipped[:, :2]).all(axis=1) | (labels < 1) | (labels > classes)
    if wrong.any():
        raise InputError(
            f"Expected boxes inside the {image.width} x {image.height} pixels of {dataset.file_name(index)}, and labels 1 to {classes}, "
            f"but got {boxes[wrong][0].tolist()} with label {labels[wrong][0]}."
        )
    types = {field: fields[field].astype(dtype) for field, dtype in FIELDS.items() if field in fields}
    return {**fields, **types, "boxes": clipped, "labels": labels}


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
    def classes(self) -> list[str]:
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
        image, target = self.open(index)
        return image.read(), target

    def open(self, index: int) -> tuple[ImageFile | DecodedImage, Target]:
        part, own = self.locate(index)
        image, target = part.open(own)
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
