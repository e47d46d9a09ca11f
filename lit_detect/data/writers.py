"""Annotation files of VOC and COCO as they are written: the one place for each format."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

import cv2
import numpy as np

from lit_detect.data.dataset import Target
from lit_detect.errors import InputError

__all__ = ["Labelled", "encode_image", "voc_annotation", "write_coco"]


class Labelled(NamedTuple):
    """An image that is written, and what is on it.

    Attributes:
        file_name: of the image, below the folder of images.
        width: in pixels.
        height: likewise.
        target: as `DetectionDataset.load` gives it.
    """

    file_name: str
    width: int
    height: int
    target: Target

    @property
    def boxes(self) -> np.ndarray:
        """``(M, 4)`` float64 xyxy, which holds float32 exactly."""
        return np.asarray(self.target["boxes"], dtype=np.float64).reshape(-1, 4)

    @property
    def areas(self) -> np.ndarray:
        """``(M,)`` float64, of the boxes where the target has none."""
        boxes = self.boxes
        return np.asarray(self.target.get("area", (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)), dtype=np.float64)

    def labels(self, classes: int) -> list[int]:
        """The labels.

        Raises:
            InputError: one that is not of the classes.
        """
        labels = np.asarray(self.target["labels"], dtype=np.int64)
        if ((labels < 1) | (labels > classes)).any():
            raise InputError(f"Expected labels 1 to {classes} for {self.file_name} but got {labels.tolist()}.")
        return labels.tolist()  # type: ignore[no-any-return]

    def flags(self, name: str) -> np.ndarray:
        """``(M,)`` 0 or 1: a field such as ``difficult``, 0 where the target has none."""
        return np.asarray(self.target.get(name, np.zeros(len(self.boxes))), dtype=np.int64)


def voc_annotation(image: Labelled, classes: Sequence[str]) -> bytes:
    """The XML of one image. Corners count pixels from 1; crowds, which VOC does not have, are difficult."""
    root = Element("annotation")
    SubElement(root, "folder").text = "JPEGImages"
    SubElement(root, "filename").text = image.file_name
    size = SubElement(root, "size")
    for name, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        SubElement(size, name).text = str(value)
    difficult = image.flags("difficult") | image.flags("iscrowd")
    for label, flag, (x1, y1, x2, y2) in zip(image.labels(len(classes)), difficult, image.boxes.tolist(), strict=True):
        item = SubElement(root, "object")
        SubElement(item, "name").text = classes[label - 1]
        SubElement(item, "difficult").text = str(flag)
        corners = SubElement(item, "bndbox")
        for side, edge in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", past(x2, x1)), ("ymax", past(y2, y1))):
            SubElement(corners, side).text = str(plain(edge))
    return tostring(root)


def write_coco(path: Path, images: Sequence[Labelled], categories: Sequence[dict[str, Any]]) -> None:
    """Write an ``instances_*.json``.

    Args:
        path: the file.
        images: with ids of their own.
        categories: ``id`` and ``name`` of each class, in the order of the labels.

    Raises:
        InputError: an image id, or a category id, that is there twice.
    """
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": list(categories)}
    for image in images:
        number = int(image.target["image_id"])
        content["images"].append({"id": number, "file_name": image.file_name, "width": image.width, "height": image.height})
        flags = {name: image.flags(name) for name in ("iscrowd", "difficult") if name == "iscrowd" or name in image.target}
        rows = zip(image.labels(len(categories)), image.boxes.tolist(), image.areas.tolist(), strict=True)
        for row, (label, (x1, y1, x2, y2), area) in enumerate(rows):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,  # from 1: pycocotools takes a match with 0 for none
                    "image_id": number,
                    "category_id": categories[label - 1]["id"],
                    "bbox": [plain(x1), plain(y1), plain(x2 - x1), plain(y2 - y1)],
                    "area": plain(area),
                    **{name: int(values[row]) for name, values in flags.items()},
                }
            )
    for kind in ("images", "categories"):
        if len({entry["id"] for entry in content[kind]}) < len(content[kind]):
            raise InputError(f"Expected an id of its own for each of the {len(content[kind])} {kind} of {path} but some have the same.")
    path.write_text(json.dumps(content), encoding="utf-8")


def encode_image(path: Path, pixels: np.ndarray) -> None:
    """Write RGB pixels: as JPEG of quality 95, or PNG, as the suffix says."""
    if not cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise InputError(f"Expected to write {path} but could not.")


def past(last: float, first: float) -> float:
    """The last edge of a box; of one that is a whole pixel wide a hair more, since xmin = xmax is taken for a box of no width.

    >>> past(7.0, 5.0), past(6.0, 5.0)
    (7.0, 6.000000000000001)
    """
    return math.nextafter(last, math.inf) if last == first + 1 else last


def plain(value: float) -> float | int:
    """A number as it is written shortest.

    >>> plain(12.0), plain(12.5)
    (12, 12.5)
    """
    return int(value) if value.is_integer() else value
