import os
import stat

import numpy as np
import pytest

from lit_detect import DigitsCOCO, DigitsVOC
from lit_detect.data import digits
from lit_detect.data.digits import IMAGES, SIDE, load_scans, write_digits

SMALL = {"train": 12, "val": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_digits(str(tmp_path_factory.mktemp("digits") / "set"), SMALL)


def test_the_same_seed_gives_the_same_files(folder, tmp_path):
    again, other = write_digits(str(tmp_path / "again"), SMALL), write_digits(str(tmp_path / "other"), SMALL, seed=1)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 2 * (12 + 6) + 4
    assert all((folder / path).read_bytes() == (again / path).read_bytes() for path in files)
    assert any((folder / path).read_bytes() != (other / path).read_bytes() for path in files)
    assert not list(tmp_path.glob(".*"))  # nothing half-written is left


def test_voc_and_coco_are_the_same_set(folder):
    voc, coco = DigitsVOC("val", str(folder)), DigitsCOCO("val", str(folder))
    assert voc.classes == coco.classes == [str(digit) for digit in range(10)]
    assert len(voc) == len(coco) == 6
    for index in range(6):
        (image, a), (same, b) = voc.load(index), coco.load(index)
        assert np.array_equal(image, same)
        for field in ("boxes", "labels", "area"):
            assert np.array_equal(a[field], b[field])


def test_boxes_lie_in_the_image_at_many_sizes(tmp_path):
    dataset = DigitsVOC("train", str(write_digits(str(tmp_path / "set"), {"train": 200, "val": 1})))
    boxes = np.concatenate([target["boxes"] for target in dataset.targets])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert boxes.min() >= 0
    assert boxes.max() <= SIDE
    assert (sides < 24).mean() > 0.1
    assert (sides > 44).mean() > 0.1
    assert set(np.concatenate([target["labels"] for target in dataset.targets])) == set(range(1, 11))


def test_all_1797_scans_are_there():
    scans, digits = load_scans()
    assert scans.shape == (1797, 8, 8)
    assert (scans.min(), scans.max()) == (0, 1)
    assert np.bincount(digits).min() > 170
    assert set(IMAGES) == {"train", "val"}


def test_what_is_in_the_cache_is_for_all_who_may_read_it(tmp_path, monkeypatch):
    mask = os.umask(0o022)
    try:
        assert stat.S_IMODE(write_digits(str(tmp_path / "set"), {"train": 1, "val": 1}).stat().st_mode) == 0o755
    finally:
        os.umask(mask)
    monkeypatch.setattr(digits, "draw_scene", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_digits(str(tmp_path / "other"), {"train": 1, "val": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
