import numpy as np
import pytest
import torch

from lit_detect.analysis import average_precision
from lit_detect.error_types import ERROR_TYPES, error_costs, find_errors
from lit_detect.matches import match_detections


def image(found, sought, **fields):
    """Detections of (label, score, box) and targets of (label, box)."""
    boxes = [torch.tensor([one[-1] for one in side], dtype=torch.float32).reshape(-1, 4) for side in (found, sought)]
    labels = [torch.tensor([one[0] for one in side], dtype=torch.int64) for side in (found, sought)]
    scores = torch.tensor([one[1] for one in found], dtype=torch.float32)
    targets = {"boxes": boxes[1], "labels": labels[1], **{name: torch.tensor(value) for name, value in fields.items()}}
    return {"boxes": boxes[0], "labels": labels[0], "scores": scores}, targets


def matched(images, classes):
    return match_detections(*zip(*images, strict=True), classes)


BOX, HALF, FAR, AWAY = [0, 0, 10, 10], [0, 0, 10, 4], [100, 0, 110, 10], [50, 50, 60, 60]


@pytest.mark.parametrize(
    ("kind", "detection", "others"),
    [
        ("class", (2, 0.9, BOX), []),
        ("localisation", (1, 0.9, HALF), []),
        ("both", (2, 0.9, HALF), []),
        ("duplicate", (1, 0.9, BOX), [(1, 0.95, BOX)]),
        ("background", (1, 0.9, AWAY), []),
        ("background", (1, 0.9, [9, 9, 19, 19]), []),  # an overlap of 1 in 199
    ],
)
def test_each_type_of_error_alone(kind, detection, others):
    errors = find_errors(matched([image([detection, *others], [(1, BOX)])], ["a", "b"]))
    assert ERROR_TYPES[errors.kinds[0]] == kind
    assert (errors.kinds[1:] == -1).all()
    assert errors.missed.tolist() == [kind in ("both", "background")]  # the target is there for a better class, or a better place


def test_what_each_error_costs_worked_by_hand():
    """One class, two targets. Best first: false on background, true, in the wrong place on the other target.

    Precision is 1/2 up to a recall of 1/2: AP is 51/101 / 2. Without the background it is 51/101. With the last one in its place,
    precision is 2/3 up to a recall of 1. Without the missed one: there is none.
    """
    images = [image([(1, 0.9, AWAY), (1, 0.8, BOX), (1, 0.7, [100, 0, 110, 4])], [(1, BOX), (1, FAR)])]
    costs = error_costs(matched(images, ["a"]))
    as_it_is = 51 / 101 / 2
    assert average_precision(matched(images, ["a"])) == {"a": pytest.approx(as_it_is)}
    expected = {"localisation": (1, 2 / 3 - as_it_is), "background": (1, 51 / 101 - as_it_is)}
    for name, cost in costs.items():
        assert (cost.count, cost.cost) == pytest.approx(expected.get(name, (0, 0))), name


def test_a_missed_target_costs_what_ap_is_without_it():
    costs = error_costs(matched([image([(1, 0.8, BOX)], [(1, BOX), (1, FAR)])], ["a"]))
    assert costs["missed"].count == 1
    assert costs["missed"].cost == pytest.approx(1 - 51 / 101)


def test_of_two_that_mean_one_target_the_better_is_mended_and_the_other_goes():
    costs = error_costs(matched([image([(2, 0.9, BOX), (3, 0.8, BOX)], [(1, BOX), (2, FAR), (3, AWAY)])], ["a", "b", "c"]))
    assert costs["class"].count == 2
    assert costs["class"].cost == pytest.approx(1 / 3)
    assert costs["missed"].count == 2


def test_ignored_targets_and_what_finds_them_are_no_errors():
    images = [image([(1, 0.9, FAR), (1, 0.8, FAR), (2, 0.7, FAR)], [(1, BOX), (1, FAR)], difficult=[0, 1])]
    errors = find_errors(matched(images, ["a", "b"]))
    assert [ERROR_TYPES[kind] if kind >= 0 else None for kind in errors.kinds] == [None, None, "background"]
    assert errors.missed.tolist() == [True, False]


def test_without_targets_there_is_no_cost_and_without_detections_all_is_missed():
    assert error_costs(matched([image([(1, 0.9, BOX)], [])], ["a"])) == {}
    costs = error_costs(matched([image([], [(1, BOX)])], ["a"]))
    assert {name: cost.count for name, cost in costs.items()} == dict.fromkeys(ERROR_TYPES, 0) | {"missed": 1}
    assert all(cost.cost == 0 for cost in costs.values())


def made_up(count=60, classes=4, detections=12):
    """Different scores and overlaps, from a generator that stays the same in all releases."""
    random = np.random.RandomState(0)
    scores = random.permutation(count * detections) / (count * detections)
    images = []
    for index in range(count):
        number = random.randint(1, 6)
        corner = random.randint(0, 200, (number, 2))
        boxes = np.concatenate([corner, corner + random.randint(20, 100, (number, 2))], axis=1)
        labels = random.randint(1, classes + 1, number)
        near = random.randint(0, number, detections)
        shift = random.randint(-1, 2, (detections, 4)) * random.randint(0, 25, (detections, 1))
        guessed = np.where(random.rand(detections) < 0.6, labels[near], random.randint(1, classes + 1, detections))
        far = random.rand(detections) < 0.2
        found = boxes[near] + np.where(far[:, None], 300, shift) + random.rand(detections, 4).round(2)  # so that no two overlaps are equal
        of_image = scores[index * detections : (index + 1) * detections]
        detection = {"boxes": torch.tensor(found).float(), "labels": torch.tensor(guessed), "scores": torch.tensor(of_image)}
        images.append((detection, {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)}))
    return images


# What tidecv 1.0.1, the authors' package, gives for these images: AP50, and number and cost (in points) of each type.
TIDE_AP50 = 22.575626950219593
TIDE = {
    "class": (106, 9.057410631323194),
    "localisation": (145, 11.119694785693241),
    "both": (43, 1.0133012886246817),
    "duplicate": (129, 1.9176506406612503),
    "background": (172, 6.554354698710874),
    "missed": (19, 2.6364667049334507),
}


def test_numbers_and_costs_are_those_of_the_authors_package():
    matches = matched(made_up(), list("abcd"))
    values = average_precision(matches)
    assert 100 * sum(values.values()) / len(values) == pytest.approx(TIDE_AP50, abs=1e-9)
    for name, cost in error_costs(matches).items():
        assert (cost.count, 100 * cost.cost) == pytest.approx(TIDE[name], abs=1e-9), name
