"""What is done about a loss or a gradient that is not finite: found before it is learnt, saved to be looked into, stopped at or skipped."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lit_detect.callbacks import run_folder
from lit_detect.errors import InputError
from lit_detect.ranks import gathered
from lit_detect.replay import explain
from lit_detect.seeds import run_seed

__all__ = ["NonFinite"]

log = logging.getLogger(__name__)

MOST_IN_A_ROW = 10  # steps skipped one after the other: then it is not the images


class NonFinite(Callback):
    """Find a loss or a gradient that is NaN or infinite before it is learnt.

    The batch and the weights from before the step are saved in ``nonfinite/`` in the run's folder, where ``lit-detect replay`` finds
    them. Gradients are the same on all ranks, so all see it at once. Infinite gradients alone are ordinary in ``16-mixed``, whose
    scaler leaves the step out.

    Args:
        on_nonfinite: ``stop`` the training, or ``skip`` the step, and count it in the log as ``train/nonfinite_steps``.
    """

    def __init__(self, on_nonfinite: Literal["stop", "skip"] = "stop") -> None:
        self.on_nonfinite = on_nonfinite
        self.skipped, self.in_a_row = 0, 0
        self.batches: list[tuple[int, Any]] = []  # those since the last step, with their numbers
        self.losses: list[Tensor] = []  # theirs
        self.buffers: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0 or not self.batches:
            self.batches.clear()
            self.losses.clear()
            self._keep_buffers(pl_module)
        self.batches.append((batch_idx, batch))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.losses.append(loss.detach())

    def _keep_buffers(self, pl_module: LightningModule) -> None:
        """Remember what a forward pass changes by itself: statistics of normalisation."""
        buffers = [*pl_module.buffers()]
        if [buffer.shape for buffer in self.buffers] != [buffer.shape for buffer in buffers]:
            self.buffers = [buffer.clone() for buffer in buffers]
        elif buffers:
            torch._foreach_copy_(self.buffers, buffers)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        norms = torch._foreach_norm([parameter.grad for parameter in parameters])
        if bool(torch.stack([norm.float() for norm in norms]).sum().isfinite()):  # the one wait for a GPU
            self.in_a_row = 0
            return
        if getattr(trainer.precision_plugin, "scaler", None) is not None and not self._loss_is_wrong(trainer):
            return
        for buffer, kept in zip(pl_module.buffers(), self.buffers, strict=True):
            buffer.copy_(kept)
        report = self._save(trainer, pl_module)
        self.in_a_row += 1
        if self.on_nonfinite == "stop" or self.in_a_row > MOST_IN_A_ROW:
            raise InputError(f"{report}; --faults.on_nonfinite skip leaves such steps out.")
        self.skipped += 1
        if trainer.is_global_zero:
            log.warning("Skipped: %s", report)
        for parameter in parameters:
            parameter.grad = None  # which optimizers leave alone

    def _loss_is_wrong(self, trainer: Trainer) -> bool:
        wrong = not all(bool(loss.isfinite()) for loss in self.losses)
        return bool(trainer.strategy.reduce_boolean_decision(wrong, all=False))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.skipped:
            pl_module.log("train/nonfinite_steps", float(self.skipped), batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches.clear()
        self.losses.clear()
        if self.skipped and trainer.is_global_zero:
            log.warning("%d steps were skipped, since a loss or a gradient was not finite.", self.skipped)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Save what is needed to see it again, and say in one sentence what it is."""
        folder = run_folder(trainer) / "nonfinite"
        trainer.save_checkpoint(folder / "weights.ckpt", weights_only=True)
        folder.mkdir(parents=True, exist_ok=True)  # on each machine, which may have a disk of its own
        found = [explain(pl_module, self._saved(trainer, number, batch)) for number, batch in self.batches]
        wrong = next((one for one in found if one["wrong"]), found[-1])
        torch.save(wrong, folder / (f"batch_{trainer.global_rank}.pt" if trainer.world_size > 1 else "batch.pt"))
        what = " and ".join(gathered([wrong["sentence"]] if wrong["wrong"] else [])) or wrong["sentence"]
        where = f"saved in {folder}, which `lit-detect replay --folder` takes"
        return f"Expected finite losses and gradients but at step {trainer.global_step} {what}: {where}"

    def _saved(self, trainer: Trainer, number: int, batch: Any) -> dict[str, Any]:
        """A batch as it is saved, of plain data."""
        images, targets = batch
        on_cpu = images.cpu() if isinstance(images, Tensor) else [image.cpu() for image in images]
        data: Any = getattr(trainer, "datamodule", None)
        names = data.file_names(number) if hasattr(data, "file_names") else []
        return {
            "images": on_cpu,
            "targets": [{name: value.cpu() for name, value in target.items()} for target in targets],
            "file_names": names or [f"image {int(target.get('image_id', index))}" for index, target in enumerate(targets)],
            "seed": run_seed() or 0,
            "epoch": trainer.current_epoch,
            "batch": number,
            "rank": trainer.global_rank,
            "step": trainer.global_step,
            "precision": str(trainer.precision),
        }
