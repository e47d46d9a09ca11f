"""SSD: Single Shot MultiBox Detector (Liu et al. 2016), and SSDLite (Sandler et al. 2018, section 6.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.ssd import SSDHead
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation

from lit_detect.boxes import match
from lit_detect.detections import PostProcess
from lit_detect.errors import InputError
from lit_detect.losses import Criterion, HardNegativeMining
from lit_detect.models.backbones import Backbone, TorchvisionBackbone
from lit_detect.models.dense import DenseDetector, DenseNetwork, FixedAnchors
from lit_detect.models.inputs import FixedSize
from lit_detect.models.pyramid import FeaturePyramid, StridedMaps
from lit_detect.models.vgg import VGG16

__all__ = ["SSD", "SSDLite", "default_boxes"]

# Scales of the default boxes relative to the input, one a map and one more: the reference implementation's tables
# (section 2.2, "Choosing scales and aspect ratios for default boxes"; for COCO section 3.4 makes them smaller).
SCALES: dict[tuple[str, int], tuple[float, ...]] = {
    ("voc", 6): (0.10, 0.20, 0.37, 0.54, 0.71, 0.88, 1.05),
    ("coco", 6): (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    ("voc", 7): (0.07, 0.15, 0.30, 0.45, 0.60, 0.75, 0.90, 1.05),
    ("coco", 7): (0.04, 0.10, 0.26, 0.42, 0.58, 0.74, 0.90, 1.06),
}
# Pixels between default boxes where they are not the input divided by the map: SSD300's, as in the reference implementation.
STEPS: dict[tuple[int, ...], tuple[float, ...]] = {(38, 19, 10, 5, 3, 1): (8, 16, 32, 64, 100, 300)}


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
