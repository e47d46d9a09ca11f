"""Average precision by COCO's rules, with names for numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

__all__ = ["COCOMeanAveragePrecision"]


# what torchmetrics collects, a tensor an image in each
STATES = (
    *("detection_box", "detection_scores", "detection_labels"),
    *("groundtruth_box", "groundtruth_labels", "groundtruth_crowds", "groundtruth_area"),
)


class COCOMeanAveragePrecision(MeanAveragePrecision):
    """torchmetrics' COCO AP on the `faster_coco_eval` backend, over named classes.

    Boxes flagged ``iscrowd`` (COCO) or ``difficult`` (VOC) are neither to be found nor wrong to find. Where targets carry ``area``
    (COCO's is the mask's), it decides between small, medium and large: below 32², below 96² and above, in pixels.

    Args:
        classes: names of the labels 1..C.
        max_detections: the three limits of detections an image, ascending; AP is taken at the last.

    >>> metric = COCOMeanAveragePrecision(["cat", "dog"])
    >>> box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    >>> target = {"boxes": box, "labels": torch.tensor([2])}
    >>> metric.update([{**target, "scores": torch.tensor([0.9])}], [target])
    >>> values = metric.named()
    >>> round(values["map"], 4), round(values["ap/dog"], 4), "ap/cat" in values, "map_large" in values
    (1.0, 1.0, False, False)
    """

    image_ids: list[Tensor]

    def __init__(self, classes: Sequence[str], max_detections: Sequence[int] = (1, 10, 100)) -> None:
        super().__init__(
            box_format="xywh",  # what `compute` makes of the corners that are collected
            # pycocotools' own, in float64: torchmetrics' defaults are float32, and a recall of just .6 is under their .6
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
            max_detection_thresholds=list(max_detections),
            class_metrics=True,
            backend="faster_coco_eval",
        )
        self.classes = list(classes)
        self.add_state("image_ids", default=[], dist_reduce_fx=None)
        self.warn_on_many_detections = False

    def update(self, preds: list[dict[str, Tensor]], target: list[dict[str, Tensor]]) -> None:
        """Add images.

        Args:
            preds: detections, one dict an image (torchmetrics' name).
            target: their targets, in the same pixels. Of images with one ``image_id`` only the first counts: samplers repeat some to
                give all ranks as many. Without ids all count.
        """
        start = len(self.image_ids)
        self.image_ids += [one.get("image_id", torch.tensor(start + index)).to(one["labels"]) for index, one in enumerate(target)]
        super().update(preds, [ignore_difficult(one) for one in target])

    def compute(self) -> dict[str, Any]:
        """Torchmetrics' numbers, over each image once and in the order of ids.

        Equal scores are ranked by that order, so any other gives another AP, and pycocotools takes this one.
        """
        ids = torch.stack(self.image_ids).tolist() if self.image_ids else []
        first = {identity: index for index, identity in reversed(list(enumerate(ids)))}
        order = [first[identity] for identity in sorted(first)]
        collected = {name: getattr(self, name) for name in STATES}
        try:
            for name, values in collected.items():
                ordered = [values[index].cpu() for index in order]
                setattr(self, name, [xywh(boxes) for boxes in ordered] if name.endswith("_box") else ordered)
            results: dict[str, Any] = super().compute()
        finally:
            for name, values in collected.items():
                setattr(self, name, values)
        return results

    def named(self) -> dict[str, float]:
        """COCO's numbers by torchmetrics' names, and ``ap/<class>``, 0..1.

        What has no value, such as AP of a class without targets, is absent.
        """
        values: dict[str, Any] = self.compute()
        labels, per_class = values.pop("classes").reshape(-1).tolist(), values.pop("map_per_class").reshape(-1).tolist()
        values.pop(f"mar_{self.max_detection_thresholds[-1]}_per_class")
        values |= {f"ap/{self.classes[label - 1]}": value for label, value in zip(labels, per_class, strict=True)}
        return {name: float(value) for name, value in values.items() if value >= 0}


def xywh(corners: Tensor) -> Tensor:
    """Boxes as x, y, width and height in float64, to a thousandth of a pixel.

    So a box of the file is again what the file says. Otherwise an overlap of just the threshold is under it on the way back from
    corners, and AP differs from pycocotools' in the third digit.
    """
    corners = corners.double()
    return torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).round(decimals=3)


def ignore_difficult(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """The target with its difficult boxes among the crowd, so that matching ignores them."""
    crowd = target.get("iscrowd", torch.zeros_like(target["labels"]))
    return {**target, "iscrowd": crowd | target.get("difficult", torch.zeros_like(crowd))}
