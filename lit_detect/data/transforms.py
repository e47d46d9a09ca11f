"""The one way in which albumentations transforms are put together, and SSD's two transforms that albumentations does not have."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations.crops.transforms import BaseCrop
from albumentations.core.bbox_utils import BboxProcessor, denormalize_bboxes, normalize_bboxes
from albumentations.core.type_definitions import ALL_TARGETS

from lit_detect.errors import InputError

__all__ = ["RandomIoUCrop", "RandomZoomOut", "compose"]

MEAN = (123, 117, 104)  # of ImageNet, in RGB: what is around an image
STILL = (A.ImageOnlyTransform, A.HorizontalFlip, A.VerticalFlip)  # after these as much of a box is in the image as before
ROUNDS = 100  # overlaps that RandomIoUCrop draws for an image at most; 1.0, one of its seven, all but surely comes before


def compose(transforms: Sequence[A.BasicTransform], min_visibility: float = 0.0) -> A.Compose:
    """Transforms as one, which takes and gives ``image``, ``bboxes`` (xyxy in pixels) and ``kept``, the boxes' numbers.

    A `WindowTransform` also takes a ``window``. Boxes are clipped to the new image. Those of which less than a pixel or less than
    `min_visibility` (0..1) of their area remains are left out; ``kept`` tells which remain, so that any other field of a target follows.
    """
    moving = [transform for transform in transforms if not isinstance(transform, STILL)]
    boxes = A.BboxParams(
        "pascal_voc",
        ["kept"],
        min_area=1.0,
        min_visibility=min_visibility,
        clip=True,
        # clipping after each transform takes as long as a resize; at the end it is the same if only one moves boxes out of the image
        check_each_transform=len(moving) > 1 or not all(isinstance(transform, A.BasicTransform) for transform in moving),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Got processor for bboxes")  # colours alone leave boxes where they are
        composed = A.Compose(list(transforms), bbox_params=boxes)
    composed.processors["bboxes"] = ClippedBoxes(boxes)
    if composed.check_each_transform:  # albumentations keeps its own processor there too
        composed.check_each_transform = (composed.processors["bboxes"],)
        composed._set_check_args_for_transforms(composed.transforms)
    return composed


class ClippedBoxes(BboxProcessor):  # type: ignore[misc]
    """albumentations' processor in a third of its time: boxes are clipped and left out in one go, after which none can be invalid."""

    def filter(self, data: np.ndarray, shape: dict[str, int]) -> np.ndarray:
        if not data.size:
            return data.reshape(0, 4)
        clipped = data.copy()
        clipped[:, :4] = data[:, :4].clip(0, 1)
        whole, left = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (data, clipped))
        enough = left * (shape["height"] * shape["width"]) >= self.params.min_area - 1e-3  # in float32 a pixel may be a little less
        clipped = clipped[enough & (left >= self.params.min_visibility * whole) & (clipped[:, 0] < clipped[:, 2])]
        return clipped if len(clipped) else clipped[:, :4]  # type: ignore[no-any-return]

    def check(self, data: np.ndarray, shape: dict[str, int]) -> None:
        return


class RandomZoomOut(A.DualTransform):  # type: ignore[misc]
    """Put the image somewhere on a larger canvas, so that its objects get small: SSD section 3.6, "zoom out".

    The same distribution as torchvision's ``RandomZoomOut``. A canvas has up to 16 times the image's pixels.

    Args:
        side_range: smallest and largest side of the canvas, in sides of the image; at least 1.
        fill: value of the canvas in each channel, by default the mean of ImageNet. Masks are filled with 0.
        p: how often.

    Raises:
        InputError: arguments out of range.

    >>> zoom = A.Compose([RandomZoomOut(side_range=(2, 2), p=1)], bbox_params=A.BboxParams("pascal_voc"), seed=0)
    >>> out = zoom(image=np.zeros((40, 60, 3), np.uint8), bboxes=np.array([[0, 0, 60, 40]]))
    >>> out["image"].shape, (out["bboxes"][0, 2:] - out["bboxes"][0, :2]).round(3).tolist()
    ((80, 120, 3), [60.0, 40.0])
    """

    _targets = ALL_TARGETS

    def __init__(self, side_range: Sequence[float] = (1.0, 4.0), fill: Sequence[float] = MEAN, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.side_range, self.fill = tuple(side_range), tuple(fill)
        expect(len(self.side_range) == 2 and 1 <= self.side_range[0] <= self.side_range[1], "1 <= low <= high as side_range", side_range)
        expect(1 <= len(self.fill) <= 4, "1 to 4 values as fill, one for each channel", fill)

    def draw(self, height: int, width: int, py_random: random.Random) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of the canvas, and left and top of the image on it."""
        side = py_random.uniform(*self.side_range)
        canvas = int(height * side), int(width * side)
        top, left = int((canvas[0] - height) * py_random.random()), int((canvas[1] - width) * py_random.random())
        return canvas, (left, top)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        canvas, corner = self.draw(height, width, self.py_random)
        return {"canvas": canvas, "corner": corner}

    def apply(self, img: np.ndarray, canvas: tuple[int, int], corner: tuple[int, int], fill: Sequence[float], **_: Any) -> np.ndarray:
        (height, width), (left, top) = canvas, corner
        below, right = height - img.shape[0] - top, width - img.shape[1] - left
        padded: np.ndarray = cv2.copyMakeBorder(img, top, below, left, right, cv2.BORDER_CONSTANT, value=fill)
        return padded.reshape(height, width, *img.shape[2:])  # OpenCV drops a lone channel

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        return self.apply(mask, **{**params, "fill": (0,)})

    def apply_to_bboxes(self, bboxes: np.ndarray, canvas: tuple[int, int], corner: tuple[int, int], **params: Any) -> np.ndarray:
        if not bboxes.size:
            return bboxes
        moved = denormalize_bboxes(bboxes, params["shape"][:2])
        moved[:, :4] += corner * 2
        return normalize_bboxes(moved, canvas)  # type: ignore[no-any-return]

    def apply_to_keypoints(self, keypoints: np.ndarray, corner: tuple[int, int], **_: Any) -> np.ndarray:
        return np.concatenate([keypoints[:, :2] + corner, keypoints[:, 2:]], axis=1)


class RandomIoUCrop(BaseCrop):  # type: ignore[misc]
    """Crop to a patch that overlaps an object by a least IoU, drawn each time: SSD section 2.2, "Data augmentation".

    A box stays if its centre is in the patch. The same distribution as torchvision's ``RandomIoUCrop``; an image without boxes, or
    for which no patch is found, stays whole.

    Args:
        min_scale: smallest side of a patch, as a share of the image's.
        max_scale: largest side of a patch.
        min_aspect_ratio: smallest width / height of a patch.
        max_aspect_ratio: largest width / height of a patch.
        overlaps: the least IoUs, equally often; 1 or more leaves the image whole.
        trials: patches to try for an overlap before another one is drawn.
        p: how often.

    Raises:
        InputError: arguments out of range.

    >>> crop = A.Compose([RandomIoUCrop(overlaps=(0.7,))], bbox_params=A.BboxParams("pascal_voc"), seed=0)
    >>> out = crop(image=np.zeros((40, 60, 3), np.uint8), bboxes=np.array([[10, 10, 40, 30], [50, 30, 60, 40]]))
    >>> out["image"].shape, out["bboxes"].round(3).tolist()
    ((20, 33, 3), [[6.0, 0.0, 33.0, 20.0]])
    """

    def __init__(
        self,
        min_scale: float = 0.3,
        max_scale: float = 1.0,
        min_aspect_ratio: float = 0.5,
        max_aspect_ratio: float = 2.0,
        overlaps: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
        trials: int = 40,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.min_scale, self.max_scale = min_scale, max_scale
        self.min_aspect_ratio, self.max_aspect_ratio = min_aspect_ratio, max_aspect_ratio
        self.overlaps, self.trials = tuple(overlaps), trials
        expect(0 < min_scale <= max_scale <= 1, "0 < min_scale <= max_scale <= 1", (min_scale, max_scale))
        expect(0 < min_aspect_ratio <= max_aspect_ratio, "0 < min_aspect_ratio <= max_aspect_ratio", (min_aspect_ratio, max_aspect_ratio))
        expect(len(self.overlaps) > 0 and all(overlap >= 0 for overlap in self.overlaps), "overlaps of 0 or more", overlaps)
        expect(trials >= 1, "trials >= 1", trials)

    @property
    def targets_as_params(self) -> list[str]:
        return ["bboxes"]

    def draw(
        self, height: int, width: int, boxes: np.ndarray, py_random: random.Random, random_generator: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """A patch of an image with these boxes in pixels: left, top, right, bottom."""
        left, top, right, bottom = boxes.T[:, :, None]
        across, down, areas = (left + right) / 2, (top + bottom) / 2, (right - left) * (bottom - top)
        for _ in range(ROUNDS if len(boxes) else 0):
            least = py_random.choice(self.overlaps)
            if least >= 1:
                break
            draws = random_generator.random((4, self.trials))  # all at once: rows are boxes, columns trials
            scales = self.min_scale + (self.max_scale - self.min_scale) * draws[:2]
            w, h = (scales[0] * width).astype(int), (scales[1] * height).astype(int)
            x1, y1 = (draws[2] * (width - w)).astype(int), (draws[3] * (height - h)).astype(int)
            x2, y2 = x1 + w, y1 + h
            usable = (w > 0) & (h > 0) & (self.min_aspect_ratio * h <= w) & (w <= self.max_aspect_ratio * h)
            centred = (x1 < across) & (across < x2) & (y1 < down) & (down < y2)
            shared = (np.minimum(x2, right) - np.maximum(x1, left)) * (np.minimum(y2, bottom) - np.maximum(y1, top))
            found = (usable & centred & (shared >= least * (areas + w * h - shared))).any(axis=0)
            if found.any():
                first = int(found.argmax())
                return int(x1[first]), int(y1[first]), int(x2[first]), int(y2[first])
        return 0, 0, width, height

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        boxes = in_pixels(data["bboxes"], (height, width))
        return {"crop_coords": self.draw(height, width, boxes, self.py_random, self.random_generator)}

    def apply_to_bboxes(self, bboxes: np.ndarray, crop_coords: tuple[int, int, int, int], **params: Any) -> np.ndarray:
        height, width = params["shape"][:2]
        if not bboxes.size or crop_coords == (0, 0, width, height):
            return bboxes
        inside = centred(in_pixels(bboxes, (height, width)), crop_coords)
        return super().apply_to_bboxes(bboxes[inside], crop_coords, **params)  # type: ignore[no-any-return]


def expect(valid: bool, expected: str, got: object) -> None:
    """Refuse an argument."""
    if not valid:
        raise InputError(f"Expected {expected} but got {got}.")


def in_pixels(bboxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Boxes in pixels, ``(n, 4)`` float64, rounded since albumentations' float32 of 0..1 puts whole pixels a little off."""
    if not bboxes.size:
        return np.zeros((0, 4))
    return denormalize_bboxes(bboxes[:, :4], shape).round(3)  # type: ignore[no-any-return]


def centred(boxes: np.ndarray, patch: Sequence[float]) -> np.ndarray:
    """Whether each box's centre is inside a patch."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((patch[:2] < centres) & (centres < patch[2:])).all(axis=1)  # type: ignore[no-any-return]
