import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from lit_detect.models.inputs import FixedSize, ShortestSide
from tests.conftest import random_batch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (FixedSize(300, MEAN, STD), GeneralizedRCNNTransform(300, 300, MEAN, STD, size_divisible=1, fixed_size=(300, 300))),
        (ShortestSide(200, 333, MEAN, STD), GeneralizedRCNNTransform(200, 333, MEAN, STD)),
    ],
)
def test_same_images_targets_and_detections_as_torchvision(ours, reference):
    images, targets = random_batch([(240, 320), (331, 197), (100, 600)], [2, 1, 0])
    expected, expected_targets = reference([image / 255 for image in images], targets)
    inputs = ours(images)
    torch.testing.assert_close(inputs.images, expected.tensors, rtol=1e-4, atol=1e-4)
    assert inputs.sizes == expected.image_sizes
    scaled = inputs.scale_targets(targets)
    for found, theirs in zip(scaled, expected_targets, strict=True):
        torch.testing.assert_close(found["boxes"], theirs["boxes"], rtol=1e-4, atol=1e-2)
    for back, target in zip(inputs.restore(scaled), targets, strict=True):
        torch.testing.assert_close(back["boxes"], target["boxes"])


def test_an_image_of_the_right_size_is_not_touched():
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    inputs = FixedSize(64, [0.0] * 3, [1.0] * 3)(images)
    torch.testing.assert_close(inputs.images, images / 255)
