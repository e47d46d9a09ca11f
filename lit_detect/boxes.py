"""Box arithmetic and matching. Boxes are float32 ``(x1, y1, x2, y2)`` in pixels, x to the right and y down."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

__all__ = ["assign", "decode", "encode", "match", "scale_boxes"]

# SSD, section 2.2: the "variances" .1 .1 .2 .2 of the reference implementation are these weights' inverses.
SSD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# A box is never decoded to more than 62.5 times its anchor's side, so that exp() cannot overflow.
MAX_LOG_SCALE = math.log(1000 / 16)


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = SSD_WEIGHTS) -> Tensor:
    """Offsets that turn anchors into boxes: SSD section 2.2, Faster R-CNN section 3.1.2.

    Args:
        boxes: ``(..., A, 4)`` in pixels.
        anchors: ``(A, 4)`` in pixels, of positive width and height.
        weights: factors of the offsets (dx, dy, dw, dh).

    Returns:
        Offsets ``(..., A, 4)``.

    >>> anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    >>> encode(torch.tensor([[1.0, 0.0, 11.0, 10.0]]), anchors).round(decimals=4).tolist()
    [[1.0, 0.0, 0.0, 0.0]]
    """
    anchor_sizes = anchors[..., 2:] - anchors[..., :2]
    sizes = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2 / anchor_sizes
    return torch.cat([shift, torch.log(sizes / anchor_sizes)], dim=-1) * shift.new_tensor(weights)


def decode(deltas: Tensor, anchors: Tensor, weights: Sequence[float] = SSD_WEIGHTS) -> Tensor:
    """The inverse of `encode`: boxes ``(..., A, 4)`` in pixels from offsets ``(..., A, 4)``.

    >>> anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    >>> decode(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), anchors).tolist()
    [[1.0, 0.0, 11.0, 10.0]]
    """
    deltas = deltas / deltas.new_tensor(weights)
    anchor_sizes = anchors[..., 2:] - anchors[..., :2]
    centres = deltas[..., :2] * anchor_sizes + anchors[..., :2] + anchor_sizes / 2
    half = deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * anchor_sizes / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def match(anchors: Tensor, boxes: Tensor, threshold: float) -> Tensor:
    """Match anchors to target boxes by overlap: SSD section 2.2, "matching strategy".

    An anchor takes the box with which it overlaps most, if that is at least `threshold`; and each box takes its best anchor,
    whatever the overlap. Of two boxes with the same best anchor the later one takes it.

    Args:
        anchors: ``(A, 4)`` in pixels.
        boxes: ``(M, 4)`` in pixels; M may be 0.
        threshold: least intersection over union, 0..1.

    Returns:
        ``(A,)`` int64: each anchor's box, or -1 for background.

    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 10], [50, 50, 60, 60], [80, 80, 90, 90]])
    >>> match(anchors, torch.tensor([[0.0, 0, 10, 10], [52, 52, 70, 70]]), 0.5).tolist()
    [0, 0, 1, -1]
    """
    if len(boxes) == 0:
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    overlaps = box_iou(boxes, anchors)  # (M, A)
    best_overlap, best_box = overlaps.max(dim=0)
    matches = torch.where(best_overlap >= threshold, best_box, -1)
    best_anchor = overlaps.argmax(dim=1)
    # index_put is unordered on a GPU; a maximum is not, and gives the later box the anchor.
    forced = torch.full_like(matches, -1)
    forced.scatter_reduce_(0, best_anchor, torch.arange(len(boxes), device=boxes.device), "amax")
    return torch.where(forced >= 0, forced, matches)


def assign(anchors: Tensor, targets: Sequence[dict[str, Tensor]], threshold: float) -> tuple[Tensor, Tensor]:
    """What each anchor of each image is to learn.

    Args:
        anchors: ``(A, 4)`` in pixels of the network's input.
        targets: one a image, with ``boxes`` ``(M, 4)`` in the same pixels and ``labels`` ``(M,)``.
        threshold: see `match`.

    Returns:
        labels ``(N, A)`` int64, 0 for background, and boxes ``(N, A, 4)``, which are the anchors themselves where the label is 0.
    """
    labels, boxes = [], []
    for target in targets:
        matches = match(anchors, target["boxes"], threshold)
        # one row more than there are boxes, so that -1 (background) picks label 0
        labels.append(torch.cat([target["labels"], target["labels"].new_zeros(1)])[matches])
        matched = torch.cat([target["boxes"].to(anchors), anchors.new_zeros(1, 4)])[matches]
        boxes.append(torch.where(matches[:, None] >= 0, matched, anchors))
    return torch.stack(labels), torch.stack(boxes)


def scale_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Move boxes ``(M, 4)`` from an image of `size` (height, width) to the same image resized to `new_size`.

    >>> scale_boxes(torch.tensor([[0.0, 10.0, 50.0, 20.0]]), (100, 50), (50, 100)).tolist()
    [[0.0, 5.0, 100.0, 10.0]]
    """
    y, x = new_size[0] / size[0], new_size[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])
