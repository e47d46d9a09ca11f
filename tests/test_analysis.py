import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_detect.analysis import average_precision, best_f1, calibration, confusion_matrix, image_counts, match_detections, precision_recall
from tests.test_matches import boxes
from tests.test_metrics import random_images

NONE = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}


def ranked(true, scores, missed=0):
    """Matches of one class with detections that are true or false as said."""
    place = [[20.0 * number, 0, 20.0 * number + 10, 10] for number in range(len(true) + missed)]
    found = boxes(*place[: len(true)], scores=scores) if true else NONE
    sought = [box for box, is_true in zip(place, [*true, *[True] * missed], strict=True) if is_true]
    targets = boxes(*sought) if sought else NONE
    return match_detections([found], [targets], ["a"])


def test_a_curve_has_one_point_for_each_score():
    curve = precision_recall(ranked([True, False, True, True], [0.9, 0.5, 0.5, 0.1], missed=1), 1)
    assert curve.scores == pytest.approx([0.9, 0.5, 0.1])
    assert curve.precision == pytest.approx([1, 2 / 3, 3 / 4])
    assert curve.recall == pytest.approx([1 / 4, 2 / 4, 3 / 4])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=20), st.integers(0, 4))
def test_the_best_f1_is_that_of_all_thresholds_tried_one_by_one(detections, missed):
    true, scores = [one[0] for one in detections], [one[1] / 8 for one in detections]
    matches = ranked(true, scores, missed)
    count = sum(true) + missed
    points = best_f1(matches)
    if not count:
        assert points == {}
        return
    tried = {}
    for threshold in sorted(set(scores)):
        kept = [is_true for is_true, score in zip(true, scores, strict=True) if score >= threshold]
        tried[threshold] = 2 * sum(kept) / (len(kept) + count)
    point = points["a"]
    assert point.f1 == pytest.approx(max(tried.values()))
    assert point.f1 == pytest.approx(tried[point.threshold])
    counts = image_counts(matches, point.threshold)
    assert counts.f1[0] == pytest.approx(point.f1)
    assert counts.true[0] / max(counts.true[0] + counts.false[0], 1) == pytest.approx(point.precision)
    assert counts.true[0] / count == pytest.approx(point.recall)


def test_confusions_by_hand():
    targets = boxes([0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10], labels=[1, 2, 2, 1], difficult=[0, 0, 0, 1])
    found = boxes(
        [0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 30, 10], [60, 0, 70, 10], [40, 0, 50, 10],
        labels=[1, 1, 2, 2, 2], scores=[0.9, 0.8, 0.7, 0.6, 0.4],
    )  # fmt: skip
    assert confusion_matrix([found], [targets], ["a", "b"]).tolist() == [[0, 0, 1], [0, 1, 0], [1, 1, 0]]
    assert confusion_matrix([found], [targets], ["a", "b"], score_threshold=0.3).tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.1])
def test_every_target_and_every_detection_is_once_in_the_confusions(threshold):
    detections, targets = zip(*random_images(1, 20, 3, 15), strict=True)
    matrix = confusion_matrix(detections, targets, ["a", "b", "c"], score_threshold=threshold)
    sought = torch.cat([one["labels"][one["iscrowd"] == 0] for one in targets])
    assert matrix[1:].sum(axis=1).tolist() == torch.bincount(sought, minlength=4)[1:].tolist()
    kept = torch.cat([one["labels"][one["scores"] >= threshold] for one in detections])
    assert (matrix[:, 1:].sum(axis=0) <= torch.bincount(kept, minlength=4)[1:].numpy()).all()  # but for those of crowds
    assert matrix[0, 0] == 0


def test_calibration_by_hand():
    result = calibration(ranked([True, False, True, True], [0.1, 0.3, 0.75, 1.0]), bins=2)
    assert result.scores == pytest.approx([0.2, 0.875])
    assert result.precision == pytest.approx([0.5, 1.0])
    assert result.counts.tolist() == [2, 2]
    assert result.error == pytest.approx((0.3 + 0.125) / 2)


def test_scores_that_are_probabilities_have_no_calibration_error():
    random = np.random.RandomState(0)
    scores = random.rand(1000)
    matches = ranked((random.rand(1000) < scores).tolist(), scores.tolist())
    assert calibration(matches).error < 0.06
    assert calibration(ranked([False] * 20, [0.95] * 20)).error == pytest.approx(0.95)


def test_the_worst_images_have_most_errors_and_the_best_the_highest_f1():
    good, bad = boxes([0, 0, 10, 10], scores=[0.9]), boxes([50, 50, 60, 60], scores=[0.9])
    two = boxes([0, 0, 10, 10], [20, 0, 30, 10], scores=[0.9, 0.9])
    target = boxes([0, 0, 10, 10])
    empty = {name: NONE[name] for name in ("boxes", "labels")}
    detections, targets = [good, bad, NONE, two, bad, NONE, two], [target, target, empty, two, empty, target, target]
    counts = image_counts(match_detections(detections, targets, ["a"]))
    assert (counts.true + counts.false).tolist() == [1, 1, 0, 2, 1, 0, 2]
    assert counts.f1 == pytest.approx([1, 0, 1, 1, 0, 0, 2 / 3])
    assert counts.missed.tolist() == [0, 1, 0, 0, 0, 1, 0]
    assert counts.worst(10).tolist() == [1, 4, 5, 6]
    assert counts.best(2).tolist() == [3, 0]
    assert image_counts(match_detections(detections, targets, ["a"]), 0.95).missed.tolist() == [1, 1, 0, 2, 0, 1, 1]


@pytest.mark.parametrize(("detections", "targets"), [([], []), ([NONE], [NONE]), ([boxes([0, 0, 1, 1], scores=[0.9])], [NONE])])
def test_without_targets_there_are_no_values(detections, targets):
    matches = match_detections(detections, targets, ["a", "b"])
    assert average_precision(matches) == best_f1(matches) == {}
    assert len(precision_recall(matches).scores) == 0
    assert np.isnan(calibration(matches).error) == (not len(matches.scores))
    assert confusion_matrix(detections, targets, ["a", "b"]).sum() == len(matches.scores)
    assert image_counts(matches).false.sum() == len(matches.scores)


def test_without_detections_ap_is_zero_and_there_is_no_threshold():
    matches = match_detections([NONE], [boxes([0, 0, 10, 10])], ["a", "b"])
    assert average_precision(matches) == {"a": 0}
    assert best_f1(matches) == {}
    assert confusion_matrix([NONE], [boxes([0, 0, 10, 10])], ["a", "b"]).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert image_counts(matches).missed.tolist() == [1]
