"""Faster R-CNN (Ren et al. 2015), with FPN (Lin et al. 2017) or on a single feature map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, roi_pool
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from lit_detect.detections import PostProcess
from lit_detect.detector import Detector
from lit_detect.errors import InputError
from lit_detect.losses import BoxLoss, SmoothL1
from lit_detect.models.backbones import Backbone, resnet50
from lit_detect.models.inputs import ShortestSide
from lit_detect.models.pyramid import FeaturePyramid, strides
from lit_detect.models.regions import RegionSampling
from lit_detect.models.two_stage import LastMap, TwoStageNetwork, proposal_network

__all__ = ["FasterRCNN"]


class FasterRCNN(Detector):
    """Faster R-CNN over any feature extractor.

    The defaults are torchvision's first version with FPN; its second has `fpn_norms`, two `rpn_convs` and four `head_convs`. Without
    FPN, an extractor with region layers has them as the box head: ResNet's conv5 (C4; He et al. 2016, appendix A), VGG's fc6 and fc7
    (the paper).

    Args:
        classes: see `Detector`.
        backbone: the feature extractor; by default ResNet-50, all four stages with FPN, the third alone and conv5 as the head without.
        fpn: build a feature pyramid on all of the backbone's maps; else its last map alone is used.
        fpn_channels: channels of the pyramid's maps.
        fpn_norms: batch norms in the pyramid.
        min_size: shorter side of the input in pixels.
        max_size: longest side of the input in pixels.
        train_min_sizes: shorter sides to choose from in training.
        anchor_sizes: sides of the anchors in pixels, a list for each map; by default 8 times the map's stride with FPN (FPN,
            section 4.1), else 128, 256 and 512 (section 3.1.1).
        aspect_ratios: height over width of the anchors.
        rpn_convs: 3x3 convolutions of the region proposal network before its outputs.
        rpn_nms_threshold: NMS between proposals, IoU 0..1.
        rpn_score_threshold: proposals score at least this, 0..1.
        proposals_before_nms: proposals a map that enter NMS, in training and in eval.
        proposals: proposals an image after NMS, in training and in eval.
        rpn_batch_size: anchors an image in the RPN's loss, at most half of them positive.
        roi_batch_size: proposals an image in the box head's loss, at most a quarter of them positive.
        roi_pooling: ``align`` (He et al. 2017, section 3) or the original ``pool``, which rounds to cells; with FPN always ``align``.
        roi_size: side of the pooled features.
        head_convs: 3x3 convolutions with batch norms in the box head, followed by one fully connected layer in place of two.
        head_channels: width of the fully connected layers (fc6 and fc7).
        ohem: learn the `roi_batch_size` hardest proposals in place of a random sample (Shrivastava et al. 2016).
        ohem_nms_threshold: see `RegionSampling`.
        box_loss: of the box head; by default smooth L1.
        score_threshold: detections score more than this, 0..1.
        nms_threshold: NMS between detections of a class, IoU 0..1.
        detections_per_image: at most so many, best first.
        **kwargs: see `Detector`.

    Raises:
        InputError: anchor sizes that do not fit the maps; region layers with FPN.

    >>> detector = FasterRCNN(["cat", "dog"])
    >>> detector.network.rpn.anchor_generator.sizes
    ((32,), (64,), (128,), (256,), (512,))
    """

    def __init__(
        self,
        classes: Sequence[str],
        backbone: Backbone | None = None,
        fpn: bool = True,
        fpn_channels: int = 256,
        fpn_norms: bool = False,
        min_size: int = 800,
        max_size: int = 1333,
        train_min_sizes: Sequence[int] | None = None,
        anchor_sizes: Sequence[Sequence[int]] | None = None,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rpn_convs: int = 1,
        rpn_nms_threshold: float = 0.7,
        rpn_score_threshold: float = 0.0,
        proposals_before_nms: tuple[int, int] = (2000, 1000),
        proposals: tuple[int, int] = (2000, 1000),
        rpn_batch_size: int = 256,
        roi_batch_size: int = 512,
        roi_pooling: Literal["align", "pool"] = "align",
        roi_size: int = 7,
        head_convs: int = 0,
        head_channels: int = 1024,
        ohem: bool = False,
        ohem_nms_threshold: float = 0.7,
        box_loss: BoxLoss | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(classes, **kwargs)
        if backbone is None:
            stages = ["layer1", "layer2", "layer3", "layer4"]
            backbone = resnet50(stages) if fpn else resnet50(["layer3"], region_layers=["layer4"])
        if fpn and backbone.region_layers:
            raise InputError(f"Expected fpn: false with an extractor that has region_layers but got {list(backbone.region_layers)}.")
        trunk: FeaturePyramid | LastMap
        if fpn:
            trunk, of_maps = FeaturePyramid(backbone, backbone.out_channels, fpn_channels, LastLevelMaxPool(), fpn_norms), strides(backbone)
        else:
            trunk, of_maps = LastMap(backbone), strides(backbone)[-1:]
        rpn_maps = [*of_maps, 2 * of_maps[-1]] if fpn else of_maps  # the coarsest is pooled for the RPN alone
        rpn = proposal_network(
            trunk.out_channels, rpn_maps, anchor_sizes, aspect_ratios, proposals_before_nms, proposals,
            rpn_nms_threshold, rpn_batch_size, rpn_score_threshold, rpn_convs,
        )  # fmt: skip
        box_head, head_channels = region_head(backbone, (trunk.out_channels, roi_size, roi_size), head_convs, head_channels)
        self.network = PooledNetwork(
            region_pooling(roi_size, of_maps, "align" if fpn else roi_pooling),
            box_head,
            FastRCNNPredictor(head_channels, len(classes) + 1),
            inputs=ShortestSide(min_size, max_size, backbone.mean, backbone.std, train_min_sizes),
            backbone=trunk,
            rpn=rpn,
            sampling=RegionSampling(roi_batch_size, ohem=ohem, nms_threshold=ohem_nms_threshold),
            box_loss=box_loss or SmoothL1(beta=1 / 9),
            post_process=PostProcess(score_threshold, nms_threshold, detections_per_image, min_size=0.01),
        )

    def class_outputs(self) -> dict[str, tuple[list[str], int]]:
        names = ["__background__", *self.classes]
        return {"box_predictor.cls_score": (names, 1), "box_predictor.bbox_pred": (names, 4)}


class PooledNetwork(TwoStageNetwork):
    """A `TwoStageNetwork` that pools each proposal's features and puts them through layers of their own: Fast R-CNN, section 2.

    Args:
        roi_pool: maps, proposals of each image and the images' sizes to pooled features ``(P, D, h, w)``.
        box_head: pooled features to features ``(P, D)``.
        box_predictor: these to logits ``(P, C + 1)`` and offsets ``(P, 4 (C + 1))``.
        **parts: see `TwoStageNetwork`.
    """

    compiled: ClassVar = {**TwoStageNetwork.compiled, "box_head": True, "box_predictor": True}

    def __init__(self, roi_pool: nn.Module, box_head: Callable[[Tensor], Tensor], box_predictor: nn.Module, **parts: Any) -> None:
        super().__init__(**parts)
        self.roi_pool, self.box_head, self.box_predictor = roi_pool, box_head, box_predictor

    def refine(self, features: dict[str, Tensor], proposals: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        # the padded size, and not each image's: torchvision works strides out of the first that it sees, and keeps them
        pooled = self.roi_pool(features, proposals, [size] * len(proposals))
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits.float(), deltas.float().unflatten(1, (-1, 4))


class RoIPool(nn.Module):
    """The original pooling of regions from one map, by torchvision: Fast R-CNN, section 2.1.

    Args:
        size: side of the pooled features.
        stride: pixels between the map's cells.
    """

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        pooled: Tensor = roi_pool(features["0"], proposals, self.size, 1 / self.stride)
        return pooled


def region_pooling(size: int, strides: Sequence[int], kind: str) -> nn.Module:
    """What pools regions to `size` cells a side: ``pool`` from the one map, or ``align`` from as many as there are strides."""
    if kind == "pool":
        return RoIPool(size, strides[0])
    align: nn.Module = MultiScaleRoIAlign([str(index) for index in range(len(strides))], size, sampling_ratio=2)
    return align


def region_head(backbone: Backbone, pooled: tuple[int, int, int], convs: int, channels: int) -> tuple[Callable[[Tensor], Tensor], int]:
    """The layers that each region's pooled features ``(D, h, w)`` go through, and how many features they give."""
    if backbone.region_layers:
        training = backbone.training
        with torch.no_grad():
            features = backbone.eval().regions(torch.zeros(1, *pooled))
        backbone.train(training)
        # a method of the backbone, which holds these layers' weights and loads them with its own
        return backbone.regions, features.shape[1]
    if convs:
        return FastRCNNConvFCHead(pooled, [pooled[0]] * convs, [channels], norm_layer=nn.BatchNorm2d), channels
    return TwoMLPHead(math.prod(pooled), channels), channels
