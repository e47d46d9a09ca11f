import albumentations as A
import numpy as np
import pytest

from lit_detect import InputError, RandomPhotometricDistort, RandomZoomOut
from lit_detect.data.presets import PRESETS, preset
from lit_detect.data.transforms import compose

IMAGE = np.zeros((80, 120, 3), np.uint8)
IMAGE[20:60, 30:90] = 255
BOX = np.array([[30.0, 20, 90, 60]])


def sizes(name, zoom=None, image_size=100, seeds=40):
    """Heights and widths of the images that a preset gives, and shares of them that show the image; the box is where its pixels are."""
    transforms = [transform for transform in preset(name, image_size, zoom) if not isinstance(transform, RandomPhotometricDistort)]
    composed = compose(transforms)
    found = []
    for seed in range(seeds):
        composed.set_random_seed(seed)
        out = composed(image=IMAGE, bboxes=BOX, kept=[0], mask=np.ones(IMAGE.shape[:2], np.uint8))
        found.append((*out["image"].shape[:2], out["mask"].mean()))
        for box in out["bboxes"]:
            bright = np.argwhere(out["image"][..., 2] > 127)[:, ::-1]
            np.testing.assert_allclose([*bright.min(axis=0), *(bright.max(axis=0) + 1)], box, atol=1)
    return found


@pytest.mark.parametrize("zoom", [None, False, True])
def test_ssd(zoom):
    zoom_out, crop = preset("ssd", 300, zoom)[0].zoom_out, preset("ssd", 300, zoom)[0].crop
    assert (zoom_out is None) == (zoom is False)
    assert (zoom is False) or (zoom_out.side_range, zoom_out.p) == ((1, 4), 0.5)
    assert (crop.trials, crop.p) == (40, 1)
    assert [type(transform) for transform in preset("ssd", 300, zoom)[1:]] == [A.HorizontalFlip, RandomPhotometricDistort]
    found = sizes("ssd", zoom)
    assert {size[:2] for size in found} == {(100, 100)}
    assert (min(size[2] for size in found) < 0.9) == (zoom is not False)


@pytest.mark.parametrize("zoom", [None, False, True])
def test_ssdlite(zoom):
    assert [type(transform) for transform in preset("ssdlite", 320, zoom)[1:]] == [A.HorizontalFlip]
    found = sizes("ssdlite", zoom)
    assert {size[:2] for size in found} == {(100, 100)}
    assert (min(size[2] for size in found) < 0.9) == (zoom is True)


def test_hflip():
    assert set(sizes("hflip")) == {(80, 120, 1.0)}
    assert [type(transform) for transform in preset("hflip", zoom=True)] == [RandomZoomOut, A.HorizontalFlip]
    assert max(size[0] for size in sizes("hflip", True)) > 200


def test_multiscale():
    found = sizes("multiscale")
    assert {size[0] for size in found} <= set(range(480, 801, 32))
    assert len({size[0] for size in found}) > 5
    assert {size[2] for size in found} == {1.0}
    assert min(size[2] for size in sizes("multiscale", True)) < 0.5


@pytest.mark.parametrize(("image_size", "side"), [(None, 1024), (200, 200)])
def test_lsj(image_size, side):
    found = sizes("lsj", image_size=image_size)
    assert {size[:2] for size in found} == {(side, side)}
    assert min(size[2] for size in found) < 0.3
    assert np.mean([size[2] for size in sizes("lsj", True, image_size)]) < np.mean([size[2] for size in found])


@pytest.mark.parametrize("name", PRESETS)
def test_transforms_are_ones_own(name):
    """Two data modules do not share random numbers."""
    first, second = preset(name, 300), preset(name, 300)
    assert not {id(transform) for transform in first} & {id(transform) for transform in second}


@pytest.mark.parametrize("name", ["ssd", "ssdlite"])
def test_a_missing_image_size_is_named(name):
    with pytest.raises(InputError, match="Expected image_size"):
        preset(name)


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(InputError, match=r"Expected a preset \(ssd, ssdlite, hflip, multiscale, lsj\) but got 'ssd300'"):
        preset("ssd300")
