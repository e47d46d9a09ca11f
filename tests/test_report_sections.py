import numpy as np
import pytest
import torch

from lit_detect.analysis import average_precision, best_f1, match_detections, precision_recall
from lit_detect.report_sections import (
    best_threshold,
    class_rows,
    confusions,
    curves,
    data_figures,
    error_rows,
    from_recall,
    score_figures,
    size_rows,
)  # fmt: skip
from tests.conftest import CLASSES, random_batch


def imperfect(images=30):
    """Targets, and detections of most of them: moved a little, some of another class, some twice."""
    _, targets = random_batch([(200, 300)] * images, [index % 4 for index in range(images)])
    detections = []
    for target in targets:
        kept = torch.rand(len(target["labels"])) < 0.8
        boxes = target["boxes"][kept].repeat(2, 1)
        labels = torch.where(torch.rand(len(boxes)) < 0.2, torch.randint(1, 4, (len(boxes),)), target["labels"][kept].repeat(2))
        scores = torch.rand(len(boxes)).sort(descending=True).values
        detections.append({"boxes": boxes + torch.randn_like(boxes) * 3, "labels": labels, "scores": scores})
    return detections, targets


@pytest.fixture
def found():
    detections, targets = imperfect()
    return detections, targets, match_detections(detections, targets, CLASSES)


def test_the_area_under_a_drawn_curve_is_the_ap(found):
    ap = average_precision(found[2])
    assert len(ap) == 3
    for label, name in enumerate(CLASSES, start=1):
        curve = precision_recall(found[2], label)
        assert np.nan_to_num(from_recall(curve.precision, curve.recall)).mean() == pytest.approx(ap[name], abs=1e-6)


def test_the_threshold_is_that_of_the_largest_f1_or_the_given_one(found):
    *_, matches = found
    best = best_threshold(matches, None)
    assert best.f1 >= max(best_threshold(matches, score).f1 for score in np.linspace(0, 1, 101))
    assert best_threshold(matches, best.threshold) == pytest.approx(best)
    kept = matches.scores >= 0.3
    true = (matches.true & kept).sum()
    at = best_threshold(matches, 0.3)
    assert (at.precision, at.recall) == pytest.approx((true / kept.sum(), true / matches.target_counts().sum()))
    assert best_threshold(matches, 2.0).f1 == 0


def test_classes_come_with_the_highest_ap_first_and_those_without_last(found):
    *_, matches = found
    rows = class_rows(matches, {"ap/cat": 0.25, "ap/horse": 0.5, "map": 0.4})
    assert [(row["name"], row["ap"]) for row in rows] == [("horse", 0.5), ("cat", 0.25), ("dog", None)]
    assert {row["name"]: row["targets"] for row in rows} == dict(zip(CLASSES, matches.target_counts()[1:], strict=True))
    assert all(row["point"] == best_f1(matches)[row["name"]] for row in rows)
    assert [row["name"] for row in size_rows({"map": 0.3, "map_small": 0.2})] == ["small"]


def test_confusions_are_ranked_and_right_ones_are_not_among_them():
    box = torch.tensor([[0.0, 0, 10, 10]])
    pairs = [(1, 2), (1, 2), (1, 1), (2, 3), (3, 3)]  # target, detected as
    targets = [{"boxes": box, "labels": torch.tensor([a])} for a, _ in pairs]
    detections = [{"boxes": box, "labels": torch.tensor([b]), "scores": torch.tensor([0.9])} for _, b in pairs]
    got = confusions(detections, targets, CLASSES, 0.5)
    assert [(row["target"], row["found"], row["count"], round(row["share"], 3)) for row in got["worst"]] == [
        ("cat", "dog", 2, 0.667), ("dog", "horse", 1, 1.0),
    ]  # fmt: skip
    assert [[cell["count"] for cell in row["cells"]] for row in got["rows"]] == [[1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert got["names"] == [*CLASSES, "missed"]
    assert confusions(detections, targets, [str(number) for number in range(80)], 0.5)["rows"] == []
    assert [row["count"] for row in confusions(detections, targets, CLASSES, 0.95)["worst"]] == []


def test_errors_come_the_dearest_first(found):
    costs = [row["cost"] for row in error_rows(found[2])]
    assert len(costs) == 6
    assert costs == sorted(costs, reverse=True)


def test_curves_are_those_that_were_logged():
    steps = np.arange(10.0)
    history = {"train/loss": (steps, 10 - steps), "val/map": (steps, steps / 10), "train/box_loss": (steps, steps), "epoch": (steps, steps)}
    assert [title for title, *_ in curves(history, 5, 1)] == ["Loss", "Average precision"]
    history["train/class_loss"] = history["train/box_loss"]
    (_, _, loss), (_, _, ap), (_, _, parts) = curves(history, None, None)
    assert [[name for name, _ in chart.legend] for chart in (loss, ap, parts)] == [["train/loss"], ["AP"], ["box_loss", "class_loss"]]
    assert curves({}, 5, 1) == []


def test_what_is_not_finite_is_left_out_and_counted():
    steps = np.arange(300.0)
    values = np.where(steps == 7, np.inf, np.where(steps > 200, np.nan, steps))
    history = dict.fromkeys(("train/loss", "val/map", "train/a_loss", "train/b_loss"), (steps, values))
    history["val/loss"] = steps, np.full(300, -np.inf)
    found = {title: (text, chart) for title, text, chart in curves(history, 5, 1)}
    for title, count in (("Loss", 400), ("Average precision", 100), ("Parts of the training loss", 200)):
        text, chart = found[title]
        assert f"{count} values are left out that are not finite." in text
        assert "nan" not in chart.svg
        assert "inf" not in chart.svg
    for value in (np.nan, np.inf):
        curves({name: (steps, np.full(300, value)) for name in history}, None, None)


@pytest.mark.parametrize("counts", [[], [0, 0], [3, 0]])
def test_nothing_found_and_nothing_to_find_can_be_drawn(counts):
    _, targets = random_batch([(60, 80)] * len(counts), counts)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    matches = match_detections([nothing] * len(counts), targets, CLASSES)
    assert len(score_figures(matches)) == len(data_figures(targets)) == 3
    assert best_threshold(matches, None).f1 == 0
    assert all(row["point"] is None for row in class_rows(matches, {}))
