"""What `PostProcess` does, for a whole batch at once and by tensors whose sizes do not depend on what is found, as a graph needs it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_detect.detections import PostProcess

__all__ = ["NOTHING", "best_of_maps", "clip", "highest", "keep_best", "large", "of_groups", "pick", "rows"]

NOTHING = -1.0  # the score of what fills up a row


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
            box = rows(boxes, place.flatten(1)).view(-1, classes, post_process.candidates_per_class, 4)
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
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf)))
