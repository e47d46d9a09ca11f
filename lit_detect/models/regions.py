"""The second stage of two-stage detectors: which proposals are learnt, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.ops import nms

from lit_detect.boxes import Anchors, assign, match_above
from lit_detect.losses import BoxLoss
from lit_detect.models.inputs import Targets

__all__ = ["RegionSampling", "hardest", "label_proposals", "region_losses"]


@dataclass(frozen=True)
class RegionSampling:
    """Which of an image's proposals are learnt.

    Either a random sample, at most a quarter of it positive (Fast R-CNN, section 2.3), or the hardest: online hard example mining
    (OHEM; Shrivastava et al. 2016, section 4), for which all go through the box head.

    Args:
        batch_size: how many of each image, B.
        match_threshold: least IoU of a positive proposal with its box, 0..1.
        positive_fraction: of a random sample.
        ohem: take the hardest.
        nms_threshold: of two of the hardest that overlap more than this only the harder is taken, IoU 0..1; 1 takes both.
    """

    batch_size: int
    match_threshold: float = 0.5
    positive_fraction: float = 0.25
    ohem: bool = False
    nms_threshold: float = 0.7

    def sample(self, labels: Sequence[Tensor]) -> list[Tensor]:
        """Indices of the proposals of each image that go through the box head."""
        if self.ohem:
            return [torch.arange(len(of_image), device=of_image.device) for of_image in labels]
        positive, negative = BalancedPositiveNegativeSampler(self.batch_size, self.positive_fraction)(list(labels))
        return [(chosen | others).nonzero().flatten() for chosen, others in zip(positive, negative, strict=True)]

    def learnt(self, losses: Tensor, proposals: Sequence[Tensor]) -> Tensor:
        """Indices of those that are learnt, among all that went through, from the loss ``(P,)`` of each."""
        if not self.ohem:
            return torch.arange(len(losses), device=losses.device)
        chosen, start = [], 0
        for of_image in proposals:
            loss = losses[start : start + len(of_image)]
            chosen.append(start + hardest(loss, of_image, self.batch_size, self.nms_threshold))
            start += len(of_image)
        return torch.cat(chosen)


def label_proposals(proposals: Sequence[Tensor], targets: Targets, threshold: float) -> tuple[list[Tensor], list[Tensor]]:
    """What each proposal is to learn: Fast R-CNN, section 2.3.

    Args:
        proposals: of each image, ``(P, 4)`` in pixels; P may be 0.
        targets: one for each image, with boxes in the same pixels.
        threshold: least IoU with the box that a proposal learns, 0..1.

    Returns:
        For each image the labels ``(P,)``, 0 for background, and the boxes ``(P, 4)``.
    """
    matcher = partial(match_above, threshold=threshold)
    pairs = [assign(Anchors(of_image), [target], matcher) for of_image, target in zip(proposals, targets, strict=True)]
    return [labels[0] for labels, _ in pairs], [boxes[0] for _, boxes in pairs]


def hardest(loss: Tensor, boxes: Tensor, batch_size: int, nms_threshold: float) -> Tensor:
    """Indices of the proposals with the largest loss, of which none is nearly another: OHEM (Shrivastava et al. 2016), section 4.1.

    Args:
        loss: ``(P,)``.
        boxes: ``(P, 4)`` in pixels.
        batch_size: how many to take, B.
        nms_threshold: of two that overlap more, the one of smaller loss is left out, IoU 0..1 (section 4.1 takes .7).

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [80, 80, 90, 90]])
    >>> hardest(torch.tensor([2.0, 3.0, 0.5, 1.0]), boxes, batch_size=2, nms_threshold=0.7).tolist()
    [1, 3]
    """
    order: Tensor = nms(boxes, loss, nms_threshold)
    return order[:batch_size]


def region_losses(logits: Tensor, deltas: Tensor, proposals: Tensor, labels: Tensor, boxes: Tensor, box_loss: BoxLoss) -> Tensor:
    """What each proposal costs: Fast R-CNN, section 2.3, equation 1.

    Args:
        logits: ``(P, C + 1)``.
        deltas: ``(P, C + 1, 4)``, or ``(P, 1, 4)`` if all classes share them.
        proposals: ``(P, 4)`` in pixels.
        labels: ``(P,)`` int64, 0 for background.
        boxes: ``(P, 4)`` in pixels; only those of positive labels count.
        box_loss: of the positives.

    Returns:
        ``(P, 2)``: the classification loss, and the box loss, which is 0 for background.
    """
    class_losses = F.cross_entropy(logits, labels, reduction="none")
    positive = (labels > 0).nonzero().flatten()
    own = deltas[positive, labels[positive] if deltas.shape[1] > 1 else 0]
    box_losses = box_loss(own, Anchors(proposals[positive]), boxes[positive])
    return torch.stack([class_losses, torch.zeros_like(class_losses).index_put((positive,), box_losses)], dim=1)
