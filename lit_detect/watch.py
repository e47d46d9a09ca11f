"""Ranks that watch each other, so that none waits for one that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["RankWatch"]

GRACE = 5.0  # seconds in which a rank may end by itself, as it does where it meets the same error


class RankWatch(Callback):
    """End all ranks of a machine when one of them ends before its time: with status 1, a reason, and within ten seconds.

    It is about ranks that Lightning started; torchrun and Slurm (``srun --kill-on-bad-exit``) look after those they start. Lightning's
    own watch kills the first rank, whatever it is about to say, and nobody watches the first.
    """

    def __init__(self) -> None:
        self._watching = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        launcher: Any = trainer.strategy.launcher
        if self._watching or trainer.world_size == 1 or not hasattr(launcher, "procs"):
            return
        self._watching = True
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":
                thread._child_processes = []  # type: ignore[attr-defined]  # Lightning's, which ends when there is none
        for rank, process in enumerate(launcher.procs, start=trainer.global_rank + 1):
            threading.Thread(target=self._await, args=(rank, process, launcher.procs), daemon=True).start()
        if trainer.local_rank > 0 and not trainer.strategy.cluster_environment.creates_processes_externally:  # type: ignore[attr-defined]
            threading.Thread(target=self._await_parent, args=(os.getppid(),), daemon=True).start()

    def _await(self, rank: int, process: subprocess.Popen[bytes], everyone: list[subprocess.Popen[bytes]]) -> None:
        status = process.wait()
        if status == 0:
            return
        if status > 0:
            time.sleep(GRACE)
        for other in everyone:
            if other.poll() is None:
                other.kill()
        leave(f"rank {rank} ended {in_words(status)}")

    def _await_parent(self, parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(GRACE)
        leave("the first rank of this machine ended")


def in_words(status: int) -> str:
    """How a process ended.

    >>> in_words(-9)
    'by signal 9 (SIGKILL, as at the want of memory)'
    >>> in_words(1)
    'with status 1'
    """
    if status >= 0:
        return f"with status {status}"
    hint = ", as at the want of memory" if -status == signal.SIGKILL else ""
    return f"by signal {-status} ({signal.Signals(-status).name}{hint})"


def leave(reason: str) -> None:
    """End this process, whatever its main thread waits for."""
    print(f"lit-detect: error: {reason}, so all end; --ckpt_path last goes on from the last checkpoint.", file=sys.stderr, flush=True)
    os._exit(1)
