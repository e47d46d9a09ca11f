"""SSD's default boxes: Liu et al. 2016, section 2.2, "Choosing scales and aspect ratios for default boxes"."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_detect.errors import InputError

__all__ = ["default_boxes"]

# Scales relative to the input, one a map and one more: the reference implementation's tables (for COCO section 3.4 makes them smaller).
SCALES: dict[tuple[str, int], tuple[float, ...]] = {
    ("voc", 6): (0.10, 0.20, 0.37, 0.54, 0.71, 0.88, 1.05),
    ("coco", 6): (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    ("voc", 7): (0.07, 0.15, 0.30, 0.45, 0.60, 0.75, 0.90, 1.05),
    ("coco", 7): (0.04, 0.10, 0.26, 0.42, 0.58, 0.74, 0.90, 1.06),
}
# Pixels between default boxes where they are not the input divided by the map: SSD300's, as in the reference implementation.
STEPS: dict[tuple[int, ...], tuple[float, ...]] = {(38, 19, 10, 5, 3, 1): (8, 16, 32, 64, 100, 300)}


def default_boxes(
    size: int,
    map_sizes: Sequence[int],
    scales: str | Sequence[float],
    aspect_ratios: Sequence[Sequence[float]],
    steps: Sequence[float] | None = None,
) -> Tensor:
    """SSD's default boxes: section 2.2, "Choosing scales and aspect ratios for default boxes".

    Args:
        size: side of the input in pixels.
        map_sizes: side of each feature map in cells.
        scales: see `SSD`.
        aspect_ratios: of each map; each ratio stands for itself and its inverse, and 1 is always there, twice.
        steps: pixels between default boxes on each map.

    Returns:
        ``(A, 4)`` float32 in pixels: map by map, row by row, all of a cell together. They may reach over the image's edge.

    Raises:
        InputError: as many scales, ratios or steps are needed as there are maps (scales: one more).

    >>> default_boxes(300, [2], [0.5, 1.0], [[]]).tolist()[0]
    [0.0, 0.0, 150.0, 150.0]
    """
    count = len(map_sizes)
    scales = scale_table(scales, count)
    steps = steps or STEPS.get(tuple(map_sizes)) or [size / side for side in map_sizes]
    for name, values, expected in (("scales", scales, count + 1), ("aspect_ratios", aspect_ratios, count), ("steps", steps, count)):
        if len(values) != expected:
            raise InputError(f"Expected {expected} {name} for {count} feature maps ({list(map_sizes)}) but got {len(values)}.")
    maps = []
    for side, step, scale, next_scale, ratios in zip(map_sizes, steps, scales, scales[1:], aspect_ratios, strict=False):
        shapes = [(scale, scale), (math.sqrt(scale * next_scale),) * 2]
        for ratio in ratios:
            long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            shapes += [(long, short), (short, long)]
        half = 0.5 * torch.tensor(shapes).clamp(max=1)  # (S, 2): no default box is larger than the image
        y, x = torch.meshgrid([(torch.arange(side) + 0.5) / (size / step)] * 2, indexing="ij")
        centres = torch.stack([x, y], dim=-1)[:, :, None]  # (side, side, 1, 2)
        maps.append(torch.cat([centres - half, centres + half], dim=-1).view(-1, 4))
    return torch.cat(maps) * size  # in torchvision's order, to the last bit: many overlaps tie, and rounding picks the match


def scale_table(scales: str | Sequence[float], count: int) -> Sequence[float]:
    """Scales for `count` maps by the name of their table, or as they were given."""
    if scales == "linear":
        return [0.2 + 0.75 * index / max(count - 1, 1) for index in range(count)] + [1.0]
    if not isinstance(scales, str):
        return scales
    if (scales, count) not in SCALES:
        known = sorted({name for name, _ in SCALES})
        raise InputError(
            f"Expected scales to be a list of {count + 1} numbers, 'linear', or for 6 or 7 maps one of {known} "
            f"but got {scales!r} for {count} maps."
        )
    return SCALES[scales, count]
