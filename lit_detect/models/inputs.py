"""From uint8 images of any size to the network's float input, on the device: nowhere else is normalised."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_detect.boxes import scale_boxes
from lit_detect.errors import InputError

__all__ = ["Constants", "FixedSize", "Inputs", "ShortestSide"]

Targets = list[dict[str, Tensor]]


class Inputs(NamedTuple):
    """A batch as the network sees it.

    Attributes:
        images: ``(N, 3, H, W)`` float32, normalised.
        sizes: height and width of each image inside `images`, without padding.
        original_sizes: height and width of each image as it was given.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]

    def scale_targets(self, targets: Targets | None) -> Targets:
        """Targets with their boxes moved from the given images to the network's.

        Raises:
            InputError: not one target for each image.
        """
        if targets is None or len(targets) != len(self.sizes):
            raise InputError(
                f"Expected {len(self.sizes)} targets, one for each image, but got {'none' if targets is None else len(targets)}."
            )
        return with_boxes(targets, scale_boxes([target["boxes"] for target in targets], self.original_sizes, self.sizes))

    def restore(self, detections: Targets) -> Targets:
        """Detections with their boxes moved from the network's images to the given ones."""
        return with_boxes(detections, scale_boxes([found["boxes"] for found in detections], self.sizes, self.original_sizes))


def with_boxes(images: Targets, boxes: Sequence[Tensor]) -> Targets:
    """Targets or detections with other boxes."""
    return [{**image, "boxes": own} for image, own in zip(images, boxes, strict=True)]


class Constants(nn.Module):
    """Tensors that go where the module goes and stay as they are. As buffers they would be averaged with the weights, and be rounded."""

    constants: ClassVar[Sequence[str]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # what moves a module's tensors
        for name in self.constants:
            setattr(self, name, fn(getattr(self, name)))
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class Normalize(Constants):
    """uint8 RGB to normalised float32."""

    constants = ("mean", "std")

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) * 255 for values in (mean, std))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


class FixedSize(Normalize):
    """Every image resized to one square, whatever its aspect ratio: SSD, section 2.

    Args:
        size: side of the square in pixels.
        mean: subtracted from RGB in 0..1.
        std: divided by after that.
    """

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        self.size = size

    def forward(self, images: Tensor | Sequence[Tensor]) -> Inputs:  # type: ignore[override]
        original = [(image.shape[-2], image.shape[-1]) for image in images]
        batch = self.resize(images) if isinstance(images, Tensor) else torch.cat([self.resize(image[None]) for image in images])
        return Inputs(super().forward(batch), [(self.size, self.size)] * len(original), original)

    def resize(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == (self.size, self.size):
            return images.float()
        return F.interpolate(images.float(), (self.size, self.size), mode="bilinear", align_corners=False)


class ShortestSide(Normalize):
    """Images keep their aspect ratio: the shorter side becomes `min_size`, unless the longer would exceed `max_size`.

    Faster R-CNN, section 3.3 (there 600 pixels). The batch is padded with zeros to a common size.

    Args:
        min_size: shorter side in pixels.
        max_size: longest side in pixels.
        mean: subtracted from RGB in 0..1.
        std: divided by after that.
        train_min_sizes: in training the shorter side is one of these, drawn for each image; by default `min_size`. With an empty
            list images are trained on in the sizes that they come in.
        divisor: height and width of the batch are multiples of this.
    """

    def __init__(
        self,
        min_size: int,
        max_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        train_min_sizes: Sequence[int] | None = None,
        divisor: int = 32,
    ) -> None:
        super().__init__(mean, std)
        self.min_size, self.max_size, self.divisor = min_size, max_size, divisor
        self.train_min_sizes = [min_size] if train_min_sizes is None else list(train_min_sizes)

    def forward(self, images: Tensor | Sequence[Tensor]) -> Inputs:  # type: ignore[override]
        resized = [self.resize(image[None]) for image in images]
        sizes = [(image.shape[-2], image.shape[-1]) for image in resized]
        height, width = (-(-max(side) // self.divisor) * self.divisor for side in zip(*sizes, strict=True))
        batch = resized[0].new_zeros(len(resized), 3, height, width)
        for index, image in enumerate(resized):
            batch[index, :, : image.shape[-2], : image.shape[-1]] = image[0]
        return Inputs(batch, sizes, [(image.shape[-2], image.shape[-1]) for image in images])

    def resize(self, image: Tensor) -> Tensor:
        short, long = sorted(image.shape[-2:])
        sizes = self.train_min_sizes if self.training else [self.min_size]
        if not sizes:
            return super().forward(image)
        min_size = sizes[int(torch.randint(len(sizes), ()))] if len(sizes) > 1 else sizes[0]
        scale = min(min_size / short, self.max_size / long)
        size = [max(1, int(side * scale)) for side in image.shape[-2:]]
        return F.interpolate(super().forward(image), size, mode="bilinear", align_corners=False)
