import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from lit_detect import InputError, VOCDetection
from lit_detect.data.colours import RandomPhotometricDistort
from lit_detect.data.transforms import compose

NOTHING = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
SMOOTH = cv2.resize(NOISE[:6, :8], (80, 60), interpolation=cv2.INTER_CUBIC)


def by_torchvision(function, image, *arguments):
    return function(torch.from_numpy(image).permute(2, 0, 1), *arguments).permute(1, 2, 0).numpy()


def only(name, value):
    """One of the distortions, each time with the same factor."""
    parameters = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "permutation"))
    return {"contrast_before": True, **parameters, name: value}


@pytest.mark.parametrize("image", [NOISE, SMOOTH, NOISE[:1, :1], np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), 255, np.uint8)])
@pytest.mark.parametrize(
    ("name", "factors", "function", "most"),
    [
        ("brightness", (0.0, 0.875, 1.0, 1.125, 3.0), functional.adjust_brightness, 1),
        ("contrast", (0.0, 0.5, 0.9, 1.0, 1.5, 2.5), functional.adjust_contrast, 2),
        ("saturation", (0.0, 0.5, 0.9, 1.0, 1.5, 2.5), functional.adjust_saturation, 2),
        ("hue", (-0.5, -0.05, -0.01, 0.0, 0.02, 0.05, 0.3), functional.adjust_hue, 1),
        ("permutation", ([0, 1, 2], [2, 0, 1], [1, 0, 2]), functional.permute_channels, 0),
    ],
)
def test_each_distortion_is_torchvisions(image, name, factors, function, most):
    for factor in factors:
        out = RandomPhotometricDistort().apply(image, **only(name, factor))
        difference = np.abs(out.astype(int) - by_torchvision(function, image, factor))
        assert (out.dtype, out.shape) == (np.uint8, image.shape)
        assert difference.max() <= most
        assert difference.mean() <= 1.1


def test_contrast_comes_before_or_after_the_others():
    factors = {"brightness": None, "contrast": 1.5, "saturation": 0.5, "hue": None, "permutation": [2, 0, 1]}
    before, after = (RandomPhotometricDistort().apply(NOISE, **factors, contrast_before=first) for first in (True, False))
    contrast, saturation = functional.adjust_contrast, functional.adjust_saturation
    permuted = [2, 0, 1]
    for out, first, second in ((before, (contrast, 1.5), (saturation, 0.5)), (after, (saturation, 0.5), (contrast, 1.5))):
        expected = by_torchvision(second[0], by_torchvision(first[0], NOISE, first[1]), second[1])[..., permuted]
        assert np.abs(out.astype(int) - expected).max() <= 3
    assert np.abs(before.astype(int) - after).max() > 3


def test_parameters_are_drawn_as_torchvisions():
    ours, theirs = RandomPhotometricDistort(), v2.RandomPhotometricDistort()
    ours.set_random_seed(0)
    draws = [ours.get_params() for _ in range(3000)], [theirs.make_params([torch.zeros(3, 1, 1)]) for _ in range(3000)]
    for name, suffix in (("brightness", "_factor"), ("contrast", "_factor"), ("saturation", "_factor"), ("hue", "_factor")):
        ends = getattr(ours, name)
        for drawn, key in ((draws[0], name), (draws[1], name + suffix)):
            values = [params[key] for params in drawn if params[key] is not None]
            assert abs(len(values) / 3000 - 0.5) < 0.04
            assert min(values) >= ends[0]
            assert max(values) <= ends[1]
            assert abs((np.mean(values) - ends[0]) / (ends[1] - ends[0]) - 0.5) < 0.04
    for drawn, key in ((draws[0], "permutation"), (draws[1], "channel_permutation")):
        orders = [tuple(int(channel) for channel in params[key]) for params in drawn if params[key] is not None]
        assert abs(len(orders) / 3000 - 0.5) < 0.04
        assert all(abs(orders.count(order) / len(orders) - 1 / 6) < 0.05 for order in set(orders))
        assert len(set(orders)) == 6
        assert abs(np.mean([params["contrast_before"] for params in drawn]) - 0.5) < 0.04


def test_images_are_distorted_alike_on_average(shared):
    """Mean, spread and saturation of real images after either's distortion."""
    dataset = VOCDetection(str(shared / "data" / "voc_mini" / "VOCdevkit" / "VOC2012"), "val")
    ours, theirs = RandomPhotometricDistort(), v2.RandomPhotometricDistort()
    ours.set_random_seed(0)
    figures = [], []
    for index in range(0, 160, 4):
        image = cv2.resize(dataset.load(index)[0], (60, 60), interpolation=cv2.INTER_AREA)
        for _ in range(25):
            for found, out in zip(figures, (ours(image=image)["image"], by_torchvision(theirs, image)), strict=True):
                found.append([out.mean(), out.std(), np.ptp(out, axis=2).mean()])
    means = [np.mean(found, axis=0) for found in figures]
    np.testing.assert_allclose(*means, rtol=0.05)


def test_p_is_of_each_distortion():
    assert (RandomPhotometricDistort(p=0)(image=NOISE)["image"] == NOISE).all()
    assert np.abs(RandomPhotometricDistort(**NOTHING)(image=SMOOTH)["image"].mean() - SMOOTH.mean()) < 1
    doubled = RandomPhotometricDistort(**{**NOTHING, "brightness": (2, 2)}, p=1)
    assert (doubled(image=np.full((5, 5, 3), 60, np.uint8))["image"] == 120).all()


def test_a_seed_distorts_the_same_and_boxes_stay():
    composed = compose([RandomPhotometricDistort()])
    outs = []
    for seed in (*range(10), *range(10)):
        composed.set_random_seed(seed)
        out = composed(image=NOISE.copy(), bboxes=np.array([[1.0, 2, 30, 40]]), kept=[0])
        np.testing.assert_allclose(out["bboxes"], [[1, 2, 30, 40]], atol=1e-4)
        outs.append(out["image"].tobytes())
    assert outs[:10] == outs[10:]
    assert len(set(outs)) > 5


def test_arguments_are_shown_stored_and_read_from_yaml():
    transform = RandomPhotometricDistort(hue=(-0.1, 0.2), p=0.3)
    restored = A.from_dict(A.to_dict(transform))
    assert repr(restored) == repr(transform) == repr(eval(repr(transform)))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--transform", type=A.BasicTransform)
    text = "transform: {class_path: lit_detect.RandomPhotometricDistort, init_args: {hue: [-0.1, 0.2], p: 0.3}}"
    assert repr(parser.instantiate(parser.parse_string(text)).transform) == repr(transform)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"brightness": (-1, 1)}, r"0 <= low <= high as brightness but got \(-1, 1\)"),
        ({"contrast": (2, 1)}, "contrast"),
        ({"saturation": (1,)}, "saturation"),
        ({"hue": (-0.6, 0)}, "-0.5 <= low <= high as hue"),
        ({"hue": (0, 0.6)}, "at most 0.5 as hue"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, match):
    with pytest.raises(InputError, match=match):
        RandomPhotometricDistort(**arguments)
