"""From scores and boxes to detections: threshold, best candidates, non-maximum suppression."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

__all__ = ["PostProcess"]


@dataclass(frozen=True)
class PostProcess:
    """Pick an image's detections out of all scored boxes (SSD, section 3: "Inference time").

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
        index, labels = self.candidates(scores.float(), per_map)
        scores = scores[index, labels].float()
        boxes = boxes[index] if boxes.ndim == 2 else boxes[index, labels]
        boxes = clip_boxes_to_image(boxes.float(), size)
        if self.min_size > 0:
            large = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_size).all(dim=1)
            boxes, scores, labels = boxes[large], scores[large], labels[large]
        keep = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.detections_per_image]
        return {"boxes": boxes[keep], "labels": labels[keep] + 1, "scores": scores[keep]}

    def candidates(self, scores: Tensor, per_map: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What enters non-maximum suppression: index of the box and of the class, 0..C-1, each ``(T,)``.

        In torchvision's order, which decides between equal scores: by class or by map, then best first.
        """
        if self.candidates_per_class is not None:
            best, index = scores.topk(min(self.candidates_per_class, len(scores)), dim=0)  # (T, C) each, all classes at once
            labels, rank = (best > self.score_threshold).T.nonzero(as_tuple=True)
            return index[rank, labels], labels
        if self.candidates_per_map is None:
            index, labels = (scores > self.score_threshold).nonzero(as_tuple=True)
            return index, labels
        chosen, start = [], 0
        for of_map in torch.split(scores, list(per_map)):
            index = (of_map.flatten() > self.score_threshold).nonzero().flatten()
            best = of_map.flatten()[index].topk(min(self.candidates_per_map, len(index))).indices
            chosen.append(index[best] + start)
            start += of_map.numel()
        flat = torch.cat(chosen)
        return flat.div(scores.shape[1], rounding_mode="floor"), flat % scores.shape[1]
