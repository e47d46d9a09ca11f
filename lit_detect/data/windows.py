"""Zooms that touch no more pixels than the network gets: a window is drawn first, then seen at the size asked for, in one resize.

A window may reach beyond the image, as onto a larger canvas. Who draws it before the file is decoded can decode at 1/2, 1/4 or 1/8.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np
from albumentations.core.bbox_utils import denormalize_bboxes, normalize_bboxes
from albumentations.core.type_definitions import ALL_TARGETS

from lit_detect.data.images import REDUCED
from lit_detect.data.spans import Span, resize, snap
from lit_detect.data.transforms import MEAN, RandomIoUCrop, RandomZoomOut, centred, expect, in_pixels

__all__ = ["LargeScaleJitter", "RandomResizedZoom", "RandomShortestSize", "Window", "WindowTransform"]


class Window(NamedTuple):
    """A rectangle in pixels of an image, which may reach beyond it, and the size in pixels at which it is seen.

    >>> Window(0, 0, 500, 375, width=200, height=100).shrink
    2.5
    >>> Window(0, 0, 500, 375, width=200, height=100).reduced(2)
    Window(left=0.0, top=0.0, right=250.0, bottom=187.5, width=200, height=100)
    """

    left: float
    top: float
    right: float
    bottom: float
    width: int
    height: int

    @property
    def shrink(self) -> float:
        """How many pixels of the image make one of the output, along the axis where they are fewer."""
        return min((self.right - self.left) / self.width, (self.bottom - self.top) / self.height)

    @property
    def reduction(self) -> int:
        """The most of 1, 2, 4 and 8 by which the image may be reduced before, so that it still is not enlarged."""
        return max(step for step in REDUCED if step <= max(1.0, self.shrink))

    def reduced(self, by: int) -> Window:
        """The same window of an image that was decoded at 1/`by`."""
        return Window(self.left / by, self.top / by, self.right / by, self.bottom / by, self.width, self.height)


class WindowTransform(A.DualTransform):  # type: ignore[misc]
    """What a window of the image shows becomes the image.

    A subclass draws the window. Whoever has drawn one before gives it as ``window`` beside the image, and none is drawn: a window of
    the image that is given, which may be decoded at a part of its size.

    Args:
        p: always 1, since the size of the output depends on it.

    Attributes:
        fill: value of what lies beyond the image, in each channel. Masks are filled with 0.
        centred: keep boxes with their centre in the window, instead of all that have area in it.
    """

    _targets = ALL_TARGETS
    fill: Sequence[float] = MEAN
    centred = False

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p)
        expect(p == 1, "p = 1, since the size of the output depends on it,", p)

    @abstractmethod
    def draw(self, height: int, width: int, boxes: np.ndarray) -> Window:
        """Draw a window.

        Args:
            height: the image's, in pixels.
            width: the image's, in pixels.
            boxes: the image's, ``(M, 4)`` xyxy in pixels; M may be 0.
        """

    @property
    def available_keys(self) -> set[str]:
        # not among `targets_as_params`, which would be required; a Compose that is strict refuses keys that no transform names
        return super().available_keys | {"window"}  # type: ignore[no-any-return]

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        window = data.get("window")
        if window is None:
            window = self.draw(height, width, in_pixels(np.asarray(data.get("bboxes", ())), (height, width)))
        columns = snap(window.left, window.right, width, window.width, window.reduction)
        rows = snap(window.top, window.bottom, height, window.height, window.reduction)
        return {"window": window, "columns": columns, "rows": rows}

    def apply(self, img: np.ndarray, window: Window, columns: Span, rows: Span, **_: Any) -> np.ndarray:
        shape = window.height, window.width, *img.shape[2:]
        (left, right), (top, bottom) = columns.within(window.width), rows.within(window.height)
        if left == right or top == bottom:
            return np.full(shape, self.fill[: shape[2]] if len(shape) == 3 else self.fill[0], img.dtype)
        part = img[rows.start : rows.stop, columns.start : columns.stop]
        below, beside = rows.stop - rows.start - part.shape[0], columns.stop - columns.start - part.shape[1]
        if below or beside:
            part = cv2.copyMakeBorder(part, 0, below, 0, beside, cv2.BORDER_REPLICATE)
        seen = resize(part, rows.to_stop - rows.to_start, columns.to_stop - columns.to_start)
        seen = seen[top - rows.to_start : bottom - rows.to_start, left - columns.to_start : right - columns.to_start]
        around = top, window.height - bottom, left, window.width - right
        if any(around):
            seen = cv2.copyMakeBorder(seen, *around, cv2.BORDER_CONSTANT, value=self.fill)
        return seen.reshape(shape)  # type: ignore[no-any-return]  # OpenCV drops a lone channel

    def apply_to_mask(self, mask: np.ndarray, window: Window, columns: Span, rows: Span, **_: Any) -> np.ndarray:
        across, from_columns = columns.sources(mask.shape[1], window.width)
        down, from_rows = rows.sources(mask.shape[0], window.height)
        seen = np.zeros((window.height, window.width, *mask.shape[2:]), mask.dtype)
        seen[down, across] = mask[from_rows[:, None], from_columns]
        return seen

    def apply_to_bboxes(self, bboxes: np.ndarray, window: Window, columns: Span, rows: Span, **params: Any) -> np.ndarray:
        if not bboxes.size:
            return bboxes
        size = window.height, window.width
        moved = denormalize_bboxes(bboxes, params["shape"][:2])
        moved[:, [0, 2]], moved[:, [1, 3]] = columns.move(moved[:, [0, 2]]), rows.move(moved[:, [1, 3]])
        clipped = moved[:, :4].clip(0, size[::-1] * 2)
        kept = (clipped[:, 0] < clipped[:, 2]) & (clipped[:, 1] < clipped[:, 3])
        if self.centred:
            kept &= centred(in_pixels(bboxes, params["shape"][:2]), window[:4])
        return normalize_bboxes(moved[kept], size)  # type: ignore[no-any-return]

    def apply_to_keypoints(self, keypoints: np.ndarray, columns: Span, rows: Span, **_: Any) -> np.ndarray:
        moved = keypoints.copy()
        moved[:, 0], moved[:, 1] = columns.move(keypoints[:, 0]), rows.move(keypoints[:, 1])
        moved[:, 4] *= max(columns.scale, rows.scale)  # their size, as in albumentations' Resize
        return moved


class RandomResizedZoom(WindowTransform):
    """Zoom out, crop to a patch, and resize it: the geometry of SSD's augmentation, as if one after the other.

    A box stays if its centre is in the patch. Crops and canvases are drawn as `RandomZoomOut` and `RandomIoUCrop` draw them.

    Args:
        height: of the output, in pixels.
        width: of the output, in pixels.
        zoom_out: which canvas to put the image on, and how often; by default none.
        crop: which patch to crop it to, and how often; by default the whole.
        p: always 1.

    Raises:
        InputError: arguments out of range.

    >>> zoom = A.Compose([RandomResizedZoom(30, 30, RandomZoomOut((2, 2), p=1))], bbox_params=A.BboxParams("pascal_voc"), seed=0)
    >>> out = zoom(image=np.zeros((40, 60, 3), np.uint8), bboxes=np.array([[0, 0, 60, 40]]))
    >>> out["image"].shape, (out["bboxes"][0, 2:] - out["bboxes"][0, :2]).round(3).tolist()
    ((30, 30, 3), [15.0, 15.0])
    """

    centred = True

    def __init__(
        self, height: int, width: int, zoom_out: RandomZoomOut | None = None, crop: RandomIoUCrop | None = None, p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        self.height, self.width, self.zoom_out, self.crop = height, width, zoom_out, crop
        self.fill = zoom_out.fill if zoom_out is not None else MEAN
        expect(height >= 1 and width >= 1, "height and width of at least a pixel", (height, width))

    def draw(self, height: int, width: int, boxes: np.ndarray) -> Window:
        height, width, x, y = draw_canvas(self.zoom_out, height, width, self.py_random)
        left, top, right, bottom = 0, 0, width, height
        if self.crop is not None and self.py_random.random() < self.crop.p:
            moved = boxes + np.array([x, y, x, y])
            left, top, right, bottom = self.crop.draw(height, width, moved, self.py_random, self.random_generator)
        return Window(left - x, top - y, right - x, bottom - y, self.width, self.height)


class RandomShortestSize(WindowTransform):
    """Resize so that the shorter side is one of several, drawn each time: "multi-scale training".

    Sizes are those of torchvision's ``RandomShortestSize``.

    Args:
        min_sizes: what the shorter side may be, in pixels, equally often.
        max_size: what the longer side is at most.
        zoom_out: which canvas to put the image on before, and how often; by default none.
        p: always 1.

    Raises:
        InputError: arguments out of range.

    >>> resize = A.Compose([RandomShortestSize([20], 50)], bbox_params=A.BboxParams("pascal_voc"), seed=0)
    >>> out = resize(image=np.zeros((40, 60, 3), np.uint8), bboxes=np.array([[0, 0, 60, 30]]))
    >>> out["image"].shape, out["bboxes"].round(3).tolist()
    ((20, 30, 3), [[0.0, 0.0, 30.0, 15.0]])
    """

    def __init__(
        self,
        min_sizes: Sequence[int] = tuple(range(480, 801, 32)),
        max_size: int = 1333,
        zoom_out: RandomZoomOut | None = None,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.min_sizes, self.max_size, self.zoom_out = tuple(min_sizes), max_size, zoom_out
        self.fill = zoom_out.fill if zoom_out is not None else MEAN
        expect(len(self.min_sizes) > 0 and min(self.min_sizes) >= 1, "min_sizes of at least a pixel", min_sizes)
        expect(max_size >= max(self.min_sizes), "max_size of at least the largest of min_sizes", max_size)

    def draw(self, height: int, width: int, boxes: np.ndarray) -> Window:
        height, width, x, y = draw_canvas(self.zoom_out, height, width, self.py_random)
        scale = min(self.py_random.choice(self.min_sizes) / min(height, width), self.max_size / max(height, width))
        return Window(-x, -y, width - x, height - y, max(1, int(width * scale)), max(1, int(height * scale)))


class LargeScaleJitter(WindowTransform):
    """Resize by a factor from a wide range, and crop or pad at the right and bottom to a square: Ghiasi et al. 2021, "LSJ".

    The same distribution as torchvision's ``ScaleJitter`` and then ``FixedSizeCrop``.

    Args:
        size: side of the output, in pixels.
        scale_range: smallest and largest factor, of the size at which the whole image just fits into the output.
        fill: value of what is padded in each channel, by default the mean of ImageNet. Masks are filled with 0.
        zoom_out: which canvas to put the image on before, and how often; by default none.
        p: always 1.

    Raises:
        InputError: arguments out of range.

    >>> jitter = A.Compose([LargeScaleJitter(120, (0.5, 0.5))], bbox_params=A.BboxParams("pascal_voc"), seed=0)
    >>> out = jitter(image=np.zeros((40, 60, 3), np.uint8), bboxes=np.array([[0, 0, 60, 40]]))
    >>> out["image"].shape, out["bboxes"].round(3).tolist()
    ((120, 120, 3), [[0.0, 0.0, 60.0, 40.0]])
    """

    def __init__(
        self,
        size: int = 1024,
        scale_range: Sequence[float] = (0.1, 2.0),
        fill: Sequence[float] = MEAN,
        zoom_out: RandomZoomOut | None = None,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.size, self.scale_range, self.fill, self.zoom_out = size, tuple(scale_range), tuple(fill), zoom_out
        expect(size >= 1, "size of at least a pixel", size)
        expect(len(self.scale_range) == 2 and 0 < self.scale_range[0] <= self.scale_range[1], "0 < low <= high as scale_range", scale_range)
        expect(1 <= len(self.fill) <= 4, "1 to 4 values as fill, one for each channel", fill)

    def draw(self, height: int, width: int, boxes: np.ndarray) -> Window:
        height, width, x, y = draw_canvas(self.zoom_out, height, width, self.py_random)
        scale = self.py_random.uniform(*self.scale_range) * self.size / max(height, width)
        resized = max(1, int(width * scale)), max(1, int(height * scale))
        place = self.py_random.random()
        left, top = (int(max(side - self.size, 0) * place) for side in resized)
        across, down = width / resized[0], height / resized[1]
        right, bottom = (left + self.size) * across, (top + self.size) * down
        return Window(left * across - x, top * down - y, right - x, bottom - y, self.size, self.size)


def draw_canvas(zoom_out: RandomZoomOut | None, height: int, width: int, py_random: random.Random) -> tuple[int, int, int, int]:
    """Height and width of the canvas, and left and top of the image on it; the image itself where there is no canvas."""
    if zoom_out is None or py_random.random() >= zoom_out.p:
        return height, width, 0, 0
    (height, width), (left, top) = zoom_out.draw(height, width, py_random)
    return height, width, left, top
