"""Processes that load data, as they begin."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import cv2

__all__ = ["start_worker"]


def start_worker(worker: int) -> None:
    """Give a worker one thread, since it has one core, and let none but its parent end it.

    Slurm and others send their signals to all processes of a job. If its workers were gone at once, a training would fail before the
    end of the step at which it saves itself. Signals from the parent end a worker as ever, and so does the parent's end.
    """
    cv2.setNumThreads(0)  # OpenCV would start a thread for each core
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for the threads that begin from here on too
        parent = multiprocessing.parent_process()  # which a server between the two may have started for it
        threading.Thread(target=end_with_parent, args=(parent.pid if parent else os.getppid(),), daemon=True).start()


def end_with_parent(parent: int) -> None:
    """Wait for a SIGTERM of the parent's, and end."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
