"""From scores and boxes to detections: threshold, best candidates, non-maximum suppression."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

__all__ = ["PostProcess"]


@dataclass(frozen=True)
class PostProcess:
    """Pick an image's detections out of all scored boxes (SSD, section 3: "Inference time").

    The best candidates go through non-maximum suppression first. Since only a better box can suppress another, what they leave is final,
    and more candidates are taken only if that is less than `detections_per_image`: the result is that of all of them.

    Args:
        score_threshold: candidates score more than this, 0..1.
        nms_threshold: of two overlapping detections of one class the better is kept where their IoU exceeds this, 0..1.
        detections_per_image: at most so many, best first.
        candidates_per_class: at most so many of each class enter non-maximum suppression; by default all.
        candidates_per_map: likewise for each feature map, whatever their class (RetinaNet, section 4, "Inference").
        min_size: leave out boxes of a smaller side, in pixels.
    """

    score_threshold: float = 0.01
    nms_threshold: float = 0.45
    detections_per_image: int = 200
    candidates_per_class: int | None = None
    candidates_per_map: int | None = None
    min_size: float = 0.0

    def __call__(self, scores: Tensor, boxes: Tensor, size: tuple[int, int], per_map: Sequence[int] = ()) -> dict[str, Tensor]:
        """Detections of one image.

        Args:
            scores: ``(A, C)``, 0..1, without background.
            boxes: ``(A, 4)`` in pixels, or ``(A, C, 4)``, a box for each class.
            size: the image's height and width in pixels; boxes are clipped to it.
            per_map: how many of the A boxes each feature map has.

        Returns:
            ``boxes`` ``(D, 4)``, ``labels`` ``(D,)`` 1..C and ``scores`` ``(D,)``, best first, float32.

        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 40, 30]])
        >>> scores = torch.tensor([[0.9, 0.0], [0.8, 0.3], [0.0, 0.4]])
        >>> detections = PostProcess()(scores, boxes, (30, 30))
        >>> detections["labels"].tolist(), detections["boxes"][1].tolist()
        ([1, 2, 2], [20.0, 20.0, 30.0, 30.0])
        """
        scores, enough = scores.float(), 4 * self.detections_per_image
        # in a row in torchvision's order, which decides between equal scores: class by class, or box by box
        by_class = self.candidates_per_class is not None
        values = scores.T.flatten() if by_class else scores.flatten()
        entering = None if self.candidates_per_map is None else self.best_of_maps(values, [count * scores.shape[1] for count in per_map])
        values = values if entering is None else values[entering]
        while True:
            best = self.best(values, enough)
            places = best if entering is None else entering[best]
            index, labels = (
                (places % len(scores), places // len(scores)) if by_class else (places // scores.shape[1], places % scores.shape[1])
            )
            found = self.suppress(values[best], index, labels, boxes, size)
            if len(best) < enough or len(found["scores"]) == self.detections_per_image:
                return found
            enough *= 4

    def best_of_maps(self, values: Tensor, per_map: Sequence[int]) -> Tensor:
        """Places of the best of each map, map by map, best first."""
        chosen, start = [], 0
        for of_map in torch.split(values, list(per_map)):
            places = (of_map > self.score_threshold).nonzero().flatten()
            best = of_map[places].topk(min(self.candidates_per_map or 0, len(places))).indices
            chosen.append(places[best] + start)
            start += len(of_map)
        return torch.cat(chosen)

    def best(self, values: Tensor, enough: int) -> Tensor:
        """Where the highest scores above the threshold are, best first; of equal ones the first; `enough` or more if there are so many."""
        least = values.topk(min(enough, len(values))).values.min() if len(values) else 0.0
        places = ((values >= least) & (values > self.score_threshold)).nonzero().flatten()
        return places[values[places].sort(descending=True, stable=True).indices]

    def suppress(self, scores: Tensor, index: Tensor, labels: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Non-maximum suppression of candidates that come best first, class by class."""
        if self.candidates_per_class is not None and len(labels) > self.candidates_per_class:
            rank = F.one_hot(labels).cumsum(dim=0).gather(1, labels[:, None]).flatten()
            scores, index, labels = (column[rank <= self.candidates_per_class] for column in (scores, index, labels))
        boxes = clip_boxes_to_image((boxes[index] if boxes.ndim == 2 else boxes[index, labels]).float(), size)
        if self.min_size > 0:
            large = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_size).all(dim=1)
            boxes, scores, labels = boxes[large], scores[large], labels[large]
        keep = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.detections_per_image]
        return {"boxes": boxes[keep], "labels": labels[keep] + 1, "scores": scores[keep]}
