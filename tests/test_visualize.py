import numpy as np
import torch
from PIL import Image

from lit_detect import draw_detections
from lit_detect.visualize import colour, montage


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


def test_colours_differ_by_class():
    assert len({colour(label, 20) for label in range(1, 21)}) == 20


def test_montage_has_rows_and_columns():
    sheet = montage([Image.new("RGB", (80, 60), "red")] * 5, columns=2, width=40)
    assert sheet.size == (80, 90)
    assert sheet.getpixel((79, 89)) == (255, 255, 255)
    assert montage([Image.new("RGB", (80, 60))], width=40).size == (40, 30)
