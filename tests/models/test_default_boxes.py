import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from lit_detect.models.default_boxes import SCALES, default_boxes


@pytest.mark.parametrize("scales", ["voc", "coco"])
def test_default_boxes_are_torchvisions(scales):
    ratios = [[2.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [2.0], [2.0]]
    maps = [38, 19, 10, 5, 3, 1]
    generator = DefaultBoxGenerator(ratios, scales=list(SCALES[scales, 6]), steps=[8, 16, 32, 64, 100, 300])
    images = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    expected = generator(images, [torch.zeros(1, 1, side, side) for side in maps])[0]
    torch.testing.assert_close(default_boxes(300, maps, scales, ratios), expected, rtol=0, atol=0)
