import inspect
import random

import albumentations as A
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from scipy.stats import ks_2samp
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2

from lit_detect import InputError, RandomIoUCrop, RandomZoomOut, VOCDetection
from lit_detect.data.transforms import compose

FILL = (123, 117, 104)


def augment(transforms, image, boxes, seed=0, min_visibility=0.0):
    """What comes of an image and its boxes, and from where: in `out["mask"]` each pixel holds its place in the image, from 1."""
    places = np.arange(1, image.shape[0] * image.shape[1] + 1, dtype=np.int32).reshape(image.shape[:2])
    augmented = compose(transforms, min_visibility)
    augmented.set_random_seed(seed)
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    out = augmented(image=image, bboxes=boxes, kept=np.arange(len(boxes)), mask=places)
    out["kept"] = np.asarray(out["kept"], dtype=np.int64)
    out["bboxes"] = np.asarray(out["bboxes"]).reshape(-1, 4)
    return out


def origin(out, width):
    """Where the image's corner lies in the output: negative after a crop."""
    y, x = divmod(int((out["mask"] > 0).argmax()), out["mask"].shape[1])
    place = out["mask"][y, x] - 1
    return np.array([x - place % width, y - place // width])


def check(out, image, boxes):
    """Pixels and boxes have moved alike, and the boxes left out are those whose centre is cropped away or of less than a pixel."""
    pixels, mask = out["image"], out["mask"]
    assert (pixels.dtype, pixels.shape[2], pixels.shape[:2]) == (np.uint8, 3, mask.shape)
    assert pixels.size
    np.testing.assert_array_equal(pixels[mask > 0], image.reshape(-1, 3)[mask[mask > 0] - 1])
    assert (pixels[mask == 0] == FILL).all()
    height, width = mask.shape
    moved = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) + np.tile(origin(out, image.shape[1]), 2)
    clipped = moved.clip(0, [width, height, width, height])
    np.testing.assert_allclose(out["bboxes"], clipped[out["kept"]], atol=1e-2)
    centres = (moved[:, :2] + moved[:, 2:]) / 2
    inside = ((centres > 0) & (centres < [width, height])).all(axis=1)
    areas = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1)
    assert set(np.flatnonzero(inside & (areas > 1.01))) <= set(out["kept"]) <= set(np.flatnonzero(inside & (areas > 0.99)))


@st.composite
def scenes(draw):
    """Images of 1 to 90 pixels a side, with boxes of whole and of quarter pixels, many of them slivers or at an edge."""
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    count, step = draw(st.integers(0, 6)), draw(st.sampled_from([1, 4]))
    edges = []
    for _ in range(count):
        xs, ys = (draw(st.lists(st.integers(0, side * step), min_size=2, max_size=2, unique=True)) for side in (width, height))
        edges.append([min(xs), min(ys), max(xs), max(ys)])
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pixels, np.array(edges, dtype=np.float64).reshape(-1, 4) / step


CHAINS = {
    "zoom": [RandomZoomOut(p=1)],
    "crop": [RandomIoUCrop()],
    "free crop": [RandomIoUCrop(min_scale=0.05, min_aspect_ratio=0.01, max_aspect_ratio=100, overlaps=(0,))],
    "both": [RandomZoomOut(), RandomIoUCrop()],
}


@pytest.mark.parametrize("name", [name for name in CHAINS if name != "both"])
@given(scene=scenes(), seed=st.integers(0, 2**31))
@settings(deadline=None)
def test_boxes_move_with_their_pixels_and_numbers(name, scene, seed):
    check(augment(CHAINS[name], *scene, seed), *scene)


@given(scene=scenes(), seed=st.integers(0, 2**31))
@settings(deadline=None)
def test_each_box_is_found_in_its_colour(scene, seed):
    image, boxes = np.zeros((*scene[0].shape[:2], 3), np.uint8), scene[1].round()
    for number, (left, top, right, bottom) in enumerate(boxes.astype(int)):
        image[top:bottom, left:right] = 10 + number  # over those before, so that only the last of a place is seen whole
    out = augment(CHAINS["both"], image, boxes, seed)
    for number, (left, top, right, bottom) in zip(out["kept"], out["bboxes"].round().astype(int), strict=True):
        colours = set(out["image"][top:bottom, left:right, 0].ravel())
        assert colours <= set(range(10 + number, 10 + len(boxes)))
        if number == len(boxes) - 1:
            assert np.isin(out["image"][..., 0], list(colours)).sum() == (right - left) * (bottom - top)


@pytest.mark.parametrize("boxes", [np.zeros((0, 4), np.float32), []])
@pytest.mark.parametrize("name", CHAINS)
def test_without_boxes(name, boxes):
    image = np.full((30, 40, 3), 200, np.uint8)
    out = compose(CHAINS[name])(image=image, bboxes=boxes, kept=np.arange(0))
    assert (len(out["bboxes"]), len(out["kept"])) == (0, 0)
    assert (out["image"] == 200).all(axis=2).sum() == 30 * 40  # all of it: nothing is cropped


def test_an_image_that_no_crop_fits_stays_whole():
    image = np.zeros((300, 300, 3), np.uint8)
    out = augment([RandomIoUCrop(overlaps=(0.9,))], image, [[5, 5, 9, 9]])
    assert out["image"].shape == image.shape
    assert out["bboxes"].round(2).tolist() == [[5, 5, 9, 9]]
    assert augment([RandomIoUCrop()], image[:1, :1], [[0, 0, 1, 1]])["image"].shape == (1, 1, 3)


def test_slivers_are_left_out_from_min_visibility_on():
    image, boxes = np.zeros((60, 60, 3), np.uint8), [[10, 10, 50, 50]]
    shares = []
    for seed in range(100):
        left, top, right, bottom = augment([RandomIoUCrop()], image, boxes, seed)["bboxes"][0]
        shares.append((right - left) * (bottom - top) / 1600)
    kept = [len(augment([RandomIoUCrop()], image, boxes, seed, min_visibility=0.711)["kept"]) for seed in range(100)]
    assert kept == [int(share >= 0.711) for share in shares]
    assert 0 < sum(kept) < 100


def test_a_seed_draws_the_same_and_global_generators_are_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    boxes = [[5, 5, 30, 35], [40, 10, 58, 30]]

    def draw(seed):
        return [value.tolist() for key, value in augment(CHAINS["both"], image, boxes, seed).items() if key != "mask"]

    first = [draw(seed) for seed in range(10)]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert [draw(seed) for seed in range(10)] == first
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert [draw(seed) for seed in range(10)] == first
    assert len({str(sample) for sample in first}) > 5  # some stay whole


LAYOUTS = {
    "large": [[8, 6, 80, 58]],
    "corner": [[0, 0, 30, 24], [70, 50, 90, 64]],
    "many": [[x, y, x + 14, y + 22] for x in range(2, 76, 18) for y in (2, 36)],
    "small and slivers": [[60, 40, 72, 50], [0, 0, 90, 3], [88, 5, 90, 60]],
}
DRAWS = 300


def figures(mask, kept, boxes, size):
    """What is compared: sizes and place of the canvas or patch, whether it is the whole image, and which boxes are left."""
    (height, width), (left, top) = mask.shape, origin({"mask": mask}, size[1])
    patch = torch.tensor([[-left, -top, width - left, height - top]], dtype=torch.float64)
    ious = box_iou(patch, torch.as_tensor(boxes, dtype=torch.float64)[kept])
    shape = [width / size[1], height / size[0], width / height, mask.shape == size]
    return [*shape, left / size[1], top / size[0], len(kept) / len(boxes), float(ious.max()) if len(kept) else -1.0]


def ours(transform, boxes, size, seeds=range(DRAWS)):
    outs = (augment([transform], np.zeros((*size, 3), np.uint8), boxes, seed) for seed in seeds)
    return np.array([figures(out["mask"], out["kept"], boxes, size) for out in outs])


def torchvisions(transform, boxes, size, draws=DRAWS):
    places = tv_tensors.Image(torch.arange(1, size[0] * size[1] + 1, dtype=torch.int32).view(1, *size))
    target = tv_tensors.BoundingBoxes(torch.as_tensor(boxes, dtype=torch.float32), format="XYXY", canvas_size=size)
    whole = v2.Compose([transform, v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()])
    outs = (whole(places, {"boxes": target, "labels": torch.arange(len(boxes))}) for _ in range(draws))
    return np.array([figures(image[0].numpy(), out["labels"].numpy(), boxes, size) for image, out in outs])


def assert_alike(a, b):
    """Each figure has the same distribution in both, by two-sample Kolmogorov-Smirnov tests."""
    probabilities = [ks_2samp(x, y, method="asymp").pvalue for x, y in zip(a.T, b.T, strict=True)]
    assert min(probabilities) > 1e-3, probabilities


@pytest.mark.parametrize("arguments", [{"p": 1.0}, {"side_range": (1.5, 2.0)}])
def test_zoom_out_is_distributed_as_torchvisions(arguments):
    scene = LAYOUTS["corner"], (64, 90)
    assert_alike(ours(RandomZoomOut(**arguments), *scene), torchvisions(v2.RandomZoomOut(**arguments), *scene))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_crop_is_distributed_as_torchvisions(layout):
    scene = LAYOUTS[layout], (64, 90)
    assert_alike(ours(RandomIoUCrop(), *scene), torchvisions(v2.RandomIoUCrop(), *scene))


@pytest.mark.parametrize("least", [0.0, 0.3, 0.7])
def test_a_crop_has_the_overlap_and_shape_asked_for(least):
    scene = LAYOUTS["large"], (64, 90)
    drawn = ours(RandomIoUCrop(overlaps=[least]), *scene)
    assert drawn[:, -1].min() >= least
    assert drawn[:, :2].min() > 0.3 - 1 / 64  # whole pixels
    assert ((drawn[:, 2] >= 0.5) & (drawn[:, 2] <= 2)).all()
    assert_alike(drawn, torchvisions(v2.RandomIoUCrop(sampler_options=[least]), *scene))


def test_overlaps_are_drawn_equally_often():
    whole = ours(RandomIoUCrop(overlaps=[0, 1, 1]), LAYOUTS["large"], (64, 90))[:, 3]
    assert abs(whole.mean() - 2 / 3) < 4 * (2 / 9 / DRAWS) ** 0.5


def test_real_boxes(shared):
    dataset = VOCDetection(str(shared / "data" / "voc_mini" / "VOCdevkit" / "VOC2012"), "val")
    drawn = [], []
    for index in range(0, 160, 8):
        image, target = dataset.load(index)
        for seed in range(3):
            check(augment(CHAINS["both"], image, target["boxes"], seed), image, target["boxes"])
        scene = target["boxes"], image.shape[:2]
        drawn[0].append(ours(RandomIoUCrop(), *scene, seeds=range(1000 * index, 1000 * index + 8)))
        drawn[1].append(torchvisions(v2.RandomIoUCrop(), *scene, draws=8))
    assert_alike(*map(np.concatenate, drawn))


def test_masks_and_keypoints_move_alike():
    transform = A.Compose(CHAINS["both"], A.BboxParams("pascal_voc"), A.KeypointParams("xy"), seed=0)
    image, mask = np.zeros((40, 60, 1), np.uint8), np.zeros((40, 60), np.uint8)
    image[20, 30] = mask[20, 30] = 7
    for _ in range(20):
        out = transform(image=image, mask=mask, bboxes=np.array([[20.0, 10, 40, 30]]), keypoints=np.array([[30.0, 20.0]]))
        assert out["image"].shape == (*out["mask"].shape, 1)
        found = np.argwhere(out["mask"] == 7)[:, ::-1]
        np.testing.assert_array_equal(out["keypoints"], found)
        assert out["image"][out["mask"] == 7].tolist() == [[7]] * len(found)


@pytest.mark.parametrize("transform", [RandomZoomOut([1.5, 3], [1, 2, 3], 0.7), RandomIoUCrop(overlaps=[0.5, 1], trials=7)])
def test_arguments_are_shown_and_stored(transform):
    restored = A.from_dict(A.to_dict(transform))
    assert repr(restored) == repr(transform) == repr(eval(repr(transform)))
    shown = {name: getattr(transform, name) for name in transform.get_transform_init_args_names()}
    assert all(f"{name}={value}" in repr(transform) for name, value in shown.items())


def test_arguments_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--transforms", type=list[A.BasicTransform])
    text = """transforms:
    - {class_path: lit_detect.RandomZoomOut, init_args: {side_range: [1, 2], fill: [9, 8, 7]}}
    - {class_path: RandomIoUCrop, init_args: {overlaps: [0.5, 1.0], max_scale: 0.9}}"""
    zoom, crop = parser.instantiate(parser.parse_string(text)).transforms
    assert (zoom.side_range, zoom.fill, zoom.p, crop.overlaps, crop.max_scale) == ((1, 2), (9, 8, 7), 0.5, (0.5, 1), 0.9)
    assert compose([zoom, crop])(image=np.zeros((9, 9, 3), np.uint8), bboxes=np.array([[1, 1, 8, 8]]), kept=[0])["image"].size


@pytest.mark.parametrize(
    ("transform", "arguments", "match"),
    [
        (RandomZoomOut, {"side_range": (0.5, 2)}, r"1 <= low <= high as side_range but got \(0.5, 2\)"),
        (RandomZoomOut, {"side_range": (3, 2)}, "side_range"),
        (RandomZoomOut, {"side_range": (1, 2, 3)}, "side_range"),
        (RandomZoomOut, {"fill": []}, "1 to 4 values as fill"),
        (RandomZoomOut, {"fill": [1, 2, 3, 4, 5]}, "1 to 4 values as fill"),
        (RandomIoUCrop, {"min_scale": 0}, "min_scale"),
        (RandomIoUCrop, {"min_scale": 0.9, "max_scale": 0.8}, "max_scale"),
        (RandomIoUCrop, {"max_scale": 1.5}, "max_scale <= 1"),
        (RandomIoUCrop, {"min_aspect_ratio": 0}, "min_aspect_ratio"),
        (RandomIoUCrop, {"min_aspect_ratio": 3}, r"aspect_ratio but got \(3, 2.0\)"),
        (RandomIoUCrop, {"overlaps": []}, "overlaps"),
        (RandomIoUCrop, {"overlaps": [float("nan")]}, "overlaps"),
        (RandomIoUCrop, {"overlaps": [0.5, -0.1]}, "overlaps"),
        (RandomIoUCrop, {"trials": 0}, "trials"),
    ],
)
def test_arguments_out_of_range_are_named(transform, arguments, match):
    with pytest.raises(InputError, match=match):
        transform(**arguments)


def test_arguments_at_the_edge_of_their_range():
    assert RandomZoomOut(side_range=(1, 1), fill=(1, 2, 3, 4)).side_range == (1, 1)
    crop = RandomIoUCrop(min_scale=1, max_scale=1, min_aspect_ratio=2, max_aspect_ratio=2, overlaps=(0,), trials=1)
    assert augment([crop], np.zeros((20, 40, 3), np.uint8), [[5, 5, 9, 9]])["image"].shape == (20, 40, 3)
    zoomed = augment([RandomZoomOut(side_range=(1, 1), p=1)], np.ones((20, 40, 3), np.uint8), [[5, 5, 9, 9]])
    assert zoomed["image"].tolist() == np.ones((20, 40, 3)).tolist()


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [(RandomZoomOut, v2.RandomZoomOut, ["side_range", "p"]),
     (RandomIoUCrop, v2.RandomIoUCrop, ["min_scale", "max_scale", "min_aspect_ratio", "max_aspect_ratio", "trials"])],
)  # fmt: skip
def test_defaults_are_torchvisions(ours, theirs, same):
    ours, theirs = (inspect.signature(of).parameters for of in (ours, theirs))
    assert [ours[name].default for name in same] == [theirs[name].default for name in same]


def test_by_default_overlaps_are_the_papers():
    """SSD, section 2.2: .1, .3, .5, .7 or .9, any patch, or the whole image."""
    crop = RandomIoUCrop()
    assert (sorted(crop.overlaps), crop.p) == ([0, 0.1, 0.3, 0.5, 0.7, 0.9, 1], 1)


def test_boxes_without_area_or_outside_are_left_out():
    boxes = [[5, 5, 5, 9], [9, 9, 5, 5], [70, 5, 80, 9], [-9, -9, -1, -1], [np.nan, 0, 9, 9], [-5, 2, 4, 4], [0, 0, 1, 1], [3, 3, 3.5, 4]]
    for transforms in ([A.HorizontalFlip(p=0)], [A.Crop(0, 0, 60, 40), A.Crop(0, 0, 60, 40)]):
        out = augment(transforms, np.zeros((40, 60, 3), np.uint8), boxes)
        assert out["kept"].tolist() == [5, 6]
        np.testing.assert_allclose(out["bboxes"], [[0, 2, 4, 4], [0, 0, 1, 1]], atol=1e-4)
    assert augment([A.HorizontalFlip()], np.zeros((40, 60, 3), np.uint8), boxes[:5])["kept"].tolist() == []


def test_one_rule_says_which_boxes_are_left_out_after_each_transform_and_at_the_end():
    composed = compose([A.Crop(0, 0, 40, 40), A.Crop(0, 0, 30, 30)])
    assert composed.check_each_transform == (composed.processors["bboxes"],)
    image = np.zeros((60, 60, 3), np.uint8)
    whole_pixel = composed(image=image, bboxes=np.array([[29.0, 29, 30, 30]]), kept=[0])
    assert list(whole_pixel["kept"]) == [0]
