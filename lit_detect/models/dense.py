"""What one-stage detectors share: features, heads, one anchor set, a criterion and post-processing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from lit_detect.boxes import Anchors, assign
from lit_detect.detections import PostProcess
from lit_detect.detector import Detector
from lit_detect.losses import Criterion
from lit_detect.models.inputs import Constants, FixedSize, Inputs, ShortestSide, Targets

__all__ = ["DenseDetector", "DenseNetwork", "FixedAnchors", "MapAnchors", "class_layers"]


class DenseDetector(Detector):
    """A detector whose network is a `DenseNetwork`."""

    network: DenseNetwork

    def class_outputs(self) -> dict[str, tuple[list[str], int]]:
        names = self.network.criterion.logit_names(self.classes)
        return {f"head.{layer}": (names, 1) for layer in class_layers(self.network.head)}


class DenseNetwork(nn.Module):
    """A detector that classifies and regresses every anchor in one pass (SSD, section 2).

    ``network(images, targets)`` gives losses in training, ``network(images)`` detections in eval.

    Args:
        inputs: resizes and normalises.
        backbone: normalised images to feature maps by name.
        head: list of maps to ``{"cls_logits": (N, A, K), "bbox_regression": (N, A, 4)}``, torchvision's names.
        anchors: normalised images and list of maps to `Anchors`.
        matcher: anchors and each image's boxes to each anchor's box: see `lit_detect.boxes.match`.
        criterion: the loss, and the scores that go with it.
        post_process: picks the detections.
    """

    compiled: ClassVar = {"backbone": None, "head": None}

    def __init__(
        self,
        inputs: FixedSize | ShortestSide,
        backbone: nn.Module,
        head: nn.Module,
        anchors: nn.Module,
        matcher: Callable[[Anchors, Tensor, Tensor], Tensor],
        criterion: Criterion,
        post_process: PostProcess,
    ) -> None:
        super().__init__()
        self.inputs, self.backbone, self.head, self.anchors = inputs, backbone, head, anchors
        self.matcher, self.criterion, self.post_process = matcher, criterion, post_process
        for layer in class_layers(head).values():
            criterion.initialise(layer)

    def forward(self, images: Tensor | Sequence[Tensor], targets: Targets | None = None) -> dict[str, Tensor] | Targets:
        inputs = self.inputs(images)
        outputs = self.predict(inputs.images)
        return self.losses(inputs, *outputs, targets) if self.training else self.detections(inputs, *outputs)

    def evaluate(self, images: Tensor | Sequence[Tensor], targets: Targets) -> tuple[dict[str, Tensor], Targets]:
        """Losses and detections of one pass, in eval."""
        inputs = self.inputs(images)
        outputs = self.predict(inputs.images)
        return self.losses(inputs, *outputs, targets), self.detections(inputs, *outputs)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor, Anchors]:
        """Raw outputs for normalised images: logits ``(N, A, K)``, offsets ``(N, A, 4)``, and the A anchors.

        They are float32 whatever the run's precision.
        """
        maps = list(self.backbone(images).values())
        outputs = self.head(maps)
        return outputs["cls_logits"].float(), outputs["bbox_regression"].float(), self.anchors(images, maps)

    def losses(self, inputs: Inputs, logits: Tensor, deltas: Tensor, anchors: Anchors, targets: Targets | None) -> dict[str, Tensor]:
        """Named losses of a batch."""
        with torch.autocast(logits.device.type, enabled=False):
            labels, boxes = assign(anchors, inputs.scale_targets(targets), self.matcher)
            losses: dict[str, Tensor] = self.criterion(logits, deltas, anchors, labels, boxes)
        return losses

    def detections(self, inputs: Inputs, logits: Tensor, deltas: Tensor, anchors: Anchors) -> Targets:
        """Detections of a batch, in pixels of the images as they were given."""
        with torch.autocast(logits.device.type, enabled=False):
            found = self.post_process(self.criterion.scores(logits), anchors.decode(deltas), inputs.sizes, anchors.per_map)
        return inputs.restore(found)


def class_layers(head: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions of a head, in torchvision's layout, that give the logits: one for each map, or one for all."""
    scoring = head.get_submodule("classification_head")
    last = getattr(scoring, "module_list", None) or [scoring.cls_logits]  # of SSD, and of RetinaNet and FCOS
    chosen = [[layer for layer in of_map.modules() if isinstance(layer, nn.Conv2d)][-1] for of_map in last]
    return {name: layer for name, layer in head.named_modules() if any(layer is one for one in chosen)}  # type: ignore[misc]


class FixedAnchors(Constants):
    """The same anchors for every input: those of a detector with one input size.

    Args:
        boxes: ``(A, 4)`` in pixels.
        per_map: how many of them each feature map has.
    """

    constants = ("boxes",)

    def __init__(self, boxes: Tensor, per_map: Sequence[int]) -> None:
        super().__init__()
        self.boxes, self.per_map = boxes, per_map

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Anchors:
        return Anchors(self.boxes, per_map=self.per_map)


class MapAnchors(nn.Module):
    """Anchors at every cell of every map, by torchvision's generator: Faster R-CNN, section 3.1.1.

    As there, the distance between anchors is the input's side divided by the map's, rounded down.

    Args:
        sizes: sides of the anchors in pixels, a list for each map, all of one length.
        aspect_ratios: height over width.
        kind: what is made of them, `Anchors` or a subclass.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], aspect_ratios: Sequence[float], kind: type[Anchors] = Anchors) -> None:
        super().__init__()
        self.generator = AnchorGenerator(tuple(map(tuple, sizes)), (tuple(aspect_ratios),) * len(sizes))
        self.per_cell = len(sizes[0]) * len(aspect_ratios)
        self.kind = kind

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Anchors:
        grids = [(feature.shape[-2], feature.shape[-1]) for feature in maps]
        strides = [(images.shape[-2] // height, images.shape[-1] // width) for height, width in grids]
        self.generator.set_cell_anchors(torch.float32, images.device)
        boxes = self.generator.grid_anchors(grids, strides)
        return self.kind(torch.cat(boxes), (1.0, 1.0, 1.0, 1.0), [of_map.shape[0] for of_map in boxes])
