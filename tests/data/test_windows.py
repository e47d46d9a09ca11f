import itertools
import math
import random

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torchvision.transforms import v2

from lit_detect import InputError, RandomIoUCrop, RandomZoomOut
from lit_detect.data.spans import resize
from lit_detect.data.transforms import compose
from lit_detect.data.windows import LargeScaleJitter, RandomResizedZoom, RandomShortestSize, Window, WindowTransform
from tests.data.test_transforms import FILL, augment, scenes

ZOOM = RandomZoomOut(p=1)
TRANSFORMS = {
    "zoom": RandomResizedZoom(40, 50, ZOOM, RandomIoUCrop()),
    "zoom out": RandomResizedZoom(40, 50, ZOOM),
    "crop": RandomResizedZoom(40, 50, crop=RandomIoUCrop()),
    "resize": RandomResizedZoom(40, 50),
    "shortest size": RandomShortestSize(range(10, 80), 100),
    "shortest size of a canvas": RandomShortestSize(range(10, 80), 100, ZOOM),
    "scale jitter": LargeScaleJitter(64),
    "scale jitter of a canvas": LargeScaleJitter(64, zoom_out=ZOOM),
}


class Given(WindowTransform):
    """Always the same window."""

    def __init__(self, window, centred=False):
        super().__init__()
        self.window, self.centred = window, centred

    def draw(self, height, width, boxes):
        return self.window


@st.composite
def windows(draw, whole=False):
    """Windows that may reach beyond images of up to 90 pixels a side, or lie beside them, and sizes at which they are seen."""
    number = st.integers(-60, 150) if whole else st.floats(-60, 150, width=32)
    side = st.integers(1, 200) if whole else st.floats(0.125, 200, width=32)
    left, top = draw(number), draw(number)
    return Window(left, top, left + draw(side), top + draw(side), draw(st.integers(1, 64)), draw(st.integers(1, 64)))


def to_output(window, places):
    """Where `(..., 4)` places of the image are in what the window shows, exactly."""
    scale = np.array([window.width / (window.right - window.left), window.height / (window.bottom - window.top)] * 2)
    return (places - np.array([window.left, window.top] * 2)) * scale, scale


def check(out, window, image, boxes, centred):
    """Pixels and boxes are at most half a pixel from where the window puts them, and the boxes kept are those in it."""
    assert (out["image"].dtype, out["image"].shape) == (np.uint8, (window.height, window.width, 3))
    size, half = np.array([window.width, window.height] * 2), np.array([0.51, 0.51, -0.51, -0.51])
    exact, scale = to_output(window, boxes)
    np.testing.assert_allclose(out["bboxes"], exact.clip(0, size)[out["kept"]], atol=0.51)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((middles > window[:2]) & (middles < window[2:4])).all(axis=1) | (not centred)
    least, most = (inner[:, 2:] - inner[:, :2] for inner in ((exact + half).clip(0, size), (exact - half).clip(0, size)))
    surely, perhaps = (least > 0).all(axis=1) & (least.prod(axis=1) > 1.01), most.prod(axis=1) > 0.99
    assert set(np.flatnonzero(inside & surely)) <= set(out["kept"]) <= set(np.flatnonzero(inside & perhaps))
    assert len(set(out["kept"])) == len(out["kept"])
    seen = np.argwhere(out["mask"])[:, ::-1]
    if not len(seen):
        assert (out["image"] == FILL).all()
        return
    rows, columns = np.divmod(out["mask"][out["mask"] > 0] - 1, image.shape[1])
    over = (window.reduction - 1) * scale[:2]  # sides are rounded up for a reduced image, and the last pixel repeated
    places = np.stack([columns, rows], axis=1)
    off = np.abs(to_output(window, np.tile(places + 0.5, 2))[0][:, :2] - seen - 0.5)
    assert (off <= 0.51 + scale[:2] / 2 + over * (places == [image.shape[1] - 1, image.shape[0] - 1])).all()  # half a pixel of each
    corners = to_output(window, np.array([[0, 0, image.shape[1], image.shape[0]]]))[0][0].clip(0, size)
    np.testing.assert_allclose(seen.min(axis=0), corners[:2], atol=0.51)
    assert (np.abs(seen.max(axis=0) + 1 - corners[2:]) <= 0.51 + over).all()


@given(scene=scenes(), window=windows(), centred=st.booleans())
@settings(deadline=None, max_examples=300)
def test_boxes_and_pixels_are_where_the_window_puts_them(scene, window, centred):
    check(augment([Given(window, centred)], *scene), window, *scene, centred)


@pytest.mark.parametrize("name", TRANSFORMS)
@given(scene=scenes(), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_boxes_follow_pixels_in_what_is_drawn(name, scene, seed):
    transform = TRANSFORMS[name]
    out = augment([transform], *scene, seed)
    check(out, transform.params["window"], *scene, transform.centred)


@given(scene=scenes(), seed=st.integers(0, 2**31), name=st.sampled_from(sorted(TRANSFORMS)))
@settings(deadline=None)
def test_flips_take_boxes_and_numbers_along(scene, seed, name):
    plain, flipped = (augment([TRANSFORMS[name], A.HorizontalFlip(p=p)], *scene, seed) for p in (0, 1))
    np.testing.assert_array_equal(flipped["image"], plain["image"][:, ::-1])
    np.testing.assert_array_equal(flipped["kept"], plain["kept"])
    width = plain["image"].shape[1]
    np.testing.assert_allclose(flipped["bboxes"], plain["bboxes"][:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0], atol=1e-3)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_a_coloured_box_is_found_where_its_numbers_say(data):
    """Half of its brightness is at its edges, whether it is enlarged or shrunk."""
    box = np.add([5, 5, 55, 55], data.draw(st.lists(st.integers(0, 25), min_size=4, max_size=4)))
    left, top, right, bottom = box
    image = np.zeros((90, 90, 3), np.uint8)
    image[top:bottom, left:right] = 255
    corner = [data.draw(st.floats(-90, 40)) for _ in range(2)]
    sides = [data.draw(st.floats(60, 200)) for _ in range(2)]
    window = Window(*corner, corner[0] + sides[0], corner[1] + sides[1], *(data.draw(st.integers(24, 200)) for _ in range(2)))
    out = augment([Given(window)], image, [box])
    exact = to_output(window, box[None])[0][0].clip(0, [window.width, window.height] * 2)
    if (exact[2:] - exact[:2] > 4).all():
        bright = np.argwhere(out["image"][..., 2] > 127)[:, ::-1]  # what is beyond the image has 104
        np.testing.assert_allclose([*bright.min(axis=0), *(bright.max(axis=0) + 1)], out["bboxes"][0], atol=0.75)


REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


@given(st.integers(0, 2**31), st.booleans())
@settings(deadline=None, max_examples=150)
def test_a_reduced_decode_gives_the_same_boxes_and_nearly_the_same_pixels(seed, centred):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(50, 300, 2)
    pixels = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    file = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    edges = np.sort(rng.integers(0, 4 * min(height, width), (5, 2, 2)) / 4, axis=1).reshape(-1, 4)
    boxes = edges[(edges[:, 2:] > edges[:, :2]).all(axis=1)]
    corner, sides = rng.uniform(-200, 200, 2), rng.uniform(40, 500, 2)
    window = Window(*corner, *(corner + sides), *np.maximum(1, sides / rng.uniform(2, 14, 2)).astype(int).tolist())
    whole = augment([Given(window, centred)], cv2.imdecode(file, cv2.IMREAD_COLOR), boxes)
    for by in (step for step in REDUCED if step <= window.shrink):
        image = cv2.imdecode(file, REDUCED[by])
        assert image.shape[:2] == (math.ceil(height / by), math.ceil(width / by))
        given_window = compose([Given(None, centred)])
        reduced = given_window(image=image, bboxes=boxes / by, kept=np.arange(len(boxes)), window=window.reduced(by))
        np.testing.assert_array_equal(reduced["kept"], whole["kept"])
        np.testing.assert_allclose(reduced["bboxes"], whole["bboxes"], atol=1e-3)
        assert np.abs(reduced["image"].astype(int) - whole["image"]).mean() < 3


IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
BOXES = np.array([[5.0, 5, 30, 35], [40, 10, 58, 30]])


@pytest.mark.parametrize("strict", [False, True])  # a strict Compose refuses keys that it does not know
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_window_that_is_given_is_used_and_none_drawn(name, strict, monkeypatch):
    transform = TRANSFORMS[name]
    composed = A.Compose([transform], A.BboxParams("pascal_voc"), seed=0, strict=strict)
    drawn = composed(image=IMAGE, bboxes=BOXES, window=None)
    window = transform.params["window"]
    monkeypatch.setattr(type(transform), "draw", None)
    out = composed(image=IMAGE, bboxes=BOXES, window=window)
    np.testing.assert_array_equal(out["image"], drawn["image"])
    np.testing.assert_array_equal(out["bboxes"], drawn["bboxes"])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_seed_draws_the_same_and_global_generators_are_left_alone(name):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first, again = ([augment([TRANSFORMS[name]], IMAGE, BOXES, seed) for seed in range(10)] for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in one)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    different = len({out["image"].tobytes() for out in first})
    assert different == 1 if name == "resize" else different > 5


@pytest.mark.parametrize("boxes", [np.zeros((0, 4), np.float32), []])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_without_boxes(name, boxes):
    out = compose([TRANSFORMS[name]])(image=IMAGE, bboxes=boxes, kept=np.arange(0))
    assert (len(out["bboxes"]), len(out["kept"])) == (0, 0)
    assert A.Compose([TRANSFORMS[name]])(image=IMAGE)["image"].size


def test_slivers_at_the_edges_are_left_out_from_min_visibility_on():
    boxes = [[0, 0, 100, 1], [99, 0, 100, 100], [10, 10, 20, 20]]
    image = np.zeros((100, 100, 3), np.uint8)
    assert augment([RandomResizedZoom(100, 100)], image, boxes)["kept"].tolist() == [0, 1, 2]
    assert augment([RandomResizedZoom(50, 50)], image, boxes)["kept"].tolist() == [0, 1, 2]
    assert augment([RandomResizedZoom(9, 9)], image, boxes)["kept"].tolist() == []  # of less than a pixel
    half = Given(Window(15, 0, 100, 100, 50, 50))
    assert augment([half], image, boxes, min_visibility=0.4)["kept"].tolist() == [0, 1, 2]
    assert augment([half], image, boxes, min_visibility=0.6)["kept"].tolist() == [0, 1]


def test_boxes_are_clipped_once_where_that_is_the_same_as_each_time():
    params = A.BboxParams("pascal_voc", ["kept"], min_area=1, min_visibility=0.5, clip=True, filter_invalid_bboxes=True)
    for name, seed in itertools.product(TRANSFORMS, range(10)):
        chain = [TRANSFORMS[name], A.HorizontalFlip(), A.RandomBrightnessContrast(p=1)]
        once = augment(chain, IMAGE, BOXES, seed, min_visibility=0.5)
        each_time = A.Compose(chain, params)
        each_time.set_random_seed(seed)
        expected = each_time(image=IMAGE, bboxes=BOXES, kept=np.arange(2))
        np.testing.assert_allclose(once["bboxes"], expected["bboxes"], atol=1e-3)
        np.testing.assert_array_equal(once["kept"], expected["kept"])
    crops = [A.Crop(0, 0, 20, 40), A.Crop(0, 0, 12, 40)]  # leave 15 of a box's 25 columns, then 7 of 15
    for chain in (crops, [A.Sequential(crops, p=1)]):
        assert augment(chain, IMAGE, BOXES[:1], min_visibility=0.45)["kept"].tolist() == [0]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_keypoints_go_where_their_pixels_go(name):
    transform = A.Compose([TRANSFORMS[name]], keypoint_params=A.KeypointParams("xy", remove_invisible=False), seed=0)
    places = np.stack(np.meshgrid(np.arange(60), np.arange(40)), axis=2).astype(np.float32)
    seen = 0
    for _ in range(20):
        out = transform(image=IMAGE, mask=places, keypoints=np.array([[30.5, 20.5]]))
        columns, rows = (transform.transforms[0].params[axis] for axis in ("columns", "rows"))
        x, y = out["keypoints"][0].astype(int)
        if 0 <= x < out["mask"].shape[1] and 0 <= y < out["mask"].shape[0]:
            seen += 1
            assert (np.abs(out["mask"][y, x] - [30, 20]) <= [0.51 + 0.5 / columns.scale, 0.51 + 0.5 / rows.scale]).all()
    assert seen > 5


@pytest.mark.parametrize("image", [IMAGE[..., 0], IMAGE[..., :1], IMAGE.astype(np.float32) / 255])
def test_other_images_keep_their_kind(image):
    beside = Given(Window(60, 0, 80, 20, 20, 30))
    for transform, fill in ((RandomResizedZoom(30, 20, RandomZoomOut((2, 2), p=1)), 0.75), (beside, 1)):
        out = A.Compose([transform], seed=0)(image=image)["image"]
        assert (out.dtype, out.shape) == (image.dtype, (30, 20, *image.shape[2:]))
        channel = out if out.ndim == 2 else out[..., 0]
        assert abs((channel == FILL[0]).mean() - fill) < 0.02


def test_resizing_is_torchvisions():
    for size in ((20, 30), (64, 48), (40, 60), (13, 99)):
        expected = v2.functional.resize(torch.from_numpy(IMAGE).permute(2, 0, 1), list(size), antialias=True)
        # torch 2.6 rounds differently where channels come last
        np.testing.assert_allclose(resize(IMAGE, *size), expected.permute(1, 2, 0).numpy(), atol=1)


def test_a_canvas_comes_first_as_often_as_asked_for():
    zoom_out = RandomZoomOut((2, 2), p=0.3)
    for transform in (RandomResizedZoom(40, 50, zoom_out), RandomShortestSize(zoom_out=zoom_out)):
        beyond = [window.right - window.left == 120 for window in (transform.draw(40, 60, BOXES) for _ in range(1000))]
        assert abs(np.mean(beyond) - 0.3) < 0.06


def test_a_crop_comes_as_often_as_asked_for():
    transform = RandomResizedZoom(40, 50, crop=RandomIoUCrop(overlaps=[0.3], max_scale=0.9, p=0.3))
    cropped = [window.right - window.left < 60 for window in (transform.draw(40, 60, BOXES) for _ in range(1000))]
    assert abs(np.mean(cropped) - 0.3) < 0.06


@pytest.mark.parametrize("name", TRANSFORMS)
def test_arguments_are_shown_and_stored(name):
    restored = A.from_dict(A.to_dict(TRANSFORMS[name]))
    assert repr(restored) == repr(TRANSFORMS[name]) == repr(eval(repr(restored)))


def test_arguments_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--transforms", type=list[A.BasicTransform])
    text = """transforms:
    - class_path: lit_detect.RandomResizedZoom
      init_args:
        height: 30
        width: 20
        zoom_out: {class_path: RandomZoomOut, init_args: {side_range: [2, 3], fill: [9, 8, 7], p: 1}}
        crop: {class_path: RandomIoUCrop, init_args: {trials: 50}}
    - {class_path: lit_detect.RandomShortestSize, init_args: {min_sizes: [40, 50], max_size: 90}}
    - {class_path: lit_detect.LargeScaleJitter, init_args: {size: 64, scale_range: [0.5, 1]}}"""
    resized, shortest, jitter = parser.instantiate(parser.parse_string(text)).transforms
    assert (resized.height, resized.zoom_out.side_range, resized.fill, resized.crop.trials) == (30, (2, 3), (9, 8, 7), 50)
    assert (shortest.min_sizes, shortest.max_size, shortest.zoom_out) == ((40, 50), 90, None)
    assert (jitter.size, jitter.scale_range) == (64, (0.5, 1))


@pytest.mark.parametrize(
    ("transform", "arguments", "match"),
    [
        (RandomResizedZoom, {"height": 0, "width": 300}, r"height and width of at least a pixel but got \(0, 300\)"),
        (RandomResizedZoom, {"height": 9, "width": 9, "p": 0.5}, "p = 1"),
        (RandomShortestSize, {"min_sizes": []}, "min_sizes"),
        (RandomShortestSize, {"min_sizes": [0]}, "min_sizes"),
        (RandomShortestSize, {"max_size": 700}, "max_size"),
        (LargeScaleJitter, {"size": 0}, "size"),
        (LargeScaleJitter, {"scale_range": (0, 1)}, "scale_range"),
        (LargeScaleJitter, {"scale_range": (2, 1)}, "scale_range"),
        (LargeScaleJitter, {"fill": ()}, "fill"),
    ],
)
def test_arguments_out_of_range_are_named(transform, arguments, match):
    with pytest.raises(InputError, match=match):
        transform(**arguments)
