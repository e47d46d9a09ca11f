"""Where pixels of an image go when a part of it is resized: in whole pixels, so that boxes go exactly where their pixels do."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

__all__ = ["Span", "resize", "snap"]


class Span(NamedTuple):
    """Along one axis: which pixels of the image are seen, and which of the output they become (of these some may lie beyond it)."""

    start: int
    stop: int
    to_start: int
    to_stop: int

    @property
    def scale(self) -> float:
        """Pixels of the output for each of the image."""
        return (self.to_stop - self.to_start) / (self.stop - self.start)

    def move(self, places: np.ndarray) -> np.ndarray:
        """Where places of the image come to be in the output."""
        return self.to_start + (places - self.start) * self.scale

    def within(self, to_size: int) -> tuple[int, int]:
        """First and last, exclusive, of the pixels that an output of so many has of them."""
        first = min(max(self.to_start, 0), to_size)
        return first, max(first, min(self.to_stop, to_size))

    def sources(self, size: int, to_size: int) -> tuple[slice, np.ndarray]:
        """A slice of the output, and for each pixel there the one of the image that its centre is in."""
        to = slice(*self.within(to_size))
        centres = np.arange(to.start, to.stop) + 0.5
        places = self.start + (centres - self.to_start) * ((self.stop - self.start) / max(self.to_stop - self.to_start, 1))
        return to, np.minimum(places.astype(int), size - 1)


def snap(low: float, high: float, size: int, to_size: int, step: int) -> Span:
    """Low and high edge of a window in whole pixels, of which pixels and boxes alike are computed from then on.

    Outwards in the image, to the nearest in the output, so that nothing is off by more than half a pixel of the output. In multiples
    of `step` in the image, of which the last may end beyond it: then what is decoded at 1/step, rounded up, gives the same.
    """
    start = min(max(math.floor(low / step), 0), math.ceil(size / step) - 1)
    stop = max(min(math.ceil(high / step), math.ceil(size / step)), start + 1)
    scale = to_size / (high - low)
    return Span(start * step, stop * step, round((start * step - low) * scale), round((stop * step - low) * scale))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """As torchvision resizes: linearly, and without aliasing when shrinking, in a quarter of the time of OpenCV's INTER_AREA."""
    batch = torch.from_numpy(image.reshape(*image.shape[:2], -1))[None].permute(0, 3, 1, 2)  # a view, from which the result is likewise
    return functional.interpolate(batch, (height, width), mode="bilinear", antialias=True).permute(0, 2, 3, 1)[0].numpy()
