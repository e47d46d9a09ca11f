import re
from html.parser import HTMLParser
from importlib.metadata import version

import numpy as np
import pytest
import torch
import yaml

from lit_detect import SSD, COCODetection, DetectionDataModule, DetectionDataset, VOCDetection
from lit_detect.cli import main
from lit_detect.data.feed import Feed
from lit_detect.report import Evaluation, evaluate, render
from tests.conftest import CLASSES, TinyBackbone

VOID = {"meta", "img", "br", "circle", "line", "rect", "polyline"}
ABOUT = {
    "title": "A page",
    "split": "val",
    "data": "some",
    "checkpoint": "a.ckpt",
    "epoch": 3,
    "step": 70,
    "config": "x: 1",
    "command": "c",
    "no_history": "",
}
NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}


class Page(HTMLParser):
    """A page's elements and text; it fails where elements do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check(text):
    """A page that stands alone: no scripts, nothing fetched."""
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert "http:" not in text
    assert "https:" not in re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text)
    assert "url(" not in text
    return page


def detector(classes):
    return SSD(classes, size=96, backbone=TinyBackbone(), scales="linear", extra_channels=[16])


def as_they_are(dataset, detect=None):
    """An evaluation in which the targets are found, or what is given in their place."""
    targets = [target for _, target in map(Feed(dataset).__getitem__, range(len(dataset)))]
    found = detect or (
        lambda target: {**{name: target[name] for name in ("boxes", "labels")}, "scores": torch.full((len(target["labels"]),), 0.75)}
    )
    made = detector(dataset.classes)
    detections = [found(target) for target in targets]
    metric = made.metrics["val"][0]
    metric.update(detections, targets)
    return Evaluation(made, dataset, detections, targets, metric.compute())


class Hostile(DetectionDataset):
    """Names that are markup."""

    def __init__(self, classes):
        self.classes = classes

    def __len__(self):
        return 3

    def load(self, index):
        label = 1 + index % len(self.classes)
        target = {"boxes": np.array([[5, 5, 40, 40]], np.float32), "labels": np.array([label]), "image_id": index}
        return np.full((60, 80, 3), 60 * index, np.uint8), target

    def file_name(self, index):
        return f'{index}"><img src=x onerror=alert(1)>.jpg'


def test_markup_in_names_is_shown_and_not_obeyed():
    classes = ["<script>alert(1)</script>", '"><b>', "{{ 7 * 7 }}"]
    about = {**ABOUT, **{name: f"<i>{name}</i>&" for name in ("title", "split", "data", "checkpoint", "config", "command")}}
    found = {**NOTHING, "boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([2]), "scores": torch.tensor([0.9])}
    history = {"train/<b>_loss": (np.arange(3.0), np.arange(3.0)), "train/<u>_loss": (np.arange(3.0), np.arange(3.0))}
    page = check(render(as_they_are(Hostile(classes), lambda _: found), history, about))
    assert page.tags.count("img") == 3
    assert "u" not in page.tags
    for name in [*classes, "<i>config</i>&", "<i>command</i>&", '0"><img src=x onerror=alert(1)>.jpg', "<b>_loss"]:
        assert name in page.text


def test_a_perfect_detector_has_a_perfect_page(voc_root):
    page = check(render(as_they_are(VOCDetection(str(voc_root), "train", classes=CLASSES)), {}, ABOUT))
    assert re.search(r"1\.000\s*AP, IoU \.50 to \.95", page.text)
    assert "No box is detected as another class." in page.text
    assert "Most errors" not in page.text
    assert "Training" not in page.text  # nothing was logged
    assert page.tags.count("img") == 2  # of five images two have only a difficult box, and one none


@pytest.mark.parametrize("classes", [["only"], CLASSES, [f"class {number}" for number in range(80)]])
def test_nothing_found(classes):
    page = check(render(as_they_are(Hostile(classes), lambda _: NOTHING), {}, ABOUT))
    assert "0 true, 0 false, 1 missed" in page.text
    assert ("A row is the boxes of a class" in page.text) == (len(classes) < 80)


def test_nothing_to_find():
    class Empty(Hostile):
        def load(self, index):
            image, target = super().load(index)
            return image, {**target, "boxes": target["boxes"][:0], "labels": target["labels"][:0]}

    page = check(render(as_they_are(Empty(["only"])), {}, ABOUT))
    assert "There are no boxes to be found" in page.text
    assert "img" not in page.tags


def test_real_photographs_of_eighty_classes(shared):
    root = shared / "data" / "coco_tiny"
    dataset = COCODetection(str(root / "val2017"), str(root / "annotations" / "instances_val2017.json"))
    page = check(render(as_they_are(dataset), {}, ABOUT, images=2))
    assert "80 classes" in page.text
    assert page.tags.count("img") == 2


def test_evaluate_gives_what_the_network_finds_and_the_metric_of_it(voc_root):
    data = DetectionDataModule(val=VOCDetection(str(voc_root), "val", classes=CLASSES), batch_size=2, num_workers=0)
    data.setup("validate")
    made = detector(CLASSES).eval()
    got = evaluate(made, data.val_dataloader())
    images, targets = next(iter(data.val_dataloader()))
    with torch.no_grad():
        torch.testing.assert_close(got.detections, made(images))
    torch.testing.assert_close(got.targets, list(targets))
    metric = detector(CLASSES).metrics["val"][0]
    metric.update(got.detections, got.targets)
    assert got.values == metric.compute()


@pytest.fixture
def run_folder(voc_root, tmp_path):
    """What a training leaves behind."""
    val = {"class_path": "VOCDetection", "init_args": {"root": str(voc_root), "image_set": "val", "classes": CLASSES}}
    model = {"class_path": "SSD", "init_args": {
        "size": 96, "backbone": {"class_path": "tests.conftest.TinyBackbone"}, "scales": "linear", "extra_channels": [16],
    }}  # fmt: skip
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": {"val": val, "num_workers": 0}}))
    torch.save({"state_dict": detector(CLASSES).state_dict(), "epoch": 1, "global_step": 30}, folder / "checkpoints" / "last.ckpt")
    (folder / "metrics.csv").write_text("epoch,step,train/loss,val/map\n0,9,3.5,\n0,14,,0.25\n1,19,2.5,\n1,29,,0.5\n")
    return folder


def test_a_run_is_reported_and_so_are_its_config_and_checkpoint(run_folder, tmp_path, capsys):
    main(["report", "--run", str(run_folder), "--score_threshold", "0.1"])
    assert f"report: {run_folder / 'report.html'} (" in capsys.readouterr().out
    page = check((run_folder / "report.html").read_text())
    for text in (
        "SSD on val",
        "checkpoint of epoch 1",
        "train/loss",
        "Average precision",
        "2images",
        "TinyBackbone",
        f"--run={run_folder}",
    ):
        assert text.lower() in page.text.lower(), text
    out = tmp_path / "pages" / "other.html"
    checkpoint = str(run_folder / "checkpoints" / "last.ckpt")
    main(["report", "--config", str(run_folder / "config.yaml"), "--ckpt_path", checkpoint, "--out", str(out)])
    assert "Average precision" not in check(out.read_text()).text  # without a run there are no curves


def test_a_run_without_metrics_says_so(run_folder, capsys, monkeypatch):
    (run_folder / "metrics.csv").rename(run_folder / "other.csv")
    monkeypatch.setattr("lit_detect.report.PACKAGES", ("torch", "a-package-that-is-not-there"))
    main(["report", "--run", str(run_folder)])
    reason = f"there is no metrics.csv in {run_folder}, nor TensorBoard's events"
    assert f"without the training's curves: {reason}" in capsys.readouterr().out
    page = check((run_folder / "report.html").read_text())
    assert f"Nothing is known of the training: {reason}." in page.text
    assert f"torch {version('torch')}" in page.text


def test_a_folder_that_may_not_be_written_is_said_before_the_evaluation(run_folder, monkeypatch):
    monkeypatch.setattr("lit_detect.report.os.access", lambda path, mode: False)
    monkeypatch.setattr("lit_detect.report.evaluate_checkpoint", None)
    with pytest.raises(SystemExit, match=r"Expected to be allowed to write in .* give --out"):
        main(["report", "--run", str(run_folder)])


def test_what_is_missing_is_said(run_folder, tmp_path):
    (run_folder / "checkpoints" / "last.ckpt").rename(tmp_path / "a.ckpt")
    cases = {
        (): "Expected either --run, or --config and --ckpt_path",
        ("--config", "x.yaml"): "Expected either --run, or --config and --ckpt_path",
        ("--run", str(tmp_path)): "Expected the folder of a run",
        ("--run", str(run_folder)): "best.ckpt or last.ckpt but there is neither",
        ("--run", str(run_folder), "--ckpt_path", "none.ckpt"): "Expected a checkpoint at none.ckpt but there is no such file",
    }
    for args, message in cases.items():
        with pytest.raises(SystemExit, match=message):
            main(["report", *args])
