"""RetinaNet: Focal Loss for Dense Object Detection (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch import nn
from torchvision.models.detection.retinanet import RetinaNetHead

from lit_detect.boxes import match_or_ignore
from lit_detect.detections import PostProcess
from lit_detect.losses import Criterion, FocalLoss, SmoothL1
from lit_detect.models.backbones import Backbone, resnet50
from lit_detect.models.dense import DenseDetector, DenseNetwork, MapAnchors
from lit_detect.models.inputs import ShortestSide
from lit_detect.models.pyramid import check_anchor_sizes, dense_pyramid

__all__ = ["RetinaNet"]


class RetinaNet(DenseDetector):
    """RetinaNet over any feature extractor.

    The default is torchvision's first version; the second has ``p6_from="c5"``, ``head_norms=True``, and GIoU as the box loss.

    Args:
        classes: see `Detector`.
        backbone: the feature extractor, of strides 8, 16 and 32; by default ResNet-50's last three stages.
        criterion: the loss; by default focal loss, with L1 for boxes.
        fpn_channels: channels of the pyramid's maps; with `head_norms` a multiple of 32.
        p6_from: make the two coarsest maps from ``c5``, the backbone's last (section 4, footnote 2), or from the pyramid's ``p5``.
        head_norms: group norms in the heads, after each of the four convolutions.
        min_size: shorter side of the input in pixels.
        max_size: longest side of the input in pixels.
        train_min_sizes: shorter sides to choose from in training.
        anchor_sizes: sides of the anchors in pixels, a list for each map; by default 4 times the map's stride, and 2^1/3 and 2^2/3
            times that (section 4, "Anchors").
        aspect_ratios: height over width of the anchors.
        match_threshold: least IoU of a positive anchor, 0..1.
        background_threshold: anchors with a smaller IoU are background, 0..1; those between are left out.
        score_threshold: see `PostProcess`.
        nms_threshold: see `PostProcess`.
        detections_per_image: see `PostProcess`.
        candidates_per_map: see `PostProcess`.
        **kwargs: see `Detector`.

    Raises:
        InputError: anchor sizes that do not fit the maps.

    >>> RetinaNet(["cat", "dog"]).network.anchors.generator.sizes[0]
    (32, 40, 50)
    """

    def __init__(
        self,
        classes: Sequence[str],
        backbone: Backbone | None = None,
        criterion: Criterion | None = None,
        fpn_channels: int = 256,
        p6_from: Literal["c5", "p5"] = "p5",
        head_norms: bool = False,
        min_size: int = 800,
        max_size: int = 1333,
        train_min_sizes: Sequence[int] | None = None,
        anchor_sizes: Sequence[Sequence[int]] | None = None,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        match_threshold: float = 0.5,
        background_threshold: float = 0.4,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 300,
        candidates_per_map: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(classes, **kwargs)
        backbone = backbone or resnet50(["layer2", "layer3", "layer4"])
        criterion = criterion or FocalLoss(box_loss=SmoothL1(beta=0))
        pyramid, of_maps = dense_pyramid(backbone, fpn_channels, p6_from)
        if anchor_sizes is None:
            anchor_sizes = [[int(4 * stride * 2 ** (step / 3)) for step in range(3)] for stride in of_maps]
        check_anchor_sizes(anchor_sizes, of_maps)
        anchors = MapAnchors(anchor_sizes, aspect_ratios)
        self.network = DenseNetwork(
            ShortestSide(min_size, max_size, backbone.mean, backbone.std, train_min_sizes),
            pyramid,
            RetinaNetHead(
                fpn_channels,
                anchors.per_cell,
                len(criterion.logit_names(self.classes)),
                partial(nn.GroupNorm, 32) if head_norms else None,
            ),
            anchors,
            partial(match_or_ignore, threshold=match_threshold, background=background_threshold),
            criterion,
            PostProcess(score_threshold, nms_threshold, detections_per_image, candidates_per_map=candidates_per_map),
        )
