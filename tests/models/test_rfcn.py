import itertools
import math

import pytest
import torch

from lit_detect import RFCN, InputError, TorchvisionBackbone
from lit_detect.models.rfcn import PositionSensitiveMaps
from tests.conftest import TinyBackbone, random_batch


def test_maps_of_the_paper():
    """Section 2 and "Backbone architecture": conv4 and conv5 of stride 16, 1024 channels, 7 x 7 x 21 score maps, 7 x 7 x 4 box maps."""
    network = RFCN([f"class {number}" for number in range(20)]).network.eval()
    with torch.no_grad():
        features = network.features(network.inputs([torch.zeros(3, 64, 96, dtype=torch.uint8)]))
    inputs = network.inputs([torch.zeros(3, 64, 96, dtype=torch.uint8)]).images
    height, width = inputs.shape[-2] // 16, inputs.shape[-1] // 16
    assert {name: tuple(feature.shape[1:]) for name, feature in features.items()} == {
        "proposals": (1024, height, width), "scores": (1029, height, width), "boxes": (196, height, width),
    }  # fmt: skip
    assert network.maps.reduce.out_channels == 1024
    assert network.rpn.anchor_generator.num_anchors_per_location() == [9]


def test_conv5_is_dilated_in_place_of_strided():
    backbone = RFCN(["a"]).backbone
    dilations = {module.dilation for name, module in backbone.body.named_modules() if name.startswith("layer4") and name.endswith("conv2")}
    assert dilations == {(1, 1), (2, 2)}  # torchvision keeps the first block's, which has no stride now
    assert backbone.feature_sizes(512) == [32, 32]


@pytest.mark.parametrize("grid", [2, 3])
def test_a_vote_is_the_average_over_each_cells_own_maps(grid):
    """Equation 1 in loops: cell (i, j) of a region averages map (i, j) of each output over its pixels; the vote averages the cells."""
    maps = PositionSensitiveMaps(4, 4, num_logits=3, grid=grid, stride=16)
    scores = torch.randn(2, grid**2 * 3, 12, 15)
    proposals = [torch.tensor([[16.0, 32, 144, 160], [3, 5, 70, 66]]), torch.tensor([[50.0, 20, 190, 170]])]
    expected = []
    for of_image, score in zip(proposals, scores.unflatten(1, (3, grid, grid)), strict=True):
        for box in of_image:
            x1, y1, x2, y2 = (round(side.item() / 16) for side in box)  # torchvision rounds to cells
            cells = []
            for i, j in itertools.product(range(grid), repeat=2):
                top, bottom = y1 + i * (y2 - y1) / grid, y1 + (i + 1) * (y2 - y1) / grid
                left, right = x1 + j * (x2 - x1) / grid, x1 + (j + 1) * (x2 - x1) / grid
                part = score[:, i, j, math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)]
                cells.append(part.mean(dim=(1, 2)))
            expected.append(torch.stack(cells).mean(dim=0))
    torch.testing.assert_close(maps.vote(scores, proposals), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_nothing_is_learnt_or_multiplied_for_a_region(monkeypatch):
    """The abstract's "almost all computation shared": after the maps there is neither a parameter nor a matrix product."""
    network = RFCN(["a"], one_map(), region_channels=8, grid=3, min_size=96, max_size=96)
    network = network.network.eval()
    inputs = network.inputs([torch.zeros(3, 96, 96, dtype=torch.uint8)])
    features = network.features(inputs)
    for parameter in network.parameters():
        parameter.data.fill_(float("nan"))
    logits, deltas = network.refine(features, [torch.tensor([[0.0, 0, 50, 50]])], (96, 96))
    assert logits.isfinite().all()
    assert deltas.isfinite().all()


def one_map():
    return TorchvisionBackbone("resnet18", ["layer3"])


@pytest.mark.parametrize("ohem", [True, False])
def test_hard_examples_or_a_random_sample(ohem):
    network = RFCN(["a", "b", "c"], one_map(), region_channels=8, grid=3, min_size=96, max_size=96, proposals=(40, 40), ohem=ohem).network
    images, targets = random_batch([(96, 96)], [2])
    losses = network.train()(images, targets)
    assert sum(losses.values()).isfinite()


def test_maps_of_two_strides_are_refused():
    with pytest.raises(InputError, match=r"Expected a backbone of one map, or of two of one stride, but got strides \[16, 32\]"):
        RFCN(["a"], TinyBackbone())
