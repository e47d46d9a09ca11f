import json

import numpy as np
import pytest
import torch

from lit_detect import COCODetection, COCOMeanAveragePrecision
from lit_detect.metrics import ignore_difficult

ORACLE_NAMES = {
    "AP": "map", "AP50": "map_50", "AP75": "map_75", "AP_small": "map_small", "AP_medium": "map_medium", "AP_large": "map_large",
    "AR1": "mar_1", "AR10": "mar_10", "AR100": "mar_100", "AR_small": "mar_small", "AR_medium": "mar_medium", "AR_large": "mar_large",
}  # fmt: skip


def test_the_twelve_numbers_of_pycocotools_on_100_images_of_coco(shared):
    """Through our own reader, with its contiguous labels, crowds and mask areas."""
    folder = shared / "oracles" / "coco_val2014_100"
    dataset = COCODetection(str(folder), str(folder / "ground_truth.json"))
    label_of = {identity: label for label, identity in enumerate(dataset.category_ids, start=1)}
    by_image = {int(target["image_id"]): [] for target in dataset.targets}
    for result in json.loads((folder / "detections.json").read_text()):
        by_image[result["image_id"]].append(result)
    metric = COCOMeanAveragePrecision(dataset.classes)
    for target in dataset.targets:
        results = by_image[target["image_id"]]
        boxes = torch.tensor([result["bbox"] for result in results]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([label_of[result["category_id"]] for result in results], dtype=torch.int64)
        scores = torch.tensor([result["score"] for result in results])
        metric.update(
            [{"boxes": boxes, "labels": labels, "scores": scores}], [{name: torch.as_tensor(value) for name, value in target.items()}]
        )
    values = metric.named()
    expected = json.loads((folder / "expected.json").read_text())
    for oracle, name in ORACLE_NAMES.items():
        assert values[name] == pytest.approx(expected[oracle], abs=5e-6), name
    assert np.mean([value for name, value in values.items() if name.startswith("ap/")]) == pytest.approx(expected["AP"], abs=5e-6)


def test_difficult_boxes_are_neither_missed_nor_wrong_to_find():
    boxes = torch.tensor([[0.0, 0, 40, 40], [100, 100, 150, 150]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 1]), "difficult": torch.tensor([0, 1])}
    easy = {"boxes": boxes[:1], "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    both = {"boxes": boxes, "labels": torch.tensor([1, 1]), "scores": torch.tensor([0.5, 0.9])}
    for detections in (easy, both):
        metric = COCOMeanAveragePrecision(["cat"])
        metric.update([detections], [target])
        assert metric.named()["map"] == pytest.approx(1.0)
    assert ignore_difficult({**target, "iscrowd": torch.tensor([1, 0])})["iscrowd"].tolist() == [1, 1]


def test_the_order_of_images_and_their_repeats_change_nothing():
    """Two ranks see other images in another order, and the padding of a sampler twice."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for index in range(12):
        corner = torch.rand(4, 2, generator=generator) * 100
        boxes = torch.cat([corner, corner + 40], dim=1)
        labels = torch.randint(1, 3, (4,), generator=generator)
        found = {"boxes": boxes + torch.randn(4, 1, generator=generator) * 4, "labels": labels, "scores": torch.full((4,), 0.5)}
        images.append((found, {"boxes": boxes, "labels": labels, "image_id": torch.tensor(index)}))
    values = []
    for order in (range(12), [*range(11, -1, -1), 3, 5], [*range(0, 12, 2), *range(1, 12, 2), 0]):
        metric = COCOMeanAveragePrecision(["a", "b"])
        for index in order:
            metric.update([images[index][0]], [images[index][1]])
        values.append(metric.named())
    assert values[0] == values[1] == values[2]
    assert 0 < values[0]["map"] < 1


def test_classes_keep_their_names_when_only_some_are_seen():
    metric = COCOMeanAveragePrecision(["a", "b", "c"])
    box = torch.tensor([[0.0, 0, 50, 50]])
    metric.update(
        [{"boxes": box, "labels": torch.tensor([3]), "scores": torch.tensor([0.9])}],
        [{"boxes": box.repeat(2, 1), "labels": torch.tensor([2, 3])}],
    )
    values = metric.named()
    assert values["ap/c"] == pytest.approx(1)
    assert values["ap/b"] == 0
    assert "ap/a" not in values


def test_no_targets_and_no_detections_give_no_average():
    metric = COCOMeanAveragePrecision(["a"])
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    metric.update([{**empty, "scores": torch.zeros(0)}], [empty])
    assert "map" not in metric.named()
