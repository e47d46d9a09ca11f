"""Processes that load data: signals to all processes of a job leave them at work."""

import subprocess
import sys
import time

import pytest
from torch.utils.data import DataLoader

from lit_detect.data.workers import start_worker


class Slow:
    def __len__(self):
        return 12

    def __getitem__(self, index):
        time.sleep(0.05)
        return index


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who sent a signal")
def test_a_worker_goes_on_when_slurm_signals_it_and_ends_when_its_parent_does():
    loader = DataLoader(Slow(), batch_size=1, num_workers=2, worker_init_fn=start_worker, collate_fn=list, persistent_workers=True)
    batches = iter(loader)
    assert next(batches) == [0]
    workers = batches._workers
    for name in ("TERM", "USR1"):  # by another process, as Slurm's
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    assert [index for [index] in batches] == list(range(1, 12))
    assert all(worker.is_alive() for worker in workers)
    for worker in workers:
        worker.terminate()
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
