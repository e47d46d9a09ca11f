"""Average precision by COCO's and by VOC's rules, with names for numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lit_detect.matches import best_from_here, column, overlaps_by_image

__all__ = ["COCOMeanAveragePrecision", "DetectionMetric", "VOCMeanAveragePrecision"]

COLUMNS = 8  # of a box: corners, label, score, area, crowd; of the row before an image's boxes: see `image_rows`
PART = 2**24  # whole numbers up to here are exact in float32


class Evaluated(NamedTuple):
    """An image's id, if it has one, and rows of its detections and targets."""

    identity: int | None
    detections: Tensor
    targets: Tensor


class DetectionMetric(Metric):
    """A number or more from all detections and targets of a data set, whatever the number of ranks. A subclass says which: `evaluate`.

    Until they are evaluated, boxes wait in the CPU's memory, at 32 bytes each and another 32 an image: 3.5 kB an image of 100
    detections and 8 targets. Ranks exchange them in one gather, and may have seen different numbers of images, or none. What was
    evaluated last stays at hand after a `reset`, for analysis.

    Args:
        classes: names of the labels 1..C.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = list(classes)
        self.images: list[Evaluated] = []
        self.add_state("rows", default=[], dist_reduce_fx=None)

    def update(self, preds: list[dict[str, Tensor]], target: list[dict[str, Tensor]]) -> None:
        """Add images.

        Args:
            preds: detections, one dict an image (torchmetrics' name).
            target: their targets, in the same pixels. Of images with one ``image_id`` only the first counts: samplers repeat some to
                give all ranks as many. Without ids all count. Boxes flagged ``iscrowd`` (COCO) or ``difficult`` (VOC) are neither to
                be found nor wrong to find.
        """
        rows = [image_rows(*pair) for pair in zip(preds, target, strict=True)]
        self.rows += [torch.cat(rows).cpu()] if rows else []  # a GPU is waited for once a batch

    def compute(self) -> dict[str, float]:
        """Named values, 0..1. What has no value, such as AP of a class without targets, is absent.

        Of several ranks the first evaluates, and tells the others.
        """
        self.images = self._images()
        if not self._is_synced:
            return self.evaluate()
        values = [self.evaluate() if torch.distributed.get_rank() == 0 else {}]
        torch.distributed.broadcast_object_list(values, 0)
        return values[0]

    def evaluate(self) -> dict[str, float]:
        """The values of `images`."""
        raise NotImplementedError

    @property
    def detections(self) -> list[dict[str, Tensor]]:
        """What `compute` evaluated last, of all ranks: ``boxes``, ``labels`` and ``scores`` of each image."""
        return [{**boxes_of(image.detections), "scores": image.detections[:, 5]} for image in self.images]

    @property
    def targets(self) -> list[dict[str, Tensor]]:
        """Their targets: ``boxes``, ``labels``, ``area``, ``iscrowd`` (VOC's difficult boxes too), and ``image_id`` of those with one."""
        targets = []
        for image in self.images:
            target = {**boxes_of(image.targets), "area": areas(image.targets), "iscrowd": image.targets[:, 7].long()}
            targets.append(target if image.identity is None else {**target, "image_id": torch.tensor(image.identity)})
        return targets

    def _images(self) -> list[Evaluated]:
        """All images, each once, in the order of ids; those without one come last, as they came."""
        images: dict[tuple[bool, int], Evaluated] = {}
        for rows in (rows.cpu() for rows in self.rows):  # a metric that is moved takes them along
            start = 0
            while start < len(rows):
                identified, *parts, found, sought = map(int, rows[start, :6].tolist())
                identity = (parts[0] * PART + parts[1]) * PART + parts[2] if identified else None
                boxes = rows[start + 1 : start + 1 + found + sought]
                key = (identity is None, len(images) if identity is None else identity)
                images.setdefault(key, Evaluated(identity, boxes[:found], boxes[found:]))
                start += 1 + len(boxes)
        # equal scores are ranked by the order of images: any but that of ids gives another AP, and pycocotools takes this one
        return [images[key] for key in sorted(images)]

    def _sync_dist(self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any = None) -> None:
        """Gather the rows of all ranks, over the device: NCCL takes none of the CPU's tensors."""
        rows = torch.cat([torch.zeros(0, COLUMNS), *(rows.cpu() for rows in self.rows)])
        self.rows = [rows.cpu() for rows in dist_sync_fn(rows.to(self.device), group=process_group)]


class COCOMeanAveragePrecision(DetectionMetric):
    """COCO's AP over named classes, all of it from one evaluation by `faster_coco_eval`.

    Its values are COCO's numbers by torchmetrics' names (``map``, ``map_50``, ``mar_100``, ...) and ``ap/<class>``. Where targets carry
    ``area`` (COCO's is the mask's), it decides between small, medium and large: below 32², below 96² and above, in pixels.

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

    def __init__(self, classes: Sequence[str], max_detections: Sequence[int] = (1, 10, 100)) -> None:
        super().__init__(classes)
        self.max_detections = list(max_detections)

    def evaluate(self) -> dict[str, float]:
        detections, targets = (coco_annotations(boxes) for boxes in ([i.detections for i in self.images], [i.targets for i in self.images]))
        # a class without targets has no value, and detections of it count for nothing
        labels = sorted({target["category_id"] for target in targets})
        if not labels:
            return {}
        shared = {"images": [{"id": index} for index in range(len(self.images))], "categories": [{"id": label} for label in labels]}
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


class VOCMeanAveragePrecision(DetectionMetric):
    """Pascal VOC's AP over named classes, by the rules of the development kit (Everingham et al. 2010, section 4.2).

    Best score first over all images, a detection goes to the target of its class that it overlaps most: it is true if the overlap is
    enough and the target still free, and false if the target is taken, even where another would be free. Detections that go to a
    difficult (or crowd) target are neither, and those targets are not counted.

    The kit counts pixels: a box from xmin to xmax is xmax - xmin + 1 wide. Boxes here are edges, from xmin - 1 to xmax, as
    `VOCDetection` reads them, so that their plain overlap is the kit's.

    Its values are ``voc_map``, the mean over classes with targets, and ``voc_ap/<class>``.

    Args:
        classes: names of the labels 1..C.
        points: ``11`` for the mean of the best precisions from recalls 0, .1, ..., 1 on, as in VOC2007 to 2009; ``all`` for the area
            under the curve, as from VOC2010 on.
        iou_threshold: least intersection over union of a true detection, 0..1.

    >>> metric = VOCMeanAveragePrecision(["cat"], points="all")
    >>> boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0], [70.0, 10.0, 90.0, 50.0]])
    >>> target = {"boxes": boxes, "labels": torch.tensor([1, 1])}
    >>> metric.update([{"boxes": boxes[:1], "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}], [target])
    >>> metric.compute()
    {'voc_map': 0.5, 'voc_ap/cat': 0.5}
    """

    def __init__(self, classes: Sequence[str], points: Literal[11, "all"] = 11, iou_threshold: float = 0.5) -> None:
        super().__init__(classes)
        self.points, self.iou_threshold = points, iou_threshold

    def evaluate(self) -> dict[str, float]:
        detections, targets = self.detections, self.targets
        labels, scores = column(detections, "labels"), column(detections, "scores")
        target_labels, ignored = column(targets, "labels"), column(targets, "iscrowd") > 0
        taken = np.full(len(labels), -1)  # the target that a detection goes to, where they overlap enough
        for rows, columns, overlaps in overlaps_by_image(detections, targets, np.zeros_like(ignored)):
            overlaps = overlaps * (labels[rows, None] == target_labels[columns])
            taken[rows] = np.where(overlaps.max(axis=1) >= self.iou_threshold, columns.start + overlaps.argmax(axis=1), -1)
        values = {}
        for label, name in enumerate(self.classes, start=1):
            count = int(((target_labels == label) & ~ignored).sum())
            if count:
                of_class = np.flatnonzero(labels == label)
                goes_to = taken[of_class[np.argsort(-scores[of_class], kind="stable")]]
                values[f"voc_ap/{name}"] = self._average_precision(goes_to[~np.append(ignored, False)[goes_to]], count)
        return {"voc_map": sum(values.values()) / len(values), **values} if values else {}

    def _average_precision(self, taken: np.ndarray, count: int) -> float:
        """AP of a class from the targets that its detections take, best first, -1 for none, and the number of its targets."""
        true = np.zeros(len(taken), dtype=bool)
        true[np.unique(taken, return_index=True)[1]] = True  # the first to take a target
        found = (true & (taken >= 0)).cumsum()
        recall = found / count
        best = best_from_here(found / np.arange(1, len(found) + 1))
        if self.points == 11:
            at = np.searchsorted(recall, np.arange(0, 1.1, 0.1))  # the kit's own recalls, of which .3, .6 and .7 are a rounding too high
            return float(np.append(best, 0)[at].mean())
        return float((np.diff(recall, prepend=0) * best).sum())


def metrics_of(classes: Sequence[str], other: Callable[[list[str]], DetectionMetric] | None) -> list[DetectionMetric]:
    """COCO's AP, or that with settings of its own, and the other metric that is asked for."""
    asked = None if other is None else other(list(classes))
    if isinstance(asked, COCOMeanAveragePrecision):
        return [asked]
    return [COCOMeanAveragePrecision(classes), *([] if asked is None else [asked])]


def image_rows(found: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
    """An image's detections and targets, after a row with its id in three parts (if it has one) and the numbers of both."""
    boxes = [box_rows(found), box_rows(ignore_difficult(target))]
    head = boxes[0].new_tensor([["image_id" in target, 0, 0, 0, *map(len, boxes), 0, 0]])
    if "image_id" in target:
        identity = target["image_id"].reshape(1).long()
        parts = [identity // PART**2, identity // PART % PART, identity % PART]
        head[:, 1:4] = torch.stack(parts, dim=1)
    return torch.cat([head, *(rows.to(head.device) for rows in boxes)])


def box_rows(boxes: dict[str, Tensor]) -> Tensor:
    """A row a box; what boxes do not have is zero."""
    corners = boxes["boxes"].reshape(-1, 4).float()
    zeros = torch.zeros_like(boxes["labels"])
    columns = [boxes["labels"], *(boxes.get(name, zeros) for name in ("scores", "area", "iscrowd"))]
    return torch.cat([corners, *(column.to(corners)[:, None] for column in columns)], dim=1)


def coco_annotations(images: list[Tensor]) -> list[dict[str, Any]]:
    """Boxes of images, in COCO's format; area is the box's where it is not given."""
    rows = torch.cat([torch.zeros(0, COLUMNS), *images]).double()
    boxes = xywh(rows[:, :4])
    image = torch.arange(len(images)).repeat_interleave(torch.tensor([len(boxes) for boxes in images], dtype=torch.int64))
    names = ("id", "image_id", "category_id", "bbox", "score", "area", "iscrowd")
    columns = (torch.arange(1, len(rows) + 1), image, rows[:, 4].long(), boxes, rows[:, 5], areas(rows), rows[:, 7].long())
    return [dict(zip(names, values, strict=True)) for values in zip(*(column.tolist() for column in columns), strict=True)]


def areas(rows: Tensor) -> Tensor:
    """Areas of boxes: the given ones, or their own."""
    sides = xywh(rows[:, :4])[:, 2:]
    return torch.where(rows[:, 6] > 0, rows[:, 6].double(), sides.prod(dim=1))


def boxes_of(rows: Tensor) -> dict[str, Tensor]:
    """Boxes and labels, of rows."""
    return {"boxes": rows[:, :4], "labels": rows[:, 4].long()}


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
