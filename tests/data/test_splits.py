import json
import shutil

import cv2
import numpy as np
import pytest
import yaml

from lit_detect import COCODetection, Concatenation, InputError, VOCDetection, YOLODetection
from lit_detect.data.digits import write_digits
from lit_detect.data.splits import open_splits, splits_to_train

DIGITS = {"train": 3, "val": 2}


def image_sets(root, **sets):
    for name, lines in sets.items():
        (root / "ImageSets/Main" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def yolo_root(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / "yolo" / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "yolo/images/a.jpg"), np.zeros((60, 80, 3), np.uint8))
    (tmp_path / "yolo/labels/a.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "yolo/data.yaml").write_text("train: images\nval: images\ntest:\nnames: [cat]\n")
    return tmp_path / "yolo"


def test_the_image_sets_of_a_voc_folder(voc_root):
    names = [f"image{number}" for number in range(5)]
    image_sets(
        voc_root,
        train=names[:2],
        val=names[2:4],
        test=names[4:],
        trainval=names[:4],
        all=names,
        small_train=names[:1],
        cat_train=[f"{name} {flag}" for name, flag in zip(names[:2], (1, -1), strict=True)],
        person_val=[f"{name}  0" for name in names[2:4]],
    )
    splits = open_splits(str(voc_root))
    assert list(splits) == ["all", "small_train", "test", "train", "val"]
    assert all(isinstance(dataset, VOCDetection) for dataset in splits.values())
    assert [len(dataset) for dataset in splits.values()] == [5, 1, 1, 2, 2]


def test_a_set_that_holds_more_than_its_parts_stays(voc_root):
    assert list(open_splits(str(voc_root))) == ["train", "val"]  # val is a part of train
    image_sets(voc_root, train=["image0"], val=["image1"], trainval=["image0", "image1", "image2"])
    assert list(open_splits(str(voc_root))) == ["train", "trainval", "val"]


def test_a_folder_of_voc_folders_lists_them(voc_root, tmp_path):
    for year in ("VOC2007", "VOC2012"):
        shutil.copytree(voc_root, tmp_path / "all/VOCdevkit" / year)
    for folder in ("all", "all/VOCdevkit"):
        with pytest.raises(InputError, match=r"There are VOC folders in it, give one of them: .*/VOC2007, .*/VOC2012"):
            open_splits(str(tmp_path / folder))
    for file in (voc_root / "ImageSets/Main").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"Expected image sets in .*ImageSets/Main but there are none"):
        open_splits(str(voc_root))


@pytest.mark.parametrize("layout", ["{}", "images/{}", "images", "JPEGImages"])
def test_the_images_of_a_coco_folder_and_file(tmp_path, layout):
    digits = write_digits(str(tmp_path / "digits"), DIGITS)
    for split in DIGITS:
        shutil.copytree(digits / "JPEGImages", tmp_path / "coco" / layout.format(split), dirs_exist_ok=True)
    shutil.copytree(digits / "annotations", tmp_path / "coco/annotations")
    splits = open_splits(str(tmp_path / "coco"))
    assert {name: len(dataset) for name, dataset in splits.items()} == DIGITS
    assert all(isinstance(dataset, COCODetection) for dataset in splits.values())
    (alone,) = open_splits(str(tmp_path / "coco/annotations/instances_val.json")).items()
    assert (alone[0], len(alone[1])) == ("val", 2)
    (tmp_path / "coco/annotations/instances_val.json").rename(tmp_path / "coco/val.json")
    assert len(open_splits(str(tmp_path / "coco/val.json"))["val"]) == 2


def test_images_beside_a_coco_file_and_nowhere(coco_files, tmp_path):
    images, path = coco_files
    path.rename(images / "some.json")
    assert len(open_splits(str(images / "some.json"))["some"]) == 2
    (tmp_path / "alone").mkdir()
    (images / "some.json").rename(tmp_path / "alone/some.json")
    with pytest.raises(
        InputError, match=r"Expected the images of .*some\.json in one of .*alone/some, .*alone/images/some, .*JPEGImages but"
    ):
        open_splits(str(tmp_path / "alone/some.json"))


def test_a_coco_split_without_its_images_does_not_keep_the_others_away(coco_files, tmp_path, caplog):
    images, path = coco_files
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        shutil.copy(path, folder / f"annotations/instances_{split}.json")
    with pytest.raises(InputError, match=r"Expected the images of .*instances_train2017\.json in one of"):
        open_splits(str(folder))
    shutil.copytree(images, folder / "val2017")
    assert [*open_splits(str(folder))] == ["val2017"]
    assert "A split is left out. Expected the images of" in caplog.text
    assert "instances_train2017.json in one of" in caplog.text


def test_a_folder_of_roboflows(coco_files, tmp_path):
    images, path = coco_files
    for split in ("train", "valid"):
        shutil.copytree(images, tmp_path / "export" / split)
        shutil.copy(path, tmp_path / "export" / split / "_annotations.coco.json")
    assert {name: len(dataset) for name, dataset in open_splits(str(tmp_path / "export")).items()} == {"train": 2, "valid": 2}
    assert list(splits_to_train(str(tmp_path / "export"))) == ["train", "val"]


def test_a_folders_splits_for_a_training(voc_root):
    image_sets(voc_root, train=["image0"], val=["image1"], trainval=["image0", "image1"], test=["image2"], other=["image3"])
    splits = splits_to_train(str(voc_root), "drop")
    assert {name: (dataset.image_set, dataset.on_invalid) for name, dataset in splits.items()} == {
        name: (name, "drop") for name in ("train", "val", "test")
    }
    image_sets(voc_root, val2012=["image1"])
    with pytest.raises(InputError, match=r"Expected one split for data\.val in .*VOC but there are val, val2012"):
        splits_to_train(str(voc_root))
    for name in ("train", "val", "val2012", "test"):
        (voc_root / f"ImageSets/Main/{name}.txt").unlink()
    with pytest.raises(InputError, match=r"Expected splits called train, val or test in .*VOC but there are other, trainval"):
        splits_to_train(str(voc_root))
    with pytest.raises(InputError, match=r"Expected a VOC, COCO or YOLO folder as data\.folder but there is no folder .*image0\.xml"):
        splits_to_train(str(voc_root / "Annotations/image0.xml"))


def test_a_yolo_folder_and_file(yolo_root):
    for path in (yolo_root, yolo_root / "data.yaml"):
        splits = open_splits(str(path))
        assert list(splits) == ["train", "val"]
        assert all(isinstance(dataset, YOLODetection) and dataset.on_invalid == "fix" and len(dataset) == 1 for dataset in splits.values())
    (yolo_root / "data.yaml").rename(yolo_root / "cats.yml")
    (yolo_root / "else.yaml").write_text("a: 1")
    assert list(open_splits(str(yolo_root))) == ["train", "val"]
    shutil.copy(yolo_root / "cats.yml", yolo_root / "dogs.yaml")
    with pytest.raises(InputError, match=r"Expected one YOLO data\.yaml in .* but there are cats\.yml, dogs\.yaml"):
        open_splits(str(yolo_root))
    (yolo_root / "else.yaml").write_text("names: [a]\nmodel: 3")
    with pytest.raises(InputError, match=r"but its keys are: names, model\."):
        open_splits(str(yolo_root / "else.yaml"))


def test_a_trainings_config(voc_root, coco_files, tmp_path):
    voc = {"class_path": "VOCDetection", "init_args": {"root": str(voc_root), "image_set": "train", "on_invalid": "raise"}}
    coco = {"class_path": "COCODetection", "init_args": dict(zip(("images", "annotations"), map(str, coco_files), strict=True))}
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({"data": {"train": [voc, voc], "val": coco, "predict": "somewhere", "batch_size": 3}}))
    splits = open_splits(str(path))
    assert list(splits) == ["train", "val"]
    assert isinstance(splits["train"], Concatenation)
    assert [splits["train"].parts[1].on_invalid, splits["val"].on_invalid] == ["raise", "fix"]
    assert [len(dataset) for dataset in splits.values()] == [10, 2]
    path.write_text(yaml.safe_dump({"data": {"predict": "somewhere"}}))
    with pytest.raises(InputError, match=r"Expected data\.train, data\.val or data\.test in .*my\.yaml but none is set"):
        open_splits(str(path))


def test_what_was_looked_for_is_said(tmp_path, voc_root):
    (tmp_path / "empty").mkdir()
    looked_for = r"a VOC folder .*a COCO folder .*a YOLO folder .*a COCO json, a YOLO data\.yaml or a training's config"
    for path, found in (("empty", "has none of them"), ("nowhere", "there is no"), ("VOC/Annotations/image0.xml", "got")):
        with pytest.raises(InputError, match=f"Expected {looked_for} but .*{found}"):
            open_splits(str(tmp_path / path))
    (tmp_path / "a.json").write_text(json.dumps([]))
    with pytest.raises(InputError, match="Expected the images of"):
        open_splits(str(tmp_path / "a.json"))


def test_real_data(shared):
    splits = open_splits(str(shared / "data/bccd/BCCD"))
    assert {name: len(dataset) for name, dataset in splits.items()} == {"test": 72, "train": 205, "val": 87}  # trainval is two of these
    splits = open_splits(str(shared / "data/coco_tiny"))
    assert {name: len(dataset) for name, dataset in splits.items()} == {"train2017": 80, "val2017": 80}
    assert {name: len(dataset) for name, dataset in splits_to_train(str(shared / "data/coco_tiny")).items()} == {"train": 80, "val": 80}
    assert list(open_splits(str(shared / "data/voc_mini/VOCdevkit/VOC2012"))) == ["train", "val"]
    with pytest.raises(InputError, match=r"give one of them: .*VOC2012"):
        open_splits(str(shared / "data/voc_mini"))


@pytest.mark.parametrize("name", ["data.yaml", "data.yml"])
def test_a_data_yaml_is_not_run_as_a_config(tmp_path, name):
    """Beside other people's images lies a file of theirs, and what it names would be imported and called."""
    split = {"class_path": "os.mkdir", "init_args": {"path": str(tmp_path / "marker")}}
    (tmp_path / name).write_text(yaml.safe_dump({"data": {"train": split}, "names": ["cat"], "train": "images"}))
    with pytest.raises(InputError, match=f"{name} as a YOLO data.yaml but it is a training's config"):
        open_splits(str(tmp_path / name))
    (tmp_path / name).rename(tmp_path / "cells.yaml")  # a folder is looked for data alone, whatever the file is called
    assert isinstance(open_splits(str(tmp_path))["train"], YOLODetection)
    assert not (tmp_path / "marker").exists()
