import numpy as np
import pytest
import torch

from lit_detect import COCOMeanAveragePrecision
from lit_detect.analysis import average_precision
from lit_detect.matches import match_detections
from tests.test_metrics import random_images


def boxes(*corners, labels=None, **fields):
    made = {"boxes": torch.tensor(corners, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels or [1] * len(corners))}
    return {**made, **{name: torch.tensor(value) for name, value in fields.items()}}


def test_the_best_score_takes_the_free_target_it_overlaps_most():
    targets = boxes([0, 0, 10, 10], [2, 0, 12, 10])
    found = boxes([1, 0, 11, 10], [0, 0, 10, 10], [2, 0, 12, 10], [0, 0, 10, 10], scores=[0.5, 0.9, 0.3, 0.8])
    matches = match_detections([found], [targets], ["a"])
    assert matches.targets.tolist() == [-1, 0, -1, 1]  # the last takes the second best, the first and third come too late
    assert matches.found_by.tolist() == [1, 3]
    assert matches.nearest.tolist() == [0, 0, 1, 0]  # taken or not
    assert matches.overlaps == pytest.approx([9 / 11, 1, 1, 1])


def test_a_crowd_takes_any_number_but_what_is_to_be_found_goes_first():
    targets = boxes([0, 0, 100, 100], [0, 0, 10, 10], iscrowd=[1, 0])
    found = boxes([0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60], [95, 0, 105, 10], [96, 0, 106, 10], scores=[0.9, 0.8, 0.7, 0.6, 0.5])
    matches = match_detections([found], [targets], ["a"])
    assert matches.targets.tolist() == [1, 0, 0, 0, -1]  # half of a detection within the crowd is enough
    assert matches.ignored.tolist() == [False, True, True, True, False]
    assert matches.true.tolist() == [True, False, False, False, False]
    assert matches.false.tolist() == [False, False, False, False, True]
    assert matches.target_counts().tolist() == [0, 1]
    assert not matches.missed.any()
    assert matches.nearest.tolist() == [1, 1, -1, -1, -1]  # a crowd is nobody's


def test_classes_and_images_are_kept_apart():
    found = boxes([0, 0, 10, 10], labels=[2], scores=[0.9])
    other, same = boxes([0, 0, 10, 10], image_id=7), boxes([0, 0, 10, 10], labels=[2], image_id=5)
    empty = {**boxes(labels=[]), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    matches = match_detections([found, empty, found], [other, same, same], ["a", "b"])
    assert matches.targets.tolist() == [-1, 2]
    assert matches.other_nearest.tolist() == [0, -1]
    assert (matches.image_ids.tolist(), matches.images.tolist(), matches.target_images.tolist()) == ([7, 5, 5], [0, 2], [0, 1, 2])
    assert matches.missed.tolist() == [True, True, False]
    assert match_detections([found], [other], ["a", "b"], any_class=True).targets.tolist() == [0]


@pytest.mark.parametrize(("seed", "classes", "detections"), [(0, 2, 90), (1, 5, 30), (2, 40, 60)])
def test_average_precision_is_cocos_with_crowds_and_equal_scores(seed, classes, detections):
    names = [f"class {number}" for number in range(classes)]
    metric = COCOMeanAveragePrecision(names)
    metric.update(*zip(*random_images(seed, 25, classes, detections), strict=True))
    values = metric.compute()
    found = average_precision(match_detections(metric.detections, metric.targets, names))
    assert np.mean(list(found.values())) == pytest.approx(values["map_50"], abs=1e-12)
    assert set(found) == {name.removeprefix("ap/") for name in values if name.startswith("ap/")}


def test_no_images_no_matches():
    matches = match_detections([], [], ["a"])
    assert len(matches.labels) == len(matches.target_labels) == len(matches.image_ids) == 0
