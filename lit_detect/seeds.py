"""Random numbers of a training step: a function of the seed and the step, and of nothing that was drawn before."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

__all__ = ["run_seed", "seed_step"]


def run_seed() -> int | None:
    """The run's seed, which `seed_everything` leaves in the environment for all ranks; none where it was not called."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return None if seed is None else int(seed)


def seed_step(seed: int, epoch: int, batch: int, rank: int) -> None:
    """Seed torch, NumPy and Python for what a step draws, such as dropout and the sampling of proposals.

    Args:
        seed: the run's.
        epoch: from 0.
        batch: of the epoch, from 0.
        rank: each draws its own.
    """
    words = np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(3, np.uint64)
    torch.manual_seed(int(words[0]) >> 1)  # of 63 bits
    np.random.seed(int(words[1]) >> 32)
    random.seed(int(words[2]))
