import pytest
import torch
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from lit_detect import SSD, VGG16, InputError, SSDLite, TorchvisionBackbone
from lit_detect.models.pyramid import StridedMaps
from tests.conftest import CLASSES, TinyBackbone
from tests.models.parity import CLASSES_91, assert_parity

LOSSES = {"class_loss": "classification", "box_loss": "bbox_regression"}


def test_ssd300_on_vgg16_is_torchvisions(tmp_path):
    reference = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=91)
    assert_parity(SSD(CLASSES_91), reference, LOSSES, tmp_path)


def test_ssdlite320_on_mobilenet_v3_is_torchvisions(tmp_path):
    reference = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91)
    half = [0.5, 0.5, 0.5]
    nodes = ["features.13.block.0", "features.16"]
    backbone = TorchvisionBackbone("mobilenet_v3_large", nodes, mean=half, std=half, arguments={"reduced_tail": True})
    assert_parity(SSDLite(CLASSES_91, backbone=backbone), reference, LOSSES, tmp_path)


@pytest.mark.parametrize(
    ("size", "boxes", "maps"), [(300, 8732, [38, 19, 10, 5, 3, 1]), (512, 24564, [64, 32, 16, 8, 4, 2, 1])]
)  # SSD, tables 7 and 8, and section 3.3
def test_the_papers_maps_and_number_of_default_boxes(size, boxes, maps):
    detector = SSD(["a"], size=size)
    features = detector.network.backbone.eval()(torch.zeros(1, 3, size, size))
    assert [feature.shape[-1] for feature in features.values()] == maps
    assert len(detector.network.anchors.boxes) == boxes


@pytest.mark.parametrize(
    ("name", "nodes", "size", "maps"),
    [
        ("resnet18", ["layer2", "layer3"], 300, [38, 19, 10, 5, 3, 2, 1]),
        ("mobilenet_v2", ["features.14.conv.0", "features.18"], 320, [20, 10, 5, 3, 2, 1]),
        ("mobilenet_v3_large", ["features.13.block.0", "features.16"], 320, [20, 10, 5, 3, 2, 1]),
        ("vgg16_bn", ["features.32", "features.42"], 256, [32, 16, 8, 4, 2, 1]),
    ],
)
def test_extra_layers_go_down_to_one_cell_on_any_extractor(name, nodes, size, maps):
    trunk = SSD(["a"], size=size, backbone=TorchvisionBackbone(name, nodes), scales="linear").network.backbone
    assert trunk.sizes == maps
    features = trunk.eval()(torch.zeros(1, 3, size, size))
    assert [(feature.shape[1], feature.shape[-1]) for feature in features.values()] == list(zip(trunk.out_channels, maps, strict=True))


def test_boxes_of_a_bf16_run_are_within_half_a_pixel():
    network = SSD(["a", "b"], size=300, backbone=TinyBackbone(), scales="linear", extra_channels=[16]).network.eval()
    for layer in network.head.regression_head.module_list:
        torch.nn.init.normal_(layer.weight, std=0.2)
    images = torch.randn(1, 3, 300, 300)
    with torch.no_grad():
        _, deltas, anchors = network.predict(images)
        exact = anchors.decode(deltas)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, deltas, _ = network.predict(images)
        rough = anchors.decode(deltas)
    assert deltas.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": [0.1, 0.2]}, "Expected 7 scales for 6 feature maps"),
        ({"aspect_ratios": [[2]]}, "Expected 6 aspect_ratios"),
        ({"steps": [8]}, "Expected 6 steps"),
        ({"scales": "imagenet"}, "Expected scales to be a list of 7 numbers"),
        ({"backbone": VGG16(512)}, "Expected 8 scales|one of"),
    ],
)
def test_settings_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        SSD(["a"], **{"scales": "coco", **arguments} if "backbone" not in arguments else {**arguments, "scales": [0.1] * 3})


def test_a_pyramids_maps_are_the_same_in_training_and_in_evaluation():
    """Batch norms of a map of 1x1 see eight values in training, and the pyramid would bring them to all maps."""
    network = SSDLite(CLASSES, size=96, backbone=TinyBackbone(), scales="linear", fpn_channels=16).network
    assert not [module for module in network.backbone.fpn.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    network.backbone.train().backbone.eval()
    images = torch.rand(2, 3, 96, 96)
    maps, again = network.backbone(images), network.backbone.eval()(images)
    assert [one.shape[1:] for one in maps.values()][-1] == (16, 1, 1)
    assert all(torch.equal(maps[name], again[name]) for name in maps)


@pytest.mark.parametrize("from_pyramid", [False, True])
def test_coarser_maps_of_a_pyramid_are_retinanets(from_pyramid):
    theirs = LastLevelP6P7(4 if from_pyramid else 8, 4)
    assert theirs.use_P5 is from_pyramid
    ours = StridedMaps(4 if from_pyramid else 8, 4, 2, from_pyramid)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    pyramid, maps = [torch.randn(2, 4, 9, 9)], [torch.randn(2, 8, 9, 9)]
    expected, _ = theirs([*pyramid], maps, ["0"])
    found, names = ours([*pyramid], maps, ["0"])
    assert names == ["0", "coarser.0", "coarser.1"]
    assert [one.shape[-1] for one in found] == [9, 5, 3]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert StridedMaps(8, 4, 0)([*pyramid], maps, ["0"]) == (pyramid, ["0"])
