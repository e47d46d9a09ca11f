"""From scores and boxes to detections: threshold, best candidates, non-maximum suppression."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from lit_detect.errors import InputError

__all__ = ["PostProcess"]

# So many boxes torchvision's `batched_nms` takes class by class, whatever the device; that is exact, and with so many it is faster.
MANY = 25_000


class Candidates(NamedTuple):
    """Scores that may become detections, image by image, the best first: T of them.

    Attributes:
        image: ``(T,)``, which of the batch.
        box: ``(T,)``, which of its A boxes.
        label: ``(T,)``, 0..C-1.
        score: ``(T,)``.
    """

    image: Tensor
    box: Tensor
    label: Tensor
    score: Tensor

    def pick(self, index: Tensor) -> "Candidates":
        """Some of them."""
        return Candidates(*(column[index] for column in self))


@dataclass(frozen=True)
class PostProcess:
    """Pick each image's detections out of all scored boxes (SSD, section 3: "Inference time").

    The best candidates go through non-maximum suppression first. Since only a better box can suppress another, what they leave is final,
    and more candidates are taken only if that is less than `detections_per_image`: the result is that of all of them.

    In each such round a GPU is waited for once an image and three or four times a batch.

    Args:
        score_threshold: candidates score more than this, 0..1.
        nms_threshold: of two overlapping detections of one class the better is kept where their IoU exceeds this, 0..1.
        detections_per_image: at most so many, best first.
        candidates_per_class: at most so many of each class enter non-maximum suppression; by default all.
        candidates_per_map: likewise for each feature map, whatever their class (RetinaNet, section 4, "Inference").
        min_size: leave out boxes of a smaller side, in pixels.

    Raises:
        InputError: no detection is wanted.
    """

    score_threshold: float = 0.01
    nms_threshold: float = 0.45
    detections_per_image: int = 200
    candidates_per_class: int | None = None
    candidates_per_map: int | None = None
    min_size: float = 0.0

    def __post_init__(self) -> None:
        if self.detections_per_image < 1:
            raise InputError(f"Expected detections_per_image to be 1 or more but got {self.detections_per_image}.")

    def __call__(
        self, scores: Tensor, boxes: Tensor, sizes: Sequence[tuple[int, int]], per_map: Sequence[int] = ()
    ) -> list[dict[str, Tensor]]:
        """Detections of a batch.

        Args:
            scores: ``(N, A, C)``, 0..1, without background.
            boxes: ``(N, A, 4)`` in pixels, or ``(N, A, C, 4)``, a box for each class.
            sizes: each image's height and width in pixels; boxes are clipped to it.
            per_map: how many of the A boxes each feature map has.

        Returns:
            For each image ``boxes`` ``(D, 4)``, ``labels`` ``(D,)`` 1..C and ``scores`` ``(D,)``, best first, float32.

        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 40, 30]]])
        >>> scores = torch.tensor([[[0.9, 0.0], [0.8, 0.3], [0.0, 0.4]]])
        >>> (detections,) = PostProcess()(scores, boxes, [(30, 30)])
        >>> detections["labels"].tolist(), detections["boxes"][1].tolist()
        ([1, 2, 2], [20.0, 20.0, 30.0, 30.0])
        """
        detections: list[dict[str, Tensor]] = [{} for _ in sizes]
        unsettled, enough = list(range(len(sizes))), 4 * self.detections_per_image
        while unsettled:
            rows = slice(None) if len(unsettled) == len(sizes) else unsettled
            known = scores[rows].float().nan_to_num(-1.0, posinf=torch.inf)  # what is not a number passes no threshold
            found, all_seen = self.detect(known, boxes[rows], [sizes[index] for index in unsettled], per_map, enough)
            for index, of_image in zip(unsettled, found, strict=True):
                detections[index] = of_image
            full = [len(of_image["scores"]) == self.detections_per_image for of_image in found]
            unsettled = [index for index, *settled in zip(unsettled, full, all_seen, strict=True) if not any(settled)]
            enough *= 4
        return detections

    def detect(
        self, scores: Tensor, boxes: Tensor, sizes: Sequence[tuple[int, int]], per_map: Sequence[int], enough: int
    ) -> tuple[list[dict[str, Tensor]], list[bool]]:
        """Detections out of the `enough` best candidates of each image, and whether these are all that it has."""
        candidates = self.candidates(scores, per_map, enough)
        entering, corners = self.entering(candidates, boxes, sizes, enough)
        images = torch.arange(len(sizes) + 1, device=scores.device)
        ends = torch.stack([torch.searchsorted(some.image, images) for some in (entering, candidates)])
        counts, seen = ends.diff(dim=1).tolist()
        columns = (corners, entering.label, entering.score)
        detections = []
        for corner, label, score in zip(*(torch.split(column, counts) for column in columns), strict=True):
            keep = self.suppress(corner, label, score, 1 + max(map(max, sizes)))[: self.detections_per_image]
            detections.append({"boxes": corner[keep], "labels": label[keep] + 1, "scores": score[keep]})
        return detections, [count < enough for count in seen]

    def suppress(self, boxes: Tensor, labels: Tensor, scores: Tensor, span: int) -> Tensor:
        """Which boxes non-maximum suppression within each class keeps, in the order they come in: the best first."""
        if len(boxes) > MANY or boxes.device.type == "mps":  # which has no float64
            return batched_nms(boxes, scores, labels, self.nms_threshold).sort().values  # type: ignore[no-any-return]
        # Each class lies at a place of its own, so that none suppresses another; float64 moves boxes there without rounding them.
        apart = boxes.double() + (span * labels)[:, None]
        return nms(apart, scores.double(), as_in_float32(self.nms_threshold))  # type: ignore[no-any-return]

    def candidates(self, scores: Tensor, per_map: Sequence[int], enough: int) -> Candidates:
        """The highest scores above the threshold: `enough` of each image, and perhaps some that equal the last, if there are so many.

        Equal ones are in torchvision's order: class by class, or box by box.
        """
        rows, classes = scores.flatten(1), scores.shape[2]  # (N, A C)
        of_maps = [rows] if self.candidates_per_map is None else torch.split(rows, [count * classes for count in per_map], dim=1)
        limit = enough if self.candidates_per_map is None else self.candidates_per_map
        least = [of_map.topk(min(limit, of_map.shape[1])).values[:, -1:] for of_map in of_maps]
        high = torch.cat([of_map >= score for of_map, score in zip(of_maps, least, strict=True)], dim=1)
        image, place = (high & (rows > self.score_threshold)).nonzero(as_tuple=True)
        if len(image) > 2 * len(rows) * len(of_maps) * limit:  # very many are equal, as in half precision or before the first step
            groups = classes if self.candidates_per_class is not None else 1
            high = torch.cat([highest(of_map, score, limit, groups) for of_map, score in zip(of_maps, least, strict=True)], dim=1)
            image, place = (high & (rows > self.score_threshold)).nonzero(as_tuple=True)
        found = Candidates(image, place // classes, place % classes, rows[image, place])
        if self.candidates_per_class is not None:
            found = found.pick(found.label.argsort(stable=True))
        found = found.pick(found.score.argsort(descending=True, stable=True))
        found = found.pick(found.image.argsort(stable=True))
        if self.candidates_per_map is None:
            return found
        ends = torch.tensor(per_map).cumsum(dim=0).to(scores.device, non_blocking=True)
        map_of_image = found.image * len(per_map) + torch.bucketize(found.box, ends, right=True)
        return found.pick((rank(map_of_image) < self.candidates_per_map).nonzero().flatten())

    def entering(self, candidates: Candidates, boxes: Tensor, sizes: Sequence[tuple[int, int]], enough: int) -> tuple[Candidates, Tensor]:
        """The candidates that enter non-maximum suppression, and their boxes ``(T, 4)``, clipped to the image."""
        limits = torch.tensor([(width, height) * 2 for height, width in sizes], dtype=torch.float32).to(boxes.device, non_blocking=True)
        image, box, label, _ = candidates
        corners = (boxes[image, box] if boxes.ndim == 3 else boxes[image, box, label]).float()
        corners = torch.minimum(corners.clamp(min=0), limits[image])
        enters = rank(image) < enough
        if self.candidates_per_class is not None:
            enters &= rank((image << 32) + label) < self.candidates_per_class
        if self.min_size > 0:
            enters &= (corners[:, 2:] - corners[:, :2] >= self.min_size).all(dim=1)
        places = enters.nonzero().flatten()
        return candidates.pick(places), corners[places]


def as_in_float32(threshold: float) -> float:
    """The number that a float64 exceeds where its float32 exceeds the threshold: so overlaps compare as torchvision's do.

    >>> [overlap > as_in_float32(0.55) for overlap in (0.54999, 0.55)], 110 / 200 > 0.55
    ([False, True], False)
    """
    nearest = np.float32(threshold)
    above = nearest if float(nearest) > threshold else np.nextafter(nearest, np.float32(np.inf))
    return (float(above) + float(np.nextafter(above, np.float32(-np.inf)))) / 2


def highest(scores: Tensor, least: Tensor, limit: int, groups: int) -> Tensor:
    """Where the `limit` highest scores of each row are.

    Args:
        scores: ``(N, L)``.
        least: ``(N, 1)``, the lowest of those.
        limit: how many, at most L.
        groups: of scores that equal the lowest, the first of every so many go before the second, and so on.

    >>> highest(torch.tensor([[1.0, 2, 1, 1, 0, 1]]), torch.tensor([[1.0]]), 3, groups=2).tolist()
    [[True, True, True, False, False, False]]
    """
    higher, limit = scores > least, min(limit, scores.shape[1])
    places = torch.arange(scores.shape[1], device=scores.device).view(-1, groups)
    order = places.T.flatten().argsort().to(torch.int32)
    first = torch.where(scores == least, len(order) - order, 0).topk(limit).indices  # (N, limit)
    wanted = torch.arange(limit, device=scores.device) < limit - higher.sum(dim=1, keepdim=True)
    return higher | torch.zeros_like(higher).scatter_(1, first, wanted)


def rank(groups: Tensor) -> Tensor:
    """The number of each among those of its group that come before it.

    >>> rank(torch.tensor([3, 0, 3, 3, 0])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = groups.argsort(stable=True)
    ordered = groups[order]
    places = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(order).scatter_(0, order, places)
