"""Faster R-CNN (Ren et al. 2015), with FPN (Lin et al. 2017) or on a single feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from lit_detect.detector import Detector
from lit_detect.errors import InputError
from lit_detect.models.backbones import Backbone, TorchvisionBackbone
from lit_detect.models.inputs import Inputs, ShortestSide, Targets

__all__ = ["FasterRCNN"]


class FasterRCNN(Detector):
    """Faster R-CNN over any feature extractor.

    Args:
        classes: see `Detector`.
        backbone: the feature extractor; by default ResNet-50, all four stages with FPN, the third alone (C4) without.
        fpn: build a feature pyramid on all of the backbone's maps; else its last map alone is used.
        fpn_channels: channels of the pyramid's maps.
        min_size: shorter side of the input in pixels.
        max_size: longest side of the input in pixels.
        anchor_sizes: sides of the anchors in pixels, a list for each map; by default 8 times the map's stride with FPN (FPN,
            section 4.1), else 128, 256 and 512 (section 3.1.1).
        aspect_ratios: height over width of the anchors.
        rpn_nms_threshold: NMS between proposals, IoU 0..1.
        proposals_before_nms: proposals a map that enter NMS, in training and in eval.
        proposals: proposals an image after NMS, in training and in eval.
        rpn_batch_size: anchors an image in the RPN's loss, at most half of them positive.
        roi_batch_size: proposals an image in the box head's loss, at most a quarter of them positive.
        roi_size: side of the pooled features.
        head_channels: width of the two fully connected layers (fc6 and fc7).
        score_threshold: detections score more than this, 0..1.
        nms_threshold: NMS between detections of a class, IoU 0..1.
        detections_per_image: at most so many, best first.
        **kwargs: see `Detector`.

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
        min_size: int = 800,
        max_size: int = 1333,
        anchor_sizes: Sequence[Sequence[int]] | None = None,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rpn_nms_threshold: float = 0.7,
        proposals_before_nms: tuple[int, int] = (2000, 1000),
        proposals: tuple[int, int] = (2000, 1000),
        rpn_batch_size: int = 256,
        roi_batch_size: int = 512,
        roi_size: int = 7,
        head_channels: int = 1024,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(classes, **kwargs)
        backbone = backbone or resnet50(["layer1", "layer2", "layer3", "layer4"] if fpn else ["layer3"])
        trunk = FeaturePyramid(backbone, fpn_channels) if fpn else LastMap(backbone)
        anchors = anchor_generator(trunk.strides, anchor_sizes, aspect_ratios, fpn)
        rpn = RegionProposalNetwork(
            anchors,
            RPNHead(trunk.out_channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,  # section 3.1.2
            bg_iou_thresh=0.3,
            batch_size_per_image=rpn_batch_size,
            positive_fraction=0.5,
            pre_nms_top_n={"training": proposals_before_nms[0], "testing": proposals_before_nms[1]},
            post_nms_top_n={"training": proposals[0], "testing": proposals[1]},
            nms_thresh=rpn_nms_threshold,
        )
        roi_heads = RoIHeads(
            MultiScaleRoIAlign(trunk.names, output_size=roi_size, sampling_ratio=2),
            TwoMLPHead(trunk.out_channels * roi_size**2, head_channels),
            FastRCNNPredictor(head_channels, len(classes) + 1),
            fg_iou_thresh=0.5,  # Fast R-CNN, section 2.3
            bg_iou_thresh=0.5,
            batch_size_per_image=roi_batch_size,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=detections_per_image,
        )
        self.network = TwoStageNetwork(ShortestSide(min_size, max_size, backbone.mean, backbone.std), trunk, rpn, roi_heads)


def resnet50(nodes: Sequence[str]) -> Backbone:
    """ResNet-50 as torchvision trains detectors on it: ImageNet weights, all norms frozen, and the first two stages too."""
    weights, frozen = "IMAGENET1K_V1", ["conv1", "bn1", "layer1"]
    return TorchvisionBackbone("resnet50", nodes, weights, frozen, frozen_norms=True)


class FeaturePyramid(nn.Module):
    """A backbone and torchvision's FPN on all its maps, with a max-pooled coarsest map for the RPN alone.

    Args:
        backbone: the feature extractor.
        out_channels: channels of every map.
    """

    def __init__(self, backbone: Backbone, out_channels: int) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, out_channels
        self.fpn = FeaturePyramidNetwork(backbone.out_channels, out_channels, LastLevelMaxPool())
        strides = [512 // side for side in backbone.feature_sizes(512)]
        self.strides = [*strides, 2 * strides[-1]]
        self.names = [str(index) for index in range(len(strides))]  # where regions are pooled

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = dict(zip(self.names, self.backbone(images).values(), strict=True))
        features: dict[str, Tensor] = self.fpn(maps)
        return features


class LastMap(nn.Module):
    """A backbone's last map alone: for ResNet's third stage the C4 of the ResNet paper.

    Args:
        backbone: the feature extractor.
    """

    names = ("0",)

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, backbone.out_channels[-1]
        self.strides = [512 // backbone.feature_sizes(512)[-1]]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"0": next(reversed(self.backbone(images).values()))}


def anchor_generator(strides: Sequence[int], sizes: Sequence[Sequence[int]] | None, ratios: Sequence[float], fpn: bool) -> AnchorGenerator:
    """Anchors of every map; sizes default to the papers'."""
    if sizes is None:
        sizes = [[8 * stride] for stride in strides] if fpn else [[128, 256, 512]]
    if len(sizes) != len(strides):
        raise InputError(f"Expected anchor_sizes for {len(strides)} maps of strides {list(strides)} but got {len(sizes)} lists.")
    if len({len(of_map) for of_map in sizes}) > 1:
        raise InputError(f"Expected as many anchor_sizes on each map, since the RPN's head is shared, but got {sizes}.")
    return AnchorGenerator(tuple(tuple(of_map) for of_map in sizes), (tuple(ratios),) * len(sizes))


class TwoStageNetwork(nn.Module):
    """Proposals, then a classification and a refinement of each: Faster R-CNN, section 3.

    The parts are torchvision's; the passes are written out here, so that losses and detections come from one of them, and so that
    box arithmetic is float32 whatever the run's precision.

    Args:
        inputs: resizes and normalises.
        backbone: normalised images to feature maps by name.
        rpn: the region proposal network.
        roi_heads: the box head.
    """

    def __init__(self, inputs: ShortestSide, backbone: nn.Module, rpn: RegionProposalNetwork, roi_heads: RoIHeads) -> None:
        super().__init__()
        self.inputs, self.backbone, self.rpn, self.roi_heads = inputs, backbone, rpn, roi_heads

    def forward(self, images: Tensor | Sequence[Tensor], targets: Targets | None = None) -> dict[str, Tensor] | Targets:
        inputs = self.inputs(images)
        features = self.features(inputs)
        if not self.training:
            _, proposals = self.propose(inputs, features, None)
            return self.detect(inputs, proposals, *self.refine(features, proposals, inputs.sizes))
        targets = inputs.scale_targets(targets)
        losses, proposals = self.propose(inputs, features, targets)
        proposals, _, labels, offsets = self.roi_heads.select_training_samples(proposals, targets)
        logits, deltas = self.refine(features, proposals, inputs.sizes)
        return losses | self.box_losses(logits, deltas, labels, offsets)

    def evaluate(self, images: Tensor | Sequence[Tensor], targets: Targets) -> tuple[dict[str, Tensor], Targets]:
        """Losses and detections of one pass, in eval. The losses' random samples are the same at every call."""
        inputs = self.inputs(images)
        targets = inputs.scale_targets(targets)
        features = self.features(inputs)
        devices = [inputs.images.device] if inputs.images.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            losses, proposals = self.propose(inputs, features, targets)
            logits, deltas = self.refine(features, proposals, inputs.sizes)
            losses |= self.sampled_box_losses(proposals, logits, deltas, targets)
        return losses, self.detect(inputs, proposals, logits, deltas)

    def features(self, inputs: Inputs) -> dict[str, Tensor]:
        """Feature maps in float32."""
        return {name: feature.float() for name, feature in self.backbone(inputs.images).items()}

    def propose(self, inputs: Inputs, features: dict[str, Tensor], targets: Targets | None) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Section 3.1: proposals ``(P, 4)`` of each image in the network's pixels, and the RPN's losses where there are targets."""
        rpn, maps = self.rpn, list(features.values())
        objectness, deltas = rpn.head(maps)
        with torch.autocast(inputs.images.device.type, enabled=False):
            anchors = rpn.anchor_generator(ImageList(inputs.images, inputs.sizes), maps)
            anchors_per_map = [scores[0].numel() for scores in objectness]
            objectness, deltas = concat_box_prediction_layers(objectness, deltas)
            objectness, deltas = objectness.float(), deltas.float()
            boxes = rpn.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
            proposals, _ = rpn.filter_proposals(boxes, objectness, inputs.sizes, anchors_per_map)
            if targets is None:
                return {}, proposals
            labels, matched = rpn.assign_targets_to_anchors(anchors, targets)
            class_loss, box_loss = rpn.compute_loss(objectness, deltas, labels, rpn.box_coder.encode(matched, anchors))
        return {"rpn_class_loss": class_loss, "rpn_box_loss": box_loss}, proposals

    def refine(self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Fast R-CNN on the proposals of all images: logits ``(P, C + 1)`` and offsets ``(P, 4 (C + 1))``, float32."""
        pooled = self.roi_heads.box_roi_pool(features, proposals, sizes)
        logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits.float(), deltas.float()

    def sampled_box_losses(self, proposals: list[Tensor], logits: Tensor, deltas: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The box losses of an evaluation, over a sample of its outputs.

        Unlike in training the targets themselves are not among the proposals, since they were not put through the box head; and an
        image may have no proposal.
        """
        some = [index for index, of_image in enumerate(proposals) if len(of_image)]
        proposals, targets = [proposals[index] for index in some], [targets[index] for index in some]
        if not some:
            return {"class_loss": logits.new_zeros(()), "box_loss": logits.new_zeros(())}
        boxes, classes = [target["boxes"] for target in targets], [target["labels"] for target in targets]
        matches, labels = self.roi_heads.assign_targets_to_proposals(proposals, boxes, classes)
        chosen = self.roi_heads.subsample(labels)
        matched = [torch.cat([box, box.new_zeros(1, 4)])[match] for box, match in zip(boxes, matches, strict=True)]
        offsets = self.roi_heads.box_coder.encode(matched, proposals)
        counts = [len(of_image) for of_image in proposals]

        def sample(rows: Sequence[Tensor]) -> list[Tensor]:
            return [of_image[index] for of_image, index in zip(rows, chosen, strict=True)]

        logits, deltas = torch.cat(sample(torch.split(logits, counts))), torch.cat(sample(torch.split(deltas, counts)))
        return self.box_losses(logits, deltas, sample(labels), sample(offsets))

    def box_losses(self, logits: Tensor, deltas: Tensor, labels: list[Tensor], offsets: list[Tensor]) -> dict[str, Tensor]:
        """Fast R-CNN, section 2.3."""
        with torch.autocast(logits.device.type, enabled=False):
            class_loss, box_loss = fastrcnn_loss(logits, deltas, labels, offsets)
        return {"class_loss": class_loss, "box_loss": box_loss}

    def detect(self, inputs: Inputs, proposals: list[Tensor], logits: Tensor, deltas: Tensor) -> Targets:
        """Detections of a batch, in pixels of the images as they were given."""
        with torch.autocast(logits.device.type, enabled=False):
            found = self.roi_heads.postprocess_detections(logits, deltas, proposals, inputs.sizes)
        names = ("boxes", "scores", "labels")
        return inputs.restore([dict(zip(names, one, strict=True)) for one in zip(*found, strict=True)])
