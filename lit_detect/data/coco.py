"""COCO's instance annotations, and any data set in their format."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lit_detect.data.dataset import DetectionDataset, Target, read_image, report_dropped, valid_boxes
from lit_detect.errors import InputError

__all__ = ["COCODetection"]


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
    def content(self) -> dict[str, list[dict[str, Any]]]:
        """The file's images, annotations and categories, the latter by ascending id."""
        try:
            content = json.loads(self.annotations.read_bytes())
        except OSError as error:
            raise InputError(f"Expected COCO annotations but could not read {self.annotations}: {error.strerror}.") from error
        except ValueError as error:
            raise InputError(f"Expected COCO annotations but {self.annotations} is not JSON: {error}.") from error
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise InputError(f"Expected a list of {key} in {self.annotations}; is it an instances_*.json?")
        return {**content, "categories": sorted(content["categories"], key=lambda category: category["id"])}

    @cached_property
    def classes(self) -> list[str]:  # type: ignore[override]
        return [str(category["name"]) for category in self.content["categories"]]

    @property
    def category_ids(self) -> list[int]:
        return [category["id"] for category in self.content["categories"]]

    @cached_property
    def targets(self) -> list[Target]:
        """All targets, in the order of the file's images; boxes without area are left out, with a warning that names them."""
        images = {image["id"]: image for image in self.content["images"]}
        labels = {identity: label for label, identity in enumerate(self.category_ids, start=1)}
        by_image: dict[int, list[dict[str, Any]]] = {identity: [] for identity in images}
        for annotation in self.content["annotations"]:
            box = annotation.get("bbox")
            if annotation.get("image_id") not in images or annotation.get("category_id") not in labels:
                raise InputError(
                    f"Expected an image and a category that are in {self.annotations} but annotation {annotation.get('id')} has "
                    f"image_id {annotation.get('image_id')} and category_id {annotation.get('category_id')}."
                )
            if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) and np.isfinite(v) for v in box):
                raise InputError(
                    f"Expected a bbox of four numbers in annotation {annotation.get('id')} of {self.annotations} but got {box}."
                )
            by_image[annotation["image_id"]].append(annotation)
        dropped: list[str] = []
        targets = [self._target(image, by_image[identity], labels, dropped) for identity, image in images.items()]
        report_dropped(str(self), len(self.content["annotations"]), dropped)
        return targets

    def _target(self, image: dict[str, Any], annotations: list[dict[str, Any]], labels: dict[int, int], dropped: list[str]) -> Target:
        xywh = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
        boxes = valid_boxes(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]), image["width"], image["height"])
        good = ~np.isnan(boxes).any(axis=1)
        dropped += [f"annotation {annotations[number].get('id')} ({image['file_name']})" for number in np.flatnonzero(~good)]
        annotations = [annotations[number] for number in np.flatnonzero(good)]
        sides = xywh[good][:, 2] * xywh[good][:, 3]
        return {
            "boxes": boxes[good],
            "labels": np.array([labels[annotation["category_id"]] for annotation in annotations], dtype=np.int64),
            "image_id": image["id"],
            "area": np.array([a.get("area", side) for a, side in zip(annotations, sides, strict=True)], dtype=np.float32),
            "iscrowd": np.array([annotation.get("iscrowd", 0) for annotation in annotations], dtype=np.int64),
        }

    def __len__(self) -> int:
        return len(self.content["images"])

    def load(self, index: int) -> tuple[np.ndarray, Target]:
        return read_image(self.images / self.file_name(index)), self.targets[index]

    def num_boxes(self, index: int) -> int:
        return int((self.targets[index]["iscrowd"] == 0).sum())

    def file_name(self, index: int) -> str:
        return str(self.content["images"][index]["file_name"])
