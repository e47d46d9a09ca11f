"""Large images in overlapping tiles: each is looked at by itself, and what they find is put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from lit_detect.errors import InputError

__all__ = ["Tiled", "Tiles"]

MARGIN = 0.01  # of a tile's side: a box that ends nearer to the tile's edge is taken to be cut off there; boxes are not found to the pixel


class Tiled(nn.Module):
    """A network that looks at an image tile by tile.

    A box that ends at an edge inside the image is cut off. Where the next tile sees all of it and more, it is left out: so an object
    that is smaller than the overlap is found as if there were no tiles, since some tile has the whole of it. What is left of cut-off
    boxes are parts of larger objects. Two of them are of one object if each is what agrees best with the other (by IoU and score) among
    its tile's boxes, in what both tiles see. The object's box is that around its parts, and its score the best of theirs. Last comes
    one non-maximum suppression over all tiles, at the detector's threshold. Its other limits, such as `detections_per_image`, are
    limits of each tile.

    Args:
        network: gives detections for images, and has a `post_process`: that of any detector here, in eval.
        size: side of a tile in pixels; best is what the network resizes to, or less where objects are small.
        overlap: of neighbouring tiles, at least, as a share of their side, 0 to under 1; best is more than the objects' size.
        whole: look at the whole image too, which the network sees smaller, for objects that are larger than the overlap; what it finds
            that is smaller is left to the tiles. (SAHI, Akyon et al. 2022, section 3, has this as full inference.)
        batch_size: tiles that go through the network at once.

    Raises:
        InputError: a size or an overlap out of range.
    """

    def __init__(self, network: nn.Module, size: int, overlap: float = 0.25, whole: bool = True, batch_size: int = 8) -> None:
        super().__init__()
        if size < 1 or not 0 <= overlap < 1:
            raise InputError(f"Expected tiles of a side of 1 or more that overlap by 0 to under 1 of it, but got {size} and {overlap}.")
        self.network, self.size, self.overlap, self.whole, self.batch_size = network, size, math.ceil(overlap * size), whole, batch_size

    def forward(self, images: Tensor | Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of each of the images ``(3, H, W)``, as the network itself gives them."""
        return [self.detect(image) for image in images]

    def detect(self, image: Tensor) -> dict[str, Tensor]:
        """Detections of one image."""
        height, width = image.shape[-2:]
        grid = Grid(spread(width, self.size, self.overlap), spread(height, self.size, self.overlap), (width, height), self.size)
        edges = grid.edges
        if len(edges) == 1:
            found: list[dict[str, Tensor]] = self.network(image[None])
            return found[0]
        found = self.network(image[None]) if self.whole else []
        for of_whole in found:
            large = (of_whole["boxes"][:, 2:] - of_whole["boxes"][:, :2] > self.overlap).any(dim=1)
            of_whole.update({name: value[large] for name, value in of_whole.items()})
        for start in range(0, len(edges), self.batch_size):
            views = [image[:, y1:y2, x1:x2] for x1, y1, x2, y2 in edges[start : start + self.batch_size]]
            found += self.network(torch.stack(views))
        tiles = torch.tensor([[0, 0, width, height]] * self.whole + edges).to(found[0]["boxes"])
        neighbours = torch.tensor([[0, 0, 0, 0]] * self.whole + grid.neighbours).to(tiles)
        threshold: float = self.network.post_process.nms_threshold  # type: ignore[assignment, union-attr]
        return put_together(found, tiles, neighbours, MARGIN * self.size, threshold)


class Grid(NamedTuple):
    """Tiles of an image, row by row.

    Attributes:
        lefts: where columns begin, in pixels.
        tops: where rows begin.
        image: width and height of the image.
        size: side of a tile, or more than the image has.
    """

    lefts: list[int]
    tops: list[int]
    image: tuple[int, int]
    size: int

    @property
    def edges(self) -> list[list[int]]:
        """Each tile's edges, xyxy."""
        width, height = self.image
        return [[x, y, min(x + self.size, width), min(y + self.size, height)] for y in self.tops for x in self.lefts]

    @property
    def neighbours(self) -> list[list[int]]:
        """Where the tile to the left of each ends, that above ends, that to the right begins and that below begins."""
        columns, rows = (
            [(starts[max(place - 1, 0)] + self.size, starts[min(place + 1, len(starts) - 1)]) for place in range(len(starts))]
            for starts in (self.lefts, self.tops)
        )
        return [[left, top, right, bottom] for top, bottom in rows for left, right in columns]


def spread(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles begin along a side of an image: as few as need be, evenly.

    >>> spread(1000, 400, 100), spread(1001, 400, 100), spread(300, 400, 100)
    ([0, 300, 600], [0, 200, 400, 601], [0])
    """
    if length <= size:
        return [0]
    steps = math.ceil((length - size) / max(size - overlap, 1))
    return [step * (length - size) // steps for step in range(steps + 1)]


def put_together(found: list[dict[str, Tensor]], tiles: Tensor, neighbours: Tensor, margin: float, threshold: float) -> dict[str, Tensor]:
    """The image's detections from those of tiles: see `Tiled`.

    Args:
        found: of each tile, in its pixels.
        tiles: ``(T, 4)`` their edges in pixels of the image.
        neighbours: ``(T, 4)``: see `Grid`.
        margin: boxes that end nearer to an edge are cut off, in pixels.
        threshold: of non-maximum suppression, and of boxes that agree, as IoU.
    """
    tile = torch.arange(len(found), device=tiles.device).repeat_interleave(
        torch.tensor([len(one["scores"]) for one in found]).to(tiles.device)
    )
    boxes = torch.cat([one["boxes"] for one in found]) + tiles[tile][:, [0, 1, 0, 1]]
    labels, scores = (torch.cat([one[name] for one in found]) for name in ("labels", "scores"))
    inner = tiles != torch.cat([tiles[:, :2].amin(dim=0), tiles[:, 2:].amax(dim=0)])  # edges that are not the image's
    edges, beside = tiles[tile], neighbours[tile]
    cut = inner[tile] & torch.cat([boxes[:, :2] < edges[:, :2] + margin, boxes[:, 2:] > edges[:, 2:] - margin], dim=1)
    seen_whole = torch.cat([boxes[:, 2:] <= beside[:, :2] - margin, boxes[:, :2] >= beside[:, 2:] + margin], dim=1)
    keep = ~(cut & seen_whole).any(dim=1)
    boxes, labels, scores, tile, cut = boxes[keep], labels[keep], scores[keep], tile[keep], cut[keep].any(dim=1)
    pairs = same_objects(boxes, labels, scores, tile, cut, tiles, threshold)
    group = components(len(boxes), pairs)
    first = torch.ones_like(cut)
    for number in set(group[pairs[:, 0]].tolist()):
        parts = (group == number).nonzero().flatten()
        boxes[parts[0]] = torch.cat([boxes[parts, :2].amin(dim=0), boxes[parts, 2:].amax(dim=0)])
        scores[parts[0]] = scores[parts].amax()
        first[parts[1:]] = False
    boxes, labels, scores = boxes[first], labels[first], scores[first]
    keep = batched_nms(boxes, scores, labels, threshold)
    return {"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]}


def same_objects(boxes: Tensor, labels: Tensor, scores: Tensor, tile: Tensor, cut: Tensor, tiles: Tensor, threshold: float) -> Tensor:
    """Pairs of cut-off boxes ``(P, 2)`` that are of one object, as the two tiles see it of which they come: see `Tiled`."""
    of_tile = [((tile == number) & cut).nonzero().flatten() for number in range(len(tiles))]
    shared = torch.cat([torch.maximum(tiles[:, None, :2], tiles[:, :2]), torch.minimum(tiles[:, None, 2:], tiles[:, 2:])], dim=2)
    meet = (shared[..., 2:] > shared[..., :2]).all(dim=2).triu(diagonal=1)
    pairs = [torch.zeros(0, 2, dtype=torch.int64, device=boxes.device)]
    for a, b in meet.nonzero().tolist():
        of_a, of_b = of_tile[a], of_tile[b]
        if len(of_a) and len(of_b):
            low, high = shared[a, b, :2].repeat(2), shared[a, b, 2:].repeat(2)
            overlap = box_iou(boxes[of_a].clamp(low, high), boxes[of_b].clamp(low, high))
            agree = (overlap > threshold) & (labels[of_a, None] == labels[of_b])
            value = torch.where(agree, overlap * scores[of_a, None] * scores[of_b], 0.0)
            best = (value == value.amax(dim=1, keepdim=True)) & (value == value.amax(dim=0)) & agree
            first, second = best.nonzero(as_tuple=True)
            pairs.append(torch.stack([of_a[first], of_b[second]], dim=1))
    return torch.cat(pairs)


def components(count: int, pairs: Tensor) -> Tensor:
    """A number for each of `count` things: things have the same if pairs ``(P, 2)`` lead from one to the other.

    >>> components(5, torch.tensor([[3, 1], [4, 3]])).tolist()
    [0, 1, 2, 1, 1]
    """
    group = torch.arange(count, device=pairs.device)
    while True:
        least = group[pairs].amin(dim=1, keepdim=True).expand_as(pairs)
        joined = group.scatter_reduce(0, pairs.flatten(), least.flatten(), "amin")
        if torch.equal(joined, group):
            return group
        group = joined


class Tiles(Callback):
    """Let `predict` look at images tile by tile: see `Tiled`.

    Args:
        size: side of a tile in pixels; none for images as they are.
        overlap: of neighbouring tiles, at least, as a share of their side, 0 to under 1.
        whole: look at the whole image too, for objects that are larger than the overlap.
    """

    def __init__(self, size: int | None = None, overlap: float = 0.25, whole: bool = True) -> None:
        self.size, self.overlap, self.whole = size, overlap, whole

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.size is not None:
            batch_size: int = getattr(getattr(trainer, "datamodule", None), "batch_size", 8)
            pl_module.network = Tiled(pl_module.network, self.size, self.overlap, self.whole, batch_size)  # type: ignore[arg-type]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module.network, Tiled):
            pl_module.network = pl_module.network.network

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        self.on_predict_end(trainer, pl_module)
