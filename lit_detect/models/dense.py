"""What one-stage detectors share: features, heads, one anchor set, a criterion and post-processing."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_detect.boxes import assign, decode
from lit_detect.detections import PostProcess
from lit_detect.losses import Criterion
from lit_detect.models.inputs import FixedSize, Inputs, Targets

__all__ = ["DenseNetwork"]


class DenseNetwork(nn.Module):
    """A detector that classifies and regresses every anchor in one pass (SSD, section 2).

    ``network(images, targets)`` gives losses in training, ``network(images)`` detections in eval.

    Args:
        inputs: resizes and normalises.
        backbone: normalised images to feature maps by name.
        head: list of maps to ``{"cls_logits": (N, A, K), "bbox_regression": (N, A, 4)}``, torchvision's names.
        anchors: ``(A, 4)`` in pixels of the network's input.
        criterion: the loss, and the scores that go with it.
        post_process: picks the detections.
        match_threshold: least IoU of a positive anchor.
    """

    anchors: Tensor

    def __init__(
        self,
        inputs: FixedSize,
        backbone: nn.Module,
        head: nn.Module,
        anchors: Tensor,
        criterion: Criterion,
        post_process: PostProcess,
        match_threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.inputs, self.backbone, self.head, self.criterion = inputs, backbone, head, criterion
        self.post_process, self.match_threshold = post_process, match_threshold
        self.register_buffer("anchors", anchors, persistent=False)

    def forward(self, images: Tensor | Sequence[Tensor], targets: Targets | None = None) -> dict[str, Tensor] | Targets:
        inputs = self.inputs(images)
        logits, deltas = self.predict(inputs.images)
        if self.training:
            return self.losses(inputs, logits, deltas, targets)
        return self.detections(inputs, logits, deltas)

    def evaluate(self, images: Tensor | Sequence[Tensor], targets: Targets) -> tuple[dict[str, Tensor], Targets]:
        """Losses and detections of one pass, in eval."""
        inputs = self.inputs(images)
        logits, deltas = self.predict(inputs.images)
        return self.losses(inputs, logits, deltas, targets), self.detections(inputs, logits, deltas)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw outputs for normalised images: logits ``(N, A, K)`` and offsets ``(N, A, 4)``, float32 whatever the run's precision."""
        outputs = self.head(list(self.backbone(images).values()))
        return outputs["cls_logits"].float(), outputs["bbox_regression"].float()

    def losses(self, inputs: Inputs, logits: Tensor, deltas: Tensor, targets: Targets | None) -> dict[str, Tensor]:
        """Named losses of a batch."""
        with torch.autocast(logits.device.type, enabled=False):
            labels, boxes = assign(self.anchors, inputs.scale_targets(targets), self.match_threshold)
            losses: dict[str, Tensor] = self.criterion(logits, deltas, self.anchors, labels, boxes)
        return losses

    def detections(self, inputs: Inputs, logits: Tensor, deltas: Tensor) -> Targets:
        """Detections of a batch, in pixels of the images as they were given."""
        with torch.autocast(logits.device.type, enabled=False):
            scores, boxes = self.criterion.scores(logits), decode(deltas, self.anchors)
            found = [self.post_process(*one) for one in zip(scores, boxes, inputs.sizes, strict=True)]
        return inputs.restore(found)
