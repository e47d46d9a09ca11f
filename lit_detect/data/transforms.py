"""The one way in which albumentations transforms are put together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version at import

import albumentations as A

__all__ = ["compose"]


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
