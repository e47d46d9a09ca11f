import subprocess
import sys
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder, Matcher, SSDMatcher
from torchvision.ops import box_iou

from lit_detect.boxes import Anchors, assign, decode, encode, match, match_above, match_or_ignore, overlaps, scale_boxes


def random_boxes(count: int, generator: torch.Generator, largest: float = 100.0) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=generator) * 200
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * largest], dim=1)


def matched(matcher, anchors, boxes):
    """The matches of one image's boxes."""
    return matcher(Anchors(anchors), boxes[None], torch.ones(1, len(boxes), dtype=torch.bool))[0].tolist()


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
    assert matched(partial(match, threshold=0.5), anchors, boxes) == SSDMatcher(0.5)(box_iou(boxes, anchors)).tolist()
    # every third anchor is one of the boxes, so that there are ties
    anchors[::3] = boxes[torch.arange(len(anchors[::3])) % count]
    expected = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(boxes, anchors))
    assert matched(partial(match_or_ignore, threshold=0.5, background=0.4), anchors, boxes) == expected.tolist()


def test_each_box_takes_its_best_anchor_whatever_the_overlap():
    anchors = torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40]])
    assert matched(partial(match, threshold=0.5), anchors, torch.tensor([[8.0, 8, 20, 20]])) == [0, -1]


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
    assert matched(partial(match_or_ignore, threshold=0.5, background=0.4), anchors, torch.tensor([[20.0, 2, 24, 6]])) == [-1, -1, -1]


def test_assign_leaves_the_undecided_out():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [50, 50, 60, 60]])
    one = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([3])}
    labels, boxes = assign(Anchors(anchors), [one], partial(match_or_ignore, threshold=0.5, background=0.4))
    assert labels.tolist() == [[3, -1, 0]]
    assert torch.equal(boxes[0], anchors)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 6), min_size=1, max_size=5), st.sampled_from([1, 3000]))
def test_images_of_a_batch_do_not_touch_one_another(seed, counts, at_once):
    """The same as image by image, however many overlaps are worked out at once, and whatever fills up the shorter ones."""
    generator = torch.Generator().manual_seed(seed)
    anchors = Anchors(random_boxes(150, generator))
    targets = [{"boxes": random_boxes(count, generator), "labels": torch.randint(1, 9, (count,), generator=generator)} for count in counts]
    for matcher in (
        partial(match, threshold=0.5),
        partial(match_or_ignore, threshold=0.5, background=0.4),
        partial(match_above, threshold=0.5),
    ):
        with patch.dict("lit_detect.boxes.OVERLAPS_AT_ONCE", cpu=at_once):
            labels, boxes = assign(anchors, targets, matcher)
        for index, target in enumerate(targets):
            own = torch.tensor(matched(matcher, anchors.boxes, target["boxes"]) if counts[index] else [-1] * len(anchors))
            assert torch.equal(labels[index] > 0, own >= 0)
            assert torch.equal(labels[index] < 0, own == -2)
            positive = own >= 0
            assert torch.equal(labels[index][positive], target["labels"][own[positive]])
            assert torch.equal(boxes[index][positive], target["boxes"][own[positive]])
            assert torch.equal(boxes[index][~positive], anchors.boxes[~positive])


@given(st.integers(0, 2**31))
def test_overlaps_are_torchvisions_to_the_last_bit(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes, anchors = random_boxes(12, generator).view(3, 4, 4), random_boxes(50, generator)
    assert torch.equal(overlaps(boxes, anchors), torch.stack([box_iou(of_image, anchors) for of_image in boxes]))


def test_many_boxes_and_anchors_do_not_need_much_memory():
    """500 boxes x 100,000 anchors x 32 images would be 6.4 GB for the overlaps alone; here a tenth of that, in a process of its own."""
    code = """
import resource, torch
from functools import partial
from lit_detect.boxes import Anchors, assign, match
corner = torch.rand(50_000, 2) * 1000
anchors = Anchors(torch.cat([corner, corner + 40], dim=1))
targets = [{"boxes": anchors.boxes[:500], "labels": torch.ones(500, dtype=torch.int64)}] * 7
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assign(anchors, targets, partial(match, threshold=0.5))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""
    gigabytes = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert gigabytes < 0.7, gigabytes  # in one piece it would be 0.7 for one intermediate result, and there are some


@pytest.mark.parametrize("size", [(100, 200), (37, 91)])
def test_scale_boxes_there_and_back(size):
    boxes = [random_boxes(count, torch.Generator().manual_seed(0)) for count in (5, 0, 2)]
    sizes, others = [size, (8, 8), (300, 200)], [(300, 300), (9, 9), (100, 500)]
    scaled = scale_boxes(boxes, sizes, others)
    assert scaled[2][0, 0] == pytest.approx(boxes[2][0, 0].item() * 2.5)
    for before, after in zip(boxes, scale_boxes(scaled, others, sizes), strict=True):
        torch.testing.assert_close(after, before)
