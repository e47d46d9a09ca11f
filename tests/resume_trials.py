"""Trainings that are killed and started again, for test_resume: a process that imports everything once and forks one for each training.

It prints as JSON, for each variant and trial, what the weights and other states differ in from those of a training that was not killed.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from torch import nn

import lit_detect
from lit_detect import Detector
from lit_detect.cli import main
from lit_detect.data.digits import write_digits
from lit_detect.saving import RunCheckpoint
from tests.conftest import TinyBackbone

torch.set_num_threads(1)  # a thread that is running when a process forks is not there in the new one
cv2.setNumThreads(0)
getattr(lit_detect, "SSD")  # noqa: B009 - which imports what forked processes need
import lit_detect.lightning_cli  # noqa: E402


class NoisyBackbone(TinyBackbone):
    """Draws from torch, NumPy and Python in training."""

    def forward(self, images):
        maps = super().forward(images)
        if not self.training:
            return maps
        scale = 1 + 0.1 * random.random() + 0.1 * np.random.rand()
        return {name: nn.functional.dropout(value, 0.1) * scale for name, value in maps.items()}


def config(data):
    """A small training with all that has a state: dropout, augmentation, momentum, a schedule, averaged weights, early stopping."""
    model = {
        "backbone": {"class_path": "tests.resume_trials.NoisyBackbone"},
        "size": 64,
        "scales": "linear",
        "extra_channels": [16],
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01, "momentum": 0.9}},
        "lr_scheduler": {
            "class_path": "lightning.pytorch.cli.ReduceLROnPlateau",
            "init_args": {"monitor": "val/loss", "patience": 0, "factor": 0.5},
        },
        "lr_monitor": "val/loss",
    }
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}},
        {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 2}},
    ]
    splits = {
        name: {"class_path": kind, "init_args": {"image_set": name, "root": str(data)}}
        for name, kind in (("train", "DigitsVOC"), ("val", "DigitsCOCO"))
    }
    return {
        "seed_everything": 3,
        "trainer": {
            "max_epochs": 3,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 1,
            "log_every_n_steps": 1,
            "callbacks": callbacks,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs", "name": "run"}},
        },
        "model": {"class_path": "SSD", "init_args": model},
        "data": {**splits, "transforms": [{"class_path": "albumentations.ColorJitter"}], "batch_size": 2, "num_workers": 0},
        "checkpoint": {"every_n_train_steps": 5},
        "pictures": {"images": 0},
    }


def vary(found, name):
    """The training in another way: what is saved, counted and shuffled differs."""
    trainer, data, model = found["trainer"], found["data"], found["model"]["init_args"]
    if name == "workers":  # and a schedule that asks for the loader before the checkpoint is read
        data |= {"num_workers": 2, "aspect_ratio_group_factor": 3}
        model["lr_scheduler"] = {"class_path": "OneCycle"}
    if name == "accumulation":
        trainer["accumulate_grad_batches"] = 5
        found["checkpoint"]["every_n_train_steps"] = 1
    if name == "validation within epochs":
        trainer |= {"val_check_interval": 5, "limit_train_batches": 11}
    if name == "epochs":
        del found["checkpoint"]["every_n_train_steps"]
    if name == "steps":
        trainer |= {"max_epochs": -1, "max_steps": 30}
    if name == "steps and validation by steps":
        trainer |= {"max_epochs": -1, "max_steps": 30, "val_check_interval": 7, "check_val_every_n_epoch": None}
        model |= {"lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 8}}, "lr_interval": "step"}
    if name == "validation every other epoch":
        trainer |= {"check_val_every_n_epoch": 2, "max_epochs": 4}
        model["lr_scheduler"] = None
    if name == "no validation":
        data["val"], model["lr_scheduler"] = None, None
        trainer["callbacks"].pop()
    return found


def training(folder, content, arm=None):
    """Start a training, by the command that is the first and each later one; its process id."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if arm:
            arm()
        sys.argv[:] = ["lit-detect"]
        main(["fit", "--config", "config.yaml", "--ckpt_path", "last"])
        code = 0
    except SystemExit as end:
        print("exit:", end.code)
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(process):
    """Wait for a training, and end the workers it may have left; its exit status."""
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    return status


def at(owner, name, number, after=False, number_of_signal=signal.SIGKILL):
    """Kill the training at a call of a function."""

    def arm():
        calls, real = itertools.count(1), getattr(owner, name)

        def wrapped(*args, **kwargs):
            now = next(calls) == number
            if now and not after:
                os.kill(os.getpid(), number_of_signal)
            out = real(*args, **kwargs)
            if now and after:
                os.kill(os.getpid(), number_of_signal)
            return out

        setattr(owner, name, wrapped)

    return arm


def last(folder):
    """The last checkpoint that any run in a folder saved."""
    return torch.load(max(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime_ns), map_location="cpu", weights_only=True)


def differences(one, other, path=""):
    """Where two checkpoints differ, bit by bit; but for times, names of files, and the latest AP, which Lightning saves and never loads."""
    if path.endswith(("seconds", "path", "best_k_models", "TrainingTime", "current_score")):
        return []
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = {name: (one.get(name, "absent"), other.get(name, "absent")) for name in {**one, **other}}
        return [found for name, pair in keys.items() for found in differences(*pair, f"{path}/{name}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [found for index, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f"{path}/{index}")]
    return [] if one == other or (one != one and other != other) else [f"{path}: {one} {other}"]


HOOKS = {
    "in step 3": at(Detector, "training_step", 3),
    "in step 8": at(Detector, "training_step", 8),
    "in step 17": at(Detector, "training_step", 17),
    "after step 25": at(Detector, "training_step", 25, after=True),
    "in the first validation": at(Detector, "validation_step", 3),
    "in the second validation": at(Detector, "validation_step", 6),
    "before a checkpoint is written": at(RunCheckpoint, "_save_checkpoint", 3),
    "in a checkpoint": at(os, "fsync", 4),
    "in a later checkpoint": at(os, "fsync", 7),
    "after a checkpoint is written": at(RunCheckpoint, "_save_checkpoint", 6, after=True),
    "SIGTERM in a step": at(Detector, "training_step", 9, number_of_signal=signal.SIGTERM),
    "SIGTERM in a validation": at(Detector, "validation_step", 6, number_of_signal=signal.SIGTERM),
}


def trial(folder, content, name, delay):
    """A training that is killed, at a moment or at a call, then started again: exit statuses and differences."""
    process = training(folder, content, HOOKS.get(name))
    if delay is not None:
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
    statuses = [ended(process), ended(training(folder, content))]
    return {"statuses": statuses, "checkpoints": len([*folder.rglob("*.ckpt")])}


def run(folder, variant, hooks, moments):
    """All trials of a variant, two at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    data = write_digits(str(folder / "set"), {"train": 24, "val": 6})
    content = vary(config(data), variant)
    since = time.monotonic()
    status = ended(training(folder / "whole", content))
    seconds = time.monotonic() - since
    found = {"whole": {"statuses": [status, 0], "differences": []}}
    if status:
        return {"whole": {"statuses": [status, 0], "differences": [(folder / "whole" / "log.txt").read_text()[-3000:]]}}
    expected = last(folder / "whole")
    delays = random.Random(0)
    trials = [(name, None) for name in HOOKS if name in hooks or hooks == ["all"]]
    trials += [(f"moment {index}", seconds * (0.3 + 0.7 * delays.random())) for index in range(moments)]
    running = {}
    for index, (name, delay) in enumerate(trials):
        if len(running) == 2:
            os.waitpid(running.pop(next(iter(running))), 0)
        child = os.fork()
        if child == 0:
            out = trial(folder / str(index), content, name, delay)
            (folder / f"{index}.json").write_text(json.dumps(out))
            os._exit(0)
        running[name] = child
    for child in running.values():
        os.waitpid(child, 0)
    for index, (name, delay) in enumerate(trials):
        outcome = json.loads((folder / f"{index}.json").read_text())
        try:
            outcome["differences"] = differences(expected, last(folder / str(index)))
        except ValueError:  # nothing was saved
            outcome["differences"] = [(folder / str(index) / "log.txt").read_text()[-3000:]]
        found[name] = {**outcome, "delay": delay}
    return found


def another_batch_size(folder):
    """Steps of one epoch of 24 images, of which a training that is killed has saved 5 steps of 2 and goes on with 3 and with 4."""
    folder.mkdir(parents=True, exist_ok=True)
    content = config(write_digits(str(folder / "set"), {"train": 24, "val": 6}))
    content["trainer"]["max_epochs"] = 1
    steps = {}
    for size in (3, 4):
        ended(training(folder / str(size), {**content, "data": {**content["data"], "batch_size": 2}}, HOOKS["in step 8"]))
        ended(training(folder / str(size), {**content, "data": {**content["data"], "batch_size": size}}))
        found = last(folder / str(size))
        steps[size] = [found["global_step"], found["epoch"], "val/map" in found["metrics"]]
    return steps


if __name__ == "__main__":
    root, variants, hooks, moments = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(","), int(sys.argv[4])
    if variants == ["another batch size"]:
        print(json.dumps(another_batch_size(root)))
    else:
        print(json.dumps({variant: run(root / variant, variant, hooks, moments) for variant in variants}))
