"""What the detections of a data set got right and wrong: curves, confusions, calibration, images worth a look.

All of it starts from detections and targets, one dict an image, as a metric has them after `compute` (`metric.detections`,
`metric.targets`), or any other loop over images, and from their matches. What errors cost is in `lit_detect.error_types`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lit_detect.matches import Images, Matches, best_from_here, match_detections

__all__ = [
    "Calibration",
    "Curve",
    "ImageCounts",
    "Matches",
    "OperatingPoint",
    "average_precision",
    "average_precisions",
    "best_f1",
    "calibration",
    "confusion_matrix",
    "image_counts",
    "match_detections",
    "operating_point",
    "precision_recall",
]


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
    among = ~matches.ignored & ((matches.labels == label) | (label is None))
    counts = matches.target_counts()
    count = counts.sum() if label is None else counts[label]
    order = np.flatnonzero(among)[np.argsort(-matches.scores[among], kind="stable")] if count else np.zeros(0, dtype=np.int64)
    scores, found = matches.scores[order], matches.true[order].cumsum()
    last = np.append(scores[1:] < scores[:-1], True)[: len(scores)]  # equal scores are kept or left out together
    return Curve(scores[last], (found / np.arange(1, len(found) + 1))[last], (found / max(count, 1))[last])


def average_precision(matches: Matches) -> dict[str, float]:
    """AP of each class with targets, at the matches' overlap and COCO's 101 recalls, 0..1.

    Their mean is COCO's AP50 (`iou_threshold` .5), but that COCO takes 100 detections of a class on an image at most.
    """
    counted = ~matches.ignored
    labels, scores, true = (column[counted] for column in (matches.labels, matches.scores, matches.true))
    values = average_precisions(labels, scores, true, matches.target_counts())
    return {matches.classes[label - 1]: value for label, value in values.items()}


def average_precisions(labels: np.ndarray, scores: np.ndarray, true: np.ndarray, target_counts: np.ndarray) -> dict[int, float]:
    """AP of each label with targets.

    Args:
        labels: ``(D,)`` 1..C, of the detections that count.
        scores: ``(D,)``; of equal ones the earlier is ranked first.
        true: ``(D,)`` bool.
        target_counts: ``(C + 1,)`` targets of each label.
    """
    order = np.lexsort((-scores, labels))
    true = true[order]
    bounds = np.searchsorted(labels[order], np.arange(len(target_counts) + 1))
    values = {}
    for label in np.flatnonzero(target_counts):
        found = true[bounds[label] : bounds[label + 1]].cumsum()
        best = best_from_here(found / np.arange(1, len(found) + 1))
        at = np.searchsorted(found / target_counts[label], np.linspace(0, 1, 101))
        values[int(label)] = float(np.append(best, 0)[at].mean())
    return values


class OperatingPoint(NamedTuple):
    """What keeping the detections from a score on comes to; all 0..1."""

    threshold: float
    f1: float
    precision: float
    recall: float


def operating_point(curve: Curve) -> OperatingPoint | None:
    """The point of a curve where F1 is largest, of equal ones that with the highest score; None for an empty curve."""
    if not len(curve.scores):
        return None
    both = curve.precision + curve.recall
    f1 = 2 * curve.precision * curve.recall / np.where(both > 0, both, 1)
    best = f1.argmax()
    return OperatingPoint(*(float(column[best]) for column in (curve.scores, f1, curve.precision, curve.recall)))


def best_f1(matches: Matches) -> dict[str, OperatingPoint]:
    """The score from which on to keep detections of a class, so that F1 is largest, for each class with targets and detections.

    It is exact: all scores are tried.
    """
    points = {name: operating_point(precision_recall(matches, label)) for label, name in enumerate(matches.classes, start=1)}
    return {name: point for name, point in points.items() if point is not None}


def confusion_matrix(
    detections: Images, targets: Images, classes: Sequence[str], score_threshold: float = 0.5, iou_threshold: float = 0.5
) -> np.ndarray:
    """Which classes are taken for which: targets by their class (rows) and the class they are detected as (columns).

    Matching is as in `match_detections` but for classes, which need not agree. Row 0 counts detections that match nothing, column 0
    targets that nothing matches. Ignored targets, and detections that match only these, do not count.

    Returns:
        ``(C + 1, C + 1)`` int64, by label.
    """
    kept = [{name: value[found["scores"] >= score_threshold] for name, value in found.items()} for found in detections]
    matches = match_detections(kept, targets, classes, iou_threshold, any_class=True)
    detected, missed = np.flatnonzero(~matches.ignored), np.flatnonzero(matches.missed)
    of_targets = np.append(matches.target_labels, 0)  # the last one, -1, is for no match
    matrix = np.zeros((len(classes) + 1,) * 2, dtype=np.int64)
    np.add.at(matrix, (of_targets[matches.targets[detected]], matches.labels[detected]), 1)
    matrix[:, 0] += np.bincount(of_targets[missed], minlength=len(matrix))
    return matrix


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
    scores, true = matches.scores[~matches.ignored].astype(np.float64), matches.true[~matches.ignored]
    which = np.minimum((scores * bins).astype(np.int64), bins - 1)
    counts, *sums = (np.bincount(which, weights, minlength=bins) for weights in (None, scores, true))
    mean, precision = (np.divide(total, counts, out=np.full(bins, np.nan), where=counts > 0) for total in sums)
    distance = np.nansum(np.abs(mean - precision) * counts)
    return Calibration(mean, precision, counts, float(distance / len(scores)) if len(scores) else float("nan"))


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
        """Indices of images with errors, from the worst on: most errors first, of these the lowest F1."""
        errors = self.false + self.missed
        order = np.lexsort((self.f1, -errors))
        return np.array(order[errors[order] > 0][:count])

    def best(self, count: int) -> np.ndarray:
        """Indices of images on which something was found, from the best on: highest F1 first, of these the most targets found."""
        order = np.lexsort((-self.true, -self.f1))
        return np.array(order[self.true[order] > 0][:count])


def image_counts(matches: Matches, score_threshold: float = 0.5) -> ImageCounts:
    """What is right and wrong on each image among the detections that score at least `score_threshold`."""
    number = len(matches.image_ids)
    kept = matches.scores >= score_threshold
    true = np.bincount(matches.images[kept & matches.true], minlength=number)
    false = np.bincount(matches.images[kept & matches.false], minlength=number)
    missed = np.bincount(matches.target_images[~matches.target_ignored], minlength=number) - true
    wrong = false + missed
    return ImageCounts(true, false, missed, np.where(wrong, 2 * true / np.maximum(2 * true + wrong, 1), 1.0))
