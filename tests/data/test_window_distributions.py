"""Windows against torchvision's transforms, on the boxes and sizes of real images."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from lit_detect import RandomIoUCrop, RandomZoomOut, VOCDetection
from lit_detect.data.transforms import compose
from lit_detect.data.windows import LargeScaleJitter, RandomResizedZoom, RandomShortestSize, Window
from tests.data.test_transforms import assert_alike, origin


@pytest.fixture
def scenes_of_voc(shared):
    """Boxes and sizes of real images."""
    dataset = VOCDetection(str(shared / "data" / "voc_mini" / "VOCdevkit" / "VOC2012"), "val")
    opened = [dataset.open(index) for index in range(len(dataset))]
    return [(target["boxes"].astype(np.float64), (image.height, image.width)) for image, target in opened]


def window_figures(window, boxes, size, kept, moved):
    """What is compared: sides, shape and place of the window, its scale, the share of boxes that are kept, and their sizes."""
    across, down = (window.right - window.left) / size[1], (window.bottom - window.top) / size[0]
    places = [across, down, across / down, window.left / size[1], window.top / size[0]]
    sides = (moved[:, 2:] - moved[:, :2]).mean(axis=0) if len(moved) else [-1, -1]
    return [*places, window.width * window.height / across / down, len(kept) / len(boxes), *sides]


def ours(transform, scenes, seeds):
    composed = compose([transform])
    composed.set_random_seed(0)
    figures = []
    for boxes, size in scenes * seeds:
        out = composed(image=np.zeros((*size, 3), np.uint8), bboxes=boxes, kept=np.arange(len(boxes)))
        figures.append(window_figures(transform.params["window"], boxes, size, out["kept"], out["bboxes"]))
    return np.array(figures)


def torchvisions(function, scenes, seeds):
    """The same of a function that gives torchvision's window and boxes."""
    figures = []
    for boxes, size in scenes * seeds:
        window, moved = function(tv_tensors.BoundingBoxes(torch.as_tensor(boxes), format="XYXY", canvas_size=size), *size)
        moved = moved.numpy().clip(0, [window.width, window.height] * 2)
        kept = np.flatnonzero((moved[:, 2:] - moved[:, :2]).prod(axis=1) >= 1)
        figures.append(window_figures(window, boxes, size, kept, moved[kept]))
    return np.array(figures)


def zoom(boxes, height, width):
    """Zoom out and crop an image of which each pixel holds its place, and resize the boxes."""
    places = tv_tensors.Image(torch.arange(1, height * width + 1, dtype=torch.int32).view(1, height, width))
    image, boxes = v2.Compose([v2.RandomZoomOut(), v2.RandomIoUCrop(), v2.ClampBoundingBoxes()])(places, boxes)
    mask = image[0].numpy()
    left, top = (-origin({"mask": mask}, width)).tolist()
    return Window(left, top, left + mask.shape[1], top + mask.shape[0], 300, 300), v2.functional.resize(boxes, [300, 300])


def shortest_size(boxes, height, width):
    to = v2.RandomShortestSize(list(range(480, 801, 32)), 1333).make_params([boxes])["size"]
    return Window(0, 0, width, height, to[1], to[0]), v2.functional.resize(boxes, to)


def scale_jitter(boxes, height, width):
    """As torchvision's references go on after ScaleJitter: both places drawn by one number, boxes without area left out."""
    to = v2.ScaleJitter((1024, 1024)).make_params([boxes])["size"]
    place = float(torch.rand(()))
    top, left = (int(max(side - 1024, 0) * place) for side in to)
    across, down = width / to[1], height / to[0]
    window = Window(left * across, top * down, (left + 1024) * across, (top + 1024) * down, 1024, 1024)
    return window, v2.functional.resize(boxes, to) - torch.tensor([left, top, left, top])


@pytest.mark.parametrize(
    ("transform", "function"),
    [
        (RandomResizedZoom(300, 300, RandomZoomOut(), RandomIoUCrop()), zoom),
        (RandomShortestSize(), shortest_size),
        (LargeScaleJitter(), scale_jitter),
    ],
)
def test_windows_and_boxes_are_distributed_as_torchvisions(transform, function, scenes_of_voc):
    assert_alike(ours(transform, scenes_of_voc, 6), torchvisions(function, scenes_of_voc, 6))
