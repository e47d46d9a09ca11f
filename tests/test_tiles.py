"""Tiles against a look at the whole image, with a network that finds drawn rectangles to the pixel."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import batched_nms, box_iou

from lit_detect import InputError, PostProcess, Tiled
from lit_detect.tiles import spread


class Drawn(nn.Module):
    """Finds rectangles: red is the label, green the object's number, blue the score of 255.

    Args:
        pixels: of each object, by number: then only objects that are there as a whole are found, else also parts.
        side: views that are larger are seen at this size, and score half.
        nms: look out for overlaps in each view, as detectors do.
    """

    def __init__(self, pixels=None, side=10_000, nms=True):
        super().__init__()
        self.pixels, self.side, self.nms, self.views, self.post_process = pixels, side, nms, 0, PostProcess(nms_threshold=0.45)

    def forward(self, images):
        self.views += len(images)
        return [self.find(image) for image in images]

    def find(self, image):
        step = -(-max(image.shape[1:]) // self.side)
        image = image[:, ::step, ::step]
        boxes, labels, scores = [], [], []
        for number in image[1].unique().tolist():
            y, x = (image[1] == number).nonzero().T
            if number and (self.pixels is None or step > 1 or len(x) == self.pixels[number]):
                boxes.append([int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1])
                labels.append(int(image[0, y[0], x[0]]))
                scores.append(int(image[2, y[0], x[0]]) / 255 / step)
        boxes, labels, scores = torch.tensor(boxes).float().reshape(-1, 4) * step, torch.tensor(labels).long(), torch.tensor(scores)
        keep = batched_nms(boxes, scores, labels, 0.45) if self.nms else scores.argsort(descending=True)
        return {"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]}


def drawing(seed, width, height, sides, disjoint=True, tries=30):
    """An image with rectangles of random places and sides, and the number of pixels of each by its number."""
    rng = np.random.default_rng(seed)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for number in range(1, tries + 1):
        w, h = rng.integers(sides[0], sides[1] + 1, size=2)
        if w > width or h > height:
            continue
        x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
        # at a distance of a pixel: neighbours of one class that touch look like one object that goes on
        if not disjoint or not image[1, max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1].any():
            colour = [rng.integers(1, 3), number, 255 - 8 * number]
            image[:, y : y + h, x : x + w] = torch.tensor(np.array(colour, dtype=np.uint8))[:, None, None]
    numbers, counts = image[1].unique(return_counts=True)
    return image, dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def rows(found):
    return sorted(zip(found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True))


sizes = st.tuples(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 200), st.sampled_from([0.2, 0.3, 0.55, 0.8]))


@settings(max_examples=50, deadline=None)
@given(sizes, st.booleans(), st.booleans())
def test_objects_smaller_than_the_overlap_are_found_as_without_tiles(sizes, parts, whole):
    seed, width, height, overlap = sizes
    image, pixels = drawing(seed, width, height, (1, int(overlap * 50)))
    network = Drawn(None if parts else pixels)
    found = Tiled(network, 50, overlap, whole)(image[None])[0]
    assert rows(found) == rows(network.find(image))
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


@settings(max_examples=50, deadline=None)
@given(sizes)
def test_so_are_objects_that_overlap_each_other(sizes):
    seed, width, height, overlap = sizes
    image, pixels = drawing(seed, width + 50, height, (1, int(overlap * 50) - 2), disjoint=False)
    expected = Drawn().find(image)
    assert rows(Tiled(Drawn(pixels, nms=False), 50, overlap, whole=False)(image[None])[0]) == rows(expected)


@settings(max_examples=50, deadline=None)
@given(sizes, st.booleans())
def test_parts_of_larger_objects_become_one(sizes, whole):
    seed, width, height, overlap = sizes
    image, _ = drawing(seed, width, height, (1, 200))
    assert rows(Tiled(Drawn(), 50, overlap, whole)(image[None])[0]) == rows(Drawn().find(image))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([(5, 12), (24, 120)]))
def test_with_a_network_that_sees_the_whole_image_smaller(seed, parts, sides):
    image, pixels = drawing(seed, 190, 160, sides)
    expected = Drawn().find(image)
    found = Tiled(Drawn(None if parts else pixels, side=50), 50, 0.3)(image[None])[0]
    overlaps = box_iou(expected["boxes"], found["boxes"]) * (expected["labels"][:, None] == found["labels"])
    assert ((overlaps > 0.4).sum(dim=1) == 1).all()  # once each
    assert sides[0] > 13 or (overlaps.amax(dim=1) == 1).all()  # and small ones as exactly as the tiles see them


def test_a_poor_box_does_not_grow_a_good_one():
    network = Scripted(
        {(0, 0): [[20.0, 0, 100, 50]], (60, 0): [[0.0, 0, 60, 50], [0.0, 0, 95, 60]]}, scores={(60, 0): [0.8, 0.1], (0, 0): 0.9}
    )
    found = Tiled(network, 100, 0.4, whole=False)(torch.zeros(1, 3, 100, 160, dtype=torch.uint8))[0]
    assert found["boxes"][0].tolist() == [20, 0, 120, 50]


class Scripted(nn.Module):
    """Gives what it was told for the tile that begins at x, y; tiles come row by row."""

    def __init__(self, boxes, scores):
        super().__init__()
        self.boxes, self.scores, self.post_process = boxes, scores, PostProcess()

    def forward(self, images):
        assert len(images) == len(self.boxes)
        return [
            {
                "boxes": torch.tensor(boxes),
                "labels": torch.ones(len(boxes), dtype=torch.int64),
                "scores": torch.tensor(self.scores[place]).expand(len(boxes)),
            }
            for place, boxes in self.boxes.items()
        ]


def test_nothing_found_a_small_image_and_the_number_of_tiles():
    network = Drawn()
    found = Tiled(network, 50, 0.2)(torch.zeros(1, 3, 120, 90, dtype=torch.uint8))[0]
    assert (found["boxes"].shape, found["labels"].dtype, network.views) == ((0, 4), torch.int64, 1 + 2 * 3)
    assert len(Tiled(network, 50)(torch.zeros(2, 3, 50, 20, dtype=torch.uint8))) == 2
    assert network.views == 7 + 2
    for size, overlap in [(0, 0.2), (50, 1.0), (50, -0.1)]:
        with pytest.raises(InputError, match="Expected tiles of a side"):
            Tiled(network, size, overlap)


@given(st.integers(1, 3000), st.integers(1, 500), st.floats(0, 0.99))
def test_tiles_cover_a_side_and_overlap_as_asked(length, size, share):
    overlap = int(share * size)
    starts = spread(length, size, overlap)
    assert starts[0] == 0
    assert starts[-1] + size == max(length, size)
    assert all(size - (b - a) >= overlap and b > a for a, b in itertools.pairwise(starts))
    assert len(starts) == 1 or size + (len(starts) - 2) * (size - overlap) < length  # one less would not do
