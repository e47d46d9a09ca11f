"""A detector as a graph that can be written to a file: uint8 images of any size in, detections of a whole batch out.

What `network(images)` does by lists and loops over images is done here for all images at once, by tensors whose sizes do not depend on
what is found, so that a trace of it holds for any number of images and for any height and width.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, roi_align

from lit_detect.boxes import Anchors
from lit_detect.detections import PostProcess
from lit_detect.errors import InputError
from lit_detect.models.dense import DenseNetwork
from lit_detect.models.inputs import FixedSize, Inputs, Normalize
from lit_detect.models.rfcn import PositionSensitiveMaps
from lit_detect.models.two_stage import TwoStageNetwork

__all__ = ["DetectionGraph"]

NOTHING = -1.0  # the score of what fills up a row
LONGEST = 10_000  # pixels of the longest side of which Python's rounding is looked up


class DetectionGraph(nn.Module):
    """Images of one size to detections in their pixels, or to what non-maximum suppression would start from.

    ``graph(images)``, with uint8 RGB ``(N, 3, H, W)``, gives ``boxes`` ``(N, D, 4)``, ``labels`` ``(N, D)`` int64, ``scores``
    ``(N, D)`` and ``counts`` ``(N,)`` int64: D is `detections_per_image`, best first, and after the image's count all is 0. With `heads`
    it gives ``boxes`` ``(N, A, 4)`` and ``scores`` ``(N, A, C)`` of all A anchors, of which no threshold has been asked.

    Args:
        network: of a `Detector`; it is copied.
        heads: stop before thresholds and non-maximum suppression.

    Raises:
        InputError: a network that is neither one-stage nor two-stage, or heads of a two-stage one.
    """

    def __init__(self, network: nn.Module, heads: bool = False) -> None:
        super().__init__()
        if not isinstance(network, DenseNetwork | TwoStageNetwork):
            raise InputError(f"Expected a DenseNetwork or a TwoStageNetwork to export but got {type(network).__name__}.")
        if heads and isinstance(network, TwoStageNetwork):
            raise InputError(
                "Expected a one-stage detector for heads: those of a two-stage detector look at regions, and which these are is decided "
                "by non-maximum suppression of proposals, so there is nothing before it but the proposals."
            )
        self.heads, self.outputs = heads, ["boxes", "scores"] if heads else ["boxes", "labels", "scores", "counts"]
        self.network: Any = copy.deepcopy(network).cpu().float().eval()
        if isinstance(network, TwoStageNetwork):
            with torch.no_grad():  # torchvision's RoIAlign works strides out of the first images that it sees
                self.network([torch.zeros(3, 512, 512, dtype=torch.uint8)])
            if isinstance(getattr(network, "roi_pool", None), MultiScaleRoIAlign):
                self.network.roi_pool = AlignRegions(self.network.roi_pool)
            if isinstance(getattr(network, "maps", None), PositionSensitiveMaps):
                self.network.maps.vote = Vote(self.network.maps)

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
        size = resized_sides(sides, inputs.min_size, inputs.max_size)
        resized = F.interpolate(Normalize.forward(inputs, images), (size[0], size[1]), mode="bilinear", align_corners=False)
        padding = -size % inputs.divisor
        return F.pad(resized, (0, padding[1], 0, padding[0])), size

    def regions(self, batch: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(N, P, C)`` and boxes ``(N, P, 4)`` or ``(N, P, C, 4)`` of a two-stage network's P proposals an image."""
        features = self.network.features(Inputs(batch, [], []))
        proposals, there = self.propose(batch, size, features)
        image = torch.arange(batch.shape[0])[:, None, None].expand(-1, there.shape[1], 1).to(proposals)
        rois = torch.cat([image, proposals], dim=2).reshape(-1, 5)  # (N P, 5), also in what OpenVINO knows of it
        logits, deltas = self.network.refine(features, rois, ())
        scores = logits.softmax(dim=-1)[:, 1:].unflatten(0, (-1, there.shape[1]))
        boxes = Anchors(rois[:, None, 1:]).decode(deltas)  # (N P, C + 1, 4), or (N P, 1, 4) for all classes
        boxes = boxes[:, 1:] if boxes.shape[1] > 1 else boxes[:, 0]
        return torch.where(there[..., None], scores, NOTHING), boxes.unflatten(0, (-1, there.shape[1]))

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
    """Height and width as `ShortestSide` makes them, in whole numbers: in float32, which OpenVINO would take, one in seven is a pixel off.

    Python's floats lose a pixel now and then too: ``int(97 * (800 / 97)) == 799``. That is looked up for the side that becomes `min_size`
    or `max_size`; where the other one's product is a whole number too they may still differ, in less than 1 of 2000 sizes.
    """
    short, long = sides.min(), sides.max()
    by_short = min_size * long <= max_size * short
    side, target = torch.where(by_short, short, long), torch.where(by_short, min_size, max_size)
    tables = [[size] + [int(length * (size / length)) for length in range(1, LONGEST)] + [size] for size in (min_size, max_size)]
    own = torch.where(by_short, *(torch.tensor(table)[side.clamp(max=LONGEST)] for table in tables))
    return torch.where(sides == side, own, sides * target // side).clamp(min=1)


def pick(post_process: PostProcess, scores: Tensor, boxes: Tensor, limits: Tensor, per_map: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """What `PostProcess` picks, filled up to D an image: boxes ``(N, D, 4)``, labels 0..C-1 ``(N, D)``, scores ``(N, D)``."""
    classes = int(scores.shape[2])
    scores = torch.where(scores > post_process.score_threshold, scores, NOTHING)
    if post_process.candidates_per_map is not None:
        score, place = best_of_maps(scores.flatten(1), [count * classes for count in per_map], post_process.candidates_per_map)
        label, box = place % classes, rows(boxes, place // classes)
    else:
        score = scores.transpose(1, 2)  # (N, C, A)
        if post_process.candidates_per_class is None:
            box = boxes.transpose(1, 2) if boxes.ndim == 4 else boxes[:, None].expand(-1, classes, -1, -1)
        else:
            score, place = highest(score, post_process.candidates_per_class)
            box = rows(boxes, place.flatten(1)).unflatten(1, (classes, -1))
        label = torch.arange(classes)[:, None].expand_as(score).flatten(1)
    box = clip(box, limits)
    if post_process.min_size > 0:
        score = torch.where(large(box, post_process.min_size), score, NOTHING)
    if score.ndim == 2:
        grouped, apart = of_groups(score, label, classes), box
    else:  # each class of each image is by itself
        grouped, apart = score.flatten(0, 1)[:, None], box.flatten(0, 1)
    kept = keep_best(apart, grouped, post_process.nms_threshold, post_process.detections_per_image).reshape(scores.shape[0], -1)
    score, place = highest(kept, post_process.detections_per_image)
    return rows(box if box.ndim == 3 else box.flatten(1, 2), place), label.gather(1, place), score


def clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes inside an image; `limits` are width and height, twice."""
    return torch.minimum(boxes.clamp(min=0), limits)


def large(boxes: Tensor, side: float) -> Tensor:
    """Which boxes have sides of at least so many pixels."""
    return (boxes[..., 2:] - boxes[..., :2] >= side).all(dim=-1)


def rows(boxes: Tensor, places: Tensor) -> Tensor:
    """Boxes ``(N, T, 4)`` at the places ``(N, T)``."""
    return boxes.gather(1, places[..., None].expand(-1, -1, 4))


def highest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest scores of each row ``(..., count)``, filled up with `NOTHING`, and their places."""
    score, place = F.pad(scores, (0, count), value=NOTHING).topk(count)
    return score, torch.minimum(place, torch._shape_as_tensor(scores)[-1] - 1)


def best_of_maps(scores: Tensor, per_map: Sequence[Any], count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest scores of each map, and their places in the row; scores ``(N, A)``, of which each map has some in turn."""
    best, places, start = [], [], 0
    for length in per_map:
        of_map = F.pad(scores[:, start : start + length], (0, count), value=-torch.inf).topk(count)
        best.append(of_map.values)
        places.append(torch.where(of_map.values == -torch.inf, 0, of_map.indices + start))
        start = start + length
    return torch.cat(best, dim=1), torch.cat(places, dim=1)


def of_groups(scores: Tensor, groups: Tensor, count: int) -> Tensor:
    """Scores ``(N, count, T)``, in which each of ``(N, T)`` is in the row of its group alone."""
    return torch.where(groups[:, None] == torch.arange(count)[:, None], scores[:, None], NOTHING)


def keep_best(boxes: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
    """Scores ``(B, T)`` of the boxes that non-maximum suppression within each group keeps, `NOTHING` for the others.

    Args:
        boxes: ``(B, T, 4)``.
        scores: ``(B, G, T)``; `NOTHING` for what is not in the group.
        threshold: of two overlapping boxes of a group the better is kept where their IoU exceeds this.
        most: at most so many of each group.
    """
    if torch.onnx.is_in_onnx_export():
        chosen = Suppression.apply(boxes, scores, in_float32(threshold), most)
    else:
        chosen = suppress_script()(boxes, scores, threshold, most)
    # one place more, which is always chosen: OpenVINO writes nothing where nothing is chosen, also not what is to be kept
    scores = F.pad(scores, (0, 1), value=NOTHING)
    chosen = torch.cat([chosen, F.pad(torch._shape_as_tensor(boxes)[1:2, None], (2, 0))])
    row, group, place = chosen.unbind(dim=1)
    kept = torch.full_like(scores[:, 0], NOTHING).index_put((row, place), scores[row, group, place])
    return kept[:, :-1]


@cache
def suppress_script() -> Any:
    """`suppress` with its loops, of which a trace would keep as many turns as there were."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of TorchScript's age
        return torch.jit.script(suppress)


def suppress(boxes: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
    """Row, group and place ``(K, 3)`` of what non-maximum suppression keeps, as ONNX's operator gives them."""
    kept = [torch.zeros(0, 3, dtype=torch.int64)]
    for row in range(scores.size(0)):
        for group in range(scores.size(1)):
            places = (scores[row, group] > -1.0).nonzero().flatten()
            best = torch.ops.torchvision.nms(boxes[row][places], scores[row, group][places], threshold)[:most]
            chosen = places[best]
            kept.append(torch.stack([torch.full_like(chosen, row), torch.full_like(chosen, group), chosen], dim=1))
    return torch.cat(kept)


class Suppression(torch.autograd.Function):
    """ONNX's NonMaxSuppression, for all rows and groups at once."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
        """Something of the right kind, which a trace goes on with."""
        return torch.zeros(1, 3, dtype=torch.int64)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, threshold: float, most: int) -> Any:
        """The node that is written."""
        settings = (torch.tensor([most]), torch.tensor([threshold]), torch.tensor([NOTHING / 2]))
        return g.op("NonMaxSuppression", boxes, scores, *(g.op("Constant", value_t=value) for value in settings))


def in_float32(threshold: float) -> float:
    """The float32 that another exceeds where it exceeds the threshold.

    >>> in_float32(0.5), in_float32(0.55) < 0.55 < float(np.float32(0.55))
    (0.5, True)
    """
    nearest = np.float32(threshold)
    return float(nearest if nearest <= threshold else np.nextafter(nearest, np.float32(-np.inf)))


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
        by_position = maps.unflatten(1, (-1, self.grid, self.grid)).permute(2, 3, 0, 4, 5, 1).flatten(3, 4)  # (k, k, N, h w, D)
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
