"""The one way in which albumentations transforms are put together, and SSD's two transforms that albumentations does not have."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version at import

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.augmentations.crops.transforms import BaseCrop
from albumentations.core.bbox_utils import denormalize_bboxes, normalize_bboxes
from albumentations.core.type_definitions import ALL_TARGETS
from torchvision.ops import box_iou

from lit_detect.errors import InputError

__all__ = ["RandomIoUCrop", "RandomZoomOut", "compose"]

ROUNDS = 100  # overlaps that RandomIoUCrop draws for an image at most; 1.0, one of its seven, all but surely comes before


def compose(transforms: Sequence[A.BasicTransform], min_visibility: float = 0.0) -> A.Compose:
    """Transforms as one, which takes and gives ``image``, ``bboxes`` (xyxy in pixels) and ``kept``, the boxes' numbers.

    Boxes are clipped to the new image. Those of which less than a pixel or less than `min_visibility` (0..1) of their area remains
    are left out; ``kept`` tells which remain, so that any other field of a target follows.
    """
    fields = ["kept"]
    boxes = A.BboxParams("pascal_voc", fields, min_area=1.0, min_visibility=min_visibility, clip=True, filter_invalid_bboxes=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Got processor for bboxes")  # colours alone leave boxes where they are
        return A.Compose(list(transforms), bbox_params=boxes)


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

    def __init__(self, side_range: Sequence[float] = (1.0, 4.0), fill: Sequence[float] = (123, 117, 104), p: float = 0.5) -> None:
        super().__init__(p=p)
        self.side_range, self.fill = tuple(side_range), tuple(fill)
        _expect(len(self.side_range) == 2 and 1 <= self.side_range[0] <= self.side_range[1], "1 <= low <= high as side_range", side_range)
        _expect(1 <= len(self.fill) <= 4, "1 to 4 values as fill, one for each channel", fill)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        side = self.py_random.uniform(*self.side_range)
        canvas = int(height * side), int(width * side)
        top, left = int((canvas[0] - height) * self.py_random.random()), int((canvas[1] - width) * self.py_random.random())
        return {"canvas": canvas, "corner": (left, top)}

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
    ((23, 37, 3), [[1.0, 1.0, 31.0, 21.0]])
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
        _expect(0 < min_scale <= max_scale <= 1, "0 < min_scale <= max_scale <= 1", (min_scale, max_scale))
        _expect(0 < min_aspect_ratio <= max_aspect_ratio, "0 < min_aspect_ratio <= max_aspect_ratio", (min_aspect_ratio, max_aspect_ratio))
        _expect(len(self.overlaps) > 0 and all(overlap >= 0 for overlap in self.overlaps), "overlaps of 0 or more", overlaps)
        _expect(trials >= 1, "trials >= 1", trials)

    @property
    def targets_as_params(self) -> list[str]:
        return ["bboxes"]

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        whole = {"crop_coords": (0, 0, width, height)}
        if not len(data["bboxes"]):
            return whole
        boxes = _in_pixels(data["bboxes"], (height, width))
        for _ in range(ROUNDS):
            least = self.py_random.choice(self.overlaps)
            if least >= 1:
                return whole
            draws = self.random_generator.random((self.trials, 4))
            scales = self.min_scale + (self.max_scale - self.min_scale) * draws[:, :2]
            sizes = (scales * [width, height]).astype(int)
            corners = (draws[:, 2:] * ([width, height] - sizes)).astype(int)
            low, high = self.min_aspect_ratio * sizes[:, 1], self.max_aspect_ratio * sizes[:, 1]
            usable = (sizes > 0).all(axis=1) & (low <= sizes[:, 0]) & (sizes[:, 0] <= high)
            patches = np.concatenate([corners, corners + sizes], axis=1)[usable]
            ious = box_iou(torch.from_numpy(patches).double(), torch.from_numpy(boxes)).numpy()
            found = np.flatnonzero((_centred(boxes, patches) & (ious >= least)).any(axis=1))
            if found.size:
                return {"crop_coords": tuple(patches[found[0]].tolist())}
        return whole

    def apply_to_bboxes(self, bboxes: np.ndarray, crop_coords: tuple[int, int, int, int], **params: Any) -> np.ndarray:
        height, width = params["shape"][:2]
        if not bboxes.size or crop_coords == (0, 0, width, height):
            return bboxes
        inside = _centred(_in_pixels(bboxes, (height, width)), np.array([crop_coords]))[0]
        return super().apply_to_bboxes(bboxes[inside], crop_coords, **params)  # type: ignore[no-any-return]


def _expect(valid: bool, expected: str, got: object) -> None:
    """Refuse an argument."""
    if not valid:
        raise InputError(f"Expected {expected} but got {got}.")


def _in_pixels(bboxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Boxes in pixels, ``(n, 4)`` float64, rounded since albumentations' float32 of 0..1 puts whole pixels a little off."""
    return denormalize_bboxes(bboxes[:, :4], shape).round(2)  # type: ignore[no-any-return]


def _centred(boxes: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Whether each box's centre is inside each patch: ``(patches, boxes)``."""
    centres, patches = (boxes[:, :2] + boxes[:, 2:]) / 2, patches[:, None]
    return ((patches[..., :2] < centres) & (centres < patches[..., 2:])).all(axis=2)  # type: ignore[no-any-return]
