import functools
import json
import os
import time

import cv2
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_detect import SSD, COCODetection, COCOMeanAveragePrecision, VOCMeanAveragePrecision
from lit_detect.cli import CONFIGS
from lit_detect.metrics import ignore_difficult
from tests.conftest import DETECTORS, random_batch

ORACLE_NAMES = {
    "AP": "map", "AP50": "map_50", "AP75": "map_75", "AP_small": "map_small", "AP_medium": "map_medium", "AP_large": "map_large",
    "AR1": "mar_1", "AR10": "mar_10", "AR100": "mar_100", "AR_small": "mar_small", "AR_medium": "mar_medium", "AR_large": "mar_large",
}  # fmt: skip


def test_all_numbers_of_pycocotools_on_100_images_of_coco(shared, tmp_path):
    """Through our own reader, with its contiguous labels, crowds and mask areas."""
    folder = shared / "oracles" / "coco_val2014_100"
    for image in json.loads((folder / "ground_truth.json").read_text())["images"]:  # the reader looks for them
        cv2.imwrite(str(tmp_path / image["file_name"]), np.zeros((image["height"], image["width"], 3), dtype=np.uint8))
    dataset = COCODetection(str(tmp_path), str(folder / "ground_truth.json"))
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
    values = metric.compute()
    expected = json.loads((folder / "expected.json").read_text())
    for oracle, name in ORACLE_NAMES.items():
        assert values[name] == pytest.approx(expected[oracle], abs=5e-6), name
    truth = pycocotools.coco.COCO(str(folder / "ground_truth.json"))
    found = truth.loadRes(str(folder / "detections.json"))
    assert values == pytest.approx(pycocotools_values(truth, found, {truth.cats[key]["name"]: key for key in label_of}), abs=1e-6)


def test_difficult_boxes_are_neither_missed_nor_wrong_to_find():
    boxes = torch.tensor([[0.0, 0, 40, 40], [100, 100, 150, 150]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 1]), "difficult": torch.tensor([0, 1])}
    easy = {"boxes": boxes[:1], "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    both = {"boxes": boxes, "labels": torch.tensor([1, 1]), "scores": torch.tensor([0.5, 0.9])}
    for detections in (easy, both):
        metric = COCOMeanAveragePrecision(["cat"])
        metric.update([detections], [target])
        assert metric.compute()["map"] == pytest.approx(1.0)
    assert ignore_difficult({**target, "iscrowd": torch.tensor([1, 0])})["iscrowd"].tolist() == [1, 1]


@pytest.mark.parametrize(("kind", "name"), [(COCOMeanAveragePrecision, "map"), (VOCMeanAveragePrecision, "voc_map")])
def test_the_order_of_images_and_their_repeats_change_nothing(kind, name):
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
        metric = kind(["a", "b"])
        for index in order:
            metric.update([images[index][0]], [images[index][1]])
        values.append(metric.compute())
    assert values[0] == values[1] == values[2]
    assert 0 < values[0][name] < 1


def test_classes_keep_their_names_when_only_some_are_seen():
    metric = COCOMeanAveragePrecision(list("abcdefgh"))
    box = torch.tensor([[0.0, 0, 50, 50]])
    metric.update(
        [{"boxes": box, "labels": torch.tensor([8]), "scores": torch.tensor([0.9])}],
        [{"boxes": box.repeat(2, 1), "labels": torch.tensor([1, 8])}],  # Python's set of these has 8 before 1
    )
    values = metric.compute()
    assert {name: value for name, value in values.items() if name.startswith("ap/")} == pytest.approx({"ap/a": 0, "ap/h": 1})


@pytest.mark.parametrize("kind", [COCOMeanAveragePrecision, VOCMeanAveragePrecision])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_no_targets_and_no_detections_give_no_average(kind):
    metric = kind(["a"])
    assert metric.compute() == {}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    metric.update([{**empty, "scores": torch.zeros(0)}], [empty])
    assert metric.compute() == {}
    box = {"boxes": torch.tensor([[0.0, 0, 50, 50]]), "labels": torch.tensor([1])}
    metric.update([{**empty, "scores": torch.zeros(0)}], [box])
    values = metric.compute()
    assert values
    assert set(values.values()) == {0.0}


def test_what_was_evaluated_stays_at_hand():
    images = random_images(0, 6, 2, 5)
    metric = COCOMeanAveragePrecision(["a", "b"])
    metric.update(*zip(*images, strict=True))
    metric.compute()
    metric.reset()
    by_id = sorted(images, key=lambda image: int(image[1]["image_id"]))
    for (found, target), detections, targets in zip(by_id, metric.detections, metric.targets, strict=True):
        for mine, theirs in ((detections, found), (targets, target)):
            assert mine.keys() == theirs.keys()
            for name, value in theirs.items():
                torch.testing.assert_close(mine[name], value, check_dtype=False)


def test_targets_have_the_fields_that_analysis_reads():
    boxes = torch.tensor([[0.0, 0, 10.1, 20.2], [5, 5, 10, 10], [0, 0, 4, 4]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2, 1]), "difficult": torch.tensor([0, 1, 0])}
    found = {"boxes": boxes[:1].half(), "labels": torch.tensor([2]), "scores": torch.tensor([0.5]).half()}
    metric = VOCMeanAveragePrecision(["a", "b"])
    metric.update([found] * 2, [target, {**target, "area": torch.tensor([7.0, 8.0, 9.0]), "image_id": torch.tensor(-5)}])
    metric.compute()
    identified, unknown = metric.targets  # those without an id come last
    assert "image_id" not in unknown
    assert (identified["image_id"].item(), identified["area"].tolist()) == (-5, [7, 8, 9])
    assert unknown["area"].tolist() == pytest.approx([10.1 * 20.2, 25, 16], rel=1e-12)
    for one in metric.targets:
        assert (one["labels"].tolist(), one["iscrowd"].tolist(), one["boxes"].tolist()) == ([1, 2, 1], [0, 1, 0], boxes.tolist())
    for one in metric.detections:
        assert (one["labels"].tolist(), one["scores"].tolist(), one["boxes"].dtype) == ([2], [0.5], torch.float32)


def test_detections_without_targets_are_no_images():
    metric = COCOMeanAveragePrecision(["a"])
    metric.update([], [])
    assert (metric.rows, metric.detections, metric.targets) == ([], [], [])
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(ValueError, match="shorter"):
        metric.update([{**empty, "scores": torch.zeros(0)}] * 2, [empty])


def test_other_limits_of_detections():
    """Three of three found by the three best of four detections, the last of which is wrong."""
    boxes = torch.tensor([[0.0, 0, 50, 50], [60, 0, 110, 50], [120, 0, 170, 50], [200, 0, 250, 50]])
    found = {"boxes": boxes, "labels": torch.ones(4).long(), "scores": torch.tensor([0.9, 0.8, 0.7, 0.6])}
    metric = COCOMeanAveragePrecision(["a"], max_detections=(1, 2, 3))
    metric.update([found], [{"boxes": boxes[:3], "labels": torch.ones(3).long()}])
    values = metric.compute()
    assert {name: value for name, value in values.items() if name.startswith("mar_")} == pytest.approx(
        {"mar_1": 1 / 3, "mar_2": 2 / 3, "mar_3": 1.0, "mar_medium": 1.0}
    )


def devkit_images(folder, classes):
    """Detections and targets of the oracle by image. The kit counts pixels from 1: their edges are from one less."""
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    edges = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)
    content = json.loads((folder / "gt_voc07_test.json").read_text())
    found = {name: [] for name in content}
    for name, label in label_of.items():
        for line in (folder / "detections" / f"comp4_det_test_{name}.txt").read_text().splitlines():
            image, *numbers = line.split()
            found[image].append([label, *map(float, numbers)])
    for index, (image, objects) in enumerate(content.items()):
        rows = torch.tensor(found[image], dtype=torch.float64).reshape(-1, 6)
        sought = torch.tensor([[label_of[name], *rest] for name, *rest in objects if name in label_of]).reshape(-1, 6)
        labels, difficult = sought[:, :2].long().T
        target = {"boxes": sought[:, 2:] - edges, "labels": labels, "difficult": difficult, "image_id": torch.tensor(index)}
        yield {"boxes": rows[:, 2:] - edges, "labels": rows[:, 0].long(), "scores": rows[:, 1]}, target


@pytest.mark.parametrize(("points", "of_class", "mean"), [(11, "ap07", "mean_ap07_19"), ("all", "ap_area", "mean_ap_area_19")])
def test_the_development_kits_numbers_of_a_detector_on_all_of_voc2007(shared, points, of_class, mean):
    folder = shared / "oracles" / "voc07"
    expected = json.loads((folder / "expected.json").read_text())
    metric = VOCMeanAveragePrecision(list(expected["classes"]), points)
    metric.update(*zip(*devkit_images(folder, expected["classes"]), strict=True))
    values = metric.compute()
    assert values.pop("voc_map") == pytest.approx(expected[mean], abs=1e-12)
    assert values == pytest.approx({f"voc_ap/{name}": one[of_class] for name, one in expected["classes"].items()}, abs=1e-12)


def voc_ap(found, sought, points="all", iou_threshold=0.5, **fields):
    """AP of detections (score, box) and target boxes on one image."""
    boxes, target_boxes = (torch.tensor(one, dtype=torch.float32).reshape(-1, 4) for one in ([box for _, box in found], sought))
    detections = {"boxes": boxes, "labels": torch.ones(len(boxes)).long(), "scores": torch.tensor([score for score, _ in found])}
    target = {"boxes": target_boxes, "labels": torch.ones(len(target_boxes)).long()}
    metric = VOCMeanAveragePrecision(["cat"], points, iou_threshold)
    metric.update([detections], [{**target, **{name: torch.tensor(value) for name, value in fields.items()}}])
    return metric.compute()["voc_map"]


def test_vocs_rules_by_hand():
    left, right, far = [0, 0, 10, 10], [3, 0, 13, 10], [50, 0, 60, 10]
    # the second is nearer to the taken target, though it overlaps the free one by more than half: COCO takes it, VOC does not
    nearer = [1, 0, 11, 10]
    assert voc_ap([(0.9, left), (0.8, nearer)], [left, right]) == pytest.approx(1 / 2)
    assert voc_ap([(0.9, left), (0.8, left), (0.7, far)], [left, far]) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert voc_ap([(0.9, left), (0.8, left), (0.7, far)], [left, far], points=11) == pytest.approx((6 + 5 * 2 / 3) / 11)
    # a difficult one is not counted, however often it is found
    assert voc_ap([(0.9, far), (0.8, far), (0.7, left)], [left, far], difficult=[0, 1]) == pytest.approx(1)
    assert voc_ap([(0.9, far), (0.8, far), (0.7, left)], [left, far], iscrowd=[0, 1]) == pytest.approx(1)
    # half is enough
    assert voc_ap([(0.9, [0, 0, 10, 5])], [left]) == pytest.approx(1)
    assert voc_ap([(0.9, [0, 0, 10, 4.9])], [left]) == 0
    assert voc_ap([(0.9, [0, 0, 10, 7])], [left], iou_threshold=0.75) == 0
    assert voc_ap([(0.9, [0, 0, 10, 8])], [left], iou_threshold=0.75) == pytest.approx(1)


def test_what_is_found_where_nothing_is_counts_as_wrong():
    """Also where the last target of all is a difficult one."""
    box, label = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1])
    nothing = {"boxes": box[:0], "labels": label[:0], "difficult": label[:0]}
    both = {"boxes": torch.cat([box, box + 50]), "labels": label.repeat(2), "difficult": torch.tensor([0, 1])}
    metric = VOCMeanAveragePrecision(["cat"], "all")
    found = {"boxes": box, "labels": label}
    metric.update([{**found, "scores": torch.tensor([score])} for score in (0.9, 0.8)], [nothing, both])
    assert metric.compute()["voc_map"] == pytest.approx(1 / 2)


def test_a_detector_logs_vocs_ap_beside_cocos_and_its_checkpoint_needs_no_metric(tmp_path):
    detector = DETECTORS["ssd"](metric=functools.partial(VOCMeanAveragePrecision, points="all"))
    batches = [random_batch([(96, 96)] * 2, [2, 3])]
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.fit(detector, DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
    assert {"val/map", "val/voc_map"} < set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert len(SSD.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True).metrics["val"]) == 1


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_voc.yaml")), ids=lambda path: path.stem)
def test_configs_evaluate_by_the_measure_of_their_year(path):
    content = yaml.safe_load(path.read_text())
    year = {data["init_args"]["root"][-4:] for data in (content["data"]["val"], content["data"]["test"])}
    points = content["model"]["init_args"]["metric"]["init_args"]["points"]
    assert year == {"2007" if points == 11 else "2012"}


def pycocotools_values(truth, found, category_ids):
    """All twelve numbers, and AP of each class from an evaluation of its own."""
    stats = []
    for categories in (list(category_ids.values()), *([identity] for identity in category_ids.values())):
        evaluation = pycocotools.cocoeval.COCOeval(truth, found, iouType="bbox")
        evaluation.params.catIds = categories
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats.append(evaluation.stats)
    values = dict(zip(ORACLE_NAMES.values(), stats[0], strict=True))
    values |= {f"ap/{name}": of_class[0] for name, of_class in zip(category_ids, stats[1:], strict=True)}
    return {name: float(value) for name, value in values.items() if value > -1}


def evaluate_with_pycocotools(images, classes):
    names = ("boxes", "labels", "iscrowd", "area", "scores")
    datasets = []
    for kind in (1, 0):
        annotations = []
        for image in images:
            boxes = {name: image[kind][name].tolist() for name in names if name in image[kind]}
            for index, (left, top, right, bottom) in enumerate(boxes["boxes"]):
                box = [round(value, 3) for value in (left, top, right - left, bottom - top)]
                one = {"id": len(annotations) + 1, "image_id": int(image[1]["image_id"]), "category_id": boxes["labels"][index]}
                one |= {"bbox": box, "area": boxes["area"][index] if "area" in boxes else box[2] * box[3]}
                one |= {"iscrowd": boxes["iscrowd"][index] if "iscrowd" in boxes else 0}
                annotations.append(one | ({} if kind else {"score": boxes["scores"][index]}))
        data = pycocotools.coco.COCO()
        data.dataset = {
            "images": [{"id": int(image[1]["image_id"])} for image in images],
            "categories": [{"id": label} for label in range(1, len(classes) + 1)],
            "annotations": annotations,
        }
        data.createIndex()
        datasets.append(data)
    return pycocotools_values(*datasets, {name: label for label, name in enumerate(classes, start=1)})


def random_images(seed, count, classes, detections):
    """Crowds, areas of masks, images without targets, detections or both, and scores that are often equal."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for index in range(count):
        number = int(torch.randint(0, 8, (1,), generator=generator)) * (index % 5 > 0)
        corner = torch.rand(number, 2, generator=generator) * 300
        boxes = torch.cat([corner, corner + 5 + torch.rand(number, 2, generator=generator) * 150], dim=1)
        target = {"boxes": boxes, "labels": torch.randint(1, classes + 1, (number,), generator=generator)}
        target["iscrowd"] = (torch.rand(number, generator=generator) < 0.2).long()
        target["area"] = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) * 0.7
        target["image_id"] = torch.tensor(100 - index)
        found = detections * (index % 7 > 0)
        guess = torch.cat([boxes, torch.tensor([[0.0, 0, 30, 30]])])[torch.randint(0, number + 1, (found,), generator=generator)]
        guess = guess + torch.randn(found, 4, generator=generator) * 3
        guess[:, 2:] = torch.maximum(guess[:, 2:], guess[:, :2] + 1)
        scores = torch.randint(0, 6, (found,), generator=generator) / 5
        images.append(({"boxes": guess, "labels": torch.randint(1, classes + 1, (found,), generator=generator), "scores": scores}, target))
    return images


@pytest.mark.parametrize(("seed", "classes", "detections"), [(0, 2, 120), (1, 5, 30), (2, 40, 60)])
def test_all_numbers_are_those_of_pycocotools(seed, classes, detections):
    names = [f"class {number}" for number in range(classes)]
    images = random_images(seed, 25, classes, detections)
    metric = COCOMeanAveragePrecision(names)
    for start in range(0, len(images), 4):
        metric.update(*zip(*images[start : start + 4], strict=True))
    expected = evaluate_with_pycocotools(images, names)
    assert metric.compute() == pytest.approx(expected, abs=1e-6)
    assert 0 < expected["map"] < 1


def test_images_are_told_apart_by_ids_of_any_size():
    box = torch.tensor([[0.0, 0, 50, 50]])
    target = {"boxes": box, "labels": torch.tensor([1])}
    metric = COCOMeanAveragePrecision(["cat"])
    ids = [0, 2**24, 2**24 + 1, 20240101000000001, 20240101000000002, 2**63 - 1, -1]
    for index, identity in enumerate([*ids, *ids, None, None]):
        found = {name: value[: index < 3] for name, value in {**target, "scores": torch.ones(1)}.items()}
        metric.update([found], [target if identity is None else {**target, "image_id": torch.tensor(identity)}])
    assert metric.compute()["mar_100"] == pytest.approx(3 / (len(ids) + 2))
    assert [int(target["image_id"]) for target in metric.targets[:-2]] == sorted(ids)


KINDS = (COCOMeanAveragePrecision, VOCMeanAveragePrecision)
SHARES = ([[0, 2, 4, 6, 8, 10, 1], [11, 9, 7, 5, 3, 1, 0, 2, 4]], [list(range(12)), []])


def compute_shares(rank, path):
    """A process of two: for each of the ways to share the images, the numbers it computes of all, and how many it has afterwards."""
    torch.set_num_threads(1)  # as a DataLoader's workers
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    images = random_images(3, 12, 3, 20)
    results = []
    for shares in SHARES:
        for kind in KINDS:
            metric = kind(["a", "b", "c"])
            for index in shares[rank]:
                metric.update(*([one] for one in images[index]))
            results.append([metric.compute(), len(metric.rows), len(metric.targets)])
    (path / f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="to start afresh takes each process many seconds")
def test_processes_with_other_images_or_none_compute_the_numbers_of_one(tmp_path):
    processes = torch.multiprocessing.start_processes(compute_shares, (tmp_path,), nprocs=2, join=False, start_method="forkserver")
    deadline = time.monotonic() + 120
    while not processes.join(timeout=5):
        assert time.monotonic() < deadline
    alone = [kind(["a", "b", "c"]) for kind in KINDS]
    for metric in alone:
        metric.update(*zip(*random_images(3, 12, 3, 20), strict=True))
    for rank in range(2):
        # afterwards each has its own images again, and what was evaluated of all
        expected = [[metric.compute(), len(shares[rank]), 12] for shares in SHARES for metric in alone]
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
