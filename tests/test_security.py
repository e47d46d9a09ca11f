"""Files of strangers: what they try, through every door that there is. A marker file appears where code of theirs has run."""

import io
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
import torch
import yaml
from PIL import Image

from lit_detect import SSD, Darknet53, Detector, InputError, TimmBackbone, TorchvisionBackbone
from lit_detect.checkpoints import load_checkpoint, read_checkpoint
from lit_detect.cli import main
from lit_detect.compare_measure import load_detector
from lit_detect.models.vgg import VGG16
from lit_detect.models.weights import start_from
from lit_detect.replay import replay
from tests.conftest import CLASSES, DETECTORS, TinyBackbone

CONFIG = {
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0},
    "model": {
        "class_path": "SSD",
        "init_args": {
            "size": 96,
            "scales": "linear",
            "extra_channels": [16],
            "backbone": {"class_path": "tests.conftest.TinyBackbone"},
        },
    },
}


class Code:
    """What a stranger puts into a pickle."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def described(**changed):
    """A checkpoint as a training leaves it."""
    detector = DETECTORS["ssd"]()
    parameters = {**dict(detector.hparams), **changed}
    return {"state_dict": detector.state_dict(), "hyper_parameters": parameters, "pytorch-lightning_version": "2.6.0", "epoch": 0}


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.fixture
def with_code(tmp_path, marker):
    """A checkpoint in which everything is in its place, and code beside it."""
    path = tmp_path / "a.ckpt"
    torch.save({**described(), "extra": Code(marker)}, path)
    torch.load(path, weights_only=False)  # who does not ask for plain data is had
    assert marker.exists()
    marker.rmdir()
    return path


def from_url(path):
    start_from(DETECTORS["ssd"]().network, path.as_uri(), CLASSES, {})


DOORS = {
    "SSD": SSD.load_from_checkpoint,
    "its name as text": lambda path: SSD.load_from_checkpoint(str(path)),
    "an open file": lambda path: SSD.load_from_checkpoint(io.BytesIO(path.read_bytes())),
    "Detector": Detector.load_from_checkpoint,
    "load_detector": load_detector,
    "read_checkpoint": read_checkpoint,
    "load_checkpoint": lambda path: load_checkpoint(DETECTORS["ssd"](), path),
    "init_from": lambda path: start_from(DETECTORS["ssd"]().network, str(path), CLASSES, {}),
    "a URL": from_url,
    "torchvision": lambda path: TorchvisionBackbone("resnet18", ["layer3"], weights=str(path)).load_weights(),
    "VGG16": lambda path: VGG16(weights=str(path)).load_weights(),
    "Darknet53": lambda path: Darknet53(weights=str(path)).load_weights(),
    "timm": lambda path: TimmBackbone("resnet18", weights=str(path)).load_weights(),
}


@pytest.mark.parametrize("door", DOORS)
def test_code_in_a_checkpoint_is_named_and_not_run(door, with_code, marker, monkeypatch, tmp_path):
    if door == "timm":
        pytest.importorskip("timm", reason="the extra timm is not installed")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    name = "BytesIO" if door == "an open file" else r"a\.ckpt"
    with pytest.raises(InputError, match=rf"{name}.*holds code \(posix\.mkdir\), which is not run"):
        DOORS[door](with_code)
    assert not marker.exists()


def test_nor_where_torch_is_told_to_by_default(with_code, marker, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for door in (SSD.load_from_checkpoint, load_detector, read_checkpoint):
        with pytest.raises(InputError, match="holds code"):
            door(with_code)
    assert not marker.exists()


@pytest.fixture
def config(voc_root, tmp_path):
    """A training config on four images."""
    data = {
        split: {"class_path": "VOCDetection", "init_args": {"root": str(voc_root), "image_set": split, "classes": CLASSES}}
        for split in ("train", "val")
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "data": {**data, "num_workers": 0, "batch_size": 2}}))
    return path


VERBS = {
    "fit": ["--ckpt_path", "CHECKPOINT"],
    "validate": ["--ckpt_path", "CHECKPOINT"],
    "predict": ["--ckpt_path", "CHECKPOINT", "--data.predict", "."],
    "report": ["--ckpt_path", "CHECKPOINT"],
    "visualize": ["--what", "proposals", "--ckpt_path", "CHECKPOINT"],
    "fit, starting from it": ["--model.init_from", "CHECKPOINT"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_code(verb, with_code, marker, config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = [str(with_code) if argument == "CHECKPOINT" else argument for argument in VERBS[verb]]
    monkeypatch.setattr(sys, "argv", ["lit-detect"])
    with pytest.raises(SystemExit, match=r"a\.ckpt.* holds code \(posix\.mkdir\), which is not run"):
        main([verb.partition(",")[0], "--config", str(config), *arguments])
    assert not marker.exists()


def test_what_lightning_finds_by_itself_is_not_unpickled_either(with_code, marker, config, monkeypatch, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with_code.rename(tmp_path / "checkpoints" / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-detect"])
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", str(config), "--ckpt_path", "last"])
    assert "holds code (posix.mkdir), which is not run" in exit.value.code
    assert not marker.exists()


@pytest.fixture
def on_the_path(tmp_path, marker, monkeypatch):
    """A module that could be imported, as everything in the folder that a program is started in."""
    text = f"import os\nfrom torch import nn\nos.mkdir({str(marker)!r})\nclass Part(nn.Module): pass\n"
    (tmp_path / "lying_around.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("lying_around", None)


NAMED = {
    "a class": {"_class_path": "lying_around.Part"},
    "a program": {"_class_path": "subprocess.Popen", "args": "MARKER"},
    "an instantiator": {"_instantiator": "lying_around.Part"},
    "a part": {"backbone": {"class_path": "lying_around.Part"}},
    "a part as text": {"backbone": "lying_around.Part"},
    "a part that is a program": {"backbone": {"class_path": "subprocess.Popen", "init_args": {"args": "MARKER"}}},
    "a function": {"backbone": {"class_path": "os.mkdir", "init_args": {"path": "MARKER"}}},
    "a metric": {"metric": "subprocess.call", "classes": "MARKER"},
    "a metric that is a class": {"metric": {"class_path": "subprocess.Popen"}, "classes": "MARKER"},
    "an optimizer": {"optimizer": "lying_around.Part"},
    "a part of a part": {
        "criterion": {"class_path": "lit_detect.losses.FocalLoss", "init_args": {"box_loss": {"class_path": "lying_around.Part"}}}
    },
    "weights of timm": {
        "backbone": {"class_path": "lit_detect.models.backbones.TimmBackbone", "init_args": {"name": "resnet18", "arguments": "CHECKPOINT"}}
    },
    "a hub": {"backbone": {"class_path": "lit_detect.models.backbones.TimmBackbone", "init_args": {"name": "hf-hub:a/b"}}},
}


def filled(value, **places):
    if isinstance(value, dict):
        return {name: filled(item, **places) for name, item in value.items()}
    return places.get(value, value) if isinstance(value, str) else value


@pytest.mark.usefixtures("on_the_path")
@pytest.mark.parametrize("load", [SSD.load_from_checkpoint, Detector.load_from_checkpoint, load_detector])
@pytest.mark.parametrize("what", NAMED)
def test_what_a_checkpoint_names_is_neither_imported_nor_called(what, load, tmp_path, marker):
    weights = tmp_path / "weights.pth"
    torch.save({"extra": Code(marker)}, weights)
    path = tmp_path / "a.ckpt"
    named = filled(NAMED[what], MARKER=["mkdir", str(marker)], CHECKPOINT={"checkpoint_path": str(weights)})
    torch.save(described(**named), path)
    if what in ("an instantiator", "an optimizer"):  # which is ignored, and text that is never called
        load(path)
    else:
        with pytest.raises(InputError):
            load(path)
    assert not marker.exists()
    assert "lying_around" not in sys.modules


@pytest.mark.usefixtures("on_the_path")
@pytest.mark.parametrize("what", ["a class", "a part", "code in the batch"])
def test_replay_imports_and_runs_nothing_either(what, tmp_path, marker):
    torch.save(described(**NAMED.get(what, {})), tmp_path / "weights.ckpt")
    torch.save({"images": Code(marker)} if what == "code in the batch" else {}, tmp_path / "batch.pt")
    with pytest.raises(InputError, match=r"posix\.mkdir" if what == "code in the batch" else "that this program knows"):
        replay(str(tmp_path))
    assert not marker.exists()
    assert "lying_around" not in sys.modules


def test_what_is_imported_already_is_built(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(described(backbone={"class_path": "tests.conftest.TinyBackbone", "init_args": {"width": 8}}), path)
    with pytest.raises(RuntimeError, match="size mismatch"):  # so it was built, of another width
        Detector.load_from_checkpoint(path)
    assert isinstance(Detector.load_from_checkpoint(path, backbone=TinyBackbone(16)), SSD)


@pytest.mark.parametrize(
    "changed", [{"classes": "abc"}, {"classes": [1]}, {"category_ids": ["a"]}, {"classes": {"a": 1}}, {"score_threshold": None, 1: 2}]
)
def test_hyperparameters_that_no_training_wrote_are_refused(changed, tmp_path):
    path = tmp_path / "a.ckpt"
    content = described()
    content["hyper_parameters"] |= changed
    torch.save(content, path)
    with pytest.raises(InputError, match=r"a\.ckpt"):
        read_checkpoint(path)


def test_hyperparameters_without_end(tmp_path):
    deep = []
    deep.append(deep)
    torch.save(described(extra_channels=deep), tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="nested without end"):
        SSD.load_from_checkpoint(tmp_path / "a.ckpt")


def test_weights_only_and_hparams_files_are_not_to_be_asked_for(tmp_path):
    torch.save(described(), tmp_path / "a.ckpt")
    for asked in ({"weights_only": False}, {"hparams_file": "a.yaml"}):
        with pytest.raises(InputError, match="a detector's checkpoint is plain data"):
            SSD.load_from_checkpoint(tmp_path / "a.ckpt", **asked)


@pytest.mark.parametrize("key", ["best_k_models", "kth_best_model_path", "last_model_path"])
@pytest.mark.parametrize("name", ["/runs/a/../../home", "/home/me", "memory://a/b"])
def test_a_checkpoint_does_not_say_what_is_deleted(key, name, tmp_path):
    """A resumed training deletes what was best before, whole folders too, by the path that it finds."""
    state = {"dirpath": "/runs/a", "best_k_models": {"/runs/a/best.ckpt": 0.5}, "kth_best_model_path": "", "last_model_path": ""}
    torch.save({**described(), "callbacks": {"ModelCheckpoint": state}}, tmp_path / "a.ckpt")
    read_checkpoint(tmp_path / "a.ckpt")
    torch.save(
        {**described(), "callbacks": {"ModelCheckpoint": {**state, key: {name: 0.5} if key == "best_k_models" else name}}},
        tmp_path / "a.ckpt",
    )
    with pytest.raises(InputError, match="Expected checkpoints in /runs/a"):
        read_checkpoint(tmp_path / "a.ckpt")


class Structure(HTMLParser):
    """The elements of a page, each with the names of its attributes; and those whose values may come from a name."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    handle_startendtag = handle_starttag


HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "</title></svg><iframe srcdoc='<b>'>{{ 7*7 }}"]


def voc_of(root, classes, stem):
    """A VOC tree with these classes, and images of such names."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    names = [f"{stem} {number}" for number in range(3)]
    for number, name in enumerate(names):
        Image.new("RGB", (96, 96), (60 * number, 0, 0)).save(root / "JPEGImages" / f"{name}.jpg")
        box = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>40</xmax><ymax>50</ymax></bndbox>"
        item = f"<object><name>{escape(classes[number])}</name><difficult>0</difficult>{box}</object>"
        size = "<size><width>96</width><height>96</height><depth>3</depth></size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{item}</annotation>")
    (root / "ImageSets" / "Main" / "val.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def test_no_element_of_a_report_comes_from_a_name(tmp_path, monkeypatch):
    pages = {}
    for kind, classes, stem in (("plain", CLASSES, "image"), ("hostile", HOSTILE, "<img src=x onerror=alert(3)>\" '&lt;b&gt;")):
        folder = tmp_path / (kind if kind == "plain" else "<b onclick='x'>run")
        root = voc_of(folder / "data", classes, stem)
        split = {"class_path": "VOCDetection", "init_args": {"root": str(root), "image_set": "val", "classes": classes}}
        (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": {"val": split, "num_workers": 0}}))
        torch.manual_seed(0)
        detector = SSD(classes, size=96, backbone=TinyBackbone(), scales="linear", extra_channels=[16])
        (folder / "checkpoints").mkdir()
        torch.save({"state_dict": detector.state_dict(), "epoch": 1, "global_step": 5}, folder / "checkpoints" / "best.ckpt")
        (folder / "metrics.csv").write_text("step,train/loss,train/<i>_loss,train/<u>_loss,val/map\n1,1,1,1,0.5\n2,1,1,1,0.6\n")
        main(["report", "--run", str(folder), "--device", "cpu"])
        pages[kind] = (folder / "report.html").read_text()
    assert all(name not in pages["hostile"] for name in HOSTILE)
    elements = {kind: Structure(page).elements for kind, page in pages.items()}
    assert len(elements["plain"]) > 100
    assert elements["hostile"] == elements["plain"]
    assert not {name for _, names in elements["hostile"] for name in names if name.startswith("on")}
    assert "default-src 'none'" in pages["hostile"]  # and what would get through all the same would be run by no browser


ESCAPE = "\x1b]0;owned\x07\x1b[31m"


def test_names_do_not_steer_the_terminal(tmp_path):
    """Of classes, images, splits and files, in whatever verb, in tables, logs and errors."""
    root = voc_of(tmp_path / "a", CLASSES, f"image{ESCAPE}")
    (root / "ImageSets" / "Main" / f"val{ESCAPE}.txt").write_text((root / "ImageSets" / "Main" / "val.txt").read_text() + "missing\n")
    (root / "JPEGImages" / f"broken{ESCAPE}.jpg").write_bytes(b"\xff\xd8broken")
    config = {**CONFIG, "data": {"train": {"class_path": "VOCDetection", "init_args": {"root": str(root), "image_set": f"val{ESCAPE}"}}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / f"{ESCAPE}.ckpt").write_bytes(b"no checkpoint")
    commands = [
        ["audit", "--data", str(root), "--out", str(tmp_path / f"audit{ESCAPE}")],
        ["convert", "--data", str(root), "--format", "coco", "--out", str(tmp_path / "b")],
        ["visualize", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / f"v{ESCAPE}")],
        ["report", "--config", str(tmp_path / "config.yaml"), "--ckpt_path", str(tmp_path / f"{ESCAPE}.ckpt")],
    ]
    program = "import sys, json\nfrom lit_detect.cli import main\nfor command in json.load(sys.stdin):\n"
    program += "    try: main(command)\n    except SystemExit as error: print(error)\n"
    found = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    printed = found.stdout + found.stderr
    assert "owned" in printed
    assert "\x1b" not in printed
    assert "\x07" not in printed
