"""Box arithmetic and matching. Boxes are float32 ``(x1, y1, x2, y2)`` in pixels, x to the right and y down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.ops import box_iou

__all__ = ["Anchors", "assign", "decode", "encode", "match", "match_above", "match_best", "match_or_ignore", "scale_boxes"]

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


@dataclass(frozen=True)
class Anchors:
    """Boxes that a detector starts from (anchors, default boxes, proposals), and how offsets turn them into others.

    A detector with another parametrisation has a subclass with its own `encode` and `decode`.

    Attributes:
        boxes: ``(A, 4)`` in pixels, of positive width and height.
        weights: factors of the offsets (dx, dy, dw, dh).
        per_map: how many anchors each feature map has, where they come from several; their sum is A.
    """

    boxes: Tensor
    weights: tuple[float, float, float, float] = SSD_WEIGHTS
    per_map: Sequence[int] = ()

    def encode(self, boxes: Tensor) -> Tensor:
        """Offsets ``(..., A, 4)`` of boxes ``(..., A, 4)``."""
        return encode(boxes, self.boxes, self.weights)

    def decode(self, deltas: Tensor) -> Tensor:
        """Boxes ``(..., A, 4)`` from offsets ``(..., A, 4)``."""
        return decode(deltas, self.boxes, self.weights)

    def __getitem__(self, index: Tensor) -> Anchors:
        """Some of the anchors."""
        return replace(self, boxes=self.boxes[index], per_map=())

    def __len__(self) -> int:
        return len(self.boxes)


def match(anchors: Anchors, boxes: Tensor, threshold: float) -> Tensor:
    """Match anchors to target boxes by overlap: SSD section 2.2, "matching strategy".

    An anchor takes the box with which it overlaps most, if that is at least `threshold`; and each box takes its best anchor,
    whatever the overlap. Of two boxes with the same best anchor the later one takes it.

    Args:
        anchors: A of them.
        boxes: ``(M, 4)`` in pixels, M at least 1.
        threshold: least intersection over union, 0..1.

    Returns:
        ``(A,)`` int64: each anchor's box, or -1 for background.

    >>> anchors = Anchors(torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 10], [50, 50, 60, 60], [80, 80, 90, 90]]))
    >>> match(anchors, torch.tensor([[0.0, 0, 10, 10], [52, 52, 70, 70]]), 0.5).tolist()
    [0, 0, 1, -1]
    """
    overlaps = box_iou(boxes, anchors.boxes)  # (M, A)
    best_overlap, best_box = overlaps.max(dim=0)
    matches = torch.where(best_overlap >= threshold, best_box, -1)
    return match_best(matches, overlaps.argmax(dim=1))


def match_best(matches: Tensor, best_anchor: Tensor) -> Tensor:
    """Matches ``(A,)`` in which each box has its best anchor ``(M,)``, whatever that was matched with; of two boxes the later one."""
    # index_put is unordered on a GPU; a maximum is not, and gives the later box the anchor.
    boxes = torch.arange(len(best_anchor), device=best_anchor.device)
    forced = torch.full_like(matches, -1).scatter_reduce_(0, best_anchor, boxes, "amax")
    return torch.where(forced >= 0, forced, matches)


def match_or_ignore(anchors: Anchors, boxes: Tensor, threshold: float, background: float) -> Tensor:
    """Match anchors to target boxes by overlap, leaving out the undecided: RetinaNet, section 4, "Anchors".

    As in Faster R-CNN, section 3.1.2, the anchors with the highest overlap with a box count as matched whatever it is (but 0), each to
    the box that *it* overlaps most.

    Args:
        anchors: A of them.
        boxes: ``(M, 4)`` in pixels, M at least 1.
        threshold: least intersection over union of a match, 0..1.
        background: anchors that overlap no box this much are background, 0..1.

    Returns:
        ``(A,)`` int64: each anchor's box, -1 for background, or -2 for those that are neither.

    >>> anchors = Anchors(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 2], [50, 50, 60, 60]]))
    >>> match_or_ignore(anchors, torch.tensor([[0.0, 0, 10, 10], [52, 52, 70, 70]]), 0.5, 0.4).tolist()
    [0, -2, -1, 1]
    """
    overlaps = box_iou(boxes, anchors.boxes)  # (M, A)
    best_overlap, best_box = overlaps.max(dim=0)
    matches = torch.where(best_overlap >= threshold, best_box, -1)
    matches = matches.masked_fill((best_overlap < threshold) & (best_overlap >= background), -2)
    best_for_a_box = ((overlaps == overlaps.max(dim=1, keepdim=True).values) & (overlaps > 0)).any(dim=0)
    return torch.where(best_for_a_box, best_box, matches)


def match_above(anchors: Anchors, boxes: Tensor, threshold: float) -> Tensor:
    """Match proposals to target boxes by overlap, where it is enough: Fast R-CNN, section 2.3, "Mini-batch sampling".

    Args:
        anchors: A of them.
        boxes: ``(M, 4)`` in pixels, M at least 1.
        threshold: least intersection over union, 0..1.

    Returns:
        ``(A,)`` int64: each proposal's box, or -1 for background.
    """
    overlap, box = box_iou(boxes, anchors.boxes).max(dim=0)
    return torch.where(overlap >= threshold, box, -1)


def assign(anchors: Anchors, targets: Sequence[dict[str, Tensor]], matcher: Callable[[Anchors, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What each anchor of each image is to learn.

    Args:
        anchors: A of them, in pixels of the network's input.
        targets: one for each image, with ``boxes`` ``(M, 4)`` in the same pixels and ``labels`` ``(M,)``; M may be 0.
        matcher: from anchors and boxes to each anchor's box: see `match` and `match_or_ignore`.

    Returns:
        labels ``(N, A)`` int64, 0 for background and -1 for what is to be left out of the loss; and boxes ``(N, A, 4)``, which are the
        anchors themselves where the label is not positive.
    """
    labels, boxes = [], []
    for target in targets:
        if len(target["boxes"]):
            matches = matcher(anchors, target["boxes"].to(anchors.boxes))
        else:
            matches = torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.boxes.device)
        # two rows more than there are boxes, so that -1 (background) picks label 0, and -2 (left out) label -1
        classes = target["labels"].to(matches)
        labels.append(torch.cat([classes, classes.new_tensor([-1, 0])])[matches])
        matched = torch.cat([target["boxes"].to(anchors.boxes), anchors.boxes.new_zeros(2, 4)])[matches]
        boxes.append(torch.where(matches[:, None] >= 0, matched, anchors.boxes))
    return torch.stack(labels), torch.stack(boxes)


def scale_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Move boxes ``(M, 4)`` from an image of `size` (height, width) to the same image resized to `new_size`.

    >>> scale_boxes(torch.tensor([[0.0, 10.0, 50.0, 20.0]]), (100, 50), (50, 100)).tolist()
    [[0.0, 5.0, 100.0, 10.0]]
    """
    y, x = new_size[0] / size[0], new_size[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])
