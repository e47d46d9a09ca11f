"""SSD's photometric distortion, which albumentations has only in parts, and slower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np

from lit_detect.data.transforms import expect

__all__ = ["RandomPhotometricDistort"]

GREY = np.array([0.299, 0.587, 0.114])  # shares of red, green and blue in the luma of ITU-R BT.601


class RandomPhotometricDistort(A.ImageOnlyTransform):  # type: ignore[misc]
    """Distort brightness, contrast, saturation and hue, each every other time, and exchange channels: SSD's reference implementation.

    Parameters and distribution are those of torchvision's ``RandomPhotometricDistort``. For uint8 RGB.

    Args:
        brightness: smallest and largest factor.
        contrast: likewise; before or after saturation and hue, equally often.
        saturation: likewise.
        hue: smallest and largest shift, of the whole circle; within -0.5 to 0.5.
        p: how often each of the five is done.

    Raises:
        InputError: arguments out of range.

    >>> distort = RandomPhotometricDistort(brightness=(0.5, 0.5), contrast=(1, 1), saturation=(0, 0), hue=(0, 0), p=1)
    >>> distort(image=np.full((1, 1, 3), 200, np.uint8))["image"].tolist()
    [[[100, 100, 100]]]
    """

    def __init__(
        self,
        brightness: Sequence[float] = (0.875, 1.125),
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: Sequence[float] = (-0.05, 0.05),
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        self.brightness, self.contrast, self.saturation, self.hue = tuple(brightness), tuple(contrast), tuple(saturation), tuple(hue)
        for name, least in (("brightness", 0.0), ("contrast", 0.0), ("saturation", 0.0), ("hue", -0.5)):
            ends = getattr(self, name)
            expect(len(ends) == 2 and least <= ends[0] <= ends[1], f"{least:g} <= low <= high as {name}", ends)
        expect(self.hue[1] <= 0.5, "at most 0.5 as hue", hue)

    def should_apply(self, force_apply: bool = False) -> bool:
        """Each time: `p` is of each distortion, not of all together."""
        return True

    def get_params(self) -> dict[str, Any]:
        names = "brightness", "contrast", "saturation", "hue"
        drawn = {name: self.py_random.uniform(*getattr(self, name)) if self.py_random.random() < self.p else None for name in names}
        permutation = self.py_random.sample(range(3), 3) if self.py_random.random() < self.p else None
        return {**drawn, "contrast_before": self.py_random.random() < 0.5, "permutation": permutation}

    def apply(
        self,
        img: np.ndarray,
        brightness: float | None,
        contrast: float | None,
        saturation: float | None,
        hue: float | None,
        contrast_before: bool,
        permutation: Sequence[int] | None,
        **_: Any,
    ) -> np.ndarray:
        if brightness is not None:
            img = cv2.transform(img, brightness * np.eye(3))
        if contrast is not None and contrast_before:
            img = adjust_contrast(img, contrast)
        if saturation is not None:
            img = cv2.transform(img, saturation * np.eye(3) + (1 - saturation) * GREY)
        if hue is not None:
            img = adjust_hue(img, hue)
        if contrast is not None and not contrast_before:
            img = adjust_contrast(img, contrast)
        if permutation is not None:
            img = cv2.transform(img, np.eye(3)[list(permutation)])
        return img


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Stretch all values from the image's mean grey, as PIL and torchvision do."""
    mean = GREY @ cv2.mean(image)[:3]
    stretched: np.ndarray = cv2.transform(image, np.hstack([factor * np.eye(3), np.full((3, 1), (1 - factor) * mean)]))
    return stretched


def adjust_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turn all hues by a share of the circle."""
    turned: np.ndarray = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)  # exact, and no slower than with integers
    turned[..., 0] += 360 * (shift % 1)  # past 360 is all right for OpenCV, below 0 is not
    return cv2.convertScaleAbs(cv2.cvtColor(turned, cv2.COLOR_HSV2RGB))  # type: ignore[no-any-return]  # rounds
