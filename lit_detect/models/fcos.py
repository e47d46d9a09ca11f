"""FCOS: Fully Convolutional One-Stage Object Detection (Tian et al. 2019), with the journal version's centre sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.fcos import FCOSHead

from lit_detect.boxes import Anchors
from lit_detect.detections import PostProcess
from lit_detect.errors import InputError
from lit_detect.losses import BoxLoss, Criterion, FocalLoss, IoULoss, mean_over_ranks, positives
from lit_detect.models.backbones import Backbone, resnet50
from lit_detect.models.dense import DenseDetector, DenseNetwork, MapAnchors
from lit_detect.models.inputs import ShortestSide
from lit_detect.models.pyramid import dense_pyramid

__all__ = ["FCOS", "FCOSLoss"]

CENTERNESS = "__centerness__"


class FCOS(DenseDetector):
    """FCOS over any feature extractor: a point at each cell in place of anchors (section 3.1).

    Args:
        classes: see `Detector`.
        backbone: the feature extractor, of strides 8, 16 and 32; by default ResNet-50's last three stages.
        criterion: the loss; by default `FCOSLoss`. With one that has no centerness the network has none.
        fpn_channels: channels of the pyramid's maps, a multiple of 32.
        min_size: shorter side of the input in pixels.
        max_size: longest side of the input in pixels.
        train_min_sizes: shorter sides to choose from in training.
        radius: points closer than this to a box's centre learn it, in strides.
        score_threshold: see `PostProcess`.
        nms_threshold: see `PostProcess`.
        detections_per_image: see `PostProcess`.
        candidates_per_map: see `PostProcess`.
        **kwargs: see `Detector`.

    >>> FCOS(["cat", "dog"]).network.anchors.generator.sizes
    ((8,), (16,), (32,), (64,), (128,))
    """

    def __init__(
        self,
        classes: Sequence[str],
        backbone: Backbone | None = None,
        criterion: Criterion | None = None,
        fpn_channels: int = 256,
        min_size: int = 800,
        max_size: int = 1333,
        train_min_sizes: Sequence[int] | None = None,
        radius: float = 1.5,
        score_threshold: float = 0.2,
        nms_threshold: float = 0.6,
        detections_per_image: int = 100,
        candidates_per_map: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(classes, **kwargs)
        backbone = backbone or resnet50(["layer2", "layer3", "layer4"])
        criterion = criterion or FCOSLoss()
        pyramid, of_maps = dense_pyramid(backbone, fpn_channels, p6_from="p5")
        self.network = DenseNetwork(
            ShortestSide(min_size, max_size, backbone.mean, backbone.std, train_min_sizes),
            pyramid,
            PointHead(fpn_channels, criterion.logit_names(self.classes)),
            MapAnchors([[stride] for stride in of_maps], [1.0], kind=Points),
            partial(match_points, radius=radius),
            criterion,
            PostProcess(score_threshold, nms_threshold, detections_per_image, candidates_per_map=candidates_per_map),
        )

    def class_outputs(self) -> dict[str, tuple[list[str], int]]:
        """See `Detector`; the centerness has a layer of its own."""
        return {layer: ([name for name in names if name != CENTERNESS], 1) for layer, (names, _) in super().class_outputs().items()}


class FCOSLoss(FocalLoss):
    """Focal loss, an overlap loss for boxes, and binary cross-entropy for centerness: section 3.1 and equation 3.

    All three are divided by the number of positives in the batch, over all processes. Only for FCOS, whose offsets are distances.

    Args:
        alpha: see `FocalLoss`.
        gamma: see `FocalLoss`.
        prior: see `FocalLoss`.
        box_loss: by default GIoU.

    Raises:
        InputError: in use, with anchors that are not points.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, prior: float = 0.01, box_loss: BoxLoss | None = None) -> None:
        super().__init__(alpha, gamma, prior, box_loss or IoULoss("giou"))

    def logit_names(self, classes: list[str]) -> list[str]:
        """One for each class, and centerness."""
        return [*classes, CENTERNESS]

    def forward(self, logits: Tensor, deltas: Tensor, anchors: Anchors, labels: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        if not isinstance(anchors, Points):
            raise InputError("Expected FCOS as the detector that FCOSLoss is given to, since centerness is of points.")
        positive = positives(labels)
        count = mean_over_ranks((labels > 0).sum())
        points, boxes = anchors[positive[1]], boxes[positive]
        losses = {
            "class_loss": self.class_loss(logits[..., :-1], labels),
            "box_loss": self.box_loss(deltas[positive], points, boxes),
            "centerness_loss": F.binary_cross_entropy_with_logits(
                logits[..., -1][positive], centerness(points.encode(boxes)), reduction="none"
            ),
        }
        return {name: loss.sum() / count for name, loss in losses.items()}

    def scores(self, logits: Tensor) -> Tensor:
        """Scores ``(N, A, C)``, 0..1: the geometric mean of class and centerness (the journal version's, section 3.4)."""
        return (logits[..., :-1].sigmoid() * logits[..., -1:].sigmoid()).sqrt()


def centerness(distances: Tensor) -> Tensor:
    """How central a point is, from its distances to the left, top, right and bottom of its box ``(P, 4)``: equation 3, 0..1.

    >>> centerness(torch.tensor([[1.0, 1, 1, 1], [1, 2, 4, 2]])).tolist()
    [1.0, 0.5]
    """
    near, far = torch.minimum(distances[:, :2], distances[:, 2:]), torch.maximum(distances[:, :2], distances[:, 2:])
    return (near / far).prod(dim=1).sqrt()


@dataclass(frozen=True)
class Points(Anchors):
    """The points of FCOS, as squares of a stride's side around them; as torchvision's they are at multiples of the stride.

    Offsets are the distances from the point to the left, top, right and bottom of the box, in strides.
    """

    def encode(self, boxes: Tensor) -> Tensor:
        return torch.cat([self.centres - boxes[..., :2], boxes[..., 2:] - self.centres], dim=-1) / self.sizes.repeat(1, 2)

    def decode(self, deltas: Tensor) -> Tensor:
        return torch.cat([self.centres - deltas[..., :2] * self.sizes, self.centres + deltas[..., 2:] * self.sizes], dim=-1)


def match_points(anchors: Anchors, boxes: Tensor, there: Tensor, radius: float) -> Tensor:
    """Match points to boxes: section 3.2, and the journal version's centre sampling.

    A point learns a box that it lies in, if it is within `radius` strides of the box's centre and the box's farthest edge is 4 to 8
    strides away (on the finest map also nearer, on the coarsest also farther); of several boxes, the smallest.

    Args:
        anchors: A points.
        boxes: see `match`.
        there: see `match`.
        radius: in strides.

    Returns:
        ``(N, A)`` int64: each point's box, or -1 for background.
    """
    boxes = boxes[:, :, None]  # (N, M, 1, 4)
    points, stride = anchors.centres, anchors.sizes[:, 0]  # (A, 2), (A,)
    edges = torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)  # (N, M, A, 4)
    near = (points - (boxes[..., :2] + boxes[..., 2:]) / 2).abs().amax(dim=-1) < radius * stride
    farthest = edges.amax(dim=-1)
    in_range = (farthest > torch.where(stride == stride.min(), 0, 4 * stride)) & (
        farthest < torch.where(stride == stride.max(), torch.inf, 8 * stride)
    )
    learns = there[:, :, None] & near & in_range & (edges.amin(dim=-1) > 0)  # (N, M, A)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    smallest, match = torch.where(learns, area, torch.inf).min(dim=1)
    return match.masked_fill(smallest == torch.inf, -1)


class PointHead(FCOSHead):  # type: ignore[misc]
    """torchvision's head, with the centerness as the last logit where the criterion has one.

    Args:
        channels: of every map.
        logit_names: see `Criterion`.
    """

    def __init__(self, channels: int, logit_names: Sequence[str]) -> None:
        has_centerness = CENTERNESS in logit_names
        super().__init__(channels, num_anchors=1, num_classes=len(logit_names) - has_centerness)
        self.has_centerness = has_centerness
        self.regression_head.bbox_ctrness.requires_grad_(self.has_centerness)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = super().forward(maps)
        centerness = outputs.pop("bbox_ctrness")
        if self.has_centerness:
            outputs["cls_logits"] = torch.cat([outputs["cls_logits"], centerness], dim=-1)
        return outputs
