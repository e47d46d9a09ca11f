"""How well a detector's anchors cover the boxes of a data set, before anything is learnt."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from lit_detect.boxes import scale_boxes
from lit_detect.models.dense import DenseNetwork
from lit_detect.models.fcos import Points
from lit_detect.models.two_stage import TwoStageNetwork

__all__ = ["AnchorsBySize", "best_overlaps", "overlaps_with_anchors"]


class AnchorsBySize:
    """A network's anchors for images of any size, found from shapes alone: nothing is computed and no weight is used.

    Args:
        network: a one-stage or a two-stage detector's; it is not changed. Of a two-stage one the proposal network's anchors count.
    """

    def __init__(self, network: DenseNetwork | TwoStageNetwork) -> None:
        self.network = network
        # on the meta device tensors have shapes and no values, so that a pass costs nothing whatever the backbone
        self.inputs, self.backbone = (copy.deepcopy(part).to("meta").eval() for part in (network.inputs, network.backbone))
        self._anchors: dict[tuple[int, int], Tensor] = {}

    def input_sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """What an image becomes in the network: its height and width there, and those of the input, which may be padded."""
        inputs = self.inputs([torch.empty(3, height, width, dtype=torch.uint8, device="meta")])
        return inputs.sizes[0], (inputs.images.shape[-2], inputs.images.shape[-1])

    def at(self, size: tuple[int, int]) -> Tensor:
        """The anchors ``(A, 4)`` for an input of this height and width, in its pixels."""
        if size not in self._anchors:
            with torch.no_grad():
                features = self.backbone(torch.empty(1, 3, *size, device="meta"))
            # of these, too, only the shapes are asked for; zeros of any shape take no memory this way
            images, *maps = (torch.zeros(()).expand(shape) for shape in [(1, 3, *size), *(of_map.shape for of_map in features.values())])
            if isinstance(self.network, DenseNetwork):
                self._anchors[size] = self.network.anchors(images, maps).boxes.cpu()
            else:
                generator = self.network.rpn.anchor_generator
                maps = maps[: len(generator.sizes)]  # R-FCN's other maps are for the second stage
                self._anchors[size] = generator(ImageList(images, [size]), maps)[0]
        return self._anchors[size]


def overlaps_with_anchors(network: nn.Module, sizes: Sequence[tuple[int, int]], boxes: Sequence[Tensor]) -> list[Tensor] | None:
    """The best overlap that any anchor has with each box: what no training and no threshold can improve.

    Boxes are scaled as the network's inputs scale their images in evaluation: to the square of `FixedSize`, or by `ShortestSide`, each
    image as a batch of its own. Anchors depend on the size of the padded input alone, a multiple of 32 pixels, so there are few sets of
    them.

    Args:
        network: a one-stage or a two-stage detector's; of the latter the proposal network's anchors count.
        sizes: width and height of each image.
        boxes: ``(M, 4)`` of each image, in its pixels.

    Returns:
        ``(M,)`` of each image, 0..1; None for a network without anchors.
    """
    points = getattr(getattr(network, "anchors", None), "kind", None) is Points  # FCOS
    if points or not isinstance(network, DenseNetwork | TwoStageNetwork):
        return None
    anchors = AnchorsBySize(network)
    by_input: dict[tuple[int, int], list[int]] = {}
    known = {size: anchors.input_sizes(size[1], size[0]) for size in set(sizes)}
    for index, size in enumerate(sizes):
        by_input.setdefault(known[size][1], []).append(index)
    inside = [known[size][0] for size in sizes]
    scaled = scale_boxes([of_image.float() for of_image in boxes], [(height, width) for width, height in sizes], inside)
    found = [box.new_zeros(len(box)) for box in scaled]
    for padded, images in by_input.items():
        best = best_overlaps(torch.cat([scaled[index] for index in images]), anchors.at(padded))
        for index, values in zip(images, torch.split(best, [len(scaled[index]) for index in images]), strict=True):
            found[index] = values
    return found


def best_overlaps(boxes: Tensor, anchors: Tensor, chunk: int = 1024) -> Tensor:
    """The largest intersection over union of each box with any anchor, in a time that hardly depends on the number of anchors.

    Of anchors of one shape on a grid the one overlaps most whose centre is the nearest, across and down; only that is compared.

    Args:
        boxes: ``(M, 4)``.
        anchors: ``(A, 4)``, A at least 1.
        chunk: boxes that are compared at a time with anchors that stand on no grid.

    Returns:
        ``(M,)``, 0..1.

    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 20, 20]])
    >>> best_overlaps(torch.tensor([[10.0, 0, 20, 5], [0, 0, 20, 20]]), anchors).tolist()
    [0.5, 1.0]
    """
    best = boxes.new_zeros(len(boxes))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for members, grid in grids(anchors):
        if grid is None:
            parts = [box_iou(part, anchors[members]).amax(dim=1) for part in torch.split(boxes, chunk)]
            overlap = torch.cat(parts) if parts else best
        else:
            table, xs, ys = grid
            column, row = (
                torch.bucketize(centres[:, axis].contiguous(), (values[1:] + values[:-1]) / 2) for axis, values in enumerate((xs, ys))
            )
            nearest = anchors[table[row, column]]
            common = (torch.minimum(boxes[:, 2:], nearest[:, 2:]) - torch.maximum(boxes[:, :2], nearest[:, :2])).clamp(min=0).prod(dim=1)
            area, other = ((each[:, 2:] - each[:, :2]).prod(dim=1) for each in (boxes, nearest))
            overlap = common / (area + other - common)
        best = torch.maximum(best, overlap)
    return best


def grids(anchors: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]]:
    """Anchors by their shape.

    Yields:
        The numbers of the anchors of one shape; and where they stand on a grid, a table ``(rows, columns)`` of them with the centres of
        its columns and rows, else None.
    """
    fine = 64  # steps a pixel: coordinates in float32 are some 1e-4 off
    shapes = ((anchors[:, 2:] - anchors[:, :2]) * fine).round().long()
    _, shape = torch.unique(shapes[:, 0] * 2**31 + shapes[:, 1], return_inverse=True)
    order = shape.argsort(stable=True)
    for members in torch.split(order, shape.bincount().tolist()):
        centres = ((anchors[members, :2] + anchors[members, 2:]) / 2 * fine).round() / fine
        (xs, column), (ys, row) = (torch.unique(centres[:, axis], return_inverse=True) for axis in (0, 1))
        table = members.new_full((len(ys), len(xs)), -1)
        table[row, column] = members
        whole = len(members) == table.numel() and bool((table >= 0).all())
        yield members, (table, xs, ys) if whole else None
