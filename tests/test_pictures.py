from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

import lit_detect.pictures
from lit_detect import SSD, DetectionDataModule, DetectionPictures, InputError
from lit_detect.data.coco import COCODetection
from lit_detect.data.digits import write_digits
from lit_detect.loggers import log_picture
from tests.conftest import TinyBackbone

PICTURE = Image.new("RGB", (8, 4), "red")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Train for some epochs and give what was drawn: for each drawing the image's id and the scores."""
    root = write_digits(str(tmp_path / "digits"), {"train": 4, "val": 5})
    drawn = []

    def draw(image, detections, target, *_):
        drawn.append((int(target["image_id"]), image.float().mean().item()))
        return Image.new("RGB", (64, 64)), {"true": 1, "false": 2, "missed": 0}

    monkeypatch.setattr(lit_detect.pictures, "draw_against_targets", draw)

    def train(callback, **kwargs):
        sets = {
            split: COCODetection(str(root / "JPEGImages"), str(root / "annotations" / f"instances_{split}.json"))
            for split in ("train", "val")
        }
        data = DetectionDataModule(**sets, batch_size=2, num_workers=0)
        detector = SSD(data.classes, size=96, backbone=TinyBackbone(), scales="linear", extra_channels=[16])
        trainer = Trainer(
            default_root_dir=tmp_path, callbacks=[callback], accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, logger=CSVLogger(tmp_path, name="run"), log_every_n_steps=1, **kwargs,
        )  # fmt: skip
        trainer.fit(detector, data)
        trainer.validate(detector, data, verbose=False)
        return drawn, tmp_path / "run" / "version_0"

    return train


def test_each_validation_draws_the_same_images_and_validate_too(run, capsys):
    drawn, folder = run(DetectionPictures(images=3), max_epochs=2)
    assert len(drawn) == 9  # none for the sanity check
    assert drawn[:3] == drawn[3:6] == drawn[6:]
    assert len({image for image, _ in drawn}) == 3
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["epoch=00-step=000002.png", "epoch=01-step=000004.png"]
    assert f"detections drawn: {folder / 'detections.png'} (3 true, 6 false, 0 missed on 3 images)" in capsys.readouterr().out


def test_every_n_epochs_and_no_images(run):
    drawn, folder = run(DetectionPictures(images=1, every_n_epochs=2), max_epochs=3)
    assert [path.name for path in (folder / "pictures").iterdir()] == ["epoch=01-step=000004.png"]
    assert len(drawn) == 2
    drawn.clear()
    run(DetectionPictures(images=0), max_epochs=1)
    assert drawn == []


@pytest.mark.parametrize("wrong", [{"images": -1}, {"every_n_epochs": 0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(InputError, match="Expected images from 0 and every_n_epochs from 1"):
        DetectionPictures(**wrong)


@pytest.mark.parametrize("outputs", [None, {"loss": 1.0}, 1.0])
def test_a_step_without_detections_is_not_drawn(outputs):
    callback = DetectionPictures()
    callback.draw(SimpleNamespace(is_global_zero=True), None, outputs, ([PICTURE], [{}]))
    assert callback.pictures == []


def recorder(*names):
    """An object whose methods write down what they are called with."""
    calls = []
    methods = {name: lambda *args, _name=name, **kwargs: calls.append((_name, args, kwargs)) for name in names}
    return SimpleNamespace(**methods, calls=calls)


def test_loggers_that_take_images_get_them():
    wandb = recorder("log_image")
    log_picture(wandb, "val/detections", PICTURE, 7)
    assert wandb.calls == [("log_image", ("val/detections", [PICTURE]), {"step": 7})]

    mlflow = SimpleNamespace(experiment=recorder("log_image"), run_id="abc")
    log_picture(mlflow, "val/detections", PICTURE, 7)
    assert mlflow.experiment.calls == [("log_image", ("abc", PICTURE), {"key": "val/detections", "step": 7})]

    comet = SimpleNamespace(experiment=recorder("log_image"))
    log_picture(comet, "val/detections", PICTURE, 7)
    assert comet.experiment.calls == [("log_image", (PICTURE,), {"name": "val/detections", "step": 7})]


def test_others_go_without(tmp_path):
    log_picture(CSVLogger(tmp_path), "val/detections", PICTURE, 7)


def test_tensorboard_reads_back_what_it_was_given(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path)
    log_picture(logger, "val/detections", PICTURE, 7)
    logger.experiment.flush()
    (entry,) = events.EventAccumulator(logger.log_dir).Reload().Images("val/detections")
    assert (entry.step, entry.width, entry.height) == (7, 8, 4)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(entry.encoded_image_string))), np.asarray(PICTURE))
