"""What the detections of a data set got right and wrong: matches, curves, confusions, calibration, images worth a look.

All of it is functions of detections and targets, one dict an image, as a metric has them after `compute`
(`metric.detections`, `metric.targets`), or any other loop over images. What an error costs is in `lit_detect.error_types`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision.ops import box_area, box_iou

__all__ = [
    "Calibration",
    "Curve",
    "Matches",
    "OperatingPoint",
    "average_precision",
    "best_f1",
    "calibration",
    "confusion_matrix",
    "image_counts",
    "match_detections",
    "precision_recall",
]

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
        return (self.targets >= 0) & ~self.ignored

    @property
    def false(self) -> np.ndarray:
        """``(D,)`` bool: the detections that are wrong."""
        return self.targets < 0

    @property
    def missed(self) -> np.ndarray:
        """``(T,)`` bool: the targets that no detection found, whatever its score."""
        return (self.found_by < 0) & ~self.target_ignored

    def target_counts(self) -> np.ndarray:
        """``(C + 1,)`` targets of each label that are to be found; none of label 0."""
        raise NotImplementedError


def match_detections(detections: Images, targets: Images, classes: Sequence[str], iou_threshold: float = 0.5) -> Matches:
    """Match the detections of each image to its targets of the same class by COCO's rule.

    Best score first, a detection takes the target with which it overlaps most of those that are free, if that is at least
    `iou_threshold`; failing that, an ignored one, of which many can take the same, and whose overlap is the share of the detection
    that lies in it. So leaving out the detections under some score changes no match of the others.

    Args:
        detections: one dict an image: ``boxes``, ``labels``, ``scores``.
        targets: of the same images: ``boxes``, ``labels``, and ``iscrowd``, ``difficult``, ``image_id`` where there are any.
        classes: names of the labels 1..C.
        iou_threshold: least intersection over union of a match, 0..1.
    """
    raise NotImplementedError


class Curve(NamedTuple):
    """Precision and recall of the detections that score at least so much, one entry a score, best first.

    Attributes:
        scores: ``(K,)`` the different scores, falling.
        precision: ``(K,)`` share of those detections that are true.
        recall: ``(K,)`` share of the targets that they find.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def precision_recall(matches: Matches, label: int | None = None) -> Curve:
    """The curve of a class, or of all classes taken as one; empty where there are no targets or no detections."""
    raise NotImplementedError


def average_precision(matches: Matches) -> dict[str, float]:
    """AP of each class with targets, at the matches' overlap and COCO's 101 recalls, 0..1.

    Their mean is COCO's AP50 (`iou_threshold` .5), but that COCO takes 100 detections of a class on an image at most.
    """
    raise NotImplementedError


class OperatingPoint(NamedTuple):
    """What keeping the detections from a score on comes to; all 0..1."""

    threshold: float
    f1: float
    precision: float
    recall: float


def best_f1(matches: Matches) -> dict[str, OperatingPoint]:
    """The score from which on to keep detections of a class, so that F1 is largest, for each class with targets and detections.

    It is exact: all scores are tried. Of equal ones the highest is taken.
    """
    raise NotImplementedError


def confusion_matrix(
    detections: Images, targets: Images, classes: Sequence[str], score_threshold: float = 0.5, iou_threshold: float = 0.5
) -> np.ndarray:
    """Which classes are taken for which: targets by their class (rows) and the class they are detected as (columns).

    Matching is as in `match_detections` but for classes, which need not agree. Row 0 counts detections that match nothing, column 0
    targets that nothing matches. Ignored targets, and detections that match only these, do not count.

    Returns:
        ``(C + 1, C + 1)`` int64, by label.
    """
    raise NotImplementedError


class Calibration(NamedTuple):
    """Whether scores are probabilities: in equal bins of score, the mean score and how many are true.

    Attributes:
        scores: ``(B,)`` mean score of the detections in a bin; NaN where there are none.
        precision: ``(B,)`` share of them that are true; NaN where there are none.
        counts: ``(B,)`` their number.
        error: expected calibration error (Guo et al. 2017, section 2): the mean distance of the two, weighted by counts; NaN without
            detections.
    """

    scores: np.ndarray
    precision: np.ndarray
    counts: np.ndarray
    error: float


def calibration(matches: Matches, bins: int = 10) -> Calibration:
    """Mean score against precision, in `bins` equal bins of 0..1. Ignored detections do not count."""
    raise NotImplementedError


class ImageCounts(NamedTuple):
    """What is right and wrong on each image, by the index into `Matches.image_ids`.

    Attributes:
        true: ``(N,)`` detections that found a target.
        false: ``(N,)`` detections that are wrong.
        missed: ``(N,)`` targets that were not found.
        f1: ``(N,)`` ``2 true / (2 true + false + missed)``; 1 where nothing was to be found and nothing was.
    """

    true: np.ndarray
    false: np.ndarray
    missed: np.ndarray
    f1: np.ndarray

    def worst(self, count: int) -> np.ndarray:
        """Indices of images from the worst on: most errors first, of these the lowest F1."""
        raise NotImplementedError

    def best(self, count: int) -> np.ndarray:
        """Indices of images with targets, from the best on: highest F1 first, of these the most targets found."""
        raise NotImplementedError


def image_counts(matches: Matches, score_threshold: float = 0.5) -> ImageCounts:
    """What is right and wrong on each image among the detections that score at least `score_threshold`."""
    raise NotImplementedError
