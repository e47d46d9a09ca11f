"""Average precision by COCO's rules, with names for numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

__all__ = ["COCOMeanAveragePrecision"]

COLUMNS = 8  # of a box: corners, label, score, area, crowd; of the row before an image's boxes: see `image_rows`
PART = 2**24  # whole numbers up to here are exact in float32


class COCOMeanAveragePrecision(Metric):
    """COCO's AP over named classes, all of it from one evaluation by `faster_coco_eval`.

    Boxes flagged ``iscrowd`` (COCO) or ``difficult`` (VOC) are neither to be found nor wrong to find. Where targets carry ``area``
    (COCO's is the mask's), it decides between small, medium and large: below 32², below 96² and above, in pixels.

    Until they are evaluated, boxes wait in the CPU's memory, at 32 bytes each and another 32 an image: 3.5 kB an image of 100
    detections and 8 targets. Ranks exchange them in one gather, and may have seen different numbers of images, or none.

    Args:
        classes: names of the labels 1..C.
        max_detections: the limits of detections an image, ascending; AP is taken at the last.

    >>> metric = COCOMeanAveragePrecision(["cat", "dog"])
    >>> box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    >>> target = {"boxes": box, "labels": torch.tensor([2])}
    >>> metric.update([{**target, "scores": torch.tensor([0.9])}], [target])
    >>> values = metric.compute()
    >>> round(values["map"], 4), round(values["ap/dog"], 4), "ap/cat" in values, "map_large" in values
    (1.0, 1.0, False, False)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, classes: Sequence[str], max_detections: Sequence[int] = (1, 10, 100)) -> None:
        super().__init__()
        self.classes, self.max_detections = list(classes), list(max_detections)
        self.add_state("rows", default=[], dist_reduce_fx=None)

    def update(self, preds: list[dict[str, Tensor]], target: list[dict[str, Tensor]]) -> None:
        """Add images.

        Args:
            preds: detections, one dict an image (torchmetrics' name).
            target: their targets, in the same pixels. Of images with one ``image_id`` only the first counts: samplers repeat some to
                give all ranks as many. Without ids all count.
        """
        self.rows += [image_rows(*pair) for pair in zip(preds, target, strict=True)]

    def compute(self) -> dict[str, float]:
        """COCO's numbers by torchmetrics' names, and ``ap/<class>``, 0..1.

        What has no value, such as AP of a class without targets, is absent.
        """
        # equal scores are ranked by the order of images: any but that of ids gives another AP, and pycocotools takes this one
        images = [boxes for _, boxes in sorted(self._images().items())]
        detections, targets = (coco_annotations([boxes[kind] for boxes in images]) for kind in (0, 1))
        # a class without targets has no value, and detections of it count for nothing
        labels = sorted({target["category_id"] for target in targets})
        if not labels:
            return {}
        shared = {"images": [{"id": index} for index in range(len(images))], "categories": [{"id": label} for label in labels]}
        evaluation = COCOeval_faster(*(COCO({**shared, "annotations": boxes}) for boxes in (targets, detections)), iouType="bbox")
        evaluation.params.maxDets = self.max_detections
        evaluation.evaluate()
        evaluation.accumulate()
        # by thresholds of overlap (.5 to .95), recalls (precision only), classes, sizes (the first is all of them), limits of detections
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        sizes = list(enumerate(("small", "medium", "large"), start=1))
        values = {"map": precision[..., 0, -1], "map_50": precision[0, ..., 0, -1], "map_75": precision[5, ..., 0, -1]}
        values |= {f"map_{size}": precision[..., index, -1] for index, size in sizes}
        values |= {f"mar_{limit}": recall[..., 0, index] for index, limit in enumerate(self.max_detections)}
        values |= {f"mar_{size}": recall[..., index, -1] for index, size in sizes}
        values |= {f"ap/{self.classes[label - 1]}": precision[:, :, index, 0, -1] for index, label in enumerate(labels)}
        return {name: float(value[value > -1].mean()) for name, value in values.items() if (value > -1).any()}

    def _images(self) -> dict[tuple[bool, int], tuple[Tensor, Tensor]]:
        """Detections and targets by whether the image has no id and by its id, or else its number."""
        images: dict[tuple[bool, int], tuple[Tensor, Tensor]] = {}
        for rows in (rows.cpu() for rows in self.rows):  # a metric that is moved takes them along
            start = 0
            while start < len(rows):
                identified, *parts, found, sought = map(int, rows[start, :6].tolist())
                identity = (parts[0] * PART + parts[1]) * PART + parts[2]
                boxes = rows[start + 1 : start + 1 + found + sought]
                images.setdefault((not identified, identity if identified else len(images)), (boxes[:found], boxes[found:]))
                start += 1 + len(boxes)
        return images

    def _sync_dist(self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any = None) -> None:
        """Gather the rows of all ranks, over the device: NCCL takes none of the CPU's tensors."""
        rows = torch.cat([torch.zeros(0, COLUMNS), *(rows.cpu() for rows in self.rows)])
        self.rows = [rows.cpu() for rows in dist_sync_fn(rows.to(self.device), group=process_group or self.process_group)]


def image_rows(found: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
    """An image's detections and targets, after a row with its id in three parts (if it has one) and the numbers of both."""
    high, low = divmod(int(target.get("image_id", 0)), PART**2)
    head = ["image_id" in target, high, *divmod(low, PART), len(found["labels"]), len(target["labels"]), 0, 0]
    return torch.cat([torch.tensor([head], dtype=torch.float32), box_rows(found), box_rows(ignore_difficult(target))])


def box_rows(boxes: dict[str, Tensor]) -> Tensor:
    """A row a box; what boxes do not have is zero."""
    corners = boxes["boxes"].reshape(-1, 4).float()
    zeros = torch.zeros_like(boxes["labels"])
    columns = [boxes["labels"], *(boxes.get(name, zeros) for name in ("scores", "area", "iscrowd"))]
    return torch.cat([corners, *(column.to(corners)[:, None] for column in columns)], dim=1).cpu()


def coco_annotations(images: list[Tensor]) -> list[dict[str, Any]]:
    """Boxes of images, in COCO's format; area is the box's where it is not given."""
    rows = torch.cat([torch.zeros(0, COLUMNS), *images]).double()
    boxes = xywh(rows[:, :4])
    area = torch.where(rows[:, 6] > 0, rows[:, 6], boxes[:, 2] * boxes[:, 3])
    image = torch.arange(len(images)).repeat_interleave(torch.tensor([len(boxes) for boxes in images], dtype=torch.int64))
    names = ("id", "image_id", "category_id", "bbox", "score", "area", "iscrowd")
    columns = (torch.arange(1, len(rows) + 1), image, rows[:, 4].long(), boxes, rows[:, 5], area, rows[:, 7].long())
    return [dict(zip(names, values, strict=True)) for values in zip(*(column.tolist() for column in columns), strict=True)]


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
