"""Learning-rate schedules: those that a detector is given, as Lightning takes them, and what torch's and Lightning's do not give."""

from __future__ import annotations

import logging
import math
import sys
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from lit_detect.errors import InputError

if TYPE_CHECKING:
    from lit_detect.detector import Detector

__all__ = ["OneCycle", "rate_shares", "schedulers", "set_highest_rate", "step_plateaus"]

log = logging.getLogger(__name__)
NEVER = sys.maxsize  # the frequency of schedulers that Lightning is not to step


class OneCycle:
    """One-cycle policy over the whole run (Smith and Topin 2018), by torch's `OneCycleLR`, stepped after every batch.

    Each parameter group peaks at the learning rate that the optimizer gives it. Like torch's, it also cycles the momentum (or Adam's
    first beta) between .85 and .95, whatever the optimizer was given, unless told not to.

    Args:
        pct_start: share of the steps in which the rate rises, 0..1.
        div_factor: the first rate is the peak divided by this.
        final_div_factor: the last rate is the first divided by this.
        cycle_momentum: cycle the momentum against the rate.
    """

    def __init__(
        self, pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4, cycle_momentum: bool = True
    ) -> None:
        self.pct_start, self.div_factor, self.final_div_factor = pct_start, div_factor, final_div_factor
        self.cycle_momentum = cycle_momentum

    def __call__(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """The scheduler for an optimizer and the number of its steps in the run."""
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OfThisLength(optimizer, max_lr=peaks, total_steps=total_steps, **vars(self))


class OfThisLength(OneCycleLR):
    """A cycle over this training, also where it goes on with one that was to be shorter or longer: torch's would end as that one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        planned = state_dict["total_steps"]
        if planned != self.total_steps:
            log.info("OneCycle goes on at step %d of %d, which were to be %d.", state_dict["last_epoch"], self.total_steps, planned)
        super().load_state_dict({**state_dict, "total_steps": self.total_steps, "_schedule_phases": self._schedule_phases})

    def step(self, epoch: int | None = None) -> None:
        """The next rate; the last one stays, should there be more steps, as of an epoch that goes on in batches of another size."""
        if self.last_epoch < self.total_steps - 1:
            super().step()
        else:
            self.last_epoch += 1


def rate_shares(optimizer: Optimizer) -> list[float]:
    """The learning rate of each parameter group over the highest."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return [rate / max(rates) for rate in rates]


def set_highest_rate(optimizer: Optimizer, rate: float) -> None:
    """Make this the highest learning rate, of which each parameter group keeps its share."""
    for group, share in zip(optimizer.param_groups, rate_shares(optimizer), strict=True):
        group["lr"] = rate * share


def schedulers(detector: Detector, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The schedulers that a detector was asked for, as Lightning takes them.

    Raises:
        InputError: a `ReduceLROnPlateau` that waits for AP to fall or steps within epochs, or a warm-up before `OneCycle`, or that in a
            training without end.
    """
    asked, found = detector.lr_scheduler, list[dict[str, Any]]()
    if isinstance(asked, OneCycle):
        if detector.warmup_steps:
            raise InputError(f"Expected warmup_steps 0 with OneCycle, which warms up in its pct_start, but got {detector.warmup_steps}.")
        steps = detector.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise InputError(
                f"Expected max_epochs or max_steps with OneCycle, which needs the length of the training, but got {steps} steps."
            )
        found.append({"scheduler": asked(optimizer, int(steps)), "interval": "step"})
    elif asked is not None:
        scheduler = asked(optimizer)
        entry: dict[str, Any] = {"scheduler": scheduler, "interval": detector.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            monitor = getattr(scheduler, "monitor", None) or detector.lr_monitor  # Lightning's has its own
            check_plateau(scheduler, monitor, detector)
            entry |= {"monitor": monitor, "frequency": NEVER}  # see `step_plateaus`
        found.append(entry)
    if detector.warmup_steps:
        # LinearLR multiplies whatever rate there is, so it goes with any other scheduler that does
        warmup = LinearLR(optimizer, start_factor=detector.warmup_start, total_iters=detector.warmup_steps)
        found.append({"scheduler": warmup, "interval": "step"})
    return found


def check_plateau(scheduler: ReduceLROnPlateau, monitor: str, detector: Detector) -> None:
    """Refuse what would never lower the rate, or always."""
    if scheduler.mode == "min" and "loss" not in monitor:
        raise InputError(f"Expected ReduceLROnPlateau with mode: max for {monitor}, which grows, but got mode: min.")
    if detector.lr_interval != "epoch":
        raise InputError(f"Expected lr_interval: epoch with ReduceLROnPlateau, which counts epochs, but got {detector.lr_interval}.")
    if monitor.startswith("val/") and getattr(detector._trainer, "check_val_every_n_epoch", 1) is None:
        raise InputError(
            f"Expected check_val_every_n_epoch as a number with ReduceLROnPlateau on {monitor}, so that the epochs that it counts validate."
        )


def step_plateaus(trainer: Trainer) -> None:
    """Tell each `ReduceLROnPlateau` what it watches, at the end of an epoch: the mean over ranks, so that all go on alike.

    Lightning does it once the epoch's checkpoint is saved, and not in an epoch that a training goes on in: what was seen would be lost.

    Raises:
        InputError: what it watches was not logged.
    """
    every = trainer.check_val_every_n_epoch or 1
    waits = (trainer.current_epoch + 1) % every > 0
    if trainer.enable_validation and not any(name.startswith("val/") for name in trainer.callback_metrics):
        waits = True  # max_steps ended the first epoch before its validation
    for config in trainer.lr_scheduler_configs:
        monitor = str(config.monitor)
        if not config.reduce_on_plateau or config.frequency != NEVER or (waits and monitor.startswith("val/")):
            continue
        value = trainer.callback_metrics.get(monitor)
        if value is None:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise InputError(f"Expected {monitor}, which ReduceLROnPlateau watches, but what was logged is {logged}.")
        mean = trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="mean")
        config.scheduler.step(float(mean))  # type: ignore[arg-type]
