"""How a training saves itself, so that it goes on from where it was whenever it is stopped."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from lit_detect.errors import InputError, Stopped
from lit_detect.sigterm import Sigterm

__all__ = ["RunCheckpoint", "WholeFiles"]


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that are there as a whole or not at all.

    Each is written beside its place, as ``last.ckpt.part``, to the disk, and then renamed. Lightning's own way writes to the folder of
    temporary files, and where that is another disk the last copy of a training is half written for a while.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if not _is_local_file_protocol(str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        part = target.with_name(f"{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk as a RuntimeError
            part.unlink(missing_ok=True)
            cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__
            reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
            kept = "what was saved there before is whole" if target.exists() else "nothing was saved there before"
            raise InputError(f"Expected to save the training as {target} but could not write it: {reason}; {kept}.") from error


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint` with a ``last.ckpt`` from which a training goes on as if it had not been stopped.

    What is best is saved after a validation. The last state is saved at the end of each epoch, before and after each validation, every
    `every_n_train_steps` optimizer steps or `train_time_interval`, and at SIGTERM, which then ends the training. Lightning saves
    a last checkpoint where there is a new best one, and none within an epoch before the monitored metric is there; and from one within
    an epoch, or of a training whose length is given in steps, it does not go on as it would have.
    """

    _validation_is_due = False
    _metrics: Mapping[str, torch.Tensor] = MappingProxyType({})

    @cached_property
    def _sigterm(self) -> Sigterm:
        return Sigterm()

    @property
    def state_key(self) -> str:  # that of any interval, since a training may go on with another one
        return f"{type(self).__qualname__}{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}}}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        own = str(trainer.ckpt_path)
        first = trainer.strategy.broadcast(own)
        if not trainer.strategy.reduce_boolean_decision(own == first):
            raise InputError(f"Expected the same checkpoint on all ranks but this one found {own} and the first {first}: give its path.")

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sigterm.listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._sigterm.listen(trainer)
        trainer.callback_metrics.update(self._metrics)
        validated: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        validated.ready = validated.started = validated.processed  # what said that a validation is due is read by now
        progress: Any = trainer.fit_loop.epoch_progress.current
        if progress.started == progress.processed:  # a new epoch: Lightning would go on in one that is over, if it is given max_steps
            trainer.fit_loop.epoch_loop.restarting = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # what is saved at the end of the epoch, and what would lose gradients
        stops = self._sigterm.came(trainer)
        if stops or self._is_due(trainer):
            self._save_before_validation(trainer)
        if stops:
            self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sigterm.listen(trainer)
        if self._saves(trainer):
            self._save_before_validation(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if self._saves(trainer) and self._sigterm.came(trainer):
            self._stop(trainer)  # it is saved as it was before the validation

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sigterm.listen(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sigterm.listen(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saves(trainer) and not self._should_save_on_train_epoch_end(trainer):
            self._save_best_and_last(trainer, best=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saves(trainer):
            self._save_best_and_last(trainer, best=self._should_save_on_train_epoch_end(trainer))
        if self._sigterm.came(trainer):
            self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Stopped):
            super().on_exception(trainer, pl_module, exception)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["metrics"] = {name: value.detach().cpu().clone() for name, value in trainer.callback_metrics.items()}
        checkpoint["stopped_early"] = trainer.should_stop and any(
            callback.stopped_epoch == trainer.current_epoch for callback in trainer.early_stopping_callbacks
        )
        if self._validation_is_due:  # as one that has begun and has nothing done, which Lightning runs when it goes on
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"] |= dict.fromkeys(("ready", "started"), progress["total"]["processed"] + 1)
            progress["total"]["completed"] = progress["total"]["processed"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._metrics = checkpoint.get("metrics", {})
        trainer.should_stop = checkpoint.get("stopped_early", False)
        self._count_anew(trainer, checkpoint)
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        if progress["current"]["started"] == progress["current"]["processed"]:  # saved at the end of an epoch, which is over then
            for counts in progress.values():
                counts["completed"] = counts["processed"]

    def _count_anew(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Count the batches of the epoch in batches of now, where their size or the number of ranks was another one."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        taken = checkpoint.get(type(data).__qualname__, {}).get("taken")
        if taken:
            batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
            more = math.ceil(taken / (data.batch_size * trainer.world_size)) - batches["processed"]
            batches |= {name: count + more for name, count in batches.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The best checkpoints so far, which may be found by another path than before: a link, a folder that was moved."""
        state = dict(state_dict)
        moved = {path: os.path.join(str(self.dirpath), os.path.basename(path)) for path in state["best_k_models"]}
        if all(os.path.isfile(path) for path in moved.values()):
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[name] = state[name] and os.path.join(str(self.dirpath), os.path.basename(state[name]))
            state["best_k_models"] = {moved[path]: score for path, score in state["best_k_models"].items()}
            state["dirpath"] = self.dirpath
        super().load_state_dict(state)

    def _saves(self, trainer: Trainer) -> bool:
        return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not getattr(trainer, "fast_dev_run", False)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether the last state is to be saved within an epoch."""
        if not self._saves(trainer) or self._last_global_step_saved == trainer.global_step:
            return False
        due = self._every_n_train_steps > 0 and trainer.global_step % self._every_n_train_steps == 0
        if self._train_time_interval is not None:
            now = time.monotonic()
            passed = self._last_time_checked is None or now - self._last_time_checked >= self._train_time_interval.total_seconds()
            if trainer.strategy.broadcast(passed):  # the first rank's clock counts
                self._last_time_checked, due = now, True
        return due

    def _save_last(self, trainer: Trainer) -> None:
        candidates = self._monitor_candidates(trainer)
        if self.monitor is None:
            self._save_topk_checkpoint(trainer, candidates)
        if self.save_last is True:
            self._save_last_checkpoint(trainer, candidates)

    def _save_before_validation(self, trainer: Trainer) -> None:
        """Save the last state, with a validation that may be due not yet run."""
        self._validation_is_due = True
        try:
            self._save_last(trainer)
        finally:
            self._validation_is_due = False

    def _save_best_and_last(self, trainer: Trainer, best: bool) -> None:
        if self.monitor is not None and best and (self._every_n_epochs < 1 or (trainer.current_epoch + 1) % self._every_n_epochs == 0):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        self._save_last(trainer)
        if self.save_last == "link" and self._last_checkpoint_saved:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _stop(self, trainer: Trainer) -> None:
        self._sigterm.stop(trainer, self.last_model_path or self.best_model_path)
