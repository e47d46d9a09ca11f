import pytest
import torch
import torch.nn.functional as F

from lit_detect import DSSD, SSD, AtrousResNet, InputError, TorchvisionBackbone
from lit_detect.models.dssd import Deconvolution, PredictionModule


@pytest.mark.parametrize(
    ("size", "maps", "boxes"), [(321, [40, 20, 10, 5, 3, 1], 17080), (513, [64, 32, 16, 8, 4, 2, 1], 43688)]
)  # DSSD, table 2; 8 default boxes a cell
def test_the_papers_maps_and_number_of_default_boxes(size, maps, boxes):
    detector = DSSD(["a"], size=size, backbone=AtrousResNet("resnet50", size), scales="voc")
    with torch.no_grad():
        features = detector.network.backbone.eval()(torch.zeros(1, 3, size, size))
    assert [feature.shape[-1] for feature in features.values()] == maps
    assert [feature.shape[1] for feature in features.values()] == [*[512] * (len(maps) - 1), 1024]
    assert len(detector.network.anchors.boxes) == boxes


def test_the_default_is_resnet101_with_maps_of_512_and_2048_channels():
    backbone = DSSD(["a"], scales="voc").backbone
    assert backbone.name == "resnet101"
    assert backbone.out_channels == [512, 2048, 1024, 1024, 1024, 1024]


def test_the_features_are_those_of_the_ssd_it_starts_from():
    backbone = TorchvisionBackbone("resnet18", ["layer2", "layer3"])
    ssd = SSD(["a"], 96, backbone, scales="linear", extra_channels=[32]).network.backbone.eval()
    dssd = DSSD(["a"], 96, TorchvisionBackbone("resnet18", ["layer2", "layer3"]), scales="linear", extra_channels=[32]).network.backbone
    assert not dssd.load_state_dict(ssd.state_dict(), strict=False).unexpected_keys
    images = torch.randn(1, 3, 96, 96)
    plain, deconvolved = ssd(images), dssd.eval()(images)
    assert list(plain) == list(deconvolved)
    last = list(plain)[-1]
    torch.testing.assert_close(plain[last], deconvolved[last])
    assert [f.shape[-1] for f in plain.values()] == [f.shape[-1] for f in deconvolved.values()]


@pytest.mark.parametrize(("coarse", "fine"), [(1, 2), (1, 3), (3, 5), (5, 10), (4, 8)])
def test_the_deconvolution_module_is_a_product(coarse, fine):
    """Section 3.2.2, figure 3, written out: (deconvolution, convolution, norm) times (convolution, norm, ReLU, convolution, norm), ReLU."""
    module = Deconvolution(6, 5, 4, coarse, fine).eval()
    for norm in (module.up[2], module.lateral[0][1], module.lateral[1][1]):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    above, beside = torch.randn(2, 6, coarse, coarse), torch.randn(2, 5, fine, fine)

    def norm(x, layer):
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    up = F.conv_transpose2d(above, module.up[0].weight, module.up[0].bias, stride=2, padding=module.up[0].padding)
    up = norm(F.conv2d(up, module.up[1].weight, padding=1), module.up[2])
    lateral = F.relu(norm(F.conv2d(beside, module.lateral[0][0].weight, padding=1), module.lateral[0][1]))
    lateral = norm(F.conv2d(lateral, module.lateral[1][0].weight, padding=1), module.lateral[1][1])
    result = module(above, beside)
    assert result.shape == (2, 4, fine, fine)
    torch.testing.assert_close(result, F.relu(up * lateral))


def test_doubling_takes_the_papers_kernel():
    assert Deconvolution(6, 5, 4, 5, 10).up[0].kernel_size == (2, 2)


def test_prediction_module_c_is_a_residual_block_with_a_convolution_on_the_shortcut():
    module = PredictionModule(6, 16).eval()
    feature = torch.randn(1, 6, 3, 3)
    torch.testing.assert_close(module(feature), F.relu(module.block(feature) + module.shortcut(feature)))
    sides = [(layer.in_channels, layer.out_channels, layer.kernel_size) for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert sides == [(6, 4, (1, 1)), (4, 4, (1, 1)), (4, 16, (1, 1)), (6, 16, (1, 1))]


def test_the_first_stage_trains_the_deconvolutions_alone():
    """Section 3.3: the SSD, its norms included, stays as it is."""
    detector = DSSD(["a"], backbone=AtrousResNet("resnet50", 321, frozen=["*"]), scales="voc")
    trained = {name.split(".")[1] for name, parameter in detector.network.named_parameters() if parameter.requires_grad}
    assert trained == {"up", "classification_head", "regression_head", "prediction"}
    detector.train()
    assert not any(module.training for module in detector.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_other_sizes_are_refused():
    with pytest.raises(InputError, match="Expected size 321 or 513"):
        AtrousResNet("resnet50", 400)
