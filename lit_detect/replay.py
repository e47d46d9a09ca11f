"""The verb replay: a batch that gave a loss or a gradient that is not finite, seen again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_detect.boxes import without_crowd
from lit_detect.cost import DTYPES
from lit_detect.detector import Detector
from lit_detect.errors import InputError
from lit_detect.models.weights import read_plain
from lit_detect.seeds import seed_step

__all__ = ["explain", "replay"]


def replay(folder: str, device: str = "cpu") -> None:
    """Run a training step again whose losses or gradients were not finite, image by image too.

    Args:
        folder: a run's ``nonfinite``, with ``weights.ckpt`` and ``batch.pt``, or a batch of each rank.
        device: where to run it: ``cpu``, ``cuda``.

    Raises:
        InputError: the files are not there.
    """
    batches = sorted(Path(folder).glob("batch*.pt"))
    if not batches:
        raise InputError(f"Expected batch.pt in {folder} but there is none.")
    detector = Detector.load_from_checkpoint(Path(folder) / "weights.ckpt", map_location=device).train()
    for path in batches:
        saved = read_plain(path, f"a batch as plain data but {path}")
        found = explain(detector, saved)
        print(f"{path}: step {saved['step']}, epoch {saved['epoch']}, batch {saved['batch']}, rank {saved['rank']}")
        for name, value in found["losses"].items():
            print(f"  {name}: {value}")
        for name, losses in found["by_image"].items():
            print(f"  {name}: {', '.join(f'{loss} {value:.4g}' for loss, value in losses.items())}")
        print(f"  {found['sentence']}")


def explain(detector: nn.Module, saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a batch gives: its losses, those of each image alone, whether any or a gradient is not finite, and a sentence.

    An image alone is normalised by the running statistics of batch norm, since of one value there is no variance.

    Parameters and buffers stay as they are.

    Args:
        detector: in training mode, on any device.
        saved: images, targets, file names, and what the step's random numbers come from.

    Returns:
        All that was saved, with ``losses``, ``by_image``, ``wrong`` and ``sentence``.
    """
    images, targets, names = saved["images"], saved["targets"], list(saved["file_names"])
    kept = [buffer.clone() for buffer in detector.buffers()]
    with torch.enable_grad():
        of_batch = losses_of(detector, images, targets, saved)
        parameters = {name: value for name, value in detector.named_parameters() if value.requires_grad}
        found = torch.autograd.grad(torch.stack(list(of_batch.values())).sum(), list(parameters.values()), allow_unused=True)
    losses = {name: float(value.detach()) for name, value in of_batch.items()}
    gradients = [name for name, one in zip(parameters, found, strict=True) if one is not None and not one.isfinite().all()]
    for buffer, value in zip(detector.buffers(), kept, strict=True):
        buffer.copy_(value)
    norms = [module for module in detector.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.eval()
    by_image = {}
    for index, name in enumerate(names[: len(targets)]):
        with torch.no_grad():  # which leaves other ranks out
            alone = losses_of(detector, images[index : index + 1], targets[index : index + 1], saved)
        by_image[name] = {loss: float(value) for loss, value in alone.items()}
    for norm in norms:
        norm.train()
    wrong = [name for name, value in losses.items() if not torch.tensor(value).isfinite()]
    culprits = [name for name, own in by_image.items() if not torch.tensor(list(own.values())).isfinite().all()]
    if wrong:
        what = " and ".join(f"{name} was {losses[name]}" for name in wrong)
    else:
        what = "the losses were finite and " + (f"the gradient of {gradients[0]} was not" if gradients else "so were the gradients, now")
    which = f", which {', '.join(culprits)} {'give' if len(culprits) > 1 else 'gives'} alone" if culprits else ""
    sentence = f"{what} on the images {', '.join(names)}{which}"
    return {**saved, "losses": losses, "by_image": by_image, "wrong": bool(wrong or gradients), "sentence": sentence}


def losses_of(detector: nn.Module, images: Any, targets: Any, saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """The losses of images, from the random numbers of their step."""
    device = next(detector.parameters()).device
    seed_step(saved["seed"], saved["epoch"], saved["batch"], saved["rank"])
    inputs, on_device = move_data_to_device((images, targets), device)
    dtype = DTYPES.get(saved["precision"])
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        losses: dict[str, Tensor] = detector.training_losses(inputs, [without_crowd(one) for one in on_device])  # type: ignore[operator]
    return losses
