"""Criteria: what a detector's raw outputs cost, and what its logits mean as scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from lit_detect.boxes import Anchors
from lit_detect.errors import InputError

__all__ = [
    "BoxLoss", "Criterion", "FocalLoss", "HardNegativeMining", "IoULoss", "SmoothL1", "YOLOBoxLoss", "YOLOLoss",
    "mean_over_ranks", "positives", "start_scores_at",
]  # fmt: skip


class BoxLoss(nn.Module, ABC):
    """What it costs that a matched anchor's offsets do not lead to its box."""

    @abstractmethod
    def forward(self, deltas: Tensor, anchors: Anchors, boxes: Tensor) -> Tensor:
        """The loss of each match, ``(P,)``.

        Args:
            deltas: ``(P, 4)``, as the anchors encode boxes.
            anchors: P of them.
            boxes: ``(P, 4)``, what they are to become, in pixels.
        """


class SmoothL1(BoxLoss):
    """Smooth L1 between offsets, summed over the four: Fast R-CNN, section 2.3.

    Args:
        beta: below this difference the loss is quadratic; with 0 it is L1.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, deltas: Tensor, anchors: Anchors, boxes: Tensor) -> Tensor:
        return F.smooth_l1_loss(deltas, anchors.encode(boxes), beta=self.beta, reduction="none").sum(dim=-1)


class YOLOBoxLoss(BoxLoss):
    """YOLOv3's: the gradient of each raw output is its difference from what it should be (section 2.1).

    For the centre, which goes through a sigmoid, that is binary cross-entropy; for width and height half the squared error. Only for
    offsets of YOLOv3's kind, whose first two are 0..1.
    """

    def forward(self, deltas: Tensor, anchors: Anchors, boxes: Tensor) -> Tensor:
        wanted = anchors.encode(boxes)
        centre = F.binary_cross_entropy(deltas[:, :2], wanted[:, :2].clamp(0, 1), reduction="none")
        return centre.sum(dim=1) + F.mse_loss(deltas[:, 2:], wanted[:, 2:], reduction="none").sum(dim=1) / 2


class IoULoss(BoxLoss):
    """One minus the overlap of the boxes themselves, by torchvision.

    Args:
        kind: ``giou`` (Rezatofighi et al. 2019), ``diou`` or ``ciou`` (Zheng et al. 2020, sections 3.2 and 3.3).
        weight: factor of the loss.

    Raises:
        InputError: another kind.
    """

    KINDS = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}  # noqa: RUF012

    def __init__(self, kind: Literal["giou", "diou", "ciou"] = "giou", weight: float = 1.0) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise InputError(f"Expected giou, diou or ciou as the kind of IoULoss but got {kind!r}.")
        self.kind, self.weight = kind, weight

    def forward(self, deltas: Tensor, anchors: Anchors, boxes: Tensor) -> Tensor:
        low, high = anchors.decode(deltas).split(2, dim=-1)  # type: ignore[no-untyped-call]
        decoded = torch.cat([low, torch.maximum(high, low + 1e-3)], dim=-1)  # the angle in CIoU has no gradient at a side of 0
        loss: Tensor = self.weight * self.KINDS[self.kind](decoded, boxes)
        return loss


Places = tuple[Tensor, Tensor]  # the image and the anchor of each, (P,) both


def mean_over_ranks(count: Tensor) -> Tensor:
    """What losses are divided by that a batch's count divides: its mean over the processes that train together, at least 1 of all.

    Processes average their gradients. With this, those are the gradients of all their images as one batch, wherever the objects are;
    divided by its own count, a process with few objects would give each of them more weight (mmdetection's FCOS does likewise by
    `reduce_mean`; torchvision's detectors divide by their own counts). Only with gradients, since every process has to take part.

    Args:
        count: of this process's images, a scalar.
    """
    if not (torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count.clamp(min=1)
    total = count.clone()
    torch.distributed.all_reduce(total)
    return total.clamp(min=1) / torch.distributed.get_world_size()


def positives(labels: Tensor) -> Places:
    """Where labels ``(N, A)`` are positive, image by image. A GPU is waited for here, and need not be again to index by these."""
    image, anchor = (labels > 0).nonzero(as_tuple=True)
    return image, anchor


class Criterion(nn.Module, ABC):
    """The loss of a dense detector, and the scores that go with it.

    Subclass it, keep each constructor argument in an attribute of the same name, and give the class by `class_path`.

    Args:
        box_loss: of the matched anchors; by default smooth L1.
    """

    def __init__(self, box_loss: BoxLoss | None = None) -> None:
        super().__init__()
        self.box_loss = box_loss or SmoothL1()

    def logit_names(self, classes: list[str]) -> list[str]:
        """What each of an anchor's logits stands for: here background, and the classes in their order."""
        return ["__background__", *classes]

    def initialise(self, layer: nn.Conv2d) -> None:
        """Set what a layer that gives logits starts from; here its bias to 0."""
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @abstractmethod
    def forward(self, logits: Tensor, deltas: Tensor, anchors: Anchors, labels: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Named losses, each a finite scalar; training minimises their sum.

        Args:
            logits: ``(N, A, K)``, one for each of `logit_names`.
            deltas: ``(N, A, 4)``, as the anchors encode boxes.
            anchors: A of them, in pixels.
            labels: ``(N, A)`` int64, 0 for background, -1 for what is to be left out.
            boxes: ``(N, A, 4)`` in pixels; the anchors themselves where the label is not positive.
        """

    def positive_box_losses(self, deltas: Tensor, anchors: Anchors, positive: Places, boxes: Tensor) -> Tensor:
        """The box loss of each positive ``(P,)``, image by image; `positive` says where they are, and the rest is as in `forward`."""
        losses: Tensor = self.box_loss(deltas[positive], anchors[positive[1]], boxes[positive])
        return losses

    def scores(self, logits: Tensor) -> Tensor:
        """Scores ``(N, A, C)`` of the classes 1..C, 0..1, from logits: a softmax with the background left out."""
        return logits.softmax(dim=-1)[..., 1:]


class HardNegativeMining(Criterion):
    """The MultiBox loss: SSD, section 2.2, "Training objective" and "Hard negative mining".

    Cross-entropy over the positives and over the negatives that cost most, plus the box loss of the positives, both divided by the
    number of positives in the batch, over all processes: see `mean_over_ranks`.

    Args:
        ratio: negatives for each positive of an image.
        min_negatives: take at least so many negatives of each image. The paper takes 0, so an image without objects teaches
            nothing; set it to learn from such images.
        box_loss: by default smooth L1.
    """

    def __init__(self, ratio: float = 3.0, min_negatives: int = 0, box_loss: BoxLoss | None = None) -> None:
        super().__init__(box_loss)
        self.ratio = ratio
        self.min_negatives = min_negatives

    def forward(self, logits: Tensor, deltas: Tensor, anchors: Anchors, labels: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        positive = labels > 0  # (N, A)
        class_loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none").view_as(labels)
        chosen = positive | self.hardest(class_loss.detach(), labels)
        box_loss = self.positive_box_losses(deltas, anchors, positives(labels), boxes)
        count = mean_over_ranks(positive.sum())
        return {"class_loss": (class_loss * chosen).sum() / count, "box_loss": box_loss.sum() / count}

    def hardest(self, loss: Tensor, labels: Tensor) -> Tensor:
        """The negatives with the largest loss of each image, as a mask ``(N, A)``."""
        wanted = (self.ratio * (labels > 0).sum(dim=1, keepdim=True)).clamp(min=self.min_negatives)
        order = loss.masked_fill(labels != 0, -torch.inf).argsort(dim=1, descending=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(loss.shape[1], device=loss.device).expand_as(order))
        return (rank < wanted) & (labels == 0)


def start_scores_at(prior: float, layer: nn.Conv2d) -> None:
    """Set the bias of a layer of logits so that their sigmoids start at the prior, 0..1: RetinaNet, section 4.1, "Initialization"."""
    nn.init.constant_(layer.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]


class FocalLoss(Criterion):
    """Focal loss: a sigmoid for each class, and easy anchors weighted down instead of left out (RetinaNet, section 3).

    Both losses of an image are divided by the number of its positives, and averaged over the images (section 4.1, "Focal Loss").

    Args:
        alpha: weight of the positives, 0..1; the negatives weigh one minus this.
        gamma: how fast the weight falls with the score; with 0 it does not.
        prior: score that every anchor starts with, 0..1 (section 3.3).
        box_loss: by default smooth L1.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, prior: float = 0.01, box_loss: BoxLoss | None = None) -> None:
        super().__init__(box_loss)
        self.alpha, self.gamma, self.prior = alpha, gamma, prior

    def logit_names(self, classes: list[str]) -> list[str]:
        """One for each class; there is none for background."""
        return list(classes)

    def initialise(self, layer: nn.Conv2d) -> None:
        """Section 4.1, "Initialization": small weights, so that every anchor starts with the prior whatever its features."""
        nn.init.normal_(layer.weight, std=0.01)
        start_scores_at(self.prior, layer)

    def forward(self, logits: Tensor, deltas: Tensor, anchors: Anchors, labels: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        positive = positives(labels)
        counts = (labels > 0).sum(dim=1).clamp(min=1)  # (N,)
        class_loss = self.class_loss(logits, labels).sum(dim=1)
        box_loss = self.positive_box_losses(deltas, anchors, positive, boxes) / counts[positive[0]]
        return {"class_loss": (class_loss / counts).mean(), "box_loss": box_loss.sum() / len(counts)}

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The classification loss of each anchor, ``(N, A)``; equations 4 and 5."""
        wanted = torch.zeros_like(logits, dtype=torch.bool)
        wanted.scatter_(-1, (labels - 1).clamp(min=0)[..., None], (labels > 0)[..., None])
        # p_t = sigmoid(-z), so that -log(p_t) = softplus(z): half of the passes over memory that sigmoid_focal_loss takes, where most
        # of RetinaNet's loss goes
        z = torch.where(wanted, -logits, logits)
        weight = torch.where(wanted, self.alpha, 1 - self.alpha)
        wrong = z.sigmoid()
        if 0 < self.gamma < 1:  # the slope of such a power is infinite at 0
            wrong = wrong.clamp(min=torch.finfo(wrong.dtype).tiny)
        loss = (weight * wrong**self.gamma * F.softplus(z)).sum(dim=-1)
        return loss * (labels >= 0)

    def scores(self, logits: Tensor) -> Tensor:
        """Scores ``(N, A, C)`` of the classes 1..C, 0..1: a sigmoid each, so that they need not sum to one."""
        return logits.sigmoid()


class YOLOLoss(Criterion):
    """Objectness, independent classes and boxes: YOLOv3, sections 2.1 and 2.2.

    Binary cross-entropy of the objectness over all anchors that are not left out, of the classes over the positives, and the box loss
    of the positives; all are sums, divided by the number of images as in darknet.

    Args:
        prior: score that objectness and classes start with, 0..1. Darknet takes .5, which makes background cost much at first; .01 as
            in RetinaNet, section 3.3, learns much faster.
        box_loss: by default `YOLOBoxLoss`.
    """

    def __init__(self, prior: float = 0.5, box_loss: BoxLoss | None = None) -> None:
        super().__init__(box_loss or YOLOBoxLoss())
        self.prior = prior

    def logit_names(self, classes: list[str]) -> list[str]:
        """Objectness, which tells objects from background, and the classes."""
        return ["__objectness__", *classes]

    def initialise(self, layer: nn.Conv2d) -> None:
        start_scores_at(self.prior, layer)

    def forward(self, logits: Tensor, deltas: Tensor, anchors: Anchors, labels: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        positive = positives(labels)
        objectness = F.binary_cross_entropy_with_logits(logits[..., 0], (labels > 0).to(logits), reduction="none") * (labels >= 0)
        one_hot = F.one_hot(labels[positive] - 1, logits.shape[-1] - 1).to(logits)
        class_loss = F.binary_cross_entropy_with_logits(logits[positive][:, 1:], one_hot, reduction="sum")
        box_loss = self.positive_box_losses(deltas, anchors, positive, boxes)
        losses = {"objectness_loss": objectness.sum(), "class_loss": class_loss, "box_loss": box_loss.sum()}
        return {name: loss / len(labels) for name, loss in losses.items()}

    def scores(self, logits: Tensor) -> Tensor:
        """Scores ``(N, A, C)`` of the classes 1..C, 0..1: objectness times the class's own (YOLO, section 2, equation 1)."""
        scores = logits.sigmoid()
        return scores[..., :1] * scores[..., 1:]
