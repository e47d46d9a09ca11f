"""Box arithmetic and matching. Boxes are float32 ``(x1, y1, x2, y2)`` in pixels, x to the right and y down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

__all__ = [
    "Anchors", "assign", "decode", "encode", "match", "match_above", "match_best", "match_or_ignore", "overlaps", "scale_boxes",
    "without_crowd",
]  # fmt: skip

# SSD, section 2.2: the "variances" .1 .1 .2 .2 of the reference implementation are these weights' inverses.
SSD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# A box is never decoded to more than 62.5 times its anchor's side, so that exp() cannot overflow.
MAX_LOG_SCALE = math.log(1000 / 16)
# So many overlaps of boxes and anchors are worked out at once, or those of one image: on a CPU what its caches hold, which is several
# times faster; on a GPU 64 MB for each intermediate result, of which FCOS has the largest, at eight times that.
OVERLAPS_AT_ONCE = {"cpu": 2**20, "cuda": 2**24}


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

    @property
    def centres(self) -> Tensor:
        """``(A, 2)`` in pixels."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    @property
    def sizes(self) -> Tensor:
        """Width and height ``(A, 2)`` in pixels."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

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


def overlaps(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Intersection over union of every box of each image with every anchor; torchvision's `box_iou` for a batch, to the last bit.

    Args:
        boxes: ``(N, M, 4)`` in pixels.
        anchors: ``(A, 4)`` in pixels.

    Returns:
        ``(N, M, A)``, 0..1.
    """
    boxes = boxes[:, :, None]
    # side by side, since two numbers a box in the last dimension would keep processors from working on many boxes at once
    width = torch.minimum(boxes[..., 2], anchors[:, 2]).sub_(torch.maximum(boxes[..., 0], anchors[:, 0])).clamp_(min=0)
    height = torch.minimum(boxes[..., 3], anchors[:, 3]).sub_(torch.maximum(boxes[..., 1], anchors[:, 1])).clamp_(min=0)
    common = width.mul_(height)
    areas = [(of[..., 2] - of[..., 0]) * (of[..., 3] - of[..., 1]) for of in (boxes, anchors)]
    return common / (areas[0] + areas[1]).sub_(common)


def match(anchors: Anchors, boxes: Tensor, there: Tensor, threshold: float) -> Tensor:
    """Match anchors to target boxes by overlap: SSD section 2.2, "matching strategy".

    An anchor takes the box with which it overlaps most, if that is at least `threshold`; and each box takes its best anchor,
    whatever the overlap. Of two boxes with the same best anchor the later one takes it.

    Args:
        anchors: A of them.
        boxes: ``(N, M, 4)`` in pixels, those of each image; M at least 1.
        there: ``(N, M)``, false for what only fills up the images that have fewer than M boxes.
        threshold: least intersection over union, 0..1.

    Returns:
        ``(N, A)`` int64: each anchor's box in its image, or -1 for background.

    >>> anchors = Anchors(torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 10], [50, 50, 60, 60], [80, 80, 90, 90]]))
    >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [52, 52, 70, 70]]])
    >>> match(anchors, boxes, torch.tensor([[True, True]]), 0.5).tolist()
    [[0, 0, 1, -1]]
    """
    ious = overlaps(boxes, anchors.boxes).masked_fill_(~there[:, :, None], -1)
    best_overlap, best_box = ious.max(dim=1)
    matches = torch.where(best_overlap >= threshold, best_box, -1)
    return match_best(matches, ious.argmax(dim=2), there)


def match_best(matches: Tensor, best_anchor: Tensor, there: Tensor) -> Tensor:
    """Matches ``(N, A)`` in which each box has its best anchor ``(N, M)``, whatever that was matched with; of two boxes the later one."""
    # index_put is unordered on a GPU; a maximum is not, and gives the later box the anchor.
    boxes = torch.arange(there.shape[1], device=there.device).expand_as(there)
    forced = torch.full_like(matches, -1).scatter_reduce_(1, best_anchor, torch.where(there, boxes, -1), "amax")
    return torch.where(forced >= 0, forced, matches)


def match_or_ignore(anchors: Anchors, boxes: Tensor, there: Tensor, threshold: float, background: float) -> Tensor:
    """Match anchors to target boxes by overlap, leaving out the undecided: RetinaNet, section 4, "Anchors".

    As in Faster R-CNN, section 3.1.2, the anchors with the highest overlap with a box count as matched whatever it is (but 0), each to
    the box that *it* overlaps most.

    Args:
        anchors: see `match`.
        boxes: see `match`.
        there: see `match`.
        threshold: least intersection over union of a match, 0..1.
        background: anchors that overlap no box this much are background, 0..1.

    Returns:
        ``(N, A)`` int64: each anchor's box, -1 for background, or -2 for those that are neither.

    >>> anchors = Anchors(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 2], [50, 50, 60, 60]]))
    >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [52, 52, 70, 70]]])
    >>> match_or_ignore(anchors, boxes, torch.tensor([[True, True]]), 0.5, 0.4).tolist()
    [[0, -2, -1, 1]]
    """
    ious = overlaps(boxes, anchors.boxes).masked_fill_(~there[:, :, None], -1)
    best_overlap, best_box = ious.max(dim=1)
    matches = torch.where(best_overlap >= threshold, best_box, -1)
    matches = matches.masked_fill((best_overlap < threshold) & (best_overlap >= background), -2)
    best_of_box = ious.amax(dim=2, keepdim=True)
    best_for_a_box = (ious == best_of_box.masked_fill(best_of_box <= 0, 2)).any(dim=1)  # none overlaps by 2
    return torch.where(best_for_a_box, best_box, matches)


def match_above(anchors: Anchors, boxes: Tensor, there: Tensor, threshold: float) -> Tensor:
    """Match proposals to target boxes by overlap, where it is enough: Fast R-CNN, section 2.3, "Mini-batch sampling".

    Args:
        anchors: see `match`.
        boxes: see `match`.
        there: see `match`.
        threshold: least intersection over union, 0..1.

    Returns:
        ``(N, A)`` int64: each proposal's box, or -1 for background.
    """
    overlap, box = overlaps(boxes, anchors.boxes).masked_fill_(~there[:, :, None], -1).max(dim=1)
    return torch.where(overlap >= threshold, box, -1)


def assign(
    anchors: Anchors, targets: Sequence[dict[str, Tensor]], matcher: Callable[[Anchors, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """What each anchor of each image is to learn.

    Args:
        anchors: A of them, in pixels of the network's input.
        targets: one for each image, with ``boxes`` ``(M, 4)`` in the same pixels and ``labels`` ``(M,)``; M may be 0.
        matcher: from anchors, boxes and whether these are there to each anchor's box: see `match` and `match_or_ignore`.

    Returns:
        labels ``(N, A)`` int64, 0 for background and -1 for what is to be left out of the loss; and boxes ``(N, A, 4)``, which are the
        anchors themselves where the label is not positive.
    """
    boxes, labels = (pad_sequence([target[name] for target in targets], batch_first=True) for name in ("boxes", "labels"))
    # a row more than there are boxes, so that there is one; its label is 0, as where an image has fewer than others
    boxes, labels = F.pad(boxes, (0, 0, 0, 1)).to(anchors.boxes), F.pad(labels, (0, 1)).to(anchors.boxes.device, torch.int64)
    most = OVERLAPS_AT_ONCE.get(anchors.boxes.device.type, OVERLAPS_AT_ONCE["cuda"])
    at_once = max(1, most // max(1, boxes.shape[1] * len(anchors)))
    chunks = [matcher(anchors, *chunk) for chunk in zip(torch.split(boxes, at_once), torch.split(labels > 0, at_once), strict=True)]
    matches = torch.cat(chunks)
    found = labels.gather(1, matches.clamp(min=0))
    found = torch.where(matches >= 0, found, torch.where(matches == -1, 0, -1))
    matched = boxes.gather(1, matches.clamp(min=0)[..., None].expand(-1, -1, 4))
    return found, torch.where(matches[..., None] >= 0, matched, anchors.boxes)


def scale_boxes(boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]], new_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Move the boxes ``(M, 4)`` of each image from its size (height, width) to another; of all images at once, for a GPU's sake.

    >>> boxes = torch.tensor([[0.0, 10.0, 50.0, 20.0]])
    >>> [moved.tolist() for moved in scale_boxes([boxes, boxes[:0]], [(100, 50), (8, 8)], [(50, 100), (8, 8)])]
    [[[0.0, 5.0, 100.0, 10.0]], []]
    """
    counts = [len(of_image) for of_image in boxes]
    factors = [(new[1] / old[1], new[0] / old[0]) * 2 for old, new in zip(sizes, new_sizes, strict=True)]
    of_box = torch.tensor(factors, dtype=boxes[0].dtype).repeat_interleave(torch.tensor(counts), dim=0)
    return list(torch.split(torch.cat(list(boxes)) * of_box.to(boxes[0].device, non_blocking=True), counts))


def without_crowd(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """A target's boxes that are to be learnt: all but those that stand for a crowd."""
    if "iscrowd" not in target:
        return target
    keep = target["iscrowd"] == 0
    return {name: value[keep] if value.ndim else value for name, value in target.items()}
