import os

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger

from lit_detect import InputError
from lit_detect.report_history import read_history, why_no_history


def log(logger):
    """What a training logs."""
    logger.log_metrics({"train/loss": 3.0, "epoch": 0}, step=9)
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=19)
    logger.log_metrics({"val/map": 0.25, "epoch": 0}, step=24)
    logger.log_metrics({"val/map": 0.5, "epoch": 1}, step=49)
    logger.save()


def check(folder):
    history = read_history(folder)
    for name, steps, values in (("train/loss", [9, 19], [3, 2]), ("val/map", [24, 49], [0.25, 0.5])):
        np.testing.assert_array_equal(history[name], (steps, values))


def test_what_the_csv_logger_writes_is_read(tmp_path):
    logger = CSVLogger(tmp_path)
    log(logger)
    check(tmp_path / "lightning_logs" / "version_0")


def test_what_tensorboard_writes_is_read(tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path)
    log(logger)
    logger.finalize("success")
    check(tmp_path / "lightning_logs" / "version_0")


def test_parts_of_a_training_are_put_together_in_time(tmp_path):
    for time, (folder, text) in enumerate([("version_1", "5,0.1\n10,0.2\n"), ("version_0", "10,0.3\n15,0.4\n")]):
        path = tmp_path / folder / "metrics.csv"
        path.parent.mkdir()
        path.write_text(f"step,val/map\n{text}")
        os.utime(path, (1000 + time, 1000 + time))
    np.testing.assert_array_equal(read_history(tmp_path)["val/map"], ([5, 10, 15], [0.1, 0.3, 0.4]))


def test_a_run_without_metrics_has_no_history(tmp_path, monkeypatch):
    assert read_history(tmp_path) == {}
    assert "there is no metrics.csv" in why_no_history(tmp_path)
    (tmp_path / "events.out.tfevents.1").touch()
    monkeypatch.setattr("lit_detect.report_history.find_spec", lambda name: None)
    assert "since tensorboard is not installed" in why_no_history(tmp_path)


@pytest.mark.parametrize("content", ["epoch,val/map\n0,1\n", "step,val/map\n0,many\n", "step,val/map\n,0.5\n"])
def test_metrics_that_are_none_are_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(InputError, match=r"metrics\.csv"):
        read_history(tmp_path)
