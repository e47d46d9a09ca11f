"""docs/extending.md: its files are written, trained by its configs, saved, loaded and type-checked as those of another project."""

import csv
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Trainer

from lit_detect import SSD, Anchors, DetectionDataModule, Detector, DigitsVOC, InputError, IoULoss
from lit_detect.cli import CONFIGS, main
from lit_detect.data.batches import collate
from lit_detect.data.digits import write_digits
from lit_detect.data.feed import Feed
from tests import test_contract as contract
from tests.conftest import CLASSES, learnt_by_heart, random_batch

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(?:python|yaml)\n# (\w+\.(?:py|yaml))\n(.*?)^```", flags=re.S | re.M)  # its first line names its file
FILES = dict(BLOCK.findall((ROOT / "docs" / "extending.md").read_text()))
SHORT = {
    "trainer": {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu", "enable_progress_bar": False, "logger": False},
    "data": {"num_workers": 0, "batch_size": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Another project: the page's files, and digits with a CSV file."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    root = str(write_digits(str(folder / "digits"), {"train": 6, "val": 4}))
    with (folder / "digits" / "boxes.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["split", "image", "label", "x1", "y1", "x2", "y2"])
        for split in ("train", "val"):
            digits = DigitsVOC(split, root)
            for index in range(len(digits)):
                target = digits.targets[index]
                for box, label in zip(target["boxes"].tolist(), target["labels"], strict=True):
                    lines.writerow([split, f"JPEGImages/{digits.file_name(index)}", digits.classes[label - 1], *box])
    config = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    for split in ("train", "val"):
        config["data"][split]["init_args"]["root"] = root
    config["trainer"] |= SHORT["trainer"] | {"num_sanity_val_steps": 0}
    config["data"] |= SHORT["data"]
    (folder / "quickstart.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(autouse=True)
def project(folder, monkeypatch):
    """In its folder, where Python finds its modules; they are forgotten afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    forget()


def forget():
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command on the quickstart with a config of the page laid over, and load the checkpoint that it leaves."""

    def command(config, *args):
        monkeypatch.setattr(sys, "argv", ["lit-detect"])
        main(["fit", "--config", "quickstart.yaml", "--config", config, "--trainer.default_root_dir", str(tmp_path), *args])
        path = tmp_path / "checkpoints" / "best.ckpt"
        assert torch.load(path, weights_only=True)["global_step"] == 2
        return Detector.load_from_checkpoint(path)

    return command


def train(detector, data, tmp_path, **settings):
    """Two steps from Python, and the detector that their checkpoint gives."""
    trainer = Trainer(
        max_epochs=1, limit_train_batches=2, limit_val_batches=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip
    trainer.fit(detector, DetectionDataModule(train=data, val=data, batch_size=2, num_workers=0))
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    loaded = type(detector).load_from_checkpoint(tmp_path / "mine.ckpt", weights_only=True)
    images = torch.stack(random_batch([(96, 96)], [0])[0])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images), detector.eval()(images))
    return trainer, loaded


def small(cls=SSD, classes=tuple("0123456789"), width=16, **kwargs):
    backbone = import_module("my_backbone").SmallBackbone(width)
    boxes = {"scales": [0.16, 0.33, 0.6, 0.75, 0.85, 0.95], "aspect_ratios": [[2, 3], [2, 3], [2], [2], [2]]}  # the quickstart's
    return cls(classes, size=96, backbone=backbone, extra_channels=[32], **boxes, **kwargs)


def four_digits(detector, folder, steps):
    """AP50 on the four images that a network is trained on."""
    images, targets = collate([Feed(DigitsVOC("val", str(folder / "digits")))[index] for index in range(4)])
    return learnt_by_heart(detector, images, targets, steps, rate=3e-3, momentum=0.3)


def test_a_backbone(run, folder, tmp_path):
    detector = run("my_backbone.yaml")
    kind = sys.modules["my_backbone"].SmallBackbone
    assert isinstance(detector.backbone, kind)
    assert [tuple(of_map.shape) for of_map in detector.backbone(torch.zeros(1, 3, 96, 96)).values()] == [(1, 96, 12, 12), (1, 192, 6, 6)]
    _, loaded = train(small(), DigitsVOC("train", str(folder / "digits")), tmp_path)
    assert loaded.backbone.width == 16


def test_a_loss(run, folder, tmp_path):
    criterion = run("my_loss.yaml").network.criterion
    kind = sys.modules["my_loss"].SoftmaxFocal
    assert (type(criterion), criterion.gamma, type(criterion.box_loss), criterion.box_loss.kind) == (kind, 1.5, IoULoss, "giou")
    logits, labels = torch.randn(1, 4, 3), torch.tensor([[0, 2, 1, -1]])
    anchors = Anchors(torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20], [30, 0, 40, 20], [0, 0, 5, 5]]))
    given = (torch.zeros(1, 4, 4), anchors, labels, anchors.boxes[None])
    plain = F.cross_entropy(logits[0, :3], labels[0, :3], reduction="sum")
    torch.testing.assert_close(kind(gamma=0.0)(logits, *given)["class_loss"], plain / 2)
    own = logits[0].softmax(dim=1)[range(3), labels[0, :3]]
    torch.testing.assert_close(kind()(logits, *given)["class_loss"], ((1 - own) ** 2 * -own.log()).sum() / 2)
    trainer, loaded = train(small(criterion=kind(1.0)), DigitsVOC("train", str(folder / "digits")), tmp_path)
    assert loaded.network.criterion.gamma == 1
    assert {"train/class_loss", "train/box_loss", "val/map"} <= {*trainer.callback_metrics}


def test_a_backbone_and_a_loss_learn(folder):
    criterion = import_module("my_loss").SoftmaxFocal()
    assert four_digits(small(width=32, criterion=criterion), folder, 60) > 0.9


def test_a_data_set(run, tmp_path):
    detector = run("my_data.yaml", "--data.val.init_args.images", "4")
    assert detector.classes == ["red", "green", "blue"]
    discs = import_module("my_data").Discs(40)
    for index in range(40):
        image, target = discs.load(index)
        for channel in range(3):
            of_class = target["boxes"][target["labels"] == channel + 1]
            y, x = np.nonzero(image[..., channel] == 255)
            if len(of_class):  # the box around all discs of the colour
                assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == [*of_class[:, :2].min(axis=0), *of_class[:, 2:].max(axis=0)]
            else:
                assert len(x) == 0
    trainer, loaded = train(small(classes=discs.classes), discs, tmp_path)
    assert loaded.classes == discs.classes
    assert {"val/ap/red", "val/ap/green", "val/ap/blue"} & {*trainer.callback_metrics}


def test_a_data_set_in_files(run, folder, tmp_path):
    there = {
        digits.classes[label - 1]
        for digits in (DigitsVOC(split, str(folder / "digits")) for split in ("train", "val"))
        for target in digits.targets
        for label in target["labels"]
    }
    assert run("my_files.yaml").classes == sorted(there)
    kind = sys.modules["my_files"].CSVDetection
    for split in ("train", "val"):
        own, digits = kind("digits/boxes.csv", split), DigitsVOC(split, str(folder / "digits"))
        assert len(own) == len(digits)
        for (image, target), (expected, wanted) in ((own.load(index), digits.load(index)) for index in range(len(digits))):
            assert np.array_equal(image, expected)
            assert np.array_equal(target["boxes"], wanted["boxes"])
            assert [own.classes[label - 1] for label in target["labels"]] == [digits.classes[label - 1] for label in wanted["labels"]]
    text = (folder / "digits" / "boxes.csv").read_text()
    (folder / "digits" / "wrong.csv").write_text(text + "train,JPEGImages/none.jpg,3,0,0,5,5\ntrain,JPEGImages/train_0001.jpg,3,a,0,5,5\n")
    with pytest.raises(InputError, match=r"1 x box not four numbers: .*wrong\.csv, line \d+: .*1 x image missing: .*none\.jpg"):
        kind("digits/wrong.csv", "train").read_annotations()


def test_a_training_procedure(run, folder, tmp_path):
    data = DigitsVOC("train", str(folder / "digits"))
    trainer, teacher = train(small(), data, tmp_path)
    (tmp_path / "mine.ckpt").rename(tmp_path / "teacher.ckpt")
    like_the_teacher = ["--model.init_args.extra_channels", "[32]", "--model.init_args.teacher", str(tmp_path / "teacher.ckpt")]
    detector = run("my_training.yaml", *like_the_teacher)
    kind = sys.modules["my_training"].Distilled
    assert type(detector) is kind
    assert not [name for name in detector.state_dict() if "teacher" in name]
    assert (detector.teacher, detector.weight) == (str(tmp_path / "teacher.ckpt"), 1.0)

    student = small(kind, width=8, teacher=str(tmp_path / "teacher.ckpt"), weight=0.5)
    trainer, _ = train(student, data, tmp_path)
    losses = {name: float(trainer.callback_metrics[f"train/{name}"]) for name in ("class_loss", "box_loss", "teacher_loss", "loss")}
    assert losses["teacher_loss"] > 0
    assert losses["loss"] == pytest.approx(sum(losses.values()) - losses["loss"])
    assert not {id(parameter) for parameter in student.parameters()} & {id(parameter) for parameter in student.teacher_network.parameters()}
    images, targets = collate([Feed(data)[index] for index in range(2)])
    before = [parameter.clone() for parameter in student.teacher_network.parameters()]
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    seen = []
    for _ in range(20):
        loss = student.training_losses(images, targets)["teacher_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss))
    assert seen[-1] < 0.5 * seen[0]
    assert all(torch.equal(*pair) for pair in zip(before, student.teacher_network.parameters(), strict=True))
    other = small(kind, teacher=str(tmp_path / "teacher.ckpt"), classes=CLASSES)
    with pytest.raises(InputError, match=r"Expected a teacher with logits \(2, 1136, 4\) but .*teacher.ckpt gives \(2, 1136, 11\)"):
        other.training_losses(images, targets)
    same = small(kind, teacher=str(tmp_path / "teacher.ckpt"))
    same.load_state_dict(teacher.state_dict())
    same.network.eval()
    assert float(same.training_losses(images, targets)["teacher_loss"]) == pytest.approx(0, abs=1e-6)  # who is the teacher has learnt all


def test_help_lists_the_arguments_of_a_procedure_and_those_it_hands_on(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-detect"])
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "my_training.Distilled"])
    out = capsys.readouterr().out
    for text in (
        "--model.teacher",
        "a checkpoint of an SSD",
        "--model.weight",
        "--model.size",
        "--model.match_threshold",
        "--model.warmup_steps",
    ):
        assert text in out


def point_detector(**kwargs):
    return import_module("my_detector").CenterNet(CLASSES, import_module("my_backbone").SmallBackbone(16), size=96, channels=16, **kwargs)


def test_a_detector(run, folder, tmp_path):
    detector = run("my_detector.yaml")
    kind = sys.modules["my_detector"].CenterNet
    assert type(detector) is kind
    assert detector.classes == [*"0123456789"]
    mine = kind(detector.classes, sys.modules["my_backbone"].SmallBackbone(16), size=96, channels=16)
    trainer, _ = train(mine, DigitsVOC("train", str(folder / "digits")), tmp_path)
    assert {"train/heat_loss", "train/box_loss", "val/heat_loss", "val/map"} <= {*trainer.callback_metrics}


def test_a_detector_learns(folder):
    backbone = import_module("my_backbone").SmallBackbone(32)
    assert four_digits(import_module("my_detector").CenterNet([*"0123456789"], backbone, size=96, channels=32), folder, 80) > 0.9


@pytest.mark.parametrize("counts", [[2, 3], [0, 3], contract.EMPTY])
def test_a_detector_owes_what_all_owe_in_training(counts):
    contract.test_losses_are_named_and_finite_and_reach_every_parameter(point_detector, counts)


def test_a_detector_owes_what_all_owe(tmp_path):
    contract.test_detections_are_in_pixels_of_the_images_as_given(point_detector, [(33, 157), (120, 61)])
    contract.test_a_stacked_batch_and_a_list_give_the_same(point_detector)
    contract.test_evaluate_gives_the_detections_of_eval_and_leaves_norms_and_random_numbers_alone(point_detector)
    contract.test_a_checkpoint_alone_gives_the_detector_back(point_detector, tmp_path)
    contract.test_half_precision_stops_before_boxes_and_losses(point_detector)
    contract.test_the_networks_copy_has_its_own_weights(point_detector)


def test_a_checkpoint_that_names_a_class_of_ones_own_needs_its_module(tmp_path):
    contract.save(small(), tmp_path / "a.ckpt")
    forget()
    with pytest.raises(InputError, match=r"If it is yours, import my_backbone before; what a checkpoint names is not imported"):
        SSD.load_from_checkpoint(tmp_path / "a.ckpt")
    assert "my_backbone" not in sys.modules
    import_module("my_backbone")
    assert SSD.load_from_checkpoint(tmp_path / "a.ckpt").backbone.width == 16


def test_the_readmes_examples_are_the_pages():
    for name, text in BLOCK.findall((ROOT / "README.md").read_text()):
        assert FILES[name] == text


def test_another_projects_files_pass_mypy_strict(folder, tmp_path, request):
    """Against the package as it is installed; and what is wrong in them is found, so that nothing is of any type."""
    for name, text in FILES.items():
        if name.endswith(".py"):
            (tmp_path / name).write_text(text)
    (tmp_path / "wrong.py").write_text(
        'from lit_detect import SSD\n\nSSD(["cat"], size="large")\nSSD(["cat"]).network.criterion.scores("logits")\n'
    )
    kept = getattr(request.config, "cache", None)
    cache = kept.mkdir("mypy") if kept else tmp_path / "cache"
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), "--config-file", "", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    errors = [line.partition(": error: ")[2] for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 2, done.stdout + done.stderr
    assert all(line.startswith("wrong.py") for line in done.stdout.splitlines() if ": error: " in line), done.stdout
    assert 'Argument "size" to "SSD" has incompatible type "str"; expected "int"' in errors[0]
    assert 'Argument 1 to "scores" of "Criterion" has incompatible type "str"; expected "Tensor"' in errors[1]
