"""Trainings that are started by something else: torchrun on several machines, and Slurm."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lit_detect.cli import CONFIGS, main
from lit_detect.data.digits import write_digits
from lit_detect.report_history import read_history

ROOT = Path(__file__).parent.parent
SBATCH = ROOT / "tools" / "slurm" / "train.sbatch"


def free_port() -> int:
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


class TimeLimit(Callback):
    """Slurm's warning, in the midst of a step of the job's first start."""

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == 5 and "SLURM_RESTART_COUNT" not in os.environ:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture
def digits(tmp_path):
    """A folder with a config of few steps: 4 an epoch for one process."""
    root = str(write_digits(str(tmp_path / "set"), {"train": 8, "val": 5}))  # 5 images do not divide by two
    config = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    config["trainer"] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0}
    config["model"]["init_args"]["score_threshold"] = 0.0
    config["data"]["train"]["init_args"]["root"] = config["data"]["val"]["init_args"]["root"] = root
    config["data"] |= {"num_workers": 0, "batch_size": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def environment(**more):
    """Of a process that finds the package and these tests, and takes one core."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", **more}


@pytest.mark.slow
def test_two_machines_by_torchrun_give_what_one_process_gives(digits, monkeypatch, capsys):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launch += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    fit = ["-m", "lit_detect", "fit", "--config", "config.yaml"]
    fit += ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"]
    machines = []
    for rank in range(2):
        with (digits / f"machine_{rank}.log").open("w") as log:
            line = [*launch, "--node_rank", str(rank), *fit]
            machines.append(subprocess.Popen(line, cwd=digits, env=environment(), stdout=log, stderr=subprocess.STDOUT))
    try:
        ends = [machine.wait(timeout=600) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    logs = [(digits / f"machine_{rank}.log").read_text() for rank in range(2)]
    assert ends == [0, 0], logs[0][-3000:] + logs[1][-3000:]

    [folder] = digits.glob("lightning_logs/*")  # both machines have one run
    of_two = json.loads((folder / "metrics.json").read_text())["val"]
    assert of_two["images"] == 5
    monkeypatch.chdir(digits)
    monkeypatch.setattr(sys, "argv", ["lit-detect"])
    main(["validate", "--config", "config.yaml", "--ckpt_path", str(folder / "checkpoints" / "best.ckpt")])
    [path] = set(digits.glob("lightning_logs/*/metrics.json")) - {folder / "metrics.json"}
    of_one = json.loads(path.read_text())["val"]
    assert of_one["detections"] == of_two["detections"] > 0
    losses = {name for name in of_one["metrics"] if "loss" in name}  # means of batches, which are others
    for name in of_one["metrics"].keys() - losses:
        assert of_two["metrics"][name] == pytest.approx(of_one["metrics"][name], abs=1e-6), name
    boxes = [json.loads((run / "detections_val.json").read_text()) for run in (path.parent, folder)]
    by_image = [sorted((box["image_id"], box["score"], box["category_id"], *box["bbox"]) for box in of_run) for of_run in boxes]
    assert torch.allclose(*(torch.tensor(of_run) for of_run in by_image), atol=1e-3)


SRUN = """#!/usr/bin/env bash
# one task, on this machine
while [[ "$1" == --* ]]; do shift; done
SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >>scontrol.log
"""


@pytest.fixture
def slurm(digits):
    """A function that starts a job as Slurm does, on a machine with its programs; gives its exit status and what it prints."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
        (digits / name).write_text(program)
        (digits / name).chmod(0o755)
    config = yaml.safe_load((digits / "config.yaml").read_text())
    other = str(digits / "other")  # all that the config of an earlier run says; the job's own counts
    config["trainer"] |= {"devices": 3, "logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": other}}]}
    config |= {"ckpt_path": None, "checkpoint": {"dirpath": other}}
    (digits / "config.yaml").write_text(yaml.safe_dump(config))
    lines = ["--trainer.max_epochs=2", "--trainer.callbacks=tests.test_cluster.TimeLimit", "--trainer.log_every_n_steps=1"]

    def start(job, **more):
        of_slurm = {"SLURM_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "x"}
        found = {"PATH": f"{digits}:{os.environ['PATH']}", "PYTHON": sys.executable, "MASTER_PORT": str(free_port())}
        done = subprocess.run(
            ["bash", str(SBATCH), "--config", "config.yaml", *lines],
            cwd=digits,
            env=environment(**of_slurm, **found, **more),
            capture_output=True,
            text=True,
            timeout=600,
        )
        return done.returncode, done.stdout + done.stderr

    return start


def assert_requeued(status, out, digits):
    assert status == 143, out[-3000:]
    assert "SIGUSR1 at step 6" in out  # the step that was under way is done, and no further one
    assert (digits / "scontrol.log").read_text() == "requeue 7\n"


def test_a_slurm_job_that_reaches_its_time_limit_is_saved_and_queued_again(slurm, digits):
    assert_requeued(*slurm("7"), digits)
    assert torch.load(digits / "runs" / "7" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert all((digits / "runs" / "7" / name).is_file() for name in ("config.yaml", "metrics.csv"))
    assert not (digits / "other").exists()


@pytest.mark.slow
def test_a_slurm_job_that_reaches_its_time_limit_ends_as_one_that_does_not(slurm, digits):
    assert_requeued(*slurm("7"), digits)
    status, out = slurm("7", SLURM_RESTART_COUNT="1")
    assert status == 0, out[-3000:]
    assert (digits / "scontrol.log").read_text() == "requeue 7\n"
    status, out = slurm("8", SLURM_RESTART_COUNT="1")  # which keeps the time limit away
    assert status == 0, out[-3000:]

    parts, whole = digits / "runs" / "7", digits / "runs" / "8"
    in_parts, as_a_whole = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (parts, whole))
    assert in_parts["global_step"] == as_a_whole["global_step"] == 8
    assert as_a_whole["state_dict"].keys() == in_parts["state_dict"].keys()
    assert all(torch.equal(value, in_parts["state_dict"][name]) for name, value in as_a_whole["state_dict"].items())
    results = [json.loads((run / "metrics.json").read_text())["val"] for run in (parts, whole)]
    assert [result.pop("checkpoint") for result in results] == [str(run / "checkpoints" / "best.ckpt") for run in (parts, whole)]
    assert results[0] == results[1]
    # what was logged is in one folder, that of the first start beside that of the last; the step under way was saved, and not logged
    assert [read_history(run)["train/loss"][0].tolist() for run in (parts, whole)] == [[0, 1, 2, 3, 4, 6, 7], list(range(8))]
