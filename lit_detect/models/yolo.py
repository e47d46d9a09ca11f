"""YOLOv3: An Incremental Improvement (Redmon and Farhadi 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.ssd import SSDScoringHead

from lit_detect.boxes import MAX_LOG_SCALE, Anchors, match_best, overlaps
from lit_detect.detections import PostProcess
from lit_detect.errors import InputError
from lit_detect.losses import Criterion, YOLOLoss
from lit_detect.models.backbones import Backbone
from lit_detect.models.darknet import Darknet53, convolution
from lit_detect.models.dense import DenseDetector, DenseNetwork
from lit_detect.models.inputs import FixedSize

__all__ = ["CellAnchors", "YOLOv3", "match_cells"]

# Section 2.3: the nine clusters of COCO's boxes, width and height in pixels at 416.
ANCHOR_SIZES = (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326)))


class YOLOv3(DenseDetector):
    """YOLOv3 over any feature extractor, with the paper's Darknet-53 as the default: 10647 boxes at 416.

    Darknet's loss is a sum over all anchors, which is large at first: warm up (`warmup_steps`, 1000 in darknet), or see `YOLOLoss`.

    Args:
        classes: see `Detector`.
        size: side of the square input in pixels.
        backbone: the feature extractor, of whose maps the last ones are used; by default Darknet-53.
        criterion: the loss; by default `YOLOLoss`.
        anchor_sizes: width and height of the priors in pixels, a list for each map, largest map first; by default the paper's nine on
            three maps, scaled from 416 to `size`.
        widths: channels of the layers on each map, largest map first; what the head sees has twice as many.
        ignore_threshold: other anchors with a larger IoU with a box are neither objects nor background, 0..1 (section 2.1).
        score_threshold: see `PostProcess`.
        nms_threshold: see `PostProcess`.
        detections_per_image: see `PostProcess`.
        candidates_per_class: see `PostProcess`.
        **kwargs: see `Detector`.

    Raises:
        InputError: numbers of maps, anchor sizes and widths that do not fit.

    >>> YOLOv3(["cat", "dog"]).network.backbone.out_channels
    [256, 512, 1024]
    """

    def __init__(
        self,
        classes: Sequence[str],
        size: int = 416,
        backbone: Backbone | None = None,
        criterion: Criterion | None = None,
        anchor_sizes: Sequence[Sequence[Sequence[float]]] | None = None,
        widths: Sequence[int] = (128, 256, 512),
        ignore_threshold: float = 0.5,
        score_threshold: float = 0.005,
        nms_threshold: float = 0.45,
        detections_per_image: int = 100,
        candidates_per_class: int = 400,
        **kwargs: Any,
    ) -> None:
        super().__init__(classes, **kwargs)
        backbone = backbone or Darknet53()
        criterion = criterion or YOLOLoss()
        if anchor_sizes is None:
            anchor_sizes = [[[size / 416 * side for side in shape] for shape in of_map] for of_map in ANCHOR_SIZES]
        if not len(widths) == len(anchor_sizes) <= len(backbone.out_channels):
            got = f"{len(anchor_sizes)}, {len(widths)} and {len(backbone.out_channels)}"
            raise InputError(f"Expected anchor_sizes and widths for as many maps, and a backbone with at least so many, but got {got}.")
        trunk = Pyramid(backbone, widths)
        boxes_per_cell = [len(of_map) for of_map in anchor_sizes]
        self.network = DenseNetwork(
            FixedSize(size, backbone.mean, backbone.std),
            trunk,
            YOLOHead(trunk.out_channels, boxes_per_cell, len(criterion.logit_names(self.classes))),
            Priors(anchor_sizes),
            partial(match_cells, ignore_threshold=ignore_threshold),  # type: ignore[arg-type]  # the anchors are those of `Priors`
            criterion,
            PostProcess(score_threshold, nms_threshold, detections_per_image, candidates_per_class),
        )


class Pyramid(nn.Module):
    """A backbone, and layers that carry its coarse maps down to the finer ones: section 2.3, and darknet's yolov3.cfg.

    Args:
        backbone: the feature extractor.
        widths: channels of the layers on each of its last maps, largest map first.
    """

    def __init__(self, backbone: Backbone, widths: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.reductions = nn.ModuleList(convolution(coarse, fine, 1) for fine, coarse in pairwise(widths))
        added = [*widths[:-1], 0]  # what comes from the next coarser map
        channels = [own + more for own, more in zip(backbone.out_channels[-len(widths) :], added, strict=True)]
        self.blocks = nn.ModuleList(self.five(c_in, width) for c_in, width in zip(channels, widths, strict=True))
        self.branches = nn.ModuleList(convolution(width, 2 * width, 3) for width in widths)
        self.out_channels = [2 * width for width in widths]

    @staticmethod
    def five(in_channels: int, width: int) -> nn.Module:
        """Five convolutions, 1x1 and 3x3 in turn."""
        sides = [in_channels, width, 2 * width, width, 2 * width, width]
        return nn.Sequential(*(convolution(a, b, 3 if index % 2 else 1) for index, (a, b) in enumerate(pairwise(sides))))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = list(self.backbone(images).values())[-len(self.blocks) :]
        maps = [self.blocks[-1](features[-1])]
        for feature, reduction, block in reversed(list(zip(features, self.reductions, self.blocks, strict=False))):
            coarse = F.interpolate(reduction(maps[0]), size=feature.shape[-2:], mode="nearest")
            maps.insert(0, block(torch.cat([coarse, feature], dim=1)))
        return {str(index): branch(of_map) for index, (branch, of_map) in enumerate(zip(self.branches, maps, strict=True))}


class YOLOHead(nn.Module):
    """1x1 convolutions on every map, in torchvision's layout of SSD's head; offsets are those of `CellAnchors`.

    Args:
        channels: of each map.
        boxes_per_cell: anchors of each map.
        num_logits: for each anchor.
    """

    def __init__(self, channels: Sequence[int], boxes_per_cell: Sequence[int], num_logits: int) -> None:
        super().__init__()
        layers = list(zip(channels, boxes_per_cell, strict=True))
        self.classification_head = SSDScoringHead(nn.ModuleList(nn.Conv2d(c, n * num_logits, 1) for c, n in layers), num_logits)
        self.regression_head = SSDScoringHead(nn.ModuleList(nn.Conv2d(c, n * 4, 1) for c, n in layers), 4)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        deltas = self.regression_head(maps).float()  # a sigmoid in half precision would be off by more than its inputs are
        deltas = torch.cat([deltas[..., :2].sigmoid(), deltas[..., 2:]], dim=-1)
        return {"cls_logits": self.classification_head(maps), "bbox_regression": deltas}


@dataclass(frozen=True)
class CellAnchors(Anchors):
    """Priors in the middle of cells: offsets are (sigma(t_x), sigma(t_y), t_w, t_h) of YOLOv3, section 2.1, figure 2.

    Attributes:
        strides: ``(A, 1)``, side of each anchor's cell in pixels.

    >>> anchors = CellAnchors(torch.tensor([[2.0, 3.0, 6.0, 5.0]]), strides=torch.tensor([[8.0]]))
    >>> anchors.decode(torch.tensor([[0.25, 0.5, 0.0, 0.0]])).tolist()
    [[0.0, 3.0, 4.0, 5.0]]
    """

    strides: Tensor = field(kw_only=True)

    def encode(self, boxes: Tensor) -> Tensor:
        shift = (boxes[..., :2] + boxes[..., 2:]) / 2 - self.centres
        return torch.cat([shift / self.strides + 0.5, torch.log((boxes[..., 2:] - boxes[..., :2]) / self.sizes)], dim=-1)

    def decode(self, deltas: Tensor) -> Tensor:
        centres = self.centres + (deltas[..., :2] - 0.5) * self.strides
        half = deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * self.sizes / 2
        return torch.cat([centres - half, centres + half], dim=-1)

    def __getitem__(self, index: Tensor) -> CellAnchors:
        return replace(self, boxes=self.boxes[index], strides=self.strides[index], per_map=())


class Priors(nn.Module):
    """The same boxes in every cell of a map: section 2.1, "bounding box priors".

    Args:
        sizes: width and height in pixels, a list for each map.
    """

    def __init__(self, sizes: Sequence[Sequence[Sequence[float]]]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> CellAnchors:
        boxes, strides = [], []
        for shapes, feature in zip(self.sizes, maps, strict=True):
            stride = images.shape[-1] / feature.shape[-1]
            half = torch.tensor(shapes, dtype=torch.float32, device=images.device) / 2  # (S, 2)
            y, x = torch.meshgrid([torch.arange(side, device=images.device) + 0.5 for side in feature.shape[-2:]], indexing="ij")
            centres = torch.stack([x, y], dim=-1)[:, :, None] * stride  # (h, w, 1, 2)
            boxes.append(torch.cat([centres - half, centres + half], dim=-1).view(-1, 4))
            strides.append(boxes[-1].new_full((len(boxes[-1]), 1), stride))
        return CellAnchors(torch.cat(boxes), per_map=[len(of_map) for of_map in boxes], strides=torch.cat(strides))


def match_cells(anchors: CellAnchors, boxes: Tensor, there: Tensor, ignore_threshold: float) -> Tensor:
    """Match each box to one anchor: YOLOv3, section 2.1.

    Of the anchors in the cells with the box's centre, the one whose shape overlaps most takes it, whatever the overlap. Of two boxes
    with the same anchor the later one takes it.

    Args:
        anchors: see `match`.
        boxes: see `match`.
        there: see `match`.
        ignore_threshold: anchors that overlap a box more than this, where they are, are left out unless they are matched, 0..1.

    Returns:
        ``(N, A)`` int64: each anchor's box, -1 for background, or -2 for what is left out.

    >>> anchors = Priors([[(6, 6), (9, 9)]])(torch.zeros(1, 3, 16, 16), [torch.zeros(1, 1, 1, 2)])
    >>> match_cells(anchors, torch.tensor([[[9.0, 1.0, 16.0, 8.0]]]), torch.tensor([[True]]), 0.5).tolist()
    [[-1, -1, 0, -2]]
    """
    # A centre on the border counts to the last cell, and moving it to the middle of that does not change its coarser cells.
    centres = ((boxes[..., :2] + boxes[..., 2:]) / 2).clamp(anchors.centres.amin(dim=0), anchors.centres.amax(dim=0))
    cells = (anchors.centres / anchors.strides).floor()  # (A, 2)
    inside = ((centres[:, :, None] / anchors.strides).floor() == cells).all(dim=-1)  # (N, M, A)
    sizes = (boxes[..., 2:] - boxes[..., :2])[:, :, None]
    common = torch.minimum(sizes, anchors.sizes).prod(dim=-1)
    shapes = common / (sizes.prod(dim=-1) + anchors.sizes.prod(dim=-1) - common)
    best = torch.where(inside, shapes, -1).argmax(dim=2)  # (N, M)
    overlapping = (overlaps(boxes, anchors.boxes) > ignore_threshold) & there[:, :, None]
    return match_best(torch.where(overlapping.any(dim=1), -2, -1), best, there)
