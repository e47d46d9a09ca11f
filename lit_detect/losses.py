"""Criteria: what a dense detector's raw outputs cost, and what its logits mean as scores."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_detect.boxes import encode

__all__ = ["Criterion", "HardNegativeMining"]


class Criterion(nn.Module, ABC):
    """The loss of a dense detector, and the scores that go with it.

    Subclass it, keep each constructor argument in an attribute of the same name, and give the class by `class_path`.
    """

    def num_logits(self, num_classes: int) -> int:
        """Logits an anchor needs for `num_classes` classes: one more here, for background."""
        return num_classes + 1

    @abstractmethod
    def forward(self, logits: Tensor, deltas: Tensor, anchors: Tensor, labels: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Named losses, each a finite scalar; training minimises their sum.

        Args:
            logits: ``(N, A, K)``, K from `num_logits`.
            deltas: ``(N, A, 4)``, the offsets of `lit_detect.boxes.encode`.
            anchors: ``(A, 4)`` in pixels.
            labels: ``(N, A)`` int64, 0 for background.
            boxes: ``(N, A, 4)`` in pixels; the anchors themselves where the label is 0.
        """

    def scores(self, logits: Tensor) -> Tensor:
        """Scores ``(N, A, C)`` of the classes 1..C, 0..1, from logits: a softmax with the background left out."""
        return logits.softmax(dim=-1)[..., 1:]


class HardNegativeMining(Criterion):
    """The MultiBox loss: SSD, section 2.2, "Training objective" and "Hard negative mining".

    Cross-entropy over the positives and over the negatives that cost most, plus smooth L1 over the positives' offsets, both
    divided by the number of positives in the batch.

    Args:
        ratio: negatives for each positive of an image.
        min_negatives: take at least so many negatives of each image. The paper takes 0, so an image without objects teaches
            nothing; set it to learn from such images.
    """

    def __init__(self, ratio: float = 3.0, min_negatives: int = 0) -> None:
        super().__init__()
        self.ratio = ratio
        self.min_negatives = min_negatives

    def forward(self, logits: Tensor, deltas: Tensor, anchors: Tensor, labels: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        positive = labels > 0  # (N, A)
        class_loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        box_loss = F.smooth_l1_loss(deltas, encode(boxes, anchors), reduction="none").sum(dim=-1)
        chosen = positive | self.hardest(class_loss.detach(), positive)
        count = positive.sum().clamp(min=1)
        return {"class_loss": (class_loss * chosen).sum() / count, "box_loss": (box_loss * positive).sum() / count}

    def hardest(self, loss: Tensor, positive: Tensor) -> Tensor:
        """The negatives with the largest loss of each image, as a mask ``(N, A)``."""
        wanted = (self.ratio * positive.sum(dim=1, keepdim=True)).clamp(min=self.min_negatives)
        order = loss.masked_fill(positive, -torch.inf).argsort(dim=1, descending=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(loss.shape[1], device=loss.device).expand_as(order))
        return (rank < wanted) & ~positive
