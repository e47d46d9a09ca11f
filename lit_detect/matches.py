"""Which detections of a data set are true, and which targets are found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Matches", "match_detections"]

Images = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class Matches:
    """Which detections are true, and which targets are found, over a whole data set.

    Detections and targets are numbered through, in the order of images and within an image as given: ``(D,)`` is all detections,
    ``(T,)`` all targets. A target is ignored if it is a crowd or difficult: neither to be found nor wrong to find.

    Attributes:
        classes: names of the labels 1..C.
        image_ids: the targets' ``image_id`` by image, or -1 where there is none.
        iou_threshold: the overlap that makes a match.
        images: ``(D,)`` each detection's image, as an index into `image_ids`.
        labels: ``(D,)`` 1..C.
        scores: ``(D,)`` 0..1.
        targets: ``(D,)`` the target that a detection is matched with, an index into ``(T,)``; -1 for none.
        ignored: ``(D,)`` bool: matched with an ignored target, so neither true nor false.
        overlaps: ``(D,)`` largest overlap (IoU) with a target of the same class, taken or not; 0 where there is none.
        nearest: ``(D,)`` that target; -1 where nothing overlaps.
        other_overlaps: ``(D,)`` the same with targets of other classes.
        other_nearest: ``(D,)`` that target; -1 where nothing overlaps.
        target_images: ``(T,)`` each target's image.
        target_labels: ``(T,)`` 1..C.
        target_ignored: ``(T,)`` bool.
        found_by: ``(T,)`` the detection that found a target, an index into ``(D,)``; -1 for missed, and for ignored targets.
    """

    classes: list[str]
    image_ids: np.ndarray
    iou_threshold: float
    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    targets: np.ndarray
    ignored: np.ndarray
    overlaps: np.ndarray
    nearest: np.ndarray
    other_overlaps: np.ndarray
    other_nearest: np.ndarray
    target_images: np.ndarray
    target_labels: np.ndarray
    target_ignored: np.ndarray
    found_by: np.ndarray

    @property
    def true(self) -> np.ndarray:
        """``(D,)`` bool: the detections that found a target."""
        return np.asarray((self.targets >= 0) & ~self.ignored)

    @property
    def false(self) -> np.ndarray:
        """``(D,)`` bool: the detections that are wrong."""
        return np.asarray(self.targets < 0)

    @property
    def missed(self) -> np.ndarray:
        """``(T,)`` bool: the targets that no detection found, whatever its score."""
        return np.asarray((self.found_by < 0) & ~self.target_ignored)

    def target_counts(self) -> np.ndarray:
        """``(C + 1,)`` targets of each label that are to be found; none of label 0."""
        return np.bincount(self.target_labels[~self.target_ignored], minlength=len(self.classes) + 1)


def match_detections(
    detections: Images, targets: Images, classes: Sequence[str], iou_threshold: float = 0.5, any_class: bool = False
) -> Matches:
    """Match the detections of each image to its targets of the same class by COCO's rule.

    Best score first, a detection takes the target with which it overlaps most of those that are free, if that is at least
    `iou_threshold`; failing that, an ignored one, of which many can take the same, and whose overlap is the share of the detection
    that lies in it. So leaving out the detections under some score changes no match of the others.

    Args:
        detections: one dict an image: ``boxes``, ``labels``, ``scores``.
        targets: of the same images: ``boxes``, ``labels``, and ``iscrowd``, ``difficult``, ``image_id`` where there are any.
        classes: names of the labels 1..C.
        iou_threshold: least intersection over union of a match, 0..1.
        any_class: match detections with targets of other classes too.

    >>> box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    >>> found = {"boxes": box.repeat(2, 1), "labels": torch.tensor([1, 1]), "scores": torch.tensor([0.6, 0.9])}
    >>> matches = match_detections([found], [{"boxes": box, "labels": torch.tensor([1])}], ["cat"])
    >>> matches.true.tolist(), matches.found_by.tolist()
    ([False, True], [1])
    """
    images, labels, scores = image_numbers(detections), column(detections, "labels"), column(detections, "scores")
    target_labels, ignored = column(targets, "labels"), column(targets, "iscrowd") + column(targets, "difficult") > 0
    nearest, overlaps = np.full((2, len(labels)), -1), np.zeros((2, len(labels)))
    pairs = []
    for rows, columns, overlap in overlaps_by_image(detections, targets, ignored):
        same = labels[rows, None] == target_labels[columns]
        pairs.append(pairs_above(overlap * (same | any_class), iou_threshold, rows, columns))
        for other, counts in enumerate((same, ~same)):
            among = overlap * (counts & ~ignored[columns])
            overlaps[other, rows] = among.max(axis=1)
            nearest[other, rows] = np.where(overlaps[other, rows] > 0, columns.start + among.argmax(axis=1), -1)
    chosen = best_first(pairs, scores, ignored)
    found_by = np.full(len(target_labels), -1)
    true = np.flatnonzero((chosen >= 0) & ~np.append(ignored, False)[chosen])
    found_by[chosen[true]] = true
    return Matches(
        classes=list(classes),
        image_ids=np.array([int(target.get("image_id", -1)) for target in targets], dtype=np.int64),
        iou_threshold=iou_threshold,
        images=images,
        labels=labels,
        scores=scores,
        targets=chosen,
        ignored=np.append(ignored, False)[chosen],
        overlaps=overlaps[0],
        nearest=nearest[0],
        other_overlaps=overlaps[1],
        other_nearest=nearest[1],
        target_images=image_numbers(targets),
        target_labels=target_labels,
        target_ignored=ignored,
        found_by=found_by,
    )


def image_numbers(images: Images) -> np.ndarray:
    """The number of its image for each box."""
    return np.repeat(np.arange(len(images)), [len(boxes["labels"]) for boxes in images])


def best_from_here(precision: np.ndarray) -> np.ndarray:
    """The best precision at this recall or any higher one, of precisions by ascending recall: what AP is the area under.

    >>> best_from_here(np.array([1.0, 0.5, 0.75])).tolist()
    [1.0, 0.75, 0.75]
    """
    best: np.ndarray = np.maximum.accumulate(precision[::-1])[::-1]
    return best


def column(images: Images, name: str) -> np.ndarray:
    """What all boxes have of a name, one after the other; zero where an image has none of it."""
    parts = [boxes.get(name, torch.zeros_like(boxes["labels"])).cpu() for boxes in images]
    return (torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)).numpy()


def overlaps_by_image(detections: Images, targets: Images, ignored: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """For each image with both: which detections and which targets are its own, and how much each overlaps each, ``(D, T)``."""
    rows = columns = slice(0, 0)
    for found, target in zip(detections, targets, strict=True):
        rows, columns = (slice(last.stop, last.stop + len(one["labels"])) for last, one in ((rows, found), (columns, target)))
        if rows.stop > rows.start and columns.stop > columns.start:
            # to a thousandth of a pixel, as COCO's AP: an overlap of just the threshold is one
            boxes, others = (one["boxes"].cpu().double().round(decimals=3).numpy() for one in (found, target))
            sides = np.minimum(boxes[:, None, 2:], others[:, 2:]) - np.maximum(boxes[:, None, :2], others[:, :2])
            shared = sides.clip(min=0).prod(axis=-1)
            area, other_area = ((one[:, 2:] - one[:, :2]).prod(axis=1) for one in (boxes, others))
            whole = area[:, None] + np.where(ignored[columns], 0, other_area - shared)
            yield rows, columns, np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def pairs_above(overlap: np.ndarray, iou_threshold: float, rows: slice, columns: slice) -> np.ndarray:
    """Pairs that may match: ``(P, 3)`` detection, target and overlap."""
    row, at = np.nonzero((overlap >= min(iou_threshold, 1 - 1e-10)) & (overlap > 0))
    return np.column_stack([rows.start + row, columns.start + at, overlap[row, at]])


def best_first(pairs: Sequence[np.ndarray], scores: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """The target that each detection takes, or -1: ``(D,)``."""
    every = np.concatenate([np.zeros((0, 3)), *pairs])
    detection, target = every[:, :2].T.astype(np.int64)
    # by score, and of one detection's targets those to be found before ignored ones, and the largest overlap; of equal ones the last
    order = np.lexsort((-target, -every[:, 2], ignored[target], detection, -scores[detection]))
    chosen, taken = [-1] * len(scores), [False] * len(ignored)
    for one, its in zip(detection[order].tolist(), target[order].tolist(), strict=True):
        if chosen[one] < 0 and (not taken[its] or ignored[its]):
            chosen[one], taken[its] = its, True
    return np.array(chosen, dtype=np.int64)
