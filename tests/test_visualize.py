import numpy as np
import pytest
import torch
from PIL import Image

from lit_detect import draw_against_targets, draw_detections
from lit_detect.visualize import FALSE, MISSED, TRUE, Outline, colour, draw_boxes, montage, with_caption


def detections(*scores):
    count = len(scores)
    return {
        "boxes": torch.tensor([[20.0, 200, 120, 300]] * count).reshape(-1, 4),
        "labels": torch.ones(count, dtype=torch.int64),
        "scores": torch.tensor(scores),
    }


def test_a_box_is_drawn_in_its_classes_colour_and_nothing_elsewhere():
    picture = np.asarray(draw_detections(torch.zeros(3, 320, 400, dtype=torch.uint8), detections(0.9), ["cat", "dog"]))
    assert picture.shape == (320, 400, 3)
    for x, y in [(20, 250), (120, 250), (70, 300)]:
        assert tuple(picture[y, x]) == colour(1, 2)
    assert not picture[:150].any()
    assert not picture[205:295, 25:115].any()
    assert picture[180:200, 20:100].any()  # the name above it


def test_scores_under_the_threshold_are_left_out():
    image = torch.zeros(3, 320, 400, dtype=torch.uint8)
    assert not np.asarray(draw_detections(image, detections(0.4), ["cat"])).any()
    assert not np.asarray(draw_detections(image, detections(), ["cat"])).any()
    assert np.asarray(draw_detections(image, detections(0.4), ["cat"], score_threshold=0.3)).any()


def test_small_images_are_enlarged_and_boxes_with_them():
    found = {"boxes": torch.tensor([[8.0, 16, 24, 30]]), "labels": torch.tensor([2]), "scores": torch.tensor([1.0])}
    picture = np.asarray(draw_detections(torch.zeros(3, 32, 32, dtype=torch.uint8), found, ["cat", "dog"]))
    assert picture.shape == (320, 320, 3)
    assert tuple(picture[250, 80]) == tuple(picture[300, 160]) == colour(2, 2)


@pytest.mark.parametrize(("height", "width"), [(2, 2000), (2000, 2), (1, 1)])
def test_very_long_images_stay_small(height, width):
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    picture, _ = draw_against_targets(torch.zeros(3, height, width, dtype=torch.uint8), nothing, nothing, ["cat"])
    assert max(picture.size) <= 2000
    assert picture.width / picture.height == width / height
    sheet = montage([picture] * 12)
    assert sheet.width == 1600
    assert sheet.height <= 3 * 1600


def test_colours_differ_by_class():
    assert len({colour(label, 20) for label in range(1, 21)}) == 20


def test_montage_has_rows_and_columns():
    sheet = montage([Image.new("RGB", (80, 60), "red")] * 5, columns=2, width=40)
    assert sheet.size == (80, 90)
    assert sheet.getpixel((79, 89)) == (255, 255, 255)
    assert montage([Image.new("RGB", (80, 60))], width=40).size == (40, 30)


def test_true_is_solid_false_dashed_and_missed_dotted():
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    boxes = torch.tensor([[20.0, 40, 140, 140], [220, 40, 340, 140], [20, 240, 140, 340]])
    found = {"boxes": boxes[:2], "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.8])}
    target = {"boxes": boxes[[0, 2]], "labels": torch.tensor([1, 2])}
    picture, counts = draw_against_targets(image, found, target, ["cat", "dog"])
    assert counts == {"true": 1, "false": 1, "missed": 1}
    pixels = np.asarray(picture)
    right_edges = [pixels[60:120, x] for x in (140, 340, 140)]
    right_edges[2] = pixels[260:320, 140]
    shares = [(edge == ink).all(axis=1).mean() for edge, ink in zip(right_edges, (TRUE, FALSE, MISSED), strict=True)]
    assert shares[0] == 1
    assert 0.5 < shares[1] < 0.75
    assert 0.4 < shares[2] < 0.6
    white = [(edge == 255).all(axis=1).mean() for edge in right_edges]
    assert [share + gap for share, gap in zip(shares, white, strict=True)] == [1, 1, 1]


def test_what_scores_too_little_or_meets_a_crowd_is_not_drawn():
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    boxes = torch.tensor([[20.0, 40, 140, 140], [220, 40, 340, 140]])
    found = {"boxes": boxes, "labels": torch.tensor([1, 1]), "scores": torch.tensor([0.9, 0.1])}
    target = {"boxes": boxes[:1], "labels": torch.tensor([1]), "iscrowd": torch.tensor([1])}
    picture, counts = draw_against_targets(image, found, target, ["cat"])
    assert counts == {"true": 0, "false": 0, "missed": 0}
    assert not np.asarray(picture).any()


def test_without_detections_and_without_targets():
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    picture, counts = draw_against_targets(image, {**nothing, "scores": torch.zeros(0)}, nothing, ["cat"])
    assert sum(counts.values()) == 0
    assert picture.size == (400, 400)


def test_a_label_that_would_cover_another_is_left_out():
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    first, second = ((200, 0, 0), (0, 0, 200))
    one = draw_boxes(image, [Outline([50, 50, 200, 200], "one", first), Outline([50, 50, 200, 200], "two", second)])
    assert (np.asarray(one)[30:45] == first).all(axis=2).any()
    assert not (np.asarray(one)[30:45] == second).all(axis=2).any()


def test_a_caption_is_above_its_picture():
    sheet = with_caption(Image.new("RGB", (200, 50), "red"), [("two", (0, 0, 0)), ("words", (0, 128, 0))])
    assert sheet.size == (206, 78)
    pixels = np.asarray(sheet)
    assert (pixels[28:, :200] == (255, 0, 0)).all()
    assert (pixels[:28] == 255).all(axis=2).mean() > 0.8
    assert (pixels[:28] == (0, 128, 0)).all(axis=2).any()
