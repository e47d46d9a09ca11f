"""COCO's instance annotations, and any data set in their format."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_detect.data.dataset import DetectionDataset, Target, read_image, report_dropped, valid_boxes
from lit_detect.errors import InputError

__all__ = ["COCODetection"]


class Index(NamedTuple):
    """A file's images and categories by id, the latter ascending, and the images' targets."""

    images: dict[int, dict[str, Any]]
    categories: dict[int, dict[str, Any]]
    targets: list[Target]


class COCODetection(DetectionDataset):
    """Images and boxes in COCO's format.

    Labels are 1..C in the order of the file's category ids, which may have gaps; `category_ids` has the file's own. Boxes that stand
    for a crowd are kept with ``iscrowd`` 1: evaluation needs them, training leaves them out.

    Args:
        images: the folder of images.
        annotations: the ``instances_*.json``.

    Raises:
        InputError: something is missing, is not JSON, or is not what the format says; the message names the file and the annotation.
    """

    def __init__(self, images: str, annotations: str) -> None:
        self.images, self.annotations = Path(images), Path(annotations)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.images)!r}, {str(self.annotations)!r})"

    @cached_property
    def _index(self) -> Index:
        """What is kept of the file; its polygons are not."""
        try:
            content = json.loads(self.annotations.read_bytes())
        except OSError as error:
            raise InputError(f"Expected COCO annotations but could not read {self.annotations}: {error.strerror}.") from error
        except ValueError as error:
            raise InputError(f"Expected COCO annotations but {self.annotations} is not JSON: {error}.") from error
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise InputError(f"Expected a list of {key} in {self.annotations}; is it an instances_*.json?")
        images, categories = self._by_id(content["images"], "file_name"), self._by_id(content["categories"], "name")
        return Index(images, dict(sorted(categories.items())), self._targets(images, sorted(categories), content["annotations"]))

    def _by_id(self, records: list[dict[str, Any]], name: str) -> dict[int, dict[str, Any]]:
        """Records of one kind by their id."""
        found: dict[int, dict[str, Any]] = {}
        for record in records:
            if not isinstance(record.get("id"), int) or not isinstance(record.get(name), str) or record["id"] in found:
                raise InputError(f"Expected a whole number as id, used once, and a {name} in {self.annotations} but got {record}.")
            found[record["id"]] = record
        return found

    def _targets(self, images: dict[int, Any], category_ids: list[int], annotations: list[dict[str, Any]]) -> list[Target]:
        labels = {identity: label for label, identity in enumerate(category_ids, start=1)}
        by_image: dict[int, list[dict[str, Any]]] = {identity: [] for identity in images}
        for annotation in annotations:
            box = annotation.get("bbox")
            if annotation.get("image_id") not in images or annotation.get("category_id") not in labels:
                raise InputError(
                    f"Expected an image and a category that are in {self.annotations} but annotation {annotation.get('id')} has "
                    f"image_id {annotation.get('image_id')} and category_id {annotation.get('category_id')}."
                )
            if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) and np.isfinite(side) for side in box):
                where = f"annotation {annotation.get('id')} of {self.annotations}"
                raise InputError(f"Expected a bbox of four numbers in {where} but got {box}.")
            by_image[annotation["image_id"]].append(annotation)
        dropped: list[str] = []
        targets = [self._target(image, by_image[identity], labels, dropped) for identity, image in images.items()]
        report_dropped(str(self), len(annotations), dropped)
        return targets

    def _target(self, image: dict[str, Any], annotations: list[dict[str, Any]], labels: dict[int, int], dropped: list[str]) -> Target:
        width, height = image.get("width"), image.get("height")
        if not width or not height:
            height, width = read_image(self.images / image["file_name"]).shape[:2]
        xywh = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
        boxes = valid_boxes(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]), width, height)
        good = ~np.isnan(boxes).any(axis=1)
        dropped += [f"annotation {annotations[number].get('id')} ({image['file_name']})" for number in np.flatnonzero(~good)]
        annotations = [annotations[number] for number in np.flatnonzero(good)]
        areas = xywh[good][:, 2] * xywh[good][:, 3]
        return {
            "boxes": boxes[good],
            "labels": np.array([labels[annotation["category_id"]] for annotation in annotations], dtype=np.int64),
            "image_id": image["id"],
            "area": np.array([one.get("area") or area for one, area in zip(annotations, areas, strict=True)], dtype=np.float32),
            "iscrowd": np.array([annotation.get("iscrowd") or 0 for annotation in annotations], dtype=np.int64),
        }

    @property
    def classes(self) -> list[str]:  # type: ignore[override]
        return [category["name"] for category in self._index.categories.values()]

    @property
    def category_ids(self) -> list[int]:
        return list(self._index.categories)

    @property
    def targets(self) -> list[Target]:
        """All targets, in the order of the file's images; boxes without area are left out, with a warning that names them."""
        return self._index.targets

    def __len__(self) -> int:
        return len(self.targets)

    def load(self, index: int) -> tuple[np.ndarray, Target]:
        return read_image(self.images / self.file_name(index)), self.targets[index]

    def read_annotations(self) -> None:
        len(self.targets)

    def num_boxes(self, index: int) -> int:
        return int((self.targets[index]["iscrowd"] == 0).sum())

    def file_name(self, index: int) -> str:
        return str(self._index.images[self.targets[index]["image_id"]]["file_name"])
