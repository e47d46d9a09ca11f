"""Augmentations by the short names that torchvision's detection recipes gave them."""

from __future__ import annotations

from collections.abc import Callable

import albumentations as A

from lit_detect.data.colours import RandomPhotometricDistort
from lit_detect.data.transforms import RandomIoUCrop, RandomZoomOut
from lit_detect.data.windows import LargeScaleJitter, RandomResizedZoom, RandomShortestSize
from lit_detect.errors import InputError

__all__ = ["PRESETS", "RESIZING_PRESETS", "preset"]

Transforms = list[A.BasicTransform]
RESIZING_PRESETS = ("multiscale", "lsj")  # they draw the size; a network that resizes again would undo it


def preset(name: str, image_size: int | None = None, zoom: bool | None = None) -> Transforms:
    """The transforms of a preset, in order.

    - ``ssd``: zoom-out, IoU crop, resize, flip and photometric distortion (Liu et al. 2016);
    - ``ssdlite``: IoU crop, resize and flip;
    - ``hflip``: flip;
    - ``multiscale``: shorter side of 480 to 800 pixels, longer at most 1333, and flip;
    - ``lsj``: large scale jitter (Ghiasi et al. 2021) and flip.

    Args:
        name: one of these.
        image_size: side of the square that the images become; ``ssd`` and ``ssdlite`` need it, for ``lsj`` it is 1024 by default,
            and the others leave sizes to the network.
        zoom: put the image on a canvas of up to 4 times its sides first, every other time. By default only ``ssd`` does.

    Raises:
        InputError: no such preset, or one that needs an image size.

    >>> [type(transform).__name__ for transform in preset("multiscale")]
    ['RandomShortestSize', 'HorizontalFlip']
    """
    if name not in PRESETS:
        raise InputError(f"Expected a preset ({', '.join(PRESETS)}) but got {name!r}.")
    zoom_out = RandomZoomOut() if zoom or (zoom is None and name == "ssd") else None
    return PRESETS[name](image_size, zoom_out)


def ssd(image_size: int | None, zoom_out: RandomZoomOut | None) -> Transforms:
    """Geometry and colours."""
    return [*ssdlite(image_size, zoom_out), RandomPhotometricDistort()]


def ssdlite(image_size: int | None, zoom_out: RandomZoomOut | None) -> Transforms:
    """Geometry alone."""
    if image_size is None:
        raise InputError("Expected image_size for the presets ssd and ssdlite, whose networks take images of one size, but got none.")
    return [RandomResizedZoom(image_size, image_size, zoom_out, RandomIoUCrop()), A.HorizontalFlip()]


def hflip(image_size: int | None, zoom_out: RandomZoomOut | None) -> Transforms:
    """The image in its own size."""
    return [*([zoom_out] if zoom_out else []), A.HorizontalFlip()]


def multiscale(image_size: int | None, zoom_out: RandomZoomOut | None) -> Transforms:
    """The image in one of several sizes."""
    return [RandomShortestSize(zoom_out=zoom_out), A.HorizontalFlip()]


def lsj(image_size: int | None, zoom_out: RandomZoomOut | None) -> Transforms:
    """The image in any size, on a square."""
    return [LargeScaleJitter(1024 if image_size is None else image_size, zoom_out=zoom_out), A.HorizontalFlip()]


PRESETS: dict[str, Callable[[int | None, RandomZoomOut | None], Transforms]] = {
    function.__name__: function for function in (ssd, ssdlite, hflip, multiscale, lsj)
}
