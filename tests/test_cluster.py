"""Trainings that are started by something else: torchrun on several machines, and Slurm."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_detect.cli import CONFIGS, main
from lit_detect.data.digits import write_digits

ROOT = Path(__file__).parent.parent
SBATCH = ROOT / "tools" / "slurm" / "train.sbatch"


def free_port() -> int:
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


@pytest.mark.slow
def test_two_machines_by_torchrun_give_what_one_process_gives(tmp_path, monkeypatch, capsys):
    root = str(write_digits(str(tmp_path / "set"), {"train": 8, "val": 5}))  # 5 images do not divide by two
    config = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    config["trainer"] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0}
    config["model"]["init_args"]["score_threshold"] = 0.0
    config["data"]["train"]["init_args"]["root"] = config["data"]["val"]["init_args"]["root"] = root
    config["data"] |= {"num_workers": 0, "batch_size": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launch += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    fit = ["-m", "lit_detect", "fit", "--config", "config.yaml"]
    fit += ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    machines = []
    for rank in range(2):
        with (tmp_path / f"machine_{rank}.log").open("w") as log:
            line = [*launch, "--node_rank", str(rank), *fit]
            machines.append(subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        ends = [machine.wait(timeout=600) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    logs = [(tmp_path / f"machine_{rank}.log").read_text() for rank in range(2)]
    assert ends == [0, 0], logs[0][-3000:] + logs[1][-3000:]

    [folder] = tmp_path.glob("lightning_logs/*")  # both machines have one run
    of_two = json.loads((folder / "metrics.json").read_text())["val"]
    assert of_two["images"] == 5
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-detect"])
    main(["validate", "--config", "config.yaml", "--ckpt_path", str(folder / "checkpoints" / "best.ckpt")])
    [path] = set(tmp_path.glob("lightning_logs/*/metrics.json")) - {folder / "metrics.json"}
    of_one = json.loads(path.read_text())["val"]
    assert of_one["detections"] == of_two["detections"] > 0
    assert of_two["metrics"] == pytest.approx(of_one["metrics"], abs=1e-6)
