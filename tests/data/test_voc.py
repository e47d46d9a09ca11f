import logging
import re

import numpy as np
import pytest
import torchvision

from lit_detect import InputError, VOCDetection
from lit_detect.data.voc import VOC_CLASSES


def edit(root, name, old, new):
    path = root / "Annotations" / f"{name}.xml"
    path.write_text(path.read_text().replace(old, new))


def test_boxes_labels_and_flags(voc_root):
    dataset = VOCDetection(str(voc_root), "train", classes=["cat", "dog", "horse"])
    image, target = dataset.load(1)
    assert image.shape == (60, 80, 3)
    assert image.dtype == np.uint8
    assert target["boxes"].tolist() == [[11, 20, 40, 50]]  # xmin 12 and ymin 21 count from 1
    assert (target["labels"].tolist(), target["difficult"].tolist(), target["area"].tolist()) == ([2], [1], [29 * 30])
    assert dataset.load(4)[1]["boxes"].shape == (0, 4)
    assert [dataset.num_boxes(index) for index in range(5)] == [1, 1, 1, 1, 0]


def test_classes_are_vocs_twenty_or_the_names_of_the_whole_folder(voc_root):
    assert VOCDetection(str(voc_root), "val").classes == VOC_CLASSES  # cat, dog
    edit(voc_root, "image3", "cat", "unicorn")  # which val does not list
    edit(voc_root, "image0", "cat", "Cat")
    for image_set in ("train", "val"):
        assert VOCDetection(str(voc_root), image_set).classes == ["Cat", "dog", "horse", "unicorn"]


def test_classes_do_not_depend_on_the_image_set(voc_root):
    edit(voc_root, "image2", "horse", "truck")  # which val does not list either
    for image_set in ("train", "val"):
        assert VOCDetection(str(voc_root), image_set).classes == ["cat", "dog", "truck"]


def test_names_with_marks_flags_spaces_and_upper_case_suffixes(voc_root):
    (voc_root / "JPEGImages" / "image0.jpg").rename(voc_root / "JPEGImages" / "an image.JPG")
    (voc_root / "Annotations" / "image0.xml").rename(voc_root / "Annotations" / "an image.xml")
    (voc_root / "ImageSets" / "Main" / "cat_val.txt").write_bytes(b"\xef\xbb\xbfan image  1\r\nimage1 -1\r\n\r\n")
    dataset = VOCDetection(str(voc_root), "cat_val")
    assert (dataset.ids, dataset.file_name(0)) == (["an image", "image1"], "an image.JPG")
    assert dataset.load(0)[0].shape == (60, 80, 3)


def test_boxes_without_area_are_left_out_and_said(voc_root, caplog):
    edit(voc_root, "image0", "<xmax>40</xmax>", "<xmax>11</xmax>")  # xmin == xmax
    edit(voc_root, "image1", "<xmax>40</xmax>", "<xmax>12</xmax>")
    with caplog.at_level(logging.WARNING):
        dataset = VOCDetection(str(voc_root), "train")
        assert [len(target["labels"]) for target in dataset.targets] == [0, 0, 1, 1, 0]
    assert re.search(
        r"2 x box without area \(left out\): .*image0.xml, object 1: .* \| .*image1.xml, object 1: .*\[12.0, 21.0, 12.0, 50.0\]",
        caplog.text,
    )


def test_boxes_are_clipped_to_the_image_and_its_size_is_read_where_the_xml_has_none(voc_root):
    edit(voc_root, "image0", "<xmax>40</xmax>", "<xmax>400</xmax>")
    assert VOCDetection(str(voc_root), "val").targets[0]["boxes"].tolist() == [[10, 20, 80, 50]]
    edit(voc_root, "image0", "<width>80</width><height>60</height>", "<width>0</width><height>0</height>")
    assert VOCDetection(str(voc_root), "val").targets[0]["boxes"].tolist() == [[10, 20, 80, 50]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "<xmin>11</xmin>",
            "<xmin>eleven</xmin>",
            r"1 x box not four numbers: .*image0.xml, object 1: .*\[nan, 21.0, 40.0, 50.0\] \(cat\)",
        ),
        ("<xmin>11</xmin>", "", "1 x box not four numbers: .*image0.xml, object 1"),
        ("<xmin>11</xmin>", "<xmin>nan</xmin>", "1 x box not four numbers: .*image0.xml, object 1"),
        ("<name>cat</name>", "<name> </name>", "1 x class missing: .*image0.xml, object 1"),
        ("</annotation>", "", "1 x annotation unreadable: .*image0.xml"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', "1 x annotation unreadable: .*image0.xml"),
    ],
)
def test_a_wrong_annotation_is_named(voc_root, old, new, message):
    edit(voc_root, "image0", old, new)
    with pytest.raises(InputError, match=message):
        VOCDetection(str(voc_root), "val").targets  # noqa: B018


def test_a_class_that_is_not_listed_is_named(voc_root):
    with pytest.raises(
        InputError, match=r"1 x class unknown: .*image1\.xml, object 1: Expected one of the 1 classes \['cat'\] but got .*\(dog\)"
    ):
        VOCDetection(str(voc_root), "val", classes=["cat"]).targets  # noqa: B018


def test_a_missing_image_set_folder_or_image_is_named(voc_root):
    with pytest.raises(InputError, match=r"There are: train, val\."):
        len(VOCDetection(str(voc_root), "test"))
    with pytest.raises(InputError, match="Is /nowhere a folder with JPEGImages"):
        len(VOCDetection("/nowhere", "test"))
    (voc_root / "JPEGImages" / "image0.jpg").unlink()
    with pytest.raises(InputError, match=r"1 x image missing: .*image0\.jpg.*on_invalid: drop goes on without them"):
        VOCDetection(str(voc_root), "val").load(0)


def test_same_objects_as_torchvision_on_real_images(shared):
    root = shared / "data" / "voc_mini" / "VOCdevkit"
    dataset = VOCDetection(str(root / "VOC2012"), "val")
    reference = torchvision.datasets.VOCDetection(str(root.parent), year="2012", image_set="val")
    assert len(dataset) == len(reference) == 160
    for index in range(0, 160, 7):
        image, target = dataset.load(index)
        picture, annotation = reference[index]
        assert image.shape == (picture.height, picture.width, 3)
        objects = annotation["annotation"]["object"]
        assert [dataset.classes[label - 1] for label in target["labels"]] == [item["name"] for item in objects]
        edges = [[float(item["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for item in objects]
        np.testing.assert_allclose(target["boxes"], np.array(edges) - [1, 1, 0, 0])


def test_the_counts_of_real_data_sets(shared, caplog):
    mini = [VOCDetection(str(shared / "data/voc_mini/VOCdevkit/VOC2012"), name) for name in ("train", "val")]
    assert [len(part) for part in mini] == [240, 160]
    targets = [target for part in mini for target in part.targets]
    assert (sum(len(t["labels"]) for t in targets), sum(t["difficult"].sum() for t in targets)) == (1603, 251)
    bccd = [VOCDetection(str(shared / "data/bccd/BCCD"), name) for name in ("trainval", "test")]
    assert bccd[0].classes == bccd[1].classes == ["Platelets", "RBC", "WBC"]
    assert sum(len(target["labels"]) for part in bccd for target in part.targets) == 4888 - 2  # two of no area


def test_a_line_of_spaces_is_read_at_once(voc_root):
    """By an expression that looks for a flag after each space it would take hours."""
    path = voc_root / "ImageSets" / "Main" / "odd.txt"
    path.write_text("image0 1\nimage1" + " " * 1_000_000 + "b\n")
    assert VOCDetection(str(voc_root), "odd").ids == ["image0 1", "image1" + " " * 1_000_000 + "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><annotation><object><name>&d;</name></object></annotation>',
            "EntitiesForbidden",
        ),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hosts">]><annotation><object><name>&b;</name></object></annotation>', "Forbidden"),
        ('<!DOCTYPE a [<!ENTITY % b SYSTEM "file:///etc/hosts"> %b;]><annotation/>', "Forbidden"),
        ('<?xml version="1.0" encoding="utf-7"?><annotation/>', "encodings"),
    ],
)
def test_xml_that_would_grow_or_fetch_is_refused(voc_root, text, message):
    (voc_root / "Annotations" / "image0.xml").write_text(text)
    with pytest.raises(InputError, match=f"image0.xml.*{message}"):
        len(VOCDetection(str(voc_root), "train"))
