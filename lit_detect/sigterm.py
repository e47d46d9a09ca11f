"""SIGTERM, by which clusters take a machine back, and Slurm's warning: noted when they come, acted upon where all ranks can agree."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer

from lit_detect.errors import Stopped

__all__ = ["Sigterm"]


class Sigterm:
    """Whether SIGTERM came to any rank, or SIGUSR1 in a job of Slurm, which is then queued again.

    Lightning's own handlers send messages among the ranks whatever they are about, in the midst of the messages of a step, and
    stop a training where its last gradients would be lost, or save it where a step is half done, which is then done twice.
    """

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._came = self._agreed = 0  # to this rank and to any: 1 for SIGTERM, 2 for Slurm's
        self._group: Any = None

    def listen(self, trainer: Trainer) -> None:
        """Take the signals from Lightning's handlers, which Lightning installs for each run and takes away after it."""
        self._trainer = trainer
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, self._handle)
        # Lightning takes SIGUSR1 only in a job of Slurm that it is to queue again; a handler of the user's is left alone
        if hasattr(signal, "SIGUSR1") and type(signal.getsignal(signal.SIGUSR1)).__module__.startswith("lightning."):
            signal.signal(signal.SIGUSR1, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self._came = not self._came, max(self._came, 1 if number == signal.SIGTERM else 2)
        launcher = self._trainer.strategy.launcher if self._trainer is not None else None
        if first and launcher is not None:
            launcher.kill(signal.SIGTERM)  # ranks that Lightning started are told too
        if self._trainer is None or self._trainer.state.fn == "fit":
            return
        if number == signal.SIGTERM:
            raise Stopped("SIGTERM.")
        if self._trainer.is_global_zero:  # the others are ended with it
            raise Stopped(f"SIGUSR1; {requeue()}.")

    def stop(self, trainer: Trainer, saved: str) -> None:
        """End a training for the signal that came; to be called on all ranks, after it is saved.

        Raises:
            Stopped: always.
        """
        if self._agreed < 2:
            raise Stopped(f"SIGTERM at step {trainer.global_step}: saved as {saved}.")
        said = requeue() if trainer.is_global_zero else "the first rank has the job queued again"
        trainer.strategy.barrier()  # a rank that ends earlier could have Slurm end the first before it has asked
        raise Stopped(f"SIGUSR1 at step {trainer.global_step}: saved as {saved}; {said}.")

    def came(self, trainer: Trainer) -> bool:
        """Whether one came to any rank; to be asked on all ranks at the same place.

        The ranks agree on the CPU, so that a GPU is not waited for.
        """
        if trainer.world_size == 1:
            self._agreed = self._came
            return bool(self._agreed)
        if self._group is None:
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        flag = torch.tensor(self._came)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        self._agreed = int(flag)
        return bool(self._agreed)


def requeue() -> str:
    """Have Slurm end this job, and start it again under its number when its turn comes; what came of it, in words."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    # no shell, and a number that Slurm gave; scontrol is found as Slurm's other commands are
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return f"job {job} is queued again" if done.returncode == 0 else f"job {job} could not be queued again: {done.stderr.strip()}"
