"""SSD: Single Shot MultiBox Detector (Liu et al. 2016), and SSDLite (Sandler et al. 2018, section 6.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.ssd import SSDHead
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation

from lit_detect.boxes import match
from lit_detect.detections import PostProcess
from lit_detect.losses import Criterion, HardNegativeMining
from lit_detect.models.backbones import Backbone, TorchvisionBackbone
from lit_detect.models.default_boxes import default_boxes
from lit_detect.models.dense import DenseDetector, DenseNetwork, FixedAnchors
from lit_detect.models.inputs import FixedSize
from lit_detect.models.pyramid import FeaturePyramid, StridedMaps
from lit_detect.models.vgg import VGG16

__all__ = ["SSD", "SSDLite"]


class SSD(DenseDetector):
    """SSD over any feature extractor, with the paper's VGG16 as the default.

    Layers are added to the backbone's last map until it is 1x1 (section 2.1, "Multi-scale feature maps for detection"). They have
    batch norms, which on a map of 1x1 need batches of two images or more in training, and in small batches their statistics are
    rough; VGG16 has layers of its own, without norms, and a pyramid (`fpn_channels`) has none either.

    Args:
        classes: see `Detector`.
        size: side of the square input in pixels.
        backbone: the feature extractor; by default VGG16 with the paper's geometry (8732 default boxes at 300, 24564 at 512).
        criterion: the loss; by default hard-negative mining 3:1.
        scales: ``voc`` or ``coco``, the reference implementation's tables for 6 and 7 maps; ``linear``, from .2 to .95 by equal
            steps (equation 4); or a list with one scale more than there are maps.
        aspect_ratios: of each map; by default ``[2]`` for the first and the last two maps and ``[2, 3]`` between.
        steps: pixels between default boxes on each map; by default the paper's for SSD300, else the input divided by the map.
        extra_channels: of the added layers, the last repeated as needed (Huang et al. 2017, supplement).
        fpn_channels: put a feature pyramid (FPN) with so many channels between the backbone's maps and the heads; by default none. The
            added layers are then strided convolutions without norms, as RetinaNet's: `extra_channels` and batch norms of the smallest
            maps have no part in it, since what these see in training would reach all maps.
        match_threshold: least IoU of a positive default box, 0..1.
        score_threshold: see `PostProcess`.
        nms_threshold: see `PostProcess`.
        detections_per_image: see `PostProcess`.
        candidates_per_class: see `PostProcess`.
        **kwargs: see `Detector`.

    Raises:
        InputError: scales, aspect ratios or steps that do not fit the number of maps.

    >>> SSD(["cat", "dog"], size=300).network.anchors.boxes.shape
    torch.Size([8732, 4])
    """

    def __init__(
        self,
        classes: Sequence[str],
        size: int = 300,
        backbone: Backbone | None = None,
        criterion: Criterion | None = None,
        scales: str | Sequence[float] = "coco",
        aspect_ratios: Sequence[Sequence[float]] | None = None,
        steps: Sequence[float] | None = None,
        extra_channels: Sequence[int] = (512, 512, 256, 256, 128),
        fpn_channels: int | None = None,
        match_threshold: float = 0.5,
        score_threshold: float = 0.01,
        nms_threshold: float = 0.45,
        detections_per_image: int = 200,
        candidates_per_class: int = 400,
        **kwargs: Any,
    ) -> None:
        super().__init__(classes, **kwargs)
        backbone = backbone or self.default_backbone(size)
        criterion = criterion or HardNegativeMining()
        sizes = down_to_one(backbone.feature_sizes(size))
        trunk: ExtraLayers | FeaturePyramid
        if fpn_channels is None:
            trunk = self.trunk(backbone, size, extra_channels)
            channels = trunk.out_channels
        else:
            coarser = StridedMaps(backbone.out_channels[-1], fpn_channels, len(sizes) - len(backbone.out_channels))
            trunk, channels = FeaturePyramid(backbone, backbone.out_channels, fpn_channels, coarser), [fpn_channels] * len(sizes)
        if aspect_ratios is None:
            aspect_ratios = self.default_aspect_ratios(len(sizes))
        anchors = default_boxes(size, sizes, scales, aspect_ratios, steps)
        boxes_per_cell = [2 + 2 * len(ratios) for ratios in aspect_ratios]
        self.network = DenseNetwork(
            FixedSize(size, backbone.mean, backbone.std),
            trunk,
            self.head(channels, boxes_per_cell, len(criterion.logit_names(self.classes))),
            FixedAnchors(anchors, [count * side**2 for count, side in zip(boxes_per_cell, sizes, strict=True)]),
            partial(match, threshold=match_threshold),
            criterion,
            PostProcess(score_threshold, nms_threshold, detections_per_image, candidates_per_class),
        )

    def trunk(self, backbone: Backbone, size: int, extra_channels: Sequence[int]) -> ExtraLayers:
        """The extractor, and what makes more maps of its maps."""
        return ExtraLayers(backbone, size, extra_channels, self.extra_layer)

    def default_backbone(self, size: int) -> Backbone:
        """The extractor where none is given."""
        return VGG16(size)

    def default_aspect_ratios(self, maps: int) -> list[list[float]]:
        """Section 3.1: 4 default boxes a cell on the first and the last two maps, 6 on the others."""
        return [[2.0] if index in (0, maps - 2, maps - 1) else [2.0, 3.0] for index in range(maps)]

    def extra_layer(self, in_channels: int, out_channels: int) -> nn.Module:
        """A layer that halves a map: 1x1 to half the channels, then 3x3 with stride 2."""
        return nn.Sequential(
            Conv2dNormActivation(in_channels, out_channels // 2, kernel_size=1),
            Conv2dNormActivation(out_channels // 2, out_channels, kernel_size=3, stride=2),
        )

    def head(self, channels: list[int], boxes_per_cell: list[int], num_logits: int) -> nn.Module:
        """3x3 convolutions on every map: section 2.1, "Convolutional predictors for detection"."""
        head: nn.Module = SSDHead(channels, boxes_per_cell, num_logits)
        return head


class SSDLite(SSD):
    """SSD with depthwise separable extra layers and heads: MobileNetV2, section 6.2.

    Args:
        classes: see `Detector`.
        size: side of the square input in pixels.
        backbone: by default MobileNetV3-Large, cut at the expansion of block 13 (stride 16) and at its last layer (stride 32).
        scales: see `SSD`.
        extra_channels: see `SSD`.
        score_threshold: see `PostProcess`.
        nms_threshold: see `PostProcess`.
        detections_per_image: see `PostProcess`.
        candidates_per_class: see `PostProcess`.
        **kwargs: see `SSD`.

    >>> SSDLite(["cat", "dog"]).network.anchors.boxes.shape
    torch.Size([3234, 4])
    """

    norm_layer = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)

    def __init__(
        self,
        classes: Sequence[str],
        size: int = 320,
        backbone: Backbone | None = None,
        scales: str | Sequence[float] = "linear",
        extra_channels: Sequence[int] = (512, 256, 256, 128),
        score_threshold: float = 0.001,
        nms_threshold: float = 0.55,
        detections_per_image: int = 300,
        candidates_per_class: int = 300,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            classes,
            size,
            backbone,
            scales=scales,
            extra_channels=extra_channels,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            detections_per_image=detections_per_image,
            candidates_per_class=candidates_per_class,
            **kwargs,
        )

    def default_backbone(self, size: int) -> Backbone:
        return TorchvisionBackbone("mobilenet_v3_large", ["features.13.block.0", "features.16"])

    def default_aspect_ratios(self, maps: int) -> list[list[float]]:
        return [[2.0, 3.0]] * maps

    def extra_layer(self, in_channels: int, out_channels: int) -> nn.Module:
        middle = out_channels // 2
        layer = partial(Conv2dNormActivation, norm_layer=self.norm_layer, activation_layer=nn.ReLU6)
        return nn.Sequential(
            layer(in_channels, middle, kernel_size=1),
            layer(middle, middle, kernel_size=3, stride=2, groups=middle),
            layer(middle, out_channels, kernel_size=1),
        )

    def head(self, channels: list[int], boxes_per_cell: list[int], num_logits: int) -> nn.Module:
        head: nn.Module = SSDLiteHead(channels, boxes_per_cell, num_logits, self.norm_layer)
        return head


class ExtraLayers(nn.Module):
    """A backbone, and layers on its last map until that is 1x1.

    Args:
        backbone: the feature extractor.
        size: side of the input in pixels.
        channels: of the layers, the last repeated as needed.
        layer: builds a layer from its input and output channels.
    """

    def __init__(self, backbone: Backbone, size: int, channels: Sequence[int], layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.extra = nn.ModuleList()
        self.sizes, self.out_channels = down_to_one(backbone.feature_sizes(size)), list(backbone.out_channels)
        for index in range(len(self.sizes) - len(self.out_channels)):
            out_channels = channels[min(index, len(channels) - 1)]
            self.extra.append(layer(self.out_channels[-1], out_channels))
            self.out_channels.append(out_channels)
        for module in self.extra.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.03)  # Huang et al. 2017, supplement: SSD's initialisation

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = dict(self.backbone(images))
        last = next(reversed(features.values()))
        for index, layer in enumerate(self.extra):
            last = features[f"extra.{index}"] = layer(last)
        return features


def down_to_one(sizes: Sequence[int]) -> list[int]:
    """The sides of maps, and of those that follow by halves until the last is 1x1.

    >>> down_to_one([38, 19])
    [38, 19, 10, 5, 3, 2, 1]
    """
    found = list(sizes)
    while found[-1] > 1:
        found.append(math.ceil(found[-1] / 2))
    return found
