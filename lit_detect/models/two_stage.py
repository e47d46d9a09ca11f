"""What two-stage detectors share: proposals, then a classification and a refinement of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from lit_detect.boxes import Anchors
from lit_detect.detections import PostProcess
from lit_detect.losses import BoxLoss, mean_over_ranks
from lit_detect.models.backbones import Backbone
from lit_detect.models.inputs import Inputs, ShortestSide, Targets
from lit_detect.models.pyramid import check_anchor_sizes
from lit_detect.models.regions import RegionSampling, label_proposals, region_losses

__all__ = ["LastMap", "TwoStageNetwork", "proposal_network"]


class TwoStageNetwork(nn.Module, ABC):
    """Proposals, then a classification and a refinement of each: Faster R-CNN, section 3.

    The region proposal network is torchvision's; the passes are written out here, so that losses and detections come from one of them,
    and so that box arithmetic is float32 whatever the run's precision.

    Args:
        inputs: resizes and normalises.
        backbone: normalised images to feature maps by name.
        rpn: the region proposal network.
        sampling: which proposals are learnt.
        box_loss: of the positive proposals.
        post_process: picks the detections.
    """

    compiled: ClassVar[dict[str, bool | None]] = {"backbone": None, "rpn.head": None}

    def __init__(
        self,
        inputs: ShortestSide,
        backbone: nn.Module,
        rpn: RegionProposalNetwork,
        sampling: RegionSampling,
        box_loss: BoxLoss,
        post_process: PostProcess,
    ) -> None:
        super().__init__()
        self.inputs, self.backbone, self.rpn = inputs, backbone, rpn
        self.sampling, self.box_loss, self.post_process = sampling, box_loss, post_process

    def forward(self, images: Tensor | Sequence[Tensor], targets: Targets | None = None) -> dict[str, Tensor] | Targets:
        inputs = self.inputs(images)
        features = self.features(inputs)
        if not self.training:
            _, proposals = self.propose(inputs, features, None)
            return self.detect(inputs, proposals, *self.refine(features, proposals, inputs.images.shape[-2:]))
        targets = inputs.scale_targets(targets)
        losses, proposals = self.propose(inputs, features, targets)
        proposals = [torch.cat([of_image, target["boxes"]]) for of_image, target in zip(proposals, targets, strict=True)]
        labels, boxes = label_proposals(proposals, targets, self.sampling.match_threshold)
        places = self.sampling.sample(labels)
        proposals, labels, boxes = pick(proposals, places), pick(labels, places), pick(boxes, places)
        return losses | self.box_losses(*self.refine(features, proposals, inputs.images.shape[-2:]), proposals, labels, boxes)

    def evaluate(self, images: Tensor | Sequence[Tensor], targets: Targets) -> tuple[dict[str, Tensor], Targets]:
        """Losses and detections of one pass, in eval. The losses' random samples are the same at every call.

        Unlike in training the targets are not among the proposals, since they are not put through the box head; and an image may have
        no proposal.
        """
        inputs = self.inputs(images)
        targets = inputs.scale_targets(targets)
        features = self.features(inputs)
        with torch.random.fork_rng([inputs.images.device] if inputs.images.is_cuda else []):
            torch.manual_seed(0)
            losses, proposals = self.propose(inputs, features, targets)
            logits, deltas = self.refine(features, proposals, inputs.images.shape[-2:])
            labels, boxes = label_proposals(proposals, targets, self.sampling.match_threshold)
            places = self.sampling.sample(labels)
        counts = [len(of_image) for of_image in proposals]
        logits_there, deltas_there = (torch.cat(pick(torch.split(rows, counts), places)) for rows in (logits, deltas))
        losses |= self.box_losses(logits_there, deltas_there, pick(proposals, places), pick(labels, places), pick(boxes, places))
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

    @abstractmethod
    def refine(self, features: dict[str, Tensor], proposals: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The second stage, on the proposals of all images.

        Args:
            features: from `features`.
            proposals: of each image, ``(P, 4)`` in the network's pixels.
            size: height and width of the batch in pixels, padding included.

        Returns:
            Logits ``(P, C + 1)`` and offsets ``(P, C + 1, 4)``, or ``(P, 1, 4)`` if all classes share them; float32.
        """

    def box_losses(
        self, logits: Tensor, deltas: Tensor, proposals: list[Tensor], labels: list[Tensor], boxes: list[Tensor]
    ) -> dict[str, Tensor]:
        """The second stage's losses over the proposals that were chosen, and of these over the hardest if so asked."""
        with torch.autocast(logits.device.type, enabled=False):
            losses = region_losses(logits, deltas, torch.cat(proposals), torch.cat(labels), torch.cat(boxes), self.box_loss)
            losses = losses[self.sampling.learnt(losses.detach().sum(dim=1), proposals)]
            class_loss, box_loss = losses.sum(dim=0) / mean_over_ranks(losses.new_full((), len(losses)))
        return {"class_loss": class_loss, "box_loss": box_loss}

    def detect(self, inputs: Inputs, proposals: list[Tensor], logits: Tensor, deltas: Tensor) -> Targets:
        """Detections of a batch, in pixels of the images as they were given."""
        counts = [len(of_image) for of_image in proposals]
        with torch.autocast(logits.device.type, enabled=False):
            scores = logits.softmax(dim=-1)[:, 1:]
            decoded = Anchors(torch.cat(proposals)[:, None]).decode(deltas)  # (P, C + 1, 4), or (P, 1, 4) for all classes
            boxes = decoded[:, 1:] if decoded.shape[1] > 1 else decoded[:, 0]
            # images with fewer proposals than others are filled up with what scores nothing
            scores, boxes = (pad_sequence(list(torch.split(rows, counts)), batch_first=True, padding_value=-1) for rows in (scores, boxes))
            found = self.post_process(scores, boxes, inputs.sizes)
        return inputs.restore(found)


def pick(rows: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
    """Some rows of each image's."""
    return [of_image[place] for of_image, place in zip(rows, places, strict=True)]


def proposal_network(
    channels: int,
    strides: Sequence[int],
    anchor_sizes: Sequence[Sequence[int]] | None,
    aspect_ratios: Sequence[float],
    before_nms: tuple[int, int],
    proposals: tuple[int, int],
    nms_threshold: float,
    batch_size: int,
    score_threshold: float = 0.0,
    convs: int = 1,
) -> RegionProposalNetwork:
    """Torchvision's region proposal network: Faster R-CNN, section 3.1; for the arguments see `FasterRCNN`.

    Raises:
        InputError: anchor sizes that do not fit the maps.
    """
    if anchor_sizes is None:  # FPN, section 4.1; Faster R-CNN, section 3.1.1
        anchor_sizes = [[8 * stride] for stride in strides] if len(strides) > 1 else [[128, 256, 512]]
    check_anchor_sizes(anchor_sizes, strides)
    anchors = AnchorGenerator(tuple(tuple(of_map) for of_map in anchor_sizes), (tuple(aspect_ratios),) * len(anchor_sizes))
    return RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=convs),
        fg_iou_thresh=0.7,  # section 3.1.2
        bg_iou_thresh=0.3,
        batch_size_per_image=batch_size,
        positive_fraction=0.5,
        pre_nms_top_n={"training": before_nms[0], "testing": before_nms[1]},
        post_nms_top_n={"training": proposals[0], "testing": proposals[1]},
        nms_thresh=nms_threshold,
        score_thresh=score_threshold,
    )


class LastMap(nn.Module):
    """A backbone's last map alone: for ResNet's third stage the C4 of the ResNet paper.

    Args:
        backbone: the feature extractor.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, backbone.out_channels[-1]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"0": next(reversed(self.backbone(images).values()))}
