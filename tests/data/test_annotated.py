"""Faults in annotations: what is mended, what is left out, what stops a training; and hostile files."""

import json
import logging
import random
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_detect import COCODetection, InputError, VOCDetection
from lit_detect.data.images import inside, read_image

CLASSES = ["cat", "dog", "horse"]
LINKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def edit(root, name, old, new):
    path = root / "Annotations" / f"{name}.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def voc(root, on_invalid="fix", image_set="train"):
    return VOCDetection(str(root), image_set, CLASSES, on_invalid)


@pytest.mark.parametrize(
    ("old", "new", "kind", "boxes"),
    [
        ("<xmin>11</xmin>", "<xmin>60</xmin>", "corners swapped", [[39, 20, 60, 50]]),
        ("<xmax>40</xmax>", "<xmax>90</xmax>", "box partly outside", [[10, 20, 80, 50]]),
        ("<xmax>40</xmax>", "<xmax>11</xmax>", "box without area", []),
        ("<width>80</width>", "<width>0</width>", "size missing", [[10, 20, 40, 50]]),
    ],
)
def test_what_is_safe_to_mend_is_mended_and_said(voc_root, caplog, old, new, kind, boxes):
    edit(voc_root, "image0", old, new)
    with caplog.at_level(logging.WARNING):
        for policy in ("fix", "drop"):
            assert voc(voc_root, policy).targets[0]["boxes"].tolist() == boxes
    assert len(re.findall(f"1 x {kind} \\(.*image0.xml", caplog.text)) == 2
    with pytest.raises(InputError, match=f"1 x {kind}: .*image0.xml.*on_invalid: fix mends"):
        voc(voc_root, "raise").targets  # noqa: B018


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("<xmin>11</xmin>", "<xmin>eleven</xmin>", "box not four numbers"),
        ("<xmin>11</xmin>", f"<xmin>{'9' * 400}</xmin>", "box not four numbers"),
        ("<xmin>11</xmin><ymin>21</ymin><xmax>40</xmax>", "<xmin>90</xmin><ymin>21</ymin><xmax>95</xmax>", "box outside"),
        ("<name>cat</name>", "<name>cow</name>", "class unknown"),
        ("<name>cat</name>", "<name/>", "class missing"),
        ("<width>80</width>", "<width>81</width>", "size not the image's"),
        ("</annotation>", "", "annotation unreadable"),
    ],
)
def test_what_is_not_safe_stops_a_training_or_is_left_out(voc_root, caplog, old, new, kind):
    edit(voc_root, "image0", old, new)
    for policy in ("fix", "raise"):
        with pytest.raises(InputError, match=f"1 x {kind}: .*image0"):
            voc(voc_root, policy).targets  # noqa: B018
    with caplog.at_level(logging.WARNING):
        dataset = voc(voc_root, "drop")
        assert sum(len(target["labels"]) for target in dataset.targets) == 3
        assert len(dataset) == (4 if "left out" in caplog.text and "image left out" in caplog.text else 5)
        assert [target["image_id"] for target in dataset.targets] == list(range(5 - len(dataset), 5))
    assert re.search(f"1 x {kind} \\((image|box) left out\\): .*image0", caplog.text)


@pytest.mark.parametrize(("content", "kind"), [(b"", "image unreadable"), (b"nothing", "image unreadable"), (None, "image missing")])
def test_images_that_are_not_there_are_found_before_training(voc_root, content, kind):
    path = voc_root / "JPEGImages" / "image2.jpg"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"1 x {kind}: .*image2\.jpg"):
        voc(voc_root).read_annotations()
    assert [voc(voc_root, "drop").file_name(index) for index in range(4)] == [f"image{number}.jpg" for number in (0, 1, 3, 4)]


def test_an_image_that_declares_too_many_pixels_is_not_decoded(voc_root):
    header = b"P6 60000 60000 255\n"
    (voc_root / "JPEGImages" / "image2.jpg").write_bytes(header)
    with pytest.raises(InputError, match=r"1 x image unreadable: .*at most 178956970 pixels but .*image2\.jpg declares"):
        voc(voc_root).read_annotations()


def test_a_policy_that_does_not_exist_is_named(voc_root):
    with pytest.raises(InputError, match="Expected on_invalid as raise, fix or drop but got 'skip'"):
        voc(voc_root, "skip")


def test_the_boxes_of_an_image_that_viewers_turn(voc_root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(voc_root / "JPEGImages" / "image0.jpg", exif=exif)
    assert voc(voc_root).load(0)[0].shape == (60, 80, 3)  # its XML has the stored size: boxes are of the stored pixels
    assert voc(voc_root).contents.faults.counts() == {"EXIF orientation": 1}
    edit(voc_root, "image0", "<width>80</width><height>60</height>", "<width>60</width><height>80</height>")
    image, target = voc(voc_root).load(0)
    assert (image.shape, target["boxes"].tolist()) == ((80, 60, 3), [[10, 20, 40, 50]])
    assert voc(voc_root).contents.faults.counts()["size of the turned image"] == 1


def test_an_image_listed_twice_is_used_once(voc_root, caplog):
    path = voc_root / "ImageSets" / "Main" / "train.txt"
    path.write_text(path.read_text() + "image1\nimage1\n")
    with caplog.at_level(logging.WARNING):
        assert len(voc(voc_root)) == 5
    assert "1 x listed twice (used once): " in caplog.text
    assert "Expected image1 once but it is there 3 times" in caplog.text


ENTITIES = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]><annotation>&c;'
EXTERNAL = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation><object><name>&b;</name></object>'


@pytest.mark.parametrize("attack", [ENTITIES, EXTERNAL])
def test_xml_entities_are_refused(voc_root, attack):
    edit(voc_root, "image0", "<annotation>", attack)
    with pytest.raises(InputError, match=r"1 x annotation unreadable: .*image0\.xml"):
        VOCDetection(str(voc_root), "val").read_annotations()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "link", "linked/passwd", "..", "a\0b"])
def test_names_that_leave_the_folder_are_refused(voc_root, coco_files, name):
    (voc_root / "JPEGImages" / "link").symlink_to("/etc/passwd")
    (voc_root / "JPEGImages" / "linked").symlink_to("/etc")
    with pytest.raises(InputError, match=r"leads out of it|name of a file"):
        inside(voc_root / "JPEGImages", name)
    images, path = coco_files
    (images / "link").symlink_to("/etc/passwd")
    (images / "linked").symlink_to("/etc")
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"1 x name leaves the folder: .*instances\.json"):
        COCODetection(str(images), str(path)).read_annotations()


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd"])
def test_image_sets_do_not_leave_the_folder(voc_root, name):
    (voc_root / "ImageSets" / "Main" / "val.txt").write_text(f"image0\n{name}\n")
    with pytest.raises(InputError, match=r"1 x name leaves the folder: .*val\.txt"):
        voc(voc_root, image_set="val").read_annotations()
    with pytest.raises(InputError, match="leads out of it"):
        voc(voc_root, image_set="../../../../../etc/passwd").read_annotations()


def test_a_folder_that_is_a_link_and_links_inside_of_it_are_fine(voc_root, tmp_path):
    (voc_root / "JPEGImages").rename(voc_root / "elsewhere")
    (voc_root / "JPEGImages").symlink_to(voc_root / "elsewhere")
    (voc_root / "elsewhere" / "again.jpg").symlink_to(voc_root / "elsewhere" / "image0.jpg")
    (voc_root / "ImageSets" / "Main" / "val.txt").write_text("again\n")
    (voc_root / "Annotations" / "again.xml").write_text((voc_root / "Annotations" / "image0.xml").read_text())
    assert len(voc(voc_root, image_set="val").load(0)[1]["boxes"]) == 1


@pytest.mark.parametrize("content", ["[" * 100000, '{"images": {}}', "3", '{"images": [], "annotations": [], "categories": null}', "\0"])
def test_json_of_the_wrong_shape_is_named(coco_files, content):
    images, path = coco_files
    path.write_text(content)
    with pytest.raises(InputError, match=r"instances\.json"):
        COCODetection(str(images), str(path)).read_annotations()


# Fuzzing: whatever the files hold, a reader gives targets that can be learnt, or one InputError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=5), max_leaves=6
)
ENTRIES = st.lists(
    st.none()
    | st.integers()
    | st.dictionaries(
        st.sampled_from(
            ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "file_name", "name", "width", "height"]
        ),
        JSON_VALUES | st.sampled_from([1, 2, 3, 7, "a.jpg", [1, 2, 30, 40], [1e308, 1, 1e308, 1], -1, 10**400, {}]),
    ),
    max_size=5,
)


def check_targets(dataset):
    """What a reader gives can be learnt: boxes with area inside of their images, known labels, and fields of one length."""
    try:
        dataset.read_annotations()
    except InputError:
        return
    for index in range(len(dataset)):
        image, target = dataset.open(index)
        boxes = target["boxes"]
        assert (boxes.dtype, boxes.shape[1:]) == (np.float32, (4,))
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert ((boxes >= 0) & (boxes <= np.tile([image.width, image.height], 2))).all()
        assert ((target["labels"] >= 1) & (target["labels"] <= len(dataset.classes))).all()
        assert len({len(value) for name, value in target.items() if name != "image_id"}) == 1
        assert np.isfinite(target["area"]).all()


@given(st.fixed_dictionaries({"images": ENTRIES, "annotations": ENTRIES, "categories": ENTRIES}), st.sampled_from(["fix", "drop", "raise"]))
@settings(deadline=None, max_examples=150, suppress_health_check=LINKED)
def test_any_coco_file(coco_files, extra, policy):
    images, path = coco_files
    original = path.with_suffix(".original")
    if not original.exists():
        original.write_text(path.read_text())
    content = json.loads(original.read_text())
    path.write_text(json.dumps({key: content[key] + extra[key] for key in content}))
    check_targets(COCODetection(str(images), str(path), policy))


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=100, suppress_health_check=LINKED)
def test_any_bytes_as_coco(coco_files, content):
    images, path = coco_files
    path.write_bytes(content)
    with pytest.raises(InputError):
        COCODetection(str(images), str(path)).read_annotations()


@given(st.integers(0, 2**32), st.integers(1, 6), st.sampled_from(["fix", "drop", "raise"]))
@settings(deadline=None, max_examples=200, suppress_health_check=LINKED)
@example(0, 0, "raise")
def test_any_change_to_an_xml(voc_root, seed, changes, policy):
    path = voc_root / "Annotations" / "image0.xml"
    original = path.with_suffix(".original")
    if not original.exists():
        original.write_bytes(path.read_bytes())
    content, chance = bytearray(original.read_bytes()), random.Random(seed)
    tokens = [
        b"<",
        b">",
        b"&#0;",
        b"nan",
        b"-1",
        b"1e999",
        b"</object>",
        b"<object>",
        b"\xff",
        b"<?xml version='1.0' encoding='x'?>",
        b"\0",
    ]
    for _ in range(changes):
        place = chance.randrange(len(content))
        action = chance.choice(["put", "cut", "twice"])
        if action == "put":
            content[place:place] = chance.choice(tokens)
        elif action == "cut":
            del content[place : place + chance.randrange(1, 12)]
        else:
            content[place:place] = content[place : place + chance.randrange(1, 80)]
    path.write_bytes(content)
    check_targets(VOCDetection(str(voc_root), "val", on_invalid=policy))
    check_targets(voc(voc_root, policy, "val"))


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=100, suppress_health_check=LINKED)
@example(b"<?xml version='1.0' encoding='nonsense'?><annotation/>")
def test_any_bytes_as_an_xml_an_image_or_an_image_set(voc_root, content):
    (voc_root / "Annotations" / "image1.xml").write_bytes(content)
    check_targets(voc(voc_root, "drop", "val"))
    (voc_root / "JPEGImages" / "image0.jpg").write_bytes(content)
    check_targets(voc(voc_root, "drop", "val"))
    (voc_root / "ImageSets" / "Main" / "val.txt").write_bytes(content)
    check_targets(voc(voc_root, "drop", "val"))


def test_reduced_decoding_is_that_of_the_whole(shared):
    """A JPEG at 1/2, 1/4 and 1/8 is the mean over blocks, with sides rounded up."""
    path = next(Path(shared / "data/voc_mini/VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))
    whole = read_image(path)
    for step in (2, 4, 8):
        small = read_image(path, reduction=step)
        height, width = (-(-side // step) for side in whole.shape[:2])
        assert small.shape == (height, width, 3)
        inner = whole[: whole.shape[0] // step * step, : whole.shape[1] // step * step]
        means = cv2.resize(inner, (inner.shape[1] // step, inner.shape[0] // step), interpolation=cv2.INTER_AREA).astype(float)
        assert np.abs(small[: means.shape[0], : means.shape[1]] - means).mean() < 2


def test_reading_leaves_the_filters_of_warnings_alone(voc_root):
    before = list(warnings.filters)
    voc(voc_root).read_annotations()
    assert warnings.filters == before


def test_a_size_that_is_missing_is_not_guessed_where_viewers_turn_the_image(voc_root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(voc_root / "JPEGImages" / "image0.jpg", exif=exif)
    edit(voc_root, "image0", "<size><width>80</width><height>60</height><depth>3</depth></size>", "")
    with pytest.raises(InputError, match=r"size not the image's.*may be of the turned image or of the stored one"):
        voc(voc_root).read_annotations()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_that_is_cut_off_is_found_before_training(voc_root, suffix):
    path = (voc_root / "JPEGImages" / "image2.jpg").with_suffix(suffix)
    content = cv2.imencode(suffix, np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))[1].tobytes()
    (voc_root / "JPEGImages" / "image2.jpg").unlink()
    for written, cut in ((content[:-20], True), (content + b"\0" * 100, False), (content + b"\0" * 5000, False)):
        path.write_bytes(written)
        assert voc(voc_root).contents.faults.counts() == ({"image unreadable": 1} if cut else {})


def test_xml_of_another_kind_is_no_image_without_objects(voc_root):
    (voc_root / "Annotations" / "image0.xml").write_text("<annotations><image><box xtl='1'/></image></annotations>")
    with pytest.raises(InputError, match=r"1 x annotation unreadable: .*image0\.xml is XML of another kind: <annotations>"):
        voc(voc_root).read_annotations()


@pytest.mark.parametrize("area", [float("inf"), 1e300, "text", -1])
def test_an_area_that_cannot_be_is_not_taken(coco_files, area):
    images, path = coco_files
    content = json.loads(path.read_text())
    content["annotations"][0]["area"] = area
    path.write_text(json.dumps(content))
    assert COCODetection(str(images), str(path)).targets[0]["area"].tolist() == [600, 3000]


def test_what_was_parsed_is_not_kept(voc_root, coco_files):
    for dataset, kept in ((voc(voc_root), "annotations"), (COCODetection(*map(str, coco_files)), "_parsed")):
        classes = dataset.classes
        dataset.read_annotations()
        assert kept not in vars(dataset)
        assert dataset.classes == classes
