"""What a detector asks of the trainer: a precision and a strategy that fit, a learning rate for as many images; and what ranks gather."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lit_detect.errors import InputError

__all__ = ["check_trainer", "gathered", "refuse_sharding", "scale_learning_rate"]

REPLACED = {LearningRateFinder: "FindLearningRate", BatchSizeFinder: "FindBatchSize"}  # Lightning's finders, and ours


def check_trainer(trainer: Trainer) -> None:
    """Refuse what would fail later, or in a way that says nothing.

    Raises:
        InputError: a precision in which boxes cannot be told apart, a strategy that cuts the network up, batch norms over several
            processes on the CPU, a finder of Lightning's.
    """
    if trainer.precision not in ("32-true", "16-mixed", "bf16-mixed"):
        raise InputError(
            f"Expected precision 32-true, 16-mixed or bf16-mixed but got {trainer.precision}: boxes in half precision are off by "
            "pixels, and non-maximum suppression does not exist for them."
        )
    strategy = trainer.strategy
    refuse_sharding(type(strategy).__name__)
    synced = isinstance(strategy, ParallelStrategy) and strategy._layer_sync is not None
    if synced and trainer.state.fn == TrainerFn.FITTING and strategy.root_device.type == "cpu":
        raise InputError("Expected sync_batchnorm false on the CPU, where torch has no batch norms over several processes, but got true.")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if ours := REPLACED.get(type(callback)):
            raise InputError(
                f"Expected the callback {ours} of lit_detect but got Lightning's {type(callback).__name__}, after which a training starts "
                "neither from its weights nor with its own rates for parts of the network."
            )


def refuse_sharding(strategy: str) -> None:
    """Refuse a strategy that cuts the network up, by its name or its class's.

    >>> refuse_sharding("ddp_find_unused_parameters_true")

    Raises:
        InputError: it is one.
    """
    if any(name in strategy.lower().replace("_", "") for name in ("fsdp", "deepspeed", "modelparallel")):
        raise InputError(
            f"Expected a strategy that keeps the whole network on each device, such as ddp, but got {strategy}: the weights to start "
            "from and the parameter groups are those of whole layers."
        )


def scale_learning_rate(optimizer: Optimizer, trainer: Trainer | None, base_batch_size: int | None) -> None:
    """Multiply learning rates by the images of a step over those that they are meant for: Goyal et al. 2017, section 2.1.

    Args:
        optimizer: with the rates that are meant for `base_batch_size`.
        trainer: knows its devices, its data module, and how many batches it accumulates.
        base_batch_size: images, at least 1; with none nothing is done.

    Raises:
        InputError: no images, or data of which it is not known how many of them a batch has.
    """
    if base_batch_size is None:
        return
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if trainer is None or base_batch_size < 1 or batch_size is None:
        raise InputError(
            "Expected base_batch_size at least 1, and a data module whose batch_size it can be compared with, but got "
            f"base_batch_size {base_batch_size} and batch_size {batch_size}."
        )
    devices, batches = trainer.world_size, trainer.accumulate_grad_batches
    images = batch_size * devices * batches
    for group in optimizer.param_groups:
        group["lr"] *= images / base_batch_size
    rates = ", ".join(f"{rate:g}" for rate in sorted({group["lr"] for group in optimizer.param_groups}, reverse=True))
    rank_zero_info(
        f"Learning rate {rates} for {images} images a step ({devices} devices with {batches} batches of {batch_size}), which is "
        f"{images / base_batch_size:g} times that for {base_batch_size}."
    )


def gathered(items: list[Any]) -> list[Any]:
    """The items of all ranks in the order of ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items
    parts: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
