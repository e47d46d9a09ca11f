import json

import pytest
import torch
from rich.console import Console

from lit_detect import COCOMeanAveragePrecision
from lit_detect.results import coco_results, results, results_tables
from tests.test_metrics import random_images


def evaluated(classes, detections=60):
    metric = COCOMeanAveragePrecision(classes)
    metric.update(*zip(*random_images(1, 20, len(classes), detections), strict=True))
    return results({**metric.compute(), "voc_map": 0.125, "loss": 2.0}, metric.detections, metric.targets, classes)


def printed(found, width=80):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(results_tables(found, "val"))
    return capture.get()


def test_results_by_class_are_plain_data_and_agree_with_the_averages():
    found = evaluated(["cat", "dog", "horse"])
    assert json.loads(json.dumps(found)) == found
    by_class = found["classes"]
    assert list(by_class) == ["cat", "dog", "horse"]
    for name in ("ap", "ap_50"):
        mean = sum(one[name] for one in by_class.values()) / 3
        assert mean == pytest.approx(found["metrics"]["map" if name == "ap" else "map_50"])
    for one in by_class.values():
        assert one["f1"] == pytest.approx(2 / (1 / one["precision"] + 1 / one["recall"]))
    assert found["images"] == 20
    assert sum(found["targets_by_size"].values()) == sum(one["targets"] for one in by_class.values()) == found["targets"]
    assert not [name for name in found["metrics"] if "/" in name]
    assert {name for name in found["metrics"] if name.startswith("ma")} >= {"map", "map_50", "map_75", "map_small", "mar_1", "mar_large"}


def test_a_class_without_targets_has_no_values():
    box = {"boxes": torch.tensor([[0.0, 0, 50, 50]]), "labels": torch.tensor([1]), "area": torch.tensor([1200.0])}
    found = results({"map": 1.0, "ap/cat": 1.0}, [{**box, "scores": torch.tensor([0.5])}], [box], ["cat", "dog"])
    assert found["classes"]["dog"] == {"targets": 0}
    assert found["classes"]["cat"] == {"targets": 1, "ap": 1, "ap_50": 1, "f1": 1, "threshold": 0.5, "precision": 1, "recall": 1}
    assert found["targets_by_size"] == {"small": 0, "medium": 1, "large": 0}
    assert "dog" in printed(found)


def test_the_tables_have_what_exists_and_no_more():
    text = printed(evaluated(["cat", "[bold]"]))
    for part in ("AP50 ", "AP small", "VOC's mAP", "0.125", "[bold]", "localisation", "precision"):
        assert part in text
    assert "VOC AP" not in text
    empty = printed(results({}, [], [], ["cat"]))
    assert "cat" in empty
    assert "TIDE" not in empty


def test_of_many_classes_the_lowest_and_the_highest_are_shown_within_a_terminal():
    found = evaluated([f"class {number}" for number in range(80)])
    rows = [line.strip() for line in printed(found).splitlines() if line.startswith(" class ") and len(line.split()) > 5]
    assert len(rows) == 24
    by_ap = sorted(one["ap"] for one in found["classes"].values() if "ap" in one)
    assert [float(row.split()[3]) for row in rows] == pytest.approx([*by_ap[:12], *by_ap[-12:]], abs=5e-4)


def test_results_keep_the_data_sets_own_category_ids():
    found = {"boxes": torch.tensor([[1.0, 2, 11, 22]]), "labels": torch.tensor([3]), "scores": torch.tensor([0.25])}
    assert coco_results(found, 42, [3, 7, 90]) == [{"image_id": 42, "category_id": 90, "bbox": [1, 2, 10, 20], "score": 0.25}]


def test_results_are_what_pycocotools_reads(tmp_path, coco_files):
    from pycocotools.coco import COCO

    found = {"boxes": torch.tensor([[10.0, 10, 30, 40]]), "labels": torch.tensor([3]), "scores": torch.tensor([0.9])}
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(coco_results(found, 7, [3, 7, 90])))
    loaded = COCO(str(coco_files[1])).loadRes(str(path))
    assert [(a["image_id"], a["category_id"], a["bbox"]) for a in loaded.anns.values()] == [(7, 90, [10, 10, 20, 30])]
