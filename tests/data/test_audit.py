"""The audit: every kind of fault is found and named, every count is right."""

import json
import math

import numpy as np
import pytest
import yaml
from PIL import Image

from lit_detect import DetectionDataset, InputError
from lit_detect.data.audit import audit
from lit_detect.data.faults import MENDED, NOTES, WRONG
from tests.data.faulty import encoded, make_coco, make_voc, make_yolo, write_voc

SETS = {"voc": make_voc, "coco": make_coco, "yolo": make_yolo}


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Each set's report, and what is to be found in it."""
    reports = {}
    for name, make in SETS.items():
        root = tmp_path_factory.mktemp(name)
        expected = make(root)
        audit(str(root), str(root / "audit"), workers=2)
        report = json.loads((root / "audit" / "audit.json").read_text())
        for fault in report["faults"]:
            fault["file"] = fault["file"].removeprefix(f"{root}/")
        reports[name] = report, expected
    return reports


@pytest.mark.parametrize("kind", [*MENDED, *WRONG, *NOTES])
def test_every_kind_of_fault_is_found_with_its_file_and_annotation(audited, kind):
    severity = "wrong" if kind in WRONG else "mended" if kind in MENDED else "note"
    assert any(kind == one[0] for _, expected in audited.values() for one in expected), "a kind without a case"
    for report, expected in audited.values():
        found = [(fault["kind"], fault["file"], fault["annotation"]) for fault in report["faults"] if fault["kind"] == kind]
        assert sorted(found) == sorted(one for one in expected if one[0] == kind)
        assert {fault["severity"] for fault in report["faults"] if fault["kind"] == kind} <= {severity}
        assert report["counts"]["kinds"].get(kind, 0) == len(found)


def test_counts_are_those_made_by_hand(audited):
    voc, coco = (audited[name][0]["splits"]["train"] for name in ("voc", "coco"))
    # of 32 images listed: 5 unreadable by their headers or ends, wide, broken and gone
    assert (voc["images"], voc["images_without_boxes"], voc["boxes"], voc["difficult"], voc["crowds"]) == (24, 3, 21, 1, 0)
    assert voc["sizes"] == {"small": 20, "medium": 1, "large": 0}  # 30 x 30, and 70 x 30 after clipping
    assert {name: (one["boxes"], one["images"]) for name, one in voc["by_class"].items()} == {"cat": (20, 20), "[red]dog[/red]": (1, 1)}
    assert voc["image_sizes"] == [[80, 60, 23], [60, 80, 1]]
    assert voc["boxes_an_image"] == {"0": 3, "1": 21}
    assert (coco["images"], coco["images_without_boxes"], coco["boxes"], coco["crowds"]) == (12, 11, 3, 1)
    assert coco["sizes"] == {"small": 3, "medium": 0, "large": 0}  # 20 x 30 clipped, 30 x 30, and 500 as its area says
    assert {name: one["boxes"] for name, one in coco["by_class"].items()} == {"cat": 2, "dog": 1}
    relative = audited["coco"][0]["all"]["distributions"]["√ of its share of the image"]
    assert relative["max"] == pytest.approx(math.sqrt(30 * 30 / (80 * 60)))


def run(data, out):
    audit(str(data), str(out))
    return json.loads((out / "audit.json").read_text())


def test_duplicates_within_and_across_splits(tmp_path, capsys):
    one, other, third = (encoded(name) for name in "abc")
    images = {"a": one, "again": one, "b": other, "leaked": other, "c": third}
    write_voc(tmp_path / "voc", images, {"train": ["a", "again", "b"], "val": ["leaked", "c"], "train_c": ["c"]})
    found = run(tmp_path / "voc", tmp_path / "out")["duplicates"]
    folder = tmp_path / "voc" / "JPEGImages"
    assert {"leak": [["train", "val"]], "files": {str(folder / "b.jpg"): ["train"], str(folder / "leaked.jpg"): ["val"]}} in found
    assert {"leak": [["train_c", "val"]], "files": {str(folder / "c.jpg"): ["train_c", "val"]}} in found
    assert [set(one["files"]) for one in found if not one["leak"]] == [{str(folder / "a.jpg"), str(folder / "again.jpg")}]
    assert len(found) == 3
    output = capsys.readouterr().out
    assert "LEAK" in output
    assert "2 images are in more than one split" in output


def test_names_are_printed_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    write_voc(tmp_path / "voc", {"[bold]a": b"", ":cat:": encoded("a")}, {"train": ["[bold]a", ":cat:"]})
    path = tmp_path / "voc" / "Annotations" / ":cat:.xml"
    path.write_text(path.read_text().replace("<name>cat", "<name>[/red] \\"))
    report = run(tmp_path / "voc", tmp_path / "out")
    assert report["classes"] == ["[/red] \\", "cat"]
    output = capsys.readouterr().out
    assert "[/red] \\ " in output
    assert " [bold]a.jpg: Expected an image" in output
    assert "audit: 1 fault that stops a training, 0 mended, 0 notes; " in output


def test_a_split_that_cannot_be_read_is_a_fault_and_the_others_are_audited(tmp_path, coco_files, capsys):
    images, path = coco_files
    data = {"train": {"class_path": "COCODetection", "init_args": {"images": str(images), "annotations": str(path)}}}
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    data["val"] = {"class_path": "COCODetection", "init_args": {"images": str(images), "annotations": str(broken)}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"data": data}))
    report = run(config, tmp_path / "out")
    assert (report["splits"]["train"]["images"], report["splits"]["val"]["images"]) == (2, 0)
    (fault,) = (fault for fault in report["faults"] if fault["severity"] == "wrong")
    assert (fault["kind"], fault["splits"]) == ("annotation unreadable", ["val"])
    assert "broken.json is not JSON" in fault["detail"]
    assert len(report["remarks"]) == 1  # no search for files that nobody lists
    assert "audit: 1 fault that stops a training" in capsys.readouterr().out


class Circles(DetectionDataset):
    """Somebody's own data set, with a mistake in every image but the first two, which are the same."""

    classes = ("a", "b")  # type: ignore[assignment]

    def __len__(self):
        return 6

    def load(self, index):
        if index == 5:
            raise KeyError("no such circle")
        boxes = [[5, 5, 20, 20], [5, 5, 20, 20], [30, 30, 10, 40], [float("nan")] * 4, [5, 5, 9, 9]][index]
        return np.zeros((50, 40, 3), np.uint8), {"boxes": [boxes], "labels": [3 if index == 4 else 1], "image_id": index}


def test_somebodys_own_data_set(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"data": {"train": [{"class_path": f"{__name__}.Circles"}] * 2}}))
    report = run(config, tmp_path / "out")
    train = report["splits"]["train"]
    assert (train["images"], train["boxes"], train["image_sizes"], train["by_class"]["a"]["boxes"]) == (4, 4, [[40, 50, 4]], 4)
    assert [fault["annotation"] for fault in report["faults"]] == [f"image {index}" for index in (2, 3, 4, 5)] * 2
    assert "KeyError: 'no such circle'" in report["faults"][3]["detail"]
    assert [len(one["files"]) for one in report["duplicates"]] == [4]  # by their pixels


def test_classes_that_differ_between_splits_are_a_fault(tmp_path):
    for name in ("cat", "dog"):
        write_voc(tmp_path / name, {"a": encoded(name)}, {"train": ["a"]})
    data = {
        split: {"class_path": "VOCDetection", "init_args": {"root": str(tmp_path / name), "image_set": "train", "classes": [name]}}
        for split, name in (("train", "cat"), ("val", "dog"))
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    report = run(tmp_path / "config.yaml", tmp_path / "out")
    assert report["counts"]["kinds"] == {"class unknown": 2}  # val's classes, and its cat, which is no dog


def test_workers_and_paths_are_checked(tmp_path):
    with pytest.raises(InputError, match="at least 1 worker but got 0"):
        audit(str(tmp_path), workers=0)
    with pytest.raises(InputError, match="nowhere"):
        audit(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_the_page_is_drawn_for_few_and_many_classes_with_any_names(tmp_path, classes):
    names = [f"$\\frac{{a}}$ 猫 {'long' * 9} {number}" for number in range(classes)]
    write_voc(tmp_path / "voc", {f"{number}": encoded(str(number)) for number in range(classes)}, {"train": map(str, range(classes))})
    for number, name in enumerate(names):
        path = tmp_path / "voc" / "Annotations" / f"{number}.xml"
        path.write_text(path.read_text().replace("<name>cat", f"<name>{name}"), encoding="utf-8")
    assert len(run(tmp_path / "voc", tmp_path / "out")["classes"]) == classes
    with Image.open(tmp_path / "out" / "audit.png") as page:
        assert page.width > 1000


@pytest.mark.parametrize(
    ("path", "images", "boxes", "crowds", "kinds"),
    [
        ("voc_mini/VOCdevkit/VOC2012", {"train": 240, "val": 160}, 1603, 0, {"boxes of parts": 4}),
        ("bccd/BCCD", {"train": 205, "val": 87, "test": 72}, 4886, 0, {"box without area": 2}),
        ("coco_tiny", {"train2017": 80, "val2017": 80}, 1503, 17, {"crowd with RLE": 17, "gaps in category ids": 2}),
    ],
)
def test_real_data(shared, tmp_path, path, images, boxes, crowds, kinds):
    report = run(shared / "data" / path, tmp_path / "out")
    assert {name: split["images"] for name, split in report["splits"].items()} == images
    whole = report["all"]
    assert (whole["boxes"], whole["crowds"], sum(whole["sizes"].values())) == (boxes, crowds, boxes)
    assert report["counts"]["kinds"] == kinds
    assert report["duplicates"] == []
    if "voc_mini" in path:
        assert (whole["difficult"], sum(one["boxes"] > 0 for one in whole["by_class"].values())) == (251, 19)


def test_where_no_image_can_be_used_that_is_what_is_said(voc_root, tmp_path):
    for image in (voc_root / "JPEGImages").iterdir():
        image.unlink()
    data = {"class_path": "VOCDetection", "init_args": {"root": str(voc_root), "image_set": "train"}}
    model = {"class_path": "SSD", "init_args": {"backbone": {"class_path": "tests.conftest.TinyBackbone"}, "size": 96, "scales": "linear"}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"data": {"train": data}, "model": model}))
    audit(str(tmp_path / "my.yaml"), out=str(tmp_path / "audit"))
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert found["splits"]["train"]["images"] == 0
    assert {fault["kind"] for fault in found["faults"]} >= {"image missing"}
