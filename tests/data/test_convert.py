import json
import logging
import os
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torchvision
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools.coco import COCO

from lit_detect import COCODetection, DetectionDataset, InputError, VOCDetection, YOLODetection
from lit_detect.data import convert as module
from lit_detect.data.convert import convert
from lit_detect.data.splits import open_splits
from lit_detect.data.writers import Labelled, voc_annotation, write_coco


def edit(root, name, old, new):
    path = root / "Annotations" / f"{name}.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def objects(dataset, fields=("difficult",)):
    """What an image has, by its name: as told by names of classes, in the order of the boxes."""
    return {
        Path(dataset.file_name(index)).stem: {
            "boxes": target["boxes"].tolist(),
            "names": [dataset.classes[label - 1] for label in target["labels"]],
            **{field: np.asarray(target[field]).tolist() for field in fields},
        }
        for index, target in enumerate(dataset.targets)
    }


def same_files(a, b):
    return all(a.load(index)[0].tobytes() == b.load(index)[0].tobytes() for index in range(len(a)))


def test_voc_to_coco_and_back_is_the_same(voc_root, tmp_path, caplog):
    edit(voc_root, "image1", "<xmin>12</xmin><ymin>21</ymin><xmax>40</xmax>", "<xmin>12.3456</xmin><ymin>1.7</ymin><xmax>40.1</xmax>")
    with caplog.at_level(logging.WARNING):
        convert(str(voc_root), "coco", str(tmp_path / "coco"))
    assert "3 difficult flags in a key that COCO's own programs read" in caplog.text  # 2 of train, 1 of val
    convert(str(tmp_path / "coco"), "voc", str(tmp_path / "again"))
    for split in ("train", "val"):
        first = VOCDetection(str(voc_root), split)
        coco = COCODetection(str(tmp_path / "coco/images" / split), str(tmp_path / f"coco/annotations/instances_{split}.json"))
        again = VOCDetection(str(tmp_path / "again"), split)
        assert objects(first) == objects(coco)
        assert list(objects(first).values()) == list(objects(again).values())  # two splits have two images of one name
        assert first.classes == coco.classes == again.classes
        assert same_files(first, coco)
        assert same_files(first, again)
        assert [t["area"].tolist() for t in first.targets] == [t["area"].tolist() for t in coco.targets]
    assert first.targets[1]["difficult"].tolist() == [1]


def test_an_image_of_two_splits_is_written_once_in_voc(voc_root, tmp_path):
    convert(str(voc_root), "voc", str(tmp_path / "again"))
    assert sorted(path.name for path in (tmp_path / "again/JPEGImages").iterdir()) == [f"image{number}.jpg" for number in range(5)]
    for name in ("train", "val"):
        assert (tmp_path / f"again/ImageSets/Main/{name}.txt").read_text() == (voc_root / f"ImageSets/Main/{name}.txt").read_text()
    assert objects(VOCDetection(str(tmp_path / "again"), "train")) == objects(VOCDetection(str(voc_root), "train"))


def test_coco_to_voc_says_what_voc_does_not_hold(coco_files, tmp_path, caplog, capsys):
    images, path = coco_files
    with caplog.at_level(logging.WARNING):
        convert(str(path), "voc", str(tmp_path / "voc"))
    lost = (
        "2 areas other than their boxes'; 1 crowd boxes, which are written as difficult; 2 image ids; 1 classes without boxes (dog); "
        "3 category ids"
    )
    assert f"does not hold: {lost}." in caplog.text
    assert "instances: 2 images, 2 boxes" in capsys.readouterr().out
    dataset = VOCDetection(str(tmp_path / "voc"), "instances")
    first = COCODetection(str(images), str(path))
    assert objects(dataset, ()) == objects(first, ())
    assert dataset.targets[0]["difficult"].tolist() == first.targets[0]["iscrowd"].tolist() == [0, 1]


def test_coco_to_coco_is_the_same(coco_files, tmp_path, caplog):
    images, path = coco_files
    with caplog.at_level(logging.WARNING):
        convert(str(path), "coco", str(tmp_path / "out"))
    assert "does not hold" not in caplog.text
    a, b = (
        COCODetection(str(images), str(path)),
        COCODetection(*map(str, [tmp_path / "out/images/instances", tmp_path / "out/annotations/instances_instances.json"])),
    )
    assert (a.classes, a.category_ids) == (b.classes, b.category_ids)
    for one, other in zip(a.targets, b.targets, strict=True):
        assert {key: np.asarray(value).tolist() for key, value in one.items()} == {
            key: np.asarray(value).tolist() for key, value in other.items()
        }


def test_yolo_to_coco_keeps_boxes_and_turns_images(tmp_path):
    for folder in ("images/a", "images/b", "labels/a", "labels/b"):
        (tmp_path / "yolo" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, size, arguments in (("a/0.jpg", (80, 60), {}), ("a/1.jpg", (80, 60), {"exif": exif}), ("b/0.png", (33, 17), {"exif": exif})):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(tmp_path / "yolo/images" / name, **arguments)
        rows = rng.uniform([0.3, 0.3, 0.1, 0.1], [0.7, 0.7, 0.5, 0.5], (5, 4))
        label = (tmp_path / "yolo/labels" / name).with_suffix(".txt")
        label.write_text("".join(f"{index % 2} {' '.join(map(repr, row))}\n" for index, row in enumerate(rows.tolist())))
    (tmp_path / "yolo/data.yaml").write_text("train: images\nnames: [a, b]\n")
    convert(str(tmp_path / "yolo"), "coco", str(tmp_path / "out"))
    first = YOLODetection(str(tmp_path / "yolo/data.yaml"))
    again = COCODetection(str(tmp_path / "out/images/train"), str(tmp_path / "out/annotations/instances_train.json"))
    assert [again.file_name(index) for index in range(3)] == ["images/a/0.jpg", "images/a/1.jpg", "images/b/0.png"]
    for index in range(3):
        (image, a), (other, b) = first.load(index), again.load(index)
        assert a["boxes"].tobytes() == b["boxes"].tobytes()
        assert (a["labels"].tolist(), a["image_id"]) == (b["labels"].tolist(), b["image_id"])
        assert image.shape == other.shape
        assert np.abs(image.astype(int) - other).mean() < (8 if index == 1 else 1e-9)  # written anew as JPEG
        with Image.open(tmp_path / "out/images/train" / again.file_name(index)) as written:
            assert written.getexif().get(0x0112) is None
            assert written.size == image.shape[1::-1]
    assert not again.contents.faults


def test_pycocotools_reads_the_written_coco(voc_root, tmp_path):
    convert(str(voc_root), "coco", str(tmp_path / "coco"))
    coco = COCO(str(tmp_path / "coco/annotations/instances_train.json"))
    dataset = VOCDetection(str(voc_root), "train")
    for index, target in enumerate(dataset.targets):
        entry = coco.loadImgs(target["image_id"])[0]
        assert (entry["file_name"], entry["width"], entry["height"]) == (dataset.file_name(index), 80, 60)
        annotations = coco.loadAnns(coco.getAnnIds(target["image_id"]))
        xywh = np.array([one["bbox"] for one in annotations]).reshape(-1, 4)
        assert np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]).tolist() == target["boxes"].tolist()
        assert [coco.cats[one["category_id"]]["name"] for one in annotations] == [dataset.classes[label - 1] for label in target["labels"]]
        assert all(type(number) is int for one in annotations for number in one["bbox"])
    assert min(coco.anns) == 1


def test_torchvision_reads_the_written_voc(coco_files, tmp_path):
    convert(str(coco_files[1]), "voc", str(tmp_path / "VOCdevkit/VOC2012"))
    main = tmp_path / "VOCdevkit/VOC2012/ImageSets/Main"
    (main / "instances.txt").rename(main / "train.txt")  # torchvision knows VOC's own names of sets only
    image, annotation = torchvision.datasets.VOCDetection(str(tmp_path), year="2012", image_set="train")[0]
    assert image.size == (80, 60)
    assert annotation["annotation"]["size"] == {"width": "80", "height": "60", "depth": "3"}
    boxes = [[item["name"], item["difficult"], *item["bndbox"].values()] for item in annotation["annotation"]["object"]]
    assert boxes == [["horse", "0", "11", "11", "30", "40"], ["cat", "1", "1", "1", "70", "50"]]


FLOATS = st.floats(0, 1000, width=32).map(lambda value: value if value > 1e-8 else 0.0)  # below, 1 + x is not exact


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays(np.float32, st.tuples(st.integers(0, 4), st.just(4)), elements=FLOATS))
@example(np.array([[0, 0, 1, 1], [999, 2.5, 1000, 2.75]], np.float32))  # a whole pixel, and less
def test_any_boxes_are_read_back_to_the_last_bit(tmp_path, corners):
    boxes = np.sort(corners.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    if not (tmp_path / "JPEGImages/a.png").exists():
        cv2.imwrite(str(tmp_path / "JPEGImages/a.png"), np.zeros((1000, 1000, 3), np.uint8))
    image = Labelled("a.png", 1000, 1000, {"boxes": boxes, "labels": np.ones(len(boxes), int), "image_id": 3})
    (tmp_path / "Annotations/a.xml").write_bytes(voc_annotation(image, ["é<&"]))
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    write_coco(tmp_path / "a.json", [image], [{"id": 5, "name": "é<&"}])
    voc = VOCDetection(str(tmp_path), "train", ["é<&"])
    for dataset in (voc, COCODetection(str(tmp_path / "JPEGImages"), str(tmp_path / "a.json"))):
        assert dataset.targets[0]["boxes"].tobytes() == boxes.tobytes()
        assert dataset.classes == ["é<&"]


def test_names_that_repeat_do_not_overwrite_one_another(tmp_path):
    images = []
    for number, name in enumerate(["x/a.jpg", "y/a.jpg", "x/a.png", "y/A.jpg", "x_a.jpg", "a b.jpg", "x/frame 1.jpg"]):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / name), np.full((10, 10 + number, 3), 30 * number, np.uint8))
        images.append({"id": number, "file_name": name, "width": 10 + number, "height": 10})
    annotations = [{"id": n + 1, "image_id": n, "category_id": 1, "bbox": [0, 0, 5, n + 1]} for n in range(7)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "in.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(tmp_path / "in")
    convert(str(tmp_path / "in.json"), "voc", str(tmp_path / "voc"))
    convert(str(tmp_path / "in.json"), "coco", str(tmp_path / "coco"))
    voc, coco = open_splits(str(tmp_path / "voc"))["in"], open_splits(str(tmp_path / "coco"))["in"]
    assert [voc.file_name(n) for n in range(7)] == ["a.jpg", "y_a.jpg", "x_a.png", "y_A_2.jpg", "x_a_2.jpg", "a_b.jpg", "frame_1.jpg"]
    for dataset in (voc, coco):
        for number in range(7):
            image, target = dataset.load(number)
            assert image.shape == (10, 10 + number, 3)
            assert abs(int(image.mean()) - 30 * number) < 3
            assert target["boxes"].tolist() == [[0, 0, 5, number + 1]]
    assert len({name.casefold() for name in os.listdir(tmp_path / "coco/images/in/y")}) == 2


class Squares(DetectionDataset):
    """A data set in no files."""

    classes = ("red", "green")

    def __init__(self, labels=(1, 2), ids=(0, 1)):
        self.labels, self.ids = labels, ids

    def __len__(self):
        return 2

    def load(self, index):
        target = {"boxes": np.array([[1, 2, 3.5, 4]]), "labels": np.array([self.labels[index]]), "image_id": self.ids[index], "score": 1}
        return np.full((8, 9, 3), [255, 0, 7], np.uint8), target


@pytest.mark.parametrize("format", ["voc", "coco"])
def test_images_without_files_are_written_as_png(tmp_path, monkeypatch, caplog, format):
    monkeypatch.setattr(module, "open_splits", lambda *args, **kwargs: {"train": Squares()})
    with caplog.at_level(logging.WARNING):
        convert("anything", format, str(tmp_path / "out"))
    assert "2 values of score" in caplog.text
    dataset = open_splits(str(tmp_path / "out"))["train"]
    assert sorted(dataset.classes) == ["green", "red"]
    image, target = dataset.load(1)
    assert image[0, 0].tolist() == [255, 0, 7]
    assert target["boxes"].tolist() == [[1, 2, 3.5, 4]]


@pytest.mark.parametrize(
    ("squares", "message"), [(Squares(labels=(1, 3)), "Expected labels 1 to 2"), (Squares(ids=(4, 4)), "Expected an id of its own")]
)
def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch, squares, message):
    monkeypatch.setattr(module, "open_splits", lambda *args, **kwargs: {"train": squares})
    with pytest.raises(InputError, match=message):
        convert("anything", "coco", str(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["a\nb", " a", "\0", "\ud800"])
def test_classes_that_xml_would_change_are_named(coco_files, tmp_path, name):
    path = coco_files[1]
    path.write_text(path.read_text().replace('"horse"', json.dumps(name)))
    with pytest.raises(InputError, match="Expected names of classes that XML keeps"):
        convert(str(path), "voc", str(tmp_path / "out"))
    convert(str(path), "coco", str(tmp_path / "out"))
    assert (
        COCODetection(str(tmp_path / "out/images/instances"), str(tmp_path / "out/annotations/instances_instances.json")).classes[2] == name
    )


def test_a_wrong_format_folder_or_data_set_is_named(voc_root, tmp_path):
    with pytest.raises(InputError, match="Expected format as voc or coco but got 'yolo'"):
        convert(str(voc_root), "yolo", str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"Expected a new or an empty folder to write to but .* has something in it"):
        convert(str(voc_root), "coco", str(voc_root))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Expected a new or an empty folder"):
        convert(str(voc_root), "coco", str(tmp_path / "file"))
    edit(voc_root, "image3", "<xmin>14</xmin>", "<xmin>x</xmin>")
    with pytest.raises(InputError, match=r"1 x box not four numbers: .*image3\.xml"):
        convert(str(voc_root), "coco", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_config_of_several_data_sets(voc_root, coco_files, tmp_path, monkeypatch):
    images, path = coco_files
    part = {"class_path": "VOCDetection", "init_args": {"root": str(voc_root), "image_set": "val", "classes": ["cat", "dog", "horse"]}}
    other = {"class_path": "COCODetection", "init_args": {"images": str(images), "annotations": str(path)}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"data": {"train": [part, other, part]}}))
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("another drive")))
    convert(str(tmp_path / "my.yaml"), "coco", str(tmp_path / "out"))
    dataset = open_splits(str(tmp_path / "out"))["train"]
    assert [dataset.file_name(n) for n in range(6)] == ["image0.jpg", "image1.jpg", "b.jpg", "a.jpg", "image0_2.jpg", "image1_2.jpg"]
    assert [target["difficult"].tolist() for target in dataset.targets] == [[0], [1], [0, 0], [], [0], [1]]
    assert [target["iscrowd"].tolist() for target in dataset.targets] == [[0], [0], [0, 1], [], [0], [0]]
    assert (tmp_path / "out/images/train/b.jpg").stat().st_nlink == 1


def test_real_data_both_ways(shared, tmp_path):
    for name, data in (("bccd", "bccd/BCCD"), ("coco", "coco_tiny")):
        convert(str(shared / "data" / data), "coco", str(tmp_path / name / "coco"))
        convert(str(tmp_path / name / "coco"), "voc", str(tmp_path / name / "voc"))
        convert(str(tmp_path / name / "voc"), "coco", str(tmp_path / name / "again"))
        trees = [
            open_splits(str(path)) for path in (shared / "data" / data, *(tmp_path / name / form for form in ("coco", "voc", "again")))
        ]
        for split in trees[0]:
            for before, after in pairwise(tree[split] for tree in trees):
                assert objects(before, ()) == objects(after, ())
        if name == "coco":
            for split in trees[0]:
                first, second = trees[0][split], trees[1][split]
                assert first.category_ids == second.category_ids
                for a, b in zip(first.targets, second.targets, strict=True):
                    assert {key: np.asarray(value).tolist() for key, value in a.items()} == {
                        key: np.asarray(value).tolist() for key, value in b.items()
                    }
                crowds = [target["iscrowd"].tolist() for target in first.targets]
                assert crowds == [target["difficult"].tolist() for target in trees[2][split].targets]
                assert crowds == [target["difficult"].tolist() for target in trees[3][split].targets]
