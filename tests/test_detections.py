import inspect
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.ssd import SSD
from torchvision.ops import batched_nms, clip_boxes_to_image, nms

from lit_detect import InputError, PostProcess
from lit_detect.boxes import Anchors
from lit_detect.detections import highest


def class_by_class(scores, boxes, size, settings):
    """torchvision's SSD.postprocess_detections for one image, after decoding; of equal scores the first, where its topk takes any."""
    boxes = clip_boxes_to_image(boxes, size)
    found = []
    for label in range(scores.shape[1]):
        passing = scores[:, label] > settings.score_threshold
        score, index = (column[: settings.candidates_per_class] for column in scores[passing, label].sort(descending=True, stable=True))
        found.append((boxes[passing][index], score, torch.full_like(index, label + 1)))
    boxes, scores, labels = (torch.cat(column) for column in zip(*found, strict=True))
    keep = batched_nms(boxes, scores, labels, settings.nms_threshold)[: settings.detections_per_image]
    return boxes[keep], scores[keep], labels[keep]


def map_by_map(scores, boxes, size, settings, per_map):
    """torchvision's RetinaNet.postprocess_detections for one image, after decoding; of equal scores the first, where its topk takes any."""
    found, start = [], 0
    for count in per_map:
        of_map = scores[start : start + count].flatten()
        passing = (of_map > settings.score_threshold).nonzero().flatten()
        score, order = of_map[passing].sort(descending=True, stable=True)
        score, place = score[: settings.candidates_per_map], passing[order][: settings.candidates_per_map]
        found.append((boxes[start + place // scores.shape[1]], score, place % scores.shape[1] + 1))
        start += count
    boxes, scores, labels = (torch.cat(column) for column in zip(*found, strict=True))
    boxes = clip_boxes_to_image(boxes, size)
    keep = batched_nms(boxes, scores, labels, settings.nms_threshold)[: settings.detections_per_image]
    return boxes[keep], scores[keep], labels[keep]


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(1, 5),
    threshold=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    candidates=st.sampled_from([3, 400]),
    wanted=st.sampled_from([1, 5, 20, 400]),
    spread=st.sampled_from([0.5, 5, 80]),
    levels=st.sampled_from([1, 2, 10, None]),
    per_map=st.sampled_from([None, [60], [40, 17, 3, 0]]),
    overlap=st.sampled_from([0.3, 0.45, 0.5, 0.55]),
    whole_pixels=st.booleans(),
    many=st.sampled_from([10, 25_000]),
)
def test_same_detections_in_the_same_order_as_one_after_another(
    seed, classes, threshold, candidates, wanted, spread, levels, per_map, overlap, whole_pixels, many
):
    """Also where boxes lie on one another, so that many candidates leave few, and where many scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(100, 90), (40, 200), (100, 90)]
    corner = torch.rand(3, 60, 2, generator=generator) * spread
    boxes = torch.cat([corner, corner + 1 + torch.rand(3, 60, 2, generator=generator) * 60], dim=2)
    boxes = boxes.round() if whole_pixels else boxes  # overlaps that are just the threshold
    scores = torch.rand(3, 60, classes, generator=generator)
    scores[2] *= 0.6  # so that images differ in how many pass, and in how soon they are settled
    if levels is not None:
        scores = (scores * levels).round() / levels
    if per_map is None:
        post_process, reference = PostProcess(threshold, overlap, wanted, candidates_per_class=candidates), class_by_class
    else:
        post_process = PostProcess(threshold, overlap, wanted, candidates_per_map=candidates)
        reference = partial(map_by_map, per_map=per_map)
    with patch("lit_detect.detections.MANY", many):
        found = post_process(scores, boxes, sizes, per_map or [])
    for of_image, *image in zip(found, scores, boxes, sizes, strict=True):
        for name, value in zip(("boxes", "scores", "labels"), reference(*image, post_process), strict=True):
            torch.testing.assert_close(of_image[name], value)


def test_candidates_are_taken_until_there_are_enough_detections(monkeypatch):
    """A hundred boxes on one place hide those that score less; the other image is settled at once."""
    rounds = []
    real = PostProcess.detect
    monkeypatch.setattr(PostProcess, "detect", lambda *args: rounds.append((len(args[1]), args[-1])) or real(*args))
    boxes = torch.cat([torch.tensor([[0.0, 0, 10, 10]]).repeat(100, 1), torch.tensor([[20.0, 0, 30, 10], [40, 0, 50, 10]])])
    scores = torch.linspace(0.9, 0.1, 102)[:, None]
    post_process = PostProcess(detections_per_image=2)
    easy, hard = post_process(torch.stack([scores.flip(0), scores]), torch.stack([boxes, boxes]), [(100, 100)] * 2)
    assert easy["boxes"][:, 0].tolist() == [40, 20]
    assert hard["boxes"][:, 0].tolist() == [0, 20]
    assert rounds == [(2, 8), (1, 32), (1, 128)]


def detect(post_process, scores, boxes, size):
    """The detections of one image."""
    return post_process(scores[None], boxes[None], [size])[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_out_as_float32(dtype):
    boxes, scores = torch.tensor([[0.0, 0, 10, 10]], dtype=dtype), torch.tensor([[0.9]], dtype=dtype)
    found = detect(PostProcess(), scores, boxes, (20, 20))
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert found["labels"].dtype == torch.int64


def test_nothing_above_the_threshold():
    for scores in (torch.full((3, 2), 0.1), torch.zeros(0, 2)):
        found = detect(PostProcess(score_threshold=0.5), scores, torch.rand(len(scores), 4), (20, 20))
        assert {name: tuple(value.shape) for name, value in found.items()} == {"boxes": (0, 4), "labels": (0,), "scores": (0,)}


def test_images_that_differ_in_nothing_but_their_number_of_boxes_may_be_filled_up():
    """As the proposals of two-stage detectors are."""
    boxes, scores = torch.rand(2, 9, 4) * 20, torch.rand(2, 9, 3)
    boxes[..., 2:] += boxes[..., :2] + 1
    scores[1, 4:] = -1
    found = PostProcess()(scores, boxes, [(100, 100)] * 2)[1]
    for name, value in detect(PostProcess(), scores[1, :4], boxes[1, :4], (100, 100)).items():
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_a_box_for_each_class_as_torchvisions_box_head_has(threshold):
    heads = RoIHeads(None, None, None, 0.5, 0.5, 64, 0.25, None, threshold, 0.5, 15)
    corner = torch.rand(40, 2) * 80
    proposals = torch.cat([corner, corner + 1 + torch.rand(40, 2) * 60], dim=1)
    logits, deltas = torch.randn(40, 4) * 2, torch.randn(40, 4, 4)
    (boxes,), (scores,), (labels,) = heads.postprocess_detections(logits, deltas.flatten(1), [proposals], [(100, 90)])
    decoded = Anchors(proposals[:, None]).decode(deltas[:, 1:])
    found = detect(PostProcess(threshold, 0.5, 15, min_size=0.01), logits.softmax(-1)[:, 1:], decoded, (100, 90))
    assert torch.equal(found["labels"], labels)
    torch.testing.assert_close(found["scores"], scores)
    torch.testing.assert_close(found["boxes"], boxes)


def test_boxes_that_clipping_makes_too_small_are_left_out():
    boxes = torch.tensor([[0.0, 0, 10, 10], [95, 95, 120, 120], [99.5, 0, 120, 50]])
    found = detect(PostProcess(min_size=1.0), torch.tensor([[0.5], [0.6], [0.7]]), boxes, (100, 100))
    assert found["boxes"].tolist() == [[95, 95, 100, 100], [0, 0, 10, 10]]


class Waits(TorchDispatchMode):
    """How often a GPU would be asked for a number, or for how many there are, and the processor would wait for it."""

    ASKING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "torchvision::nms")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name().split(".")[0] in self.ASKING
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("images", [1, 4, 16])
@pytest.mark.parametrize("limits", [{"candidates_per_class": 50}, {"candidates_per_map": 100}, {"min_size": 1.0}])
def test_a_gpu_is_waited_for_once_an_image_and_four_times_a_batch(images, limits):
    scores, corner = torch.rand(images, 300, 20), torch.rand(images, 300, 2) * 200
    boxes = torch.cat([corner, corner + 30], dim=2)
    with Waits() as waits:
        PostProcess(detections_per_image=10, **limits)(scores, boxes, [(230, 230)] * images, [200, 100])
    # and once more for the numbers of candidates, which come to the processor in one piece
    assert waits.count == images + (3 if "candidates_per_map" in limits else 2)


def test_what_is_not_a_number_hides_nothing():
    boxes = torch.arange(60)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    scores = torch.rand(60, 1) * 0.5 + 0.4
    scores[:39] = torch.nan
    found = detect(PostProcess(detections_per_image=10), scores, boxes, (2000, 2000))
    assert found["scores"].tolist() == scores[39:, 0].sort(descending=True).values[:10].tolist()


@pytest.mark.parametrize(("overlap", "kept"), [(110, 1), (90, 2), (100, 2)])
def test_an_overlap_of_just_the_threshold_is_torchvisions(overlap, kept):
    """In float32 .55 is more than .55, and .45 less than .45."""
    side = (200 + overlap) / 2
    boxes, scores, threshold = torch.tensor([[0.0, 0, side, 1], [200 - side, 0, 200, 1]]), torch.tensor([0.9, 0.8]), overlap / 200
    assert len(nms(boxes, scores, threshold)) == kept
    assert len(detect(PostProcess(nms_threshold=threshold), scores[:, None], boxes, (200, 200))["scores"]) == kept


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_the_highest_are_those_of_a_stable_sort(limit):
    """Also where the last score of all is one of them."""
    scores = torch.tensor([[2.0, 3.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [4.0, 2.0, 3.0, 1.0]])
    ordered = scores.sort(dim=1, descending=True, stable=True)
    expected = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, ordered.indices[:, :limit], True)
    assert torch.equal(highest(scores, ordered.values[:, limit - 1 : limit], limit, groups=1), expected)


def test_by_default_it_is_torchvisions_ssd():
    theirs = inspect.signature(SSD).parameters
    ours = PostProcess()
    assert (ours.score_threshold, ours.nms_threshold, ours.detections_per_image) == tuple(
        theirs[name].default for name in ("score_thresh", "nms_thresh", "detections_per_img")
    )


def test_no_detections_at_all_are_not_what_anybody_wants():
    with pytest.raises(InputError, match="detections_per_image to be 1 or more but got 0"):
        PostProcess(detections_per_image=0)
    assert PostProcess(detections_per_image=1).detections_per_image == 1
