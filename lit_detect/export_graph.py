"""A detector as a graph that can be written to a file: uint8 images of any size in, detections of a whole batch out.

What `network(images)` does by lists and loops over images is done here for all images at once, by tensors whose sizes do not depend on
what is found, so that a trace of it holds for any number of images and for any height and width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, roi_align

from lit_detect.boxes import Anchors
from lit_detect.errors import InputError
from lit_detect.export_detections import NOTHING, best_of_maps, clip, highest, keep_best, large, of_groups, pick, rows
from lit_detect.models.dense import DenseNetwork
from lit_detect.models.inputs import FixedSize, Inputs, Normalize
from lit_detect.models.rfcn import PositionSensitiveMaps
from lit_detect.models.two_stage import TwoStageNetwork

__all__ = ["DetectionGraph"]

LONGEST = 10_000  # pixels of the longest side of which Python's rounding is looked up


class DetectionGraph(nn.Module):
    """Images of one size to detections in their pixels, or to what non-maximum suppression would start from.

    ``graph(images)``, with uint8 RGB ``(N, 3, H, W)``, gives ``boxes`` ``(N, D, 4)``, ``labels`` ``(N, D)`` int64, ``scores``
    ``(N, D)`` and ``counts`` ``(N,)`` int64: D is `detections_per_image`, best first, and after the image's count all is 0. With `heads`
    it gives ``boxes`` ``(N, A, 4)`` and ``scores`` ``(N, A, C)`` of all A anchors, of which no threshold has been asked.

    Args:
        network: of a `Detector`; it is copied.
        heads: stop before thresholds and non-maximum suppression.
        float64: the runtime has it; OpenVINO does not.

    Raises:
        InputError: a network that is neither one-stage nor two-stage, or heads of a two-stage one.
    """

    def __init__(self, network: nn.Module, heads: bool = False, float64: bool = True) -> None:
        super().__init__()
        if not isinstance(network, DenseNetwork | TwoStageNetwork):
            raise InputError(f"Expected a DenseNetwork or a TwoStageNetwork to export but got {type(network).__name__}.")
        if heads and isinstance(network, TwoStageNetwork):
            raise InputError(
                "Expected a one-stage detector for heads: those of a two-stage detector look at regions, and which these are is decided "
                "by non-maximum suppression of proposals, so there is nothing before it but the proposals."
            )
        self.sides = resized_sides if float64 else whole_sides
        self.heads, self.outputs = heads, ["boxes", "scores"] if heads else ["boxes", "labels", "scores", "counts"]
        copied: Any = copy.deepcopy(network).cpu().float().eval()
        self.network = copied
        if isinstance(network, TwoStageNetwork):
            with torch.no_grad():  # torchvision's RoIAlign works strides out of the first images that it sees
                copied([torch.zeros(3, 512, 512, dtype=torch.uint8)])
            if isinstance(getattr(network, "roi_pool", None), MultiScaleRoIAlign):
                copied.roi_pool = AlignRegions(copied.roi_pool)
            if isinstance(getattr(network, "maps", None), PositionSensitiveMaps):
                copied.maps.vote = Vote(copied.maps)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        sides = torch._shape_as_tensor(images)[2:]  # height and width
        batch, size = self.resize(images, sides)
        post_process = self.network.post_process
        if isinstance(self.network, DenseNetwork):
            logits, deltas, anchors = self.network.predict(batch)
            scores, boxes, per_map = self.network.criterion.scores(logits), anchors.decode(deltas), anchors.per_map
        else:
            scores, boxes = self.regions(batch, size)
            per_map = ()
        back = (sides.float() / size.float()).flip(0).repeat(2)  # factors of x1, y1, x2, y2
        if self.heads:
            return boxes * back, scores
        limits = size.flip(0).repeat(2).float()
        boxes, labels, scores = pick(post_process, scores, boxes, limits, per_map)
        there = scores > NOTHING
        boxes = torch.where(there[..., None], boxes * back, 0.0)
        return boxes, torch.where(there, labels + 1, 0), torch.where(there, scores, 0.0), there.sum(dim=1)

    def resize(self, images: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
        """Images as `FixedSize` and `ShortestSide` make them, and their height and width without padding."""
        inputs = self.network.inputs
        if isinstance(inputs, FixedSize):
            resized = F.interpolate(images.float(), (inputs.size, inputs.size), mode="bilinear", align_corners=False)
            return Normalize.forward(inputs, resized), torch.full_like(sides, inputs.size)
        size = self.sides(sides, inputs.min_size, inputs.max_size)
        wanted: Any = (size[0], size[1])  # which a trace keeps as tensors
        resized = F.interpolate(Normalize.forward(inputs, images), wanted, mode="bilinear", align_corners=False)
        padding = -size % inputs.divisor
        return F.pad(resized, (0, padding[1], 0, padding[0])), size

    def regions(self, batch: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(N, P, C)`` and boxes ``(N, P, 4)`` or ``(N, P, C, 4)`` of a two-stage network's P proposals an image."""
        features = self.network.features(Inputs(batch, [], []))
        proposals, there = self.propose(batch, size, features)
        image = torch.arange(batch.shape[0])[:, None, None].expand(-1, there.shape[1], 1).to(proposals)
        rois = torch.cat([image, proposals], dim=2).reshape(-1, 5)  # (N P, 5), also in what OpenVINO knows of it
        logits, deltas = self.network.refine(features, rois, ())
        scores = logits.softmax(dim=-1)[:, 1:]
        boxes = Anchors(rois[:, None, 1:]).decode(deltas)  # (N P, C + 1, 4), or (N P, 1, 4) for all classes
        boxes = boxes[:, 1:] if boxes.shape[1] > 1 else boxes[:, 0]
        # not by unflatten, which ONNX gets with the number of images as it was
        count = self.network.rpn.post_nms_top_n()
        scores, boxes = (values.reshape(-1, count, *values.shape[1:]) for values in (scores, boxes))
        return torch.where(there[..., None], scores, NOTHING), boxes

    def propose(self, batch: Tensor, size: Tensor, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Proposals ``(N, P, 4)`` as torchvision's `filter_proposals` picks them, and which are there ``(N, P)``."""
        rpn = self.network.rpn
        maps = [features["proposals"]] if "proposals" in features else list(features.values())  # R-FCN has others beside it
        objectness, deltas = rpn.head(maps)
        per_map = [scores.shape[1] * scores.shape[2] * scores.shape[3] for scores in objectness]
        anchors = rpn.anchor_generator(ImageList(batch, [(0, 0)]), maps)[0]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        boxes = Anchors(anchors, rpn.box_coder.weights).decode(deltas.view(batch.shape[0], -1, 4))
        logit, place = best_of_maps(objectness.view(batch.shape[0], -1), per_map, rpn.pre_nms_top_n())
        boxes = clip(rows(boxes, place), size.flip(0).repeat(2).float())
        level = torch.arange(len(per_map)).repeat_interleave(rpn.pre_nms_top_n()).expand_as(place)
        score = logit.sigmoid()
        enters = (logit > -torch.inf) & (score >= rpn.score_thresh) & large(boxes, rpn.min_size)
        score = torch.where(enters, score, NOTHING)
        kept = keep_best(boxes, of_groups(score, level, len(per_map)), rpn.nms_thresh, rpn.post_nms_top_n())
        score, place = highest(kept, rpn.post_nms_top_n())
        return torch.where((score > NOTHING)[..., None], rows(boxes, place), 0.0), score > NOTHING


def resized_sides(sides: Tensor, min_size: int, max_size: int) -> Tensor:
    """Height and width as `ShortestSide` makes them, by Python's own division in float64: where a product is whole, rounding decides."""
    wanted = torch.tensor([min_size, max_size], dtype=torch.float64)  # a number over a tensor would be another division
    scale = (wanted / torch.stack([sides.min(), sides.max()])).min()
    return (sides.double() * scale).long().clamp(min=1)


def whole_sides(sides: Tensor, min_size: int, max_size: int) -> Tensor:
    """The same in whole numbers, for OpenVINO, whose float32 is a pixel off in one of seven sizes.

    Python's floats lose a pixel now and then: ``int(97 * (800 / 97)) == 799``. That is looked up for the side that becomes `min_size` or
    `max_size`; where the other one's product is a whole number too they may still differ, in less than 1 of 2000 sizes.
    """
    short, long = sides.min(), sides.max()
    by_short = min_size * long <= max_size * short
    side, target = torch.where(by_short, short, long), torch.where(by_short, min_size, max_size)
    tables = [[size] + [int(length * (size / length)) for length in range(1, LONGEST)] + [size] for size in (min_size, max_size)]
    smaller, larger = (torch.tensor(table)[side.clamp(max=LONGEST)] for table in tables)
    own = torch.where(by_short, smaller, larger)
    return torch.where(sides == side, own, sides * target // side).clamp(min=1)


class AlignRegions(nn.Module):
    """Torchvision's `MultiScaleRoIAlign`, for regions ``(K, 5)`` whose first column is their image, however many images there are.

    Args:
        align: which has seen images.
    """

    def __init__(self, align: Any) -> None:
        super().__init__()
        self.align = align

    def forward(self, features: dict[str, Tensor], rois: Tensor, sizes: Any) -> Tensor:
        align = self.align
        maps = [features[name] for name in align.featmap_names]
        settings = {"output_size": align.output_size, "sampling_ratio": align.sampling_ratio}
        if len(maps) == 1:
            return roi_align(maps[0], rois, spatial_scale=align.scales[0], **settings)  # type: ignore[no-any-return]
        levels = align.map_levels([rois[:, 1:]])
        last = torch._shape_as_tensor(rois)[:1]
        rois = F.pad(rois, (0, 0, 0, 1))  # one more, which is on every level: see `keep_best`
        pooled = torch.zeros(rois.shape[0], maps[0].shape[1], *align.output_size)
        for level, (feature, scale) in enumerate(zip(maps, align.scales, strict=True)):
            places = torch.cat([torch.where(levels == level)[0], last])
            pooled = pooled.index_put((places,), roi_align(feature, rois[places], spatial_scale=scale, **settings))
        return pooled[:-1]


class Vote:
    """What `PositionSensitiveMaps.vote` gives, by matrix products, for regions ``(N P, 5)``; ONNX has no operator for it.

    Args:
        maps: whose grid and stride these are.
    """

    def __init__(self, maps: PositionSensitiveMaps) -> None:
        self.grid, self.stride = maps.grid, maps.stride

    def __call__(self, maps: Tensor, rois: Tensor) -> Tensor:
        corners = (rois[:, 1:] * (1 / self.stride) + 0.5).floor().view(maps.shape[0], -1, 4)  # ps_roi_pool rounds .5 up
        columns = self.windows(corners[..., 0], corners[..., 2], maps.shape[3])  # (N, P, k, w)
        lines = self.windows(corners[..., 1], corners[..., 3], maps.shape[2])
        by_position = maps.view(maps.shape[0], -1, self.grid, self.grid, maps.shape[2] * maps.shape[3]).permute(
            2, 3, 0, 4, 1
        )  # (k, k, N, h w, D)
        votes = []
        for row in range(self.grid):
            for column in range(self.grid):
                window = (lines[:, :, row, :, None] * columns[:, :, column, None, :]).flatten(2)  # (N, P, h w)
                votes.append(window @ by_position[row, column] / window.sum(dim=2, keepdim=True).clamp(min=1))
        return torch.stack(votes).mean(dim=0).flatten(0, 1)

    def windows(self, start: Tensor, end: Tensor, length: Any) -> Tensor:
        """1 for the cells of each of the k parts from start to end ``(N, P)``, 0 for the others: ``(N, P, k, length)``."""
        part = (end - start).clamp(min=1)[..., None] / self.grid
        number, cells = torch.arange(self.grid).float(), torch.arange(length).float()
        first = start[..., None] + (part * number).floor()
        last = (start[..., None] + (part * (number + 1)).ceil()).clamp(max=length - 1)  # ps_roi_pool never reaches the last cell
        return ((cells >= first[..., None]) & (cells < last[..., None])).float()
