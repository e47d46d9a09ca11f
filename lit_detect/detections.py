"""From scores and boxes to detections: threshold, best candidates of each class, non-maximum suppression."""

from dataclasses import dataclass

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
        candidates_per_class: at most so many of each class enter non-maximum suppression.
    """

    score_threshold: float = 0.01
    nms_threshold: float = 0.45
    detections_per_image: int = 200
    candidates_per_class: int = 400

    def __call__(self, scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Detections of one image.

        Args:
            scores: ``(A, C)``, 0..1, without background.
            boxes: ``(A, 4)`` in pixels.
            size: the image's height and width in pixels; boxes are clipped to it.

        Returns:
            ``boxes`` ``(D, 4)``, ``labels`` ``(D,)`` 1..C and ``scores`` ``(D,)``, best first, float32.

        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 40, 30]])
        >>> scores = torch.tensor([[0.9, 0.0], [0.8, 0.3], [0.0, 0.4]])
        >>> detections = PostProcess()(scores, boxes, (30, 30))
        >>> detections["labels"].tolist(), detections["boxes"][1].tolist()
        ([1, 2, 2], [20.0, 20.0, 30.0, 30.0])
        """
        scores, boxes = scores.float(), clip_boxes_to_image(boxes.float(), size)
        candidates = min(self.candidates_per_class, len(scores))
        best, index = scores.topk(candidates, dim=0)  # (T, C) each, all classes at once
        passing = (best > self.score_threshold).T.nonzero()  # class by class, as torchvision orders them
        labels, rank = passing.unbind(dim=1)
        best, boxes = best[rank, labels], boxes[index[rank, labels]]
        keep = batched_nms(boxes, best, labels, self.nms_threshold)[: self.detections_per_image]
        return {"boxes": boxes[keep], "labels": labels[keep] + 1, "scores": best[keep]}
