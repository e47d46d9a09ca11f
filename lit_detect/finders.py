"""Lightning's finders of a learning rate and of a batch size, for detectors."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch.optim import Optimizer

from lit_detect.callbacks import run_folder
from lit_detect.errors import InputError
from lit_detect.schedules import rate_shares

__all__ = ["FindBatchSize", "FindLearningRate"]

SKIPPED = 10  # first losses, whose running mean is of few steps; Lightning leaves out as many


class FindLearningRate(LearningRateFinder):
    """Find a learning rate by Lightning's range test before a training starts, and train with it.

    The rate rises from step to step, and that is taken at which the running mean of the loss falls fastest (Smith 2017, section 3.3). It
    is the highest rate of the optimizer, as the schedule's peak; parameter groups keep their factors, in the test too. It is printed and
    drawn (``learning_rate.png`` in the run's folder). Then the training starts as if there had been no test. One that goes on from a
    checkpoint has its rate from there.

    Args:
        min_lr: the first rate, above 0.
        max_lr: the last one.
        num_training_steps: steps of the test, more than 12.
        early_stop_threshold: end the test where the loss is so many times its least value; none for never.

    Raises:
        InputError: too few steps, rates that do not rise, or a loss that falls nowhere.
    """

    def __init__(
        self, min_lr: float = 1e-5, max_lr: float = 1.0, num_training_steps: int = 100, early_stop_threshold: float | None = 4.0
    ) -> None:
        if num_training_steps < SKIPPED + 3 or not 0 < min_lr < max_lr:
            raise InputError(
                f"Expected a test of at least {SKIPPED + 3} steps and 0 < min_lr < max_lr but got {num_training_steps} steps, "
                f"{min_lr} and {max_lr}."
            )
        super().__init__(min_lr, max_lr, num_training_steps, early_stop_threshold=early_stop_threshold, update_attr=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(later, FindBatchSize) for later in callbacks[callbacks.index(self) :]):
            raise InputError("Expected FindBatchSize before FindLearningRate, since a learning rate is that of a batch size.")

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is not None:
            return
        with trial(trainer, pl_module):
            hooks = keep_factors(trainer.optimizers[0])
            self.lr_find(trainer, pl_module)
            for hook in hooks:
                hook.remove()
        if self.optimal_lr is None:  # fast_dev_run
            return
        losses = self.optimal_lr.results["loss"]
        rates = self.optimal_lr.results["lr"][: len(losses)]
        found = pl_module.found_lr = steepest(rates, losses)
        trainer.strategy.setup_optimizers(trainer)
        path = run_folder(trainer) / "learning_rate.png"
        if trainer.is_global_zero:
            draw(path, rates, losses, found)
            print(f"learning rate: {found:.3g}, where the loss falls fastest in {len(losses)} steps up to {rates[-1]:.3g}: {path}")


class FindBatchSize(BatchSizeFinder):
    """Find the largest batch size that memory holds before a training starts, by Lightning's trials, and train with it.

    The size doubles from 2 on as long as some steps succeed. The learning rate follows where the detector has a `base_batch_size`. One
    that goes on from a checkpoint has its batch size from there. On one device only.

    Args:
        max_batch_size: no more than this, nor than there are images; memory is not the only bound, since few steps an epoch learn little.
        steps_per_trial: with each size.

    Raises:
        InputError: a size under 2.
    """

    def __init__(self, max_batch_size: int = 64, steps_per_trial: int = 3) -> None:
        if max_batch_size < 2 or steps_per_trial < 1:
            raise InputError(f"Expected max_batch_size from 2 and steps_per_trial from 1 but got {max_batch_size} and {steps_per_trial}.")
        super().__init__("power", steps_per_trial)
        self.max_batch_size = max_batch_size
        self.found: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is not None or getattr(trainer, "fast_dev_run", False):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        most = min(self.max_batch_size, len(data.feeds["train"]))
        # the number of trials is the bound: Lightning takes its own bound of the size without a trial
        self._max_trials = max(1, int(math.log2(most)))
        with trial(trainer, pl_module):
            self.scale_batch_size(trainer, pl_module)
        self.found = data.batch_size
        trainer.strategy.setup_optimizers(trainer)  # for as many steps as there are now
        if trainer.is_global_zero:
            print(f"batch size: {self.found}, the largest power of 2 that memory holds, of those up to {most}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the size is that of training. Likewise in a test and a prediction."""

    on_test_start = on_predict_start = on_validation_start

    def state_dict(self) -> dict[str, Any]:
        return {"batch_size": self.found}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        found = checkpoint["callbacks"].get(self.state_key, {}).get("batch_size")
        if found is not None:  # now, since a schedule may ask for the loader next
            self.found = trainer.datamodule.batch_size = found  # type: ignore[attr-defined]


@contextmanager
def trial(trainer: Trainer, detector: Any) -> Iterator[None]:
    """Steps before a training, with the weights that it starts from: as many as are wanted, without a schedule.

    Epochs end without validation. Lightning puts back weights and counts; the optimizers are to be made anew.
    """
    detector.on_fit_start()  # Lightning asks the callbacks first, and what it puts back it would put back over the weights to start from
    loop, strategy = trainer.fit_loop, trainer.strategy
    before = trainer.check_val_every_n_epoch, loop.max_epochs
    loop.max_epochs = -1
    if trainer.check_val_every_n_epoch is not None:  # else validation goes by steps
        trainer.check_val_every_n_epoch = sys.maxsize
    strategy.lr_scheduler_configs = []
    try:
        yield
    finally:
        trainer.check_val_every_n_epoch, loop.max_epochs = before
        loop._restarting = False  # its setter says True of a training whose length is in steps
        loop.epoch_loop.restarting = False
        trainer.ckpt_path = None  # not the file that the trial was put back from


def keep_factors(optimizer: Optimizer) -> list[Any]:
    """Let each parameter group take a step with its share of the rate, which the range test sets alike for all; hooks to remove."""
    shares = rate_shares(optimizer)

    def multiply(optimizer: Optimizer, *_: Any) -> None:
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] *= share

    def divide(optimizer: Optimizer, *_: Any) -> None:
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] /= share

    return [optimizer.register_step_pre_hook(multiply), optimizer.register_step_post_hook(divide)]


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls fastest, over the logarithm of the rate.

    Lightning's own suggestion is where it falls fastest over the rate itself, of which there is the least where rates are smallest.

    Raises:
        InputError: it falls nowhere.

    >>> steepest([10.0**power for power in range(-20, 0)], [5.0] * 14 + [4.9, 2.0, 1.0, 1.1, 9.0, 50.0])
    1e-05
    """
    points = np.array([[rate, loss] for rate, loss in zip(rates, losses, strict=True)][SKIPPED:-1])
    points = points[np.isfinite(points).all(axis=1)] if len(points) else points
    if len(points) < 2 or np.diff(points[:, 1]).min() >= 0:
        raise InputError(
            f"Expected a loss that falls somewhere in {len(losses)} steps with learning rates from {rates[0]:g} to {rates[-1]:g} but it "
            "does not: give FindLearningRate other bounds, or more num_training_steps."
        )
    return float(points[np.gradient(points[:, 1], np.log(points[:, 0])).argmin(), 0])


def draw(path: Path, rates: Sequence[float], losses: Sequence[float], found: float) -> None:
    """The loss against the rate, and what was found."""
    from matplotlib.figure import Figure  # not on top: most trainings draw no curve

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(rates, losses, color="#0072b2")
    axis.axvline(found, color="#d55e00", linestyle="--", label=f"{found:.3g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss, running mean")
    axis.legend(title="falls fastest", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
