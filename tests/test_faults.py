"""What goes wrong in a training: losses that are not finite, images that cannot be read, a full disk, workers that are killed."""

import errno
import os
import signal
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import get_worker_info

from lit_detect import DigitsVOC
from lit_detect.cli import main, mendable
from lit_detect.data.digits import write_digits
from lit_detect.faults import NonFinite
from tests.conftest import TinyBackbone


class Poisoned(TinyBackbone):
    """Gives NaN in training for an image of one colour."""

    def forward(self, images):
        maps = super().forward(images)
        flat = (images.flatten(2).std(dim=2) < 1e-4).all(dim=1)
        factor = torch.where(flat, float("nan"), 1.0)[:, None, None, None] if self.training else 1.0
        return {name: value * factor for name, value in maps.items()}


class KillsItsWorker(DigitsVOC):
    def open(self, index):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(index)


@pytest.fixture
def root(tmp_path):
    return write_digits(str(tmp_path / "set"), {"train": 6, "val": 2})


@pytest.fixture
def fit(root, tmp_path, monkeypatch, capfd):
    """Train for one epoch of three steps, and give what is printed."""
    model = {"backbone": {"class_path": "tests.test_faults.Poisoned"}, "size": 64, "scales": "linear", "extra_channels": [16]}
    splits = {
        name: {"class_path": kind, "init_args": {"image_set": name, "root": str(root)}}
        for name, kind in (("train", "DigitsVOC"), ("val", "DigitsCOCO"))
    }
    config = {
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0, "logger": False},
        "model": {"class_path": "SSD", "init_args": model},
        "data": {**splits, "batch_size": 2, "num_workers": 0},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)

    def command(*args):
        monkeypatch.setattr(sys, "argv", ["lit-detect"])
        try:
            main(["fit", "--config", "config.yaml", "--checkpoint.every_n_train_steps", "1", *args])
        finally:
            out, err = capfd.readouterr()
        return out + err

    return command


def error(fit, *args):
    """The sentence with which a training ends."""
    with pytest.raises(SystemExit) as exit:
        fit(*args)
    assert exit.value.code.startswith("lit-detect: error: Expected")
    assert "\n" not in exit.value.code
    return exit.value.code


def blacken(root, name):
    path = root / "JPEGImages" / name
    cv2.imwrite(str(path), np.zeros_like(cv2.imread(str(path))))


def spoil(root, name):
    """Make an image that starts and ends as a JPEG and cannot be decoded."""
    path = root / "JPEGImages" / name
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\xff\xda")] + b"\xff\xd9")


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_loss_that_is_nan_stops_the_training_and_is_seen_again(fit, root, tmp_path, capfd):
    blacken(root, "train_0003.jpg")
    sentence = error(fit)
    assert "nan on the images " in sentence
    assert ", which train_0003.jpg gives alone: saved in " in sentence
    saved = torch.load(tmp_path / "nonfinite" / "batch.pt", weights_only=True)
    assert "train_0003.jpg" in saved["file_names"]
    black = saved["file_names"].index("train_0003.jpg")
    assert [int(image.max()) < 9 for image in saved["images"]] == [index == black for index in range(2)]
    # the weights are those from before the step: those that a training of so many steps ends with
    before = weights(tmp_path / "nonfinite" / "weights.ckpt")
    assert all(value.isfinite().all() for value in before.values())
    if saved["step"]:
        assert equal(before, weights(tmp_path / "checkpoints" / "last.ckpt"))
    main(["replay", "--folder", str(tmp_path / "nonfinite")])
    out = capfd.readouterr().out
    for name, value in saved["losses"].items():
        assert f"  {name}: {value}" in out
    assert "nan" in out
    assert "which train_0003.jpg gives alone" in out


def test_a_step_can_be_skipped(fit, root, tmp_path, caplog):
    blacken(root, "train_0003.jpg")
    fit("--faults.on_nonfinite", "skip", "--trainer.max_epochs", "2", "--trainer.logger", "true")
    assert "2 steps were skipped" in caplog.text
    last = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    assert last["global_step"] == 6
    momenta = [state["momentum_buffer"] for state in last["optimizer_states"][0]["state"].values()]
    assert momenta
    assert all(value.isfinite().all() for value in momenta)
    assert last["callbacks"]["NonFinite"] == {"skipped": 2}


def test_an_image_that_cannot_be_read_any_more_stops_or_is_skipped(fit, root, caplog):
    spoil(root, "train_0003.jpg")
    assert "train_0003.jpg" in error(fit)
    fit("--data.on_unreadable", "skip", "--trainer.max_epochs", "2")
    assert caplog.text.count("Skipped: ") == 1
    assert "1 training images could not be read, and others were taken: train_0003.jpg." in caplog.text


@pytest.mark.parametrize("workers", ["0", "2"])
def test_skipping_takes_the_next_image(root, workers):
    from lit_detect import DetectionDataModule

    spoil(root, "train_0003.jpg")
    data = DetectionDataModule(train=DigitsVOC("train", root=str(root)), batch_size=1, num_workers=int(workers), on_unreadable="skip")
    data.setup("fit")
    ids = [int(targets[0]["image_id"]) for _, targets in data.train_dataloader()]
    wanted = [position for _, position in data.train_dataloader().sampler]
    expected = [int(data.feeds["train"].dataset.open(4 if position == 3 else position)[1]["image_id"]) for position in wanted]
    assert ids == expected
    assert data.unreadable() == ["train_0003.jpg"]


def test_when_nothing_can_be_read_it_stops_all_the_same(fit, root):
    for path in (root / "JPEGImages").glob("train*"):
        spoil(root, path.name)
    assert "cannot be decoded" in error(fit, "--data.on_unreadable", "skip")


def test_a_worker_that_is_killed_is_one_sentence(fit):
    sentence = error(fit, "--data.train.class_path", "tests.test_faults.KillsItsWorker", "--data.num_workers", "1")
    assert "processes that read images" in sentence


def test_a_mistake_in_a_data_set_is_shown_whole_and_a_folder_of_another_user_in_one_sentence():
    from_worker = RuntimeError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback ...")
    assert mendable(from_worker) is None
    assert mendable(RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly")) is not None
    sentence = mendable(PermissionError(errno.EACCES, "Permission denied", "/train/lightning_logs"))
    assert sentence == "Expected to be allowed to use /train/lightning_logs but was not: Permission denied."


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without room")
def test_a_full_disk_is_named_and_what_was_saved_is_whole(fit, tmp_path):
    fit()
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = weights(last)
    (tmp_path / "checkpoints" / "last.ckpt.part").symlink_to("/dev/full")
    sentence = error(fit, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert f"{last} but could not write it: No space left on device; what was saved there before is whole." in sentence
    assert equal(before, weights(last))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without room")
def test_a_full_disk_for_metrics_is_named(fit, tmp_path):
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").symlink_to("/dev/full")
    logger = '{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": ".", "version": 0}}'
    sentence = error(fit, "--trainer.logger", logger, "--trainer.log_every_n_steps", "1")
    assert "metrics.csv but could not: No space left on device" in sentence


def test_a_step_without_gradients_is_no_fault():
    NonFinite().on_before_optimizer_step(None, None, torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))]))


@pytest.mark.parametrize(("losses", "wrong"), [([float("nan"), 1.0], True), ([1.0, 2.0], False)])
def test_any_of_the_accumulated_batches_may_have_the_loss_that_is_not_finite(losses, wrong):
    faults = NonFinite()
    for loss in losses:
        faults.on_before_backward(None, None, torch.tensor(loss))
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, **_: decision))
    assert faults._loss_is_wrong(trainer) is wrong
