"""From samples to batches, and a batch's way to the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_detect.data.dataset import Fields
from lit_detect.data.feed import Sample

__all__ = ["TargetList", "collate"]


class TargetList(list[dict[str, Tensor]]):
    """A batch's targets.

    From a worker to the trainer they go as arrays, since each tensor would be a file in shared memory, and all of them together would
    take nearly as long as the images' augmentation.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return tensors, ([{name: value.numpy() for name, value in target.items()} for target in self],)

    def pin_memory(self) -> TargetList:
        """As it is: a few kilobytes need not be pinned as images are, and `DataLoader` would do it tensor by tensor."""
        return self

    def to(self, device: torch.device | str) -> TargetList:
        """On a device; Lightning calls this. Copies to a GPU are asynchronous; those from it are waited for, or would be read too early."""
        asynchronous = torch.device(device).type == "cuda"  # and not on Apple's, where the values would be wrong: pytorch#83015
        return self._together(lambda values: values.to(device, non_blocking=asynchronous))

    def _together(self, move: Callable[[Tensor], Tensor]) -> TargetList:
        """Move each field of all images in one piece, where tensor by tensor would take a GPU hundreds of copies a batch."""
        moved = TargetList({} for _ in self)
        for name, dtype in {(name, value.dtype): None for target in self for name, value in target.items()}:
            having = [index for index, target in enumerate(self) if name in target and target[name].dtype == dtype]
            values = [self[index][name] for index in having]
            parts = torch.split(move(torch.cat([value.flatten() for value in values])), [value.numel() for value in values])
            for index, value, part in zip(having, values, parts, strict=True):
                moved[index][name] = part.view(value.shape)
        return moved


def tensors(targets: list[Fields]) -> TargetList:
    """Targets from arrays."""
    return TargetList({name: torch.as_tensor(value) for name, value in target.items()} for target in targets)


def collate(samples: Sequence[Sample | None]) -> tuple[Tensor | list[Tensor], TargetList]:
    """A batch from samples: images as one tensor ``(N, 3, H, W)`` if all have one size, else as a list; targets as a list.

    Images that could not be read (None) are left out.
    """
    read = [sample for sample in samples if sample is not None]
    images = [image for image, _ in read]
    same = len({image.shape for image in images}) == 1
    return (torch.stack(images) if same else images), TargetList(target for _, target in read)
