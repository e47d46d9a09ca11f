import contextlib
import errno
import logging
import os
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from lit_detect import ImageFolder, InputError, YOLODetection
from lit_detect.data.yolo import read_yaml

ANY_TEXT = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def root(tmp_path):
    """Three images of 80 x 60 with two boxes, none, and no file; and a data.yaml."""
    for folder in ("images/train/sub", "labels/train/sub"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("b.jpg", "a.jpg", "sub/c.png"):
        cv2.imwrite(str(tmp_path / "images" / "train" / name), np.zeros((60, 80, 3), np.uint8))
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.2 0.4\n")
    (tmp_path / "labels/train/b.txt").write_text("")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\nnc: 2\n")
    return tmp_path


def dataset(root, image_set="train", on_invalid="fix"):
    return YOLODetection(str(root / "data.yaml"), image_set, on_invalid)


def set_yaml(root, **content):
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "names": ["cat", "dog"], **content}))


def test_boxes_labels_and_ids(root):
    data = dataset(root)
    assert (data.classes, data.category_ids, len(data)) == (["cat", "dog"], [1, 2], 3)
    assert [data.file_name(index) for index in range(3)] == ["images/train/a.jpg", "images/train/b.jpg", "images/train/sub/c.png"]
    image, target = data.load(0)
    assert image.shape == (60, 80, 3)
    np.testing.assert_allclose(target["boxes"], [[30, 15, 50, 45], [0, 0, 16, 24]], atol=1e-5)
    assert (target["labels"].tolist(), target["boxes"].dtype) == ([2, 1], np.float32)
    assert [data.targets[index]["image_id"] for index in range(3)] == [0, 1, 2]
    assert [data.num_boxes(index) for index in range(3)] == [2, 0, 0]
    assert data.targets[2]["boxes"].shape == (0, 4)
    assert data.contents.faults.counts() == {"no label file": 1}


def test_a_polygon_is_taken_as_its_box_and_keypoints_are_passed_over(root):
    (root / "labels/train/a.txt").write_text("0 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5\n")
    data = dataset(root)
    assert data.targets[0]["boxes"].tolist() == [[20, 15, 60, 45]]
    assert data.contents.faults.counts()["polygon taken as its box"] == 1
    set_yaml(root, kpt_shape=[2, 2])
    (root / "labels/train/a.txt").write_text("0 0.5 0.5 0.5 0.5 0.1 0.1 0.2 0.2\n")
    assert dataset(root).targets[0]["boxes"].tolist() == [[20, 15, 60, 45]]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("0 0.5 0.5 0.5", "box not four numbers"),
        ("0 0.5 0.5 0.5 0.5 0.9", "box not four numbers"),  # a detection with its score
        ("0 0.5 0.5 0.5 0.5 0.9 0.1 0.1", "box not four numbers"),
        ("0", "box not four numbers"),
        ("0 0.5 0.5 nan 0.5", "box not four numbers"),
        ("0 0.5 0.5 inf 0.5", "box not four numbers"),
        ("0 0.5 0.5 wide 0.5", "box not four numbers"),
        ("0 1e308 0.5 1.7e308 0.5", "box not four numbers"),
        ("0, 0.5, 0.5, 0.5, 0.5", "box not four numbers"),
        ("2 0.5 0.5 0.5 0.5", "class unknown"),
        ("-1 0.5 0.5 0.5 0.5", "class unknown"),
        ("0.5 0.5 0.5 0.5 0.5", "class unknown"),
        ("1e400 0.5 0.5 0.5 0.5", "class unknown"),
        ("cat 0.5 0.5 0.5 0.5", "class unknown"),
        ("0 40 30 40 30", "box outside"),  # pixels
    ],
)
def test_a_wrong_row_is_named_by_its_line(root, line, kind):
    (root / "labels/train/a.txt").write_text(f"1 0.5 0.5 0.5 0.5\n\n{line}\n")
    with pytest.raises(InputError, match=f"1 x {kind}: .*labels/train/a.txt, line 3: Expected"):
        len(dataset(root))
    assert dataset(root, on_invalid="drop").targets[0]["boxes"].tolist() == [[20, 15, 60, 45]]


def test_what_is_safe_to_mend_is_mended(root, caplog):
    (root / "labels/train/a.txt").write_text("0.0 0.9 0.5 0.5 0.5\n1 0.5 0.5 0 0.5\n1 0.5 0.5 -0.5 0.5\n")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(dataset(root).targets[0]["boxes"], [[52, 15, 80, 45], [20, 15, 60, 45]], atol=1e-5)
    for kind, line in (("box partly outside", 1), ("box without area", 2), ("corners swapped", 3)):
        assert f"1 x {kind}" in caplog.text
        assert f"a.txt, line {line}: " in caplog.text


def test_lists_of_images_and_folders(root):
    (root / "lists").mkdir()
    lines = ["../images/train/sub/c.png", str(root / "images/train/a.jpg"), "", "../images/train/a.jpg"]
    (root / "lists/some.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    set_yaml(root, train="lists/some.txt", val=["images/train/sub", "./images/train"])
    data = dataset(root)
    assert [data.file_name(index) for index in range(len(data))] == ["images/train/sub/c.png", "images/train/a.jpg"]
    assert data.contents.faults.counts()["listed twice"] == 1
    data = dataset(root, "val")
    assert [Path(data.file_name(index)).name for index in range(len(data))] == ["c.png", "a.jpg", "b.jpg"]


def test_links_to_folders_are_followed_and_those_that_lead_out_are_faults(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "images/train/sub").rename(root / "store")
    (root / "images/train/sub").symlink_to(root / "store")
    (root / "images/train/loop").symlink_to(root / "images")
    assert [Path(name).name for name in map(dataset(root).file_name, range(3))] == ["a.jpg", "b.jpg", "c.png"]
    assert len(ImageFolder(str(root / "images"))) == 3
    (root / "store/c.png").rename(elsewhere / "c.png")
    (root / "images/train/sub").unlink()
    (root / "images/train/sub").symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"1 x name leaves the folder: .*sub/c\.png' leads out of it"):
        len(dataset(root))


def test_a_folder_that_cannot_be_listed_is_named(root, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if os.path.basename(path) == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for read in (lambda: dataset(root), lambda: ImageFolder(str(root / "images"))):
        with pytest.raises(InputError, match=r"Expected to list the images in .*/images/train/sub but could not: Permission denied"):
            len(read())


def test_a_path_absolute_or_from_the_files_folder(root, monkeypatch):
    (root / "elsewhere").mkdir()
    for path in ("..", str(root)):
        (root / "elsewhere/data.yaml").write_text(f"path: {path}\ntrain: images/train\nnames: {{1: dog, 0: cat}}\n")
        data = YOLODetection(str(root / "elsewhere/data.yaml"))
        assert (len(data), data.classes) == (3, ["cat", "dog"])
    monkeypatch.chdir(root)
    data = YOLODetection("data.yaml")
    assert (len(data), data.num_boxes(0), data.file_name(0)) == (3, 2, "images/train/a.jpg")


def test_labels_beside_images_and_roboflows_paths(root):
    (root / "train").mkdir()
    (root / "images/train").rename(root / "train/images")
    (root / "labels/train").rename(root / "train/labels")
    set_yaml(root, train="../train/images")
    assert [dataset(root).num_boxes(index) for index in range(3)] == [2, 0, 0]
    (root / "train/images").rename(root / "train/pictures")
    (root / "train/labels/a.txt").rename(root / "train/pictures/a.txt")
    set_yaml(root, train="train/pictures")
    assert [dataset(root).num_boxes(index) for index in range(3)] == [2, 0, 0]


def test_the_image_is_turned_as_viewers_show_it(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(root / "images/train/a.jpg", exif=exif)
    image, target = dataset(root).load(0)
    assert image.shape == (80, 60, 3)
    np.testing.assert_allclose(target["boxes"], [[22.5, 20, 37.5, 60], [0, 0, 12, 32]], atol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": None}, r"Expected names in .*data\.yaml as a list"),
        ({"names": []}, "Expected names"),
        ({"names": ["cat", True]}, "Expected names .*yes, no.* but got"),
        ({"names": ["cat", " "]}, "Expected names"),
        ({"names": {0: "cat", 2: "dog"}}, "numbered from 0 without gaps"),
        ({"names": {"0": "cat", "1": "dog"}}, "numbered from 0 without gaps"),
        ({"names": ["cat", "cat"]}, "'cat' is there again"),
        ({"nc": 3}, "Expected nc in .* as the number of names, 2, but got 3"),
        ({"nc": "2"}, "Expected nc"),
        ({"train": None}, "Expected train in .*There are: none"),
        ({"train": None, "val": "images/train"}, "Expected train in .*There are: val"),
        ({"train": [3]}, "Expected train"),
        ({"train": []}, "Expected train"),
        ({"train": "images/nothing"}, "Expected train in .* as a folder or a list but got images/nothing"),
        ({"train": "images/train/a.jpg"}, "Expected train in .* as a folder or a list"),
        ({"train": "labels"}, "Expected images in .*labels.* but there are none"),
        ({"train": ".."}, "leads out of it"),
        ({"train": "/etc/passwd"}, "leads out of it"),
        ({"train": "../../images"}, "leads out of it"),
        ({"train": "images/train\0"}, "Expected the name of a file"),
        ({"train": "x" * 5000}, "Expected the name of a file"),
        ({"path": "nowhere"}, "Expected path in .* as a folder"),
        ({"path": 3}, "Expected path"),
    ],
)
def test_a_wrong_data_yaml_is_named_with_its_key(root, content, message):
    set_yaml(root, **content)
    with pytest.raises(InputError, match=message):
        dataset(root).classes, len(dataset(root))


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\0", "a: !!timestamp b", "a: 2020-13-01", "a: !!bool b", "{[a]: b}", "[" * 5000])
def test_what_is_no_mapping_is_named(root, text):
    (root / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=r"Expected .*data\.yaml"):
        len(dataset(root))


def test_a_file_or_a_set_that_is_not_there_is_named(root, tmp_path):
    with pytest.raises(InputError, match=r"could not read .*nothing\.yaml"):
        len(YOLODetection(str(tmp_path / "nothing.yaml")))
    with pytest.raises(InputError, match="Expected image_set as train, val, test but got 'names'"):
        dataset(root, "names")
    for file in (root / "labels").rglob("*.txt"):
        file.unlink()
    with pytest.raises(InputError, match=r"Expected boxes for the 3 images of .*labels/train/a\.txt, but there is no such file"):
        len(dataset(root))


@pytest.mark.parametrize("line", ["/etc/passwd", "../../secret.jpg", "link.jpg", "images/train/" + "x" * 300 + ".jpg", "a\0b.jpg"])
def test_images_that_lead_out_or_are_not_there_are_faults(root, line, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "link.jpg"
    cv2.imwrite(str(outside), np.zeros((60, 80, 3), np.uint8))
    os.symlink(outside, root / "link.jpg")
    (root / "list.txt").write_text(f"images/train/a.jpg\n{line}\n", encoding="utf-8")
    set_yaml(root, train="list.txt")
    data = dataset(root, on_invalid="drop")
    assert len(data) == 1
    with pytest.raises(InputError, match=r"1 x (name leaves the folder|image missing|annotation unreadable)"):
        len(dataset(root))


def test_labels_that_lead_out_or_are_no_text_are_faults(root):
    (root / "labels/train/a.txt").unlink()
    os.symlink("/etc/passwd", root / "labels/train/a.txt")
    (root / "labels/train/b.txt").write_bytes(b"\xff\xfe\x00")
    (root / "labels/train/sub/c.txt").mkdir()
    data = dataset(root, on_invalid="drop")
    assert data.contents.faults.counts() == {"annotation unreadable": 2, "name leaves the folder": 1}
    assert len(data) == 0


WORDS = ["0", "1", "2", "-1", ".5", "1e9", "nan", "inf", "_", "\0", "\x1c", "\u0661", "\n"]


@ANY_TEXT
@given(
    st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join),
)
@example("1e308 1 1 1 1")
@example("0 1e308 1e308 1e308 1e308")
@example("0 -0 -0 -0 -0")
@example("\u0661 .5 .5 .5 .5")
@example("0 1_0 .5 .5 .5")
@example("0\x1c.5\u2028.5 .5 .5")
@example("0 " + "9" * 5000 + " 1 1 1")
def test_any_text_as_labels_is_read_or_refused(root, text):
    (root / "labels/train/a.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    boxes = dataset(root, on_invalid="drop").targets[0]["boxes"]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.size == 0 or (boxes.min() >= 0 and (boxes.max(axis=0) <= [80, 60, 80, 60]).all())
    with contextlib.suppress(InputError):
        len(dataset(root))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats()
    | st.sampled_from(["images/train", "cat", "list.txt", "", "../x", "\0"])
    | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.integers(0, 3) | st.text(max_size=3) | st.none(), values, max_size=3),
    max_leaves=5,
)


@ANY_TEXT
@given(st.text() | st.fixed_dictionaries({}, optional=dict.fromkeys(("path", "train", "names", "nc"), VALUES)).map(yaml.safe_dump))
@example("train: images/train\nnames: &a [*a]")
@example("train: &a [*a]\nnames: [a]")
@example("? [1]\n: 2")
@example("a: !!python/object/apply:os.system [ls]")
@example("names: {0: a, .nan: b}\ntrain: images/train")
@example("names: {0: a, x: b}\ntrain: images/train")
@example("path: " + "x" * 5000)
@example("train: 2020-02-30")
@example("train: !!int _")
@example("train: !!int ''")
@example("train: !!float ''")
@example("\ud800")
def test_any_text_as_a_data_yaml_is_read_or_refused(root, text):
    (root / "data.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(InputError):
        data = dataset(root)
        assert data.classes
        assert len(data) in (1, 3)


def test_yaml_that_grows_when_printed_is_refused_in_a_short_message(root):
    lines = ["a0: &a0 [x, x]"] + [f"a{level}: &a{level} [*a{level - 1}, *a{level - 1}]" for level in range(1, 60)]
    (root / "data.yaml").write_text("\n".join([*lines, "names: *a59", "train: images/train"]))
    with pytest.raises(InputError, match="Expected names") as error:
        len(dataset(root).classes)
    assert len(str(error.value)) < 5000


def test_same_boxes_as_coco_has_on_real_images(shared, tmp_path):
    """COCO's boxes written as YOLO's by hand, read back."""
    coco = COCO(str(shared / "data/coco_tiny/annotations/instances_val2017.json"))
    ids = sorted(coco.cats)
    for folder in ("images/val", "labels/val"):
        (tmp_path / folder).mkdir(parents=True)
    for number, entry in coco.imgs.items():
        os.symlink(shared / "data/coco_tiny/val2017" / entry["file_name"], tmp_path / "images/val" / entry["file_name"])
        rows = [
            f"{ids.index(one['category_id'])} {(x + w / 2) / entry['width']!r} {(y + h / 2) / entry['height']!r} "
            f"{w / entry['width']!r} {h / entry['height']!r}\n"
            for one in coco.loadAnns(coco.getAnnIds(number))
            for x, y, w, h in [one["bbox"]]
        ]
        random.Random(0).shuffle(rows)
        (tmp_path / "labels/val" / entry["file_name"].replace("jpg", "txt")).write_text("".join(rows))
    names = {index: coco.cats[number]["name"] for index, number in enumerate(ids)}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"val": "images/val", "names": names}))
    with pytest.raises(InputError, match="80 x name leaves the folder"):  # the links
        len(YOLODetection(str(tmp_path / "data.yaml"), "val"))
    for link in (tmp_path / "images/val").iterdir():
        data = link.read_bytes()
        link.unlink()
        link.write_bytes(data)
    dataset = YOLODetection(str(tmp_path / "data.yaml"), "val")
    by_name = {entry["file_name"]: number for number, entry in coco.imgs.items()}
    assert len(dataset) == 80
    for index, target in enumerate(dataset.targets):
        annotations = coco.loadAnns(coco.getAnnIds(by_name[Path(dataset.file_name(index)).name]))
        expected = [[x, y, x + w, y + h, one["category_id"]] for one in annotations for x, y, w, h in [one["bbox"]]]
        got = np.column_stack([target["boxes"], [ids[label - 1] for label in target["labels"]]])
        np.testing.assert_allclose(sorted(got.tolist()), sorted(expected), atol=0.02)


def test_read_yaml_takes_utf16(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1", encoding="utf-16")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1}
