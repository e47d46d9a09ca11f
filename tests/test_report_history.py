import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger

from lit_detect import InputError
from lit_detect.report_history import read_history


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


def test_a_run_without_metrics_has_no_history(tmp_path):
    assert read_history(tmp_path) == {}


@pytest.mark.parametrize("content", ["epoch,val/map\n0,1\n", "step,val/map\n0,many\n", "step,val/map\n,0.5\n"])
def test_metrics_that_are_none_are_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(InputError, match=r"metrics\.csv"):
        read_history(tmp_path)
