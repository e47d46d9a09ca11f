"""Ranks of which one ends: killed in a step or while the others wait for it, and asked to stop by SIGTERM."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from lit_detect import SSD
from lit_detect.data.digits import write_digits
from tests.resume_trials import config, differences, last


class Mortal(SSD):
    """Gets a signal where the environment says: rank, step and signal; writes down the ranks' process ids."""

    def on_fit_start(self):
        super().on_fit_start()
        with open(f"rank{self.global_rank}.pid", "w") as file:
            file.write(str(os.getpid()))

    def die(self, place, index):
        if os.environ.get("MORTAL") == f"{self.global_rank} {place} {index}" and not self.trainer.sanity_checking:
            os.kill(os.getpid(), getattr(signal, os.environ["MORTAL_SIGNAL"]))

    def training_step(self, batch, batch_idx):
        self.die("step", self.trainer.global_step)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.die("validation", batch_idx)
        return super().validation_step(batch, batch_idx)


def command(folder, death="", kind="SIGKILL"):
    """Train on two ranks."""
    environment = {**os.environ, "MORTAL": death, "MORTAL_SIGNAL": kind, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "lit_detect", "fit", "--config", "config.yaml", "--ckpt_path", "last"]
    with (folder / "log.txt").open("a") as log:
        return subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment, timeout=300).returncode


def two_ranks(folder, data):
    folder.mkdir(exist_ok=True)
    content = config(data)
    content["trainer"] |= {"devices": 2, "strategy": "ddp", "max_epochs": 2}
    content["model"] = {"class_path": "tests.test_watch.Mortal", "init_args": content["model"]["init_args"]}
    content["model"]["init_args"]["backbone"]["class_path"] = "tests.resume_trials.NoisyBackbone"
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(str(tmp_path_factory.mktemp("digits") / "set"), {"train": 24, "val": 8})


SLOW_DEATHS = [pytest.param(death, marks=pytest.mark.slow) for death in ("1 step 3", "0 validation 1", "1 validation 1")]


@pytest.mark.parametrize("death", ["0 step 3", *SLOW_DEATHS])
def test_when_a_rank_is_killed_the_other_ends_with_a_reason(data, tmp_path, death):
    folder = two_ranks(tmp_path / "run", data)
    status = command(folder, death)
    other = int((folder / f"rank{1 - int(death[0])}.pid").read_text())
    deadline = time.monotonic() + 60  # far more than the ten seconds it may take, on a busy machine
    while os.path.exists(f"/proc/{other}") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not os.path.exists(f"/proc/{other}")
    assert status == (1 if death[0] == "1" else -9)
    log = (folder / "log.txt").read_text()
    assert "lit-detect: error: " in log
    reasons = ("rank 1 ended by signal 9", "the first rank of this machine ended", "all ranks to go on but one ended")
    assert any(reason in log for reason in reasons)


@pytest.mark.slow
def test_two_ranks_stop_at_sigterm_and_go_on_as_if_they_had_not(data, tmp_path):
    whole, stopped = (two_ranks(tmp_path / name, data) for name in ("whole", "stopped"))
    assert command(whole) == 0, (whole / "log.txt").read_text()[-3000:]
    assert command(stopped, "0 step 2", "SIGTERM") == 143, (stopped / "log.txt").read_text()[-3000:]
    assert "lit-detect: stopped by SIGTERM at step 3: saved as " in (stopped / "log.txt").read_text()
    assert last(stopped)["global_step"] == 3
    assert command(stopped, "1 validation 1", "SIGTERM") == 143, (stopped / "log.txt").read_text()[-3000:]
    assert command(stopped) == 0, (stopped / "log.txt").read_text()[-3000:]
    assert differences(last(whole), last(stopped)) == []
    assert all(torch.isfinite(value).all() for value in last(whole)["state_dict"].values())
