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

from lit_detect.boxes import Anchors, assign, decode, encode, match, match_above, match_or_ignore, overlaps, scale_boxes, without_crowd


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
    anchors = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    assert decode(torch.full((1, 4), 1e4), anchors).isfinite().all()
    largest = decode(torch.tensor([[0.0, 0, 1e4, 1e4]]), anchors)[0].tolist()  # 62.5 times the anchor
    assert largest == pytest.approx([5 - 312.5, 10 - 625, 5 + 312.5, 10 + 625], rel=1e-5)


def test_anchors_have_weights_of_their_own_and_keep_them():
    anchors, boxes = (random_boxes(20, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    weighted = Anchors(anchors, (1.0, 2.0, 3.0, 4.0), per_map=(15, 5))
    some = torch.tensor([7, 3, 3])
    for ours, index in ((weighted, slice(None)), (weighted[some], some)):
        coder = BoxCoder(weights=(1.0, 2.0, 3.0, 4.0))
        deltas = ours.encode(boxes[index])
        torch.testing.assert_close(deltas, coder.encode_single(boxes[index], anchors[index]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.decode(deltas), boxes[index], rtol=1e-4, atol=1e-2)
        assert len(ours) == len(anchors[index])
    assert (weighted.per_map, weighted[some].per_map) == ((15, 5), ())  # some of them need not be those of whole maps


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


def test_an_overlap_of_just_the_threshold_is_enough():
    anchors, box = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 2.5], [0, 0, 10, 2]]), torch.tensor([[0.0, 0, 10, 10]])
    assert matched(partial(match, threshold=0.5), anchors, box) == [0, 0, -1, -1]
    assert matched(partial(match_above, threshold=0.5), anchors, box) == [0, 0, -1, -1]
    assert matched(partial(match_or_ignore, threshold=0.5, background=0.25), anchors, box) == [0, 0, -2, -1]


def test_of_two_boxes_with_the_same_best_anchor_the_later_takes_it():
    anchors, boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]])
    assert matched(partial(match, threshold=0.5), anchors, boxes) == [1, -1]
    assert matched(partial(match, threshold=0.5), anchors, boxes.flip(0)) == [1, -1]


def test_assign_works_out_so_many_overlaps_at_once_or_those_of_an_image():
    """Three boxes, and a row for none, with 10 anchors are 40 overlaps an image."""
    anchors, generator = Anchors(random_boxes(10, torch.Generator().manual_seed(0))), torch.Generator().manual_seed(1)
    targets = [{"boxes": random_boxes(count, generator), "labels": torch.ones(count).long()} for count in (3, 0, 1, 3, 2)]
    for most, expected in ((1, [1] * 5), (40, [1] * 5), (80, [2, 2, 1]), (119, [2, 2, 1]), (400, [5])):
        images = []

        def recorded(anchors, boxes, there, images=images):
            images.append(len(boxes))
            return match(anchors, boxes, there, 0.5)

        with patch.dict("lit_detect.boxes.OVERLAPS_AT_ONCE", cpu=most):
            assign(anchors, targets, recorded)
        assert images == expected


def test_what_is_assigned_is_of_the_anchors_kind():
    """Boxes of a data set may be of another precision, and labels of 32 bits."""
    anchors = Anchors(torch.tensor([[0.0, 0, 10, 10]]))
    target = {"boxes": anchors.boxes.double(), "labels": torch.tensor([3], dtype=torch.int32)}
    labels, boxes = assign(anchors, [target], partial(match, threshold=0.5))
    assert (labels.tolist(), labels.dtype, boxes.dtype) == ([[3]], torch.int64, torch.float32)


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


def test_a_crowd_is_not_learnt():
    target = {
        "boxes": torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]]),
        "labels": torch.tensor([1, 2, 3]),
        "iscrowd": torch.tensor([0, 1, 0]),
        "image_id": torch.tensor(7),
    }
    learnt = without_crowd(target)
    assert {name: value.tolist() for name, value in learnt.items()} == {
        "boxes": [[0, 0, 1, 1], [0, 0, 3, 3]], "labels": [1, 3], "iscrowd": [0, 0], "image_id": 7
    }  # fmt: skip
    plain = {name: target[name] for name in ("boxes", "labels")}
    assert without_crowd(plain) == plain
