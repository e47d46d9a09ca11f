"""SIGTERM, by which clusters take a machine back: noted when it comes, acted upon where all ranks can agree."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer

from lit_detect.errors import Stopped

__all__ = ["Sigterm"]


class Sigterm:
    """Whether SIGTERM came to any rank.

    Lightning's own handler sends a message among the ranks whatever they are about, in the midst of the messages of a step, and
    stops a training where its last gradients would be lost.
    """

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._came = False
        self._group: Any = None

    def listen(self, trainer: Trainer) -> None:
        """Take SIGTERM from Lightning's handler, which Lightning installs for each run and takes away after it."""
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self._came = not self._came, True
        launcher = self._trainer.strategy.launcher if self._trainer is not None else None
        if first and launcher is not None:
            launcher.kill(signal.SIGTERM)  # ranks that Lightning started are told too
        if self._trainer is not None and not self._trainer.state.fn == "fit":
            raise Stopped("SIGTERM.")

    def came(self, trainer: Trainer) -> bool:
        """Whether it came to any rank; to be asked on all ranks at the same place.

        The ranks agree on the CPU, so that a GPU is not waited for.
        """
        if trainer.world_size == 1:
            return self._came
        if self._group is None:
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        flag = torch.tensor(int(self._came))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag)
