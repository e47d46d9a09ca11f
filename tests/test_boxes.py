from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder, Matcher, SSDMatcher
from torchvision.ops import box_iou

from lit_detect.boxes import Anchors, assign, decode, encode, match, match_or_ignore, scale_boxes


def random_boxes(count: int, generator: torch.Generator, largest: float = 100.0) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=generator) * 200
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * largest], dim=1)


@given(st.integers(0, 2**31))
def test_encode_and_decode_agree_with_torchvision_and_are_inverse(seed):
    generator = torch.Generator().manual_seed(seed)
    anchors, boxes = random_boxes(20, generator), random_boxes(20, generator)
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    deltas = encode(boxes, anchors)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decode(deltas, anchors), coder.decode_single(deltas, anchors), rtol=1e-4, atol=1e-3)
    clamped = (boxes[:, 2:] - boxes[:, :2]) / (anchors[:, 2:] - anchors[:, :2]) > 62.5
    torch.testing.assert_close(decode(deltas, anchors)[~clamped.any(1)], boxes[~clamped.any(1)], rtol=1e-4, atol=1e-2)


def test_decode_does_not_overflow():
    assert decode(torch.full((1, 4), 1e4), torch.tensor([[0.0, 0.0, 10.0, 10.0]])).isfinite().all()


@given(st.integers(0, 2**31), st.integers(1, 12))
def test_match_agrees_with_torchvision(seed, count):
    generator = torch.Generator().manual_seed(seed)
    anchors, boxes = random_boxes(200, generator), random_boxes(count, generator)
    assert match(Anchors(anchors), boxes, 0.5).tolist() == SSDMatcher(0.5)(box_iou(boxes, anchors)).tolist()
    # every third anchor is one of the boxes, so that there are ties
    anchors[::3] = boxes[torch.arange(len(anchors[::3])) % count]
    expected = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(boxes, anchors))
    assert match_or_ignore(Anchors(anchors), boxes, 0.5, 0.4).tolist() == expected.tolist()


def test_each_box_takes_its_best_anchor_whatever_the_overlap():
    anchors = torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40]])
    assert match(Anchors(anchors), torch.tensor([[8.0, 8, 20, 20]]), 0.5).tolist() == [0, -1]


def test_assign_gives_background_its_own_anchor_as_box():
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    one = {"boxes": torch.tensor([[0.0, 0, 10, 9]]), "labels": torch.tensor([3])}
    labels, boxes = assign(Anchors(anchors), [empty, one], partial(match, threshold=0.5))
    assert labels.tolist() == [[0, 0], [3, 0]]
    assert torch.equal(boxes[0], anchors)
    assert boxes[1].tolist() == [[0, 0, 10, 9], [50, 50, 60, 60]]


def test_a_box_that_no_anchor_meets_makes_no_anchor_positive():
    anchors = torch.tensor([[0.0, 0, 8, 8], [32, 0, 40, 8], [64, 0, 72, 8]])
    assert match_or_ignore(Anchors(anchors), torch.tensor([[20.0, 2, 24, 6]]), 0.5, 0.4).tolist() == [-1, -1, -1]


def test_assign_leaves_the_undecided_out():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [50, 50, 60, 60]])
    one = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([3])}
    labels, boxes = assign(Anchors(anchors), [one], partial(match_or_ignore, threshold=0.5, background=0.4))
    assert labels.tolist() == [[3, -1, 0]]
    assert torch.equal(boxes[0], anchors)


@pytest.mark.parametrize("size", [(100, 200), (37, 91)])
def test_scale_boxes_there_and_back(size):
    boxes = random_boxes(5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(scale_boxes(scale_boxes(boxes, size, (300, 300)), (300, 300), size), boxes)
