import json
import logging

import numpy as np
import pytest
from pycocotools.coco import COCO

from lit_detect import COCODetection, InputError


def test_contiguous_labels_in_the_order_of_the_files_ids(coco_files):
    dataset = COCODetection(*map(str, coco_files))
    assert (dataset.classes, dataset.category_ids) == (["cat", "dog", "horse"], [3, 7, 90])
    _, target = dataset.load(0)
    assert target["labels"].tolist() == [3, 1]
    assert target["boxes"].tolist() == [[10, 10, 30, 40], [0, 0, 70, 50]]
    assert (target["area"].tolist(), target["iscrowd"].tolist(), target["image_id"]) == ([500, 3000], [0, 1], 7)
    assert [dataset.num_boxes(index) for index in (0, 1)] == [1, 0]
    assert dataset.file_name(1) == "a.jpg"


def test_boxes_without_area_are_left_out_and_said(coco_files, caplog):
    with caplog.at_level(logging.WARNING):
        COCODetection(*map(str, coco_files)).targets  # noqa: B018
    assert "1 x box without area (left out): " in caplog.text
    assert "instances.json, annotation 3: Expected x1 < x2 and y1 < y2 but got [5.0, 5.0, 5.0, 15.0] (dog)" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(image_id=99), "1 x id dangling: .*annotation 1: Expected image_id of an entry but got 99"),
        (
            lambda c: c["annotations"][0].update(category_id=4),
            "1 x id dangling: .*annotation 1: Expected category_id of an entry but got 4",
        ),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), "1 x box not four numbers: .*annotation 2"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3, "4"]), "1 x box not four numbers: .*annotation 2"),
        (lambda c: c.pop("categories"), "Expected a list of categories"),
        (lambda c: c["images"][1].update(id=7), "1 x id repeated: .*image 7: Expected id and name used once"),
        (lambda c: c["images"][1].pop("file_name"), "1 x id wrong: .*image 3: Expected a whole number as id and a file_name"),
        (lambda c: c["categories"][1].update(id="3"), "1 x id wrong: .*category 3: Expected a whole number as id and a name"),
    ],
)
def test_a_wrong_annotation_is_named(coco_files, change, message):
    images, path = coco_files
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        COCODetection(str(images), str(path)).targets  # noqa: B018


def test_what_other_tools_leave_out_is_filled_in(coco_files):
    images, path = coco_files
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["width"], image["height"]
    content["annotations"] = [{key: a[key] for key in ("id", "image_id", "category_id", "bbox")} for a in content["annotations"]]
    content["annotations"][1] |= {"area": None, "iscrowd": None}
    path.write_text(json.dumps(content))
    target = COCODetection(str(images), str(path)).targets[0]
    assert (target["area"].tolist(), target["iscrowd"].tolist()) == ([600, 3500], [0, 0])


def test_a_file_that_is_not_there_or_not_json_is_named(coco_files, tmp_path):
    images, path = coco_files
    with pytest.raises(InputError, match=r"could not read .*nothing\.json"):
        len(COCODetection(str(images), str(tmp_path / "nothing.json")))
    path.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        len(COCODetection(str(images), str(path)))
    path.write_text("[]")
    with pytest.raises(InputError, match="Expected a list of images"):
        len(COCODetection(str(images), str(path)))


def test_same_annotations_as_pycocotools_on_real_images(shared):
    folder = shared / "data" / "coco_tiny"
    path = folder / "annotations" / "instances_val2017.json"
    dataset, reference = COCODetection(str(folder / "val2017"), str(path)), COCO(str(path))
    assert len(dataset) == len(reference.imgs)
    assert dict(zip(dataset.category_ids, dataset.classes, strict=True)) == {c["id"]: c["name"] for c in reference.cats.values()}
    total = 0
    for index in range(len(dataset)):
        image, target = dataset.load(index)
        annotations = reference.loadAnns(reference.getAnnIds(target["image_id"]))
        assert image.shape[:2] == (reference.imgs[target["image_id"]]["height"], reference.imgs[target["image_id"]]["width"])
        assert [dataset.category_ids[label - 1] for label in target["labels"]] == [a["category_id"] for a in annotations]
        xywh = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
        np.testing.assert_allclose(target["boxes"], np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]), atol=0.02)
        total += len(annotations)
    assert total == len(reference.anns)
