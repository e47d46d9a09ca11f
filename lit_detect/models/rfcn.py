"""R-FCN: Object Detection via Region-based Fully Convolutional Networks (Dai et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import ps_roi_pool

from lit_detect.detections import PostProcess
from lit_detect.detector import Detector
from lit_detect.errors import InputError
from lit_detect.losses import BoxLoss, SmoothL1
from lit_detect.models.backbones import Backbone, TorchvisionBackbone
from lit_detect.models.inputs import Inputs, ShortestSide, Targets
from lit_detect.models.pyramid import strides
from lit_detect.models.regions import RegionSampling
from lit_detect.models.two_stage import TwoStageNetwork, proposal_network

__all__ = ["RFCN"]


class RFCN(Detector):
    """R-FCN over any feature extractor: all that is learnt is convolutions on the whole image, and a region only votes.

    Args:
        classes: see `Detector`.
        backbone: the feature extractor, one or two maps of one stride: proposals come from the first, regions are pooled from the last.
            By default ResNet-50, with conv4 and a dilated conv5 (section 2, "Backbone architecture", and the a trous trick).
        region_channels: channels that the last map is reduced to by a 1x1 convolution (section 2: 1024).
        grid: side k of the grid of position-sensitive maps.
        min_size: shorter side of the input in pixels (section 3: 600).
        max_size: longest side of the input in pixels.
        train_min_sizes: shorter sides to choose from in training.
        anchor_sizes: see `FasterRCNN`.
        aspect_ratios: height over width of the anchors.
        rpn_nms_threshold: NMS between proposals, IoU 0..1.
        proposals_before_nms: proposals that enter NMS, in training and in eval.
        proposals: proposals an image after NMS, in training and in eval (section 3: 300).
        rpn_batch_size: anchors an image in the RPN's loss, at most half of them positive.
        roi_batch_size: proposals an image in the loss.
        ohem: learn the `roi_batch_size` hardest proposals in place of a random sample (section 2, "Training").
        ohem_nms_threshold: see `RegionSampling`; R-FCN itself takes the hardest without NMS.
        box_loss: by default smooth L1.
        score_threshold: detections score more than this, 0..1.
        nms_threshold: NMS between detections of a class, IoU 0..1.
        detections_per_image: at most so many, best first.
        **kwargs: see `Detector`.

    Raises:
        InputError: a backbone with more maps, or of different strides, or with region layers.
    """

    network: PositionSensitiveNetwork

    def __init__(
        self,
        classes: Sequence[str],
        backbone: Backbone | None = None,
        region_channels: int = 1024,
        grid: int = 7,
        min_size: int = 600,
        max_size: int = 1000,
        train_min_sizes: Sequence[int] | None = None,
        anchor_sizes: Sequence[Sequence[int]] | None = None,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rpn_nms_threshold: float = 0.7,
        proposals_before_nms: tuple[int, int] = (6000, 6000),
        proposals: tuple[int, int] = (300, 300),
        rpn_batch_size: int = 256,
        roi_batch_size: int = 128,
        ohem: bool = True,
        ohem_nms_threshold: float = 1.0,
        box_loss: BoxLoss | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        detections_per_image: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(classes, **kwargs)
        backbone = backbone or atrous_resnet("resnet50")
        of_maps = strides(backbone)
        if backbone.region_layers:
            raise InputError("Expected a backbone without region_layers: in R-FCN nothing is learnt for a region.")
        if len(of_maps) > 2 or len(set(of_maps)) > 1:
            raise InputError(f"Expected a backbone of one map, or of two of one stride, but got strides {of_maps}.")
        rpn = proposal_network(
            backbone.out_channels[0], of_maps[:1], anchor_sizes, aspect_ratios, proposals_before_nms, proposals,
            rpn_nms_threshold, rpn_batch_size,
        )  # fmt: skip
        self.network = PositionSensitiveNetwork(
            PositionSensitiveMaps(backbone.out_channels[-1], region_channels, len(classes) + 1, grid, of_maps[-1]),
            inputs=ShortestSide(min_size, max_size, backbone.mean, backbone.std, train_min_sizes),
            backbone=backbone,
            rpn=rpn,
            sampling=RegionSampling(roi_batch_size, ohem=ohem, nms_threshold=ohem_nms_threshold),
            box_loss=box_loss or SmoothL1(beta=1 / 9),
            post_process=PostProcess(score_threshold, nms_threshold, detections_per_image, min_size=0.01),
        )

    def class_outputs(self) -> dict[str, tuple[list[str], int]]:
        return {"maps.score": (["__background__", *self.classes], self.network.maps.grid**2)}


def atrous_resnet(name: str) -> TorchvisionBackbone:
    """A ResNet's conv4, and its conv5 dilated in place of strided, on ImageNet weights; the first two stages and all norms are frozen."""
    return TorchvisionBackbone(
        name,
        ["layer3", "layer4"],
        "IMAGENET1K_V1",
        frozen=["conv1", "bn1", "layer1"],
        frozen_norms=True,
        arguments={"replace_stride_with_dilation": [False, False, True]},
    )


class PositionSensitiveMaps(nn.Module):
    """Position-sensitive score and box maps, and the vote of a region on them: section 2.

    Args:
        in_channels: channels of the feature map.
        channels: what they are reduced to.
        num_logits: classes and background.
        grid: side k of the grid.
        stride: pixels between the map's cells.
    """

    def __init__(self, in_channels: int, channels: int, num_logits: int, grid: int, stride: int) -> None:
        super().__init__()
        self.grid, self.stride = grid, stride
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        self.score = nn.Conv2d(channels, grid**2 * num_logits, 1)
        self.box = nn.Conv2d(channels, grid**2 * 4, 1)
        for layer in (self.reduce, self.score, self.box):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Score maps ``(N, k k (C + 1), h, w)`` and box maps ``(N, k k 4, h, w)``, float32."""
        reduced = self.reduce(feature).relu()
        return self.score(reduced).float(), self.box(reduced).float()

    def vote(self, maps: Tensor, proposals: list[Tensor]) -> Tensor:
        """The average of each region's k x k cells, each pooled from the maps of its own position: equation 1 and "voting".

        Args:
            maps: ``(N, k k D, h, w)``, the k x k positions of each output together.
            proposals: of each image, ``(P, 4)`` in pixels.

        Returns:
            ``(P, D)`` for all images' regions.
        """
        cells: Tensor = ps_roi_pool(maps, proposals, self.grid, 1 / self.stride)  # (P, D, k, k)
        return cells.mean(dim=(2, 3))


class PositionSensitiveNetwork(TwoStageNetwork):
    """A `TwoStageNetwork` whose second stage has nothing to compute for a region but its vote.

    Args:
        maps: of the last feature map.
        **parts: see `TwoStageNetwork`.
    """

    compiled: ClassVar = {**TwoStageNetwork.compiled, "maps": None}

    def __init__(self, maps: PositionSensitiveMaps, **parts: Any) -> None:
        super().__init__(**parts)
        self.maps = maps

    def features(self, inputs: Inputs) -> dict[str, Tensor]:
        """The map that proposals come from, and the position-sensitive ones."""
        maps = [feature.float() for feature in self.backbone(inputs.images).values()]
        scores, boxes = self.maps(maps[-1])
        return {"proposals": maps[0], "scores": scores, "boxes": boxes}

    def propose(self, inputs: Inputs, features: dict[str, Tensor], targets: Targets | None) -> tuple[dict[str, Tensor], list[Tensor]]:
        return super().propose(inputs, {"proposals": features["proposals"]}, targets)

    def refine(self, features: dict[str, Tensor], proposals: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        with torch.autocast(features["scores"].device.type, enabled=False):
            return self.maps.vote(features["scores"], proposals), self.maps.vote(features["boxes"], proposals)[:, None]
