import pytest
import torch
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)

from lit_detect import Anchors, FasterRCNN, InputError, TorchvisionBackbone
from lit_detect.models.pyramid import strides
from tests.conftest import TinyBackbone, random_batch
from tests.models.parity import CLASSES_91, assert_parity

LOSSES = {
    "class_loss": "loss_classifier",
    "box_loss": "loss_box_reg",
    "rpn_class_loss": "loss_objectness",
    "rpn_box_loss": "loss_rpn_box_reg",
}


def test_faster_rcnn_on_resnet50_fpn_is_torchvisions(tmp_path):
    # all anchors become proposals and all proposals are sampled: else rounding picks which of two near ties is dropped
    every = 10**5
    reference = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91, min_size=96, max_size=160, box_batch_size_per_image=every,
        rpn_pre_nms_top_n_train=every, rpn_post_nms_top_n_train=every, rpn_nms_thresh=1.0,
    )  # fmt: skip
    backbone = TorchvisionBackbone("resnet50", ["layer1", "layer2", "layer3", "layer4"])
    detector = FasterRCNN(
        CLASSES_91, backbone, min_size=96, max_size=160, roi_batch_size=every,
        proposals_before_nms=(every, 1000), proposals=(every, 1000), rpn_nms_threshold=1.0,
    )  # fmt: skip
    assert_parity(detector, reference, LOSSES, tmp_path)


def test_the_second_version_is_torchvisions(tmp_path):
    every = 10**5  # of small images: the head's convolutions go over each anchor
    reference = fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=91, min_size=20, max_size=32, box_batch_size_per_image=every,
        rpn_pre_nms_top_n_train=every, rpn_post_nms_top_n_train=every, rpn_nms_thresh=1.0,
    )  # fmt: skip
    backbone = TorchvisionBackbone("resnet50", ["layer1", "layer2", "layer3", "layer4"])
    detector = FasterRCNN(
        CLASSES_91, backbone, fpn_norms=True, rpn_convs=2, head_convs=4, min_size=20, max_size=32, roi_batch_size=every,
        proposals_before_nms=(every, 1000), proposals=(every, 1000), rpn_nms_threshold=1.0,
    )  # fmt: skip
    assert_parity(detector, reference, LOSSES, tmp_path)


def test_mobilenet_v3_320_is_torchvisions(tmp_path):
    every = 10**5
    reference = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=91, box_batch_size_per_image=every, min_size=160, max_size=320,
        rpn_pre_nms_top_n_train=every, rpn_post_nms_top_n_train=every, rpn_pre_nms_top_n_test=every, rpn_post_nms_top_n_test=every,
        rpn_nms_thresh=1.0, rpn_score_thresh=0.0,
    )  # fmt: skip
    detector = FasterRCNN(
        CLASSES_91, TorchvisionBackbone("mobilenet_v3_large", ["features.13", "features.16"]), min_size=160, max_size=320,
        anchor_sizes=[[32, 64, 128, 256, 512]] * 3, roi_batch_size=every, proposals_before_nms=(every, every),
        proposals=(every, every), rpn_nms_threshold=1.0,
    )  # fmt: skip
    # on maps of 5 x 7 cells the pooled features of many proposals are alike, and rounding orders their scores: losses alone
    assert_parity(detector, reference, LOSSES, tmp_path, detections=False)


@pytest.mark.parametrize("pooling", ["align", "pool"])
def test_vgg16_has_fc6_and_fc7_as_the_head(pooling):
    """The paper, section 3.3, and Fast R-CNN: 7 x 7 x 512 pooled from conv5_3 of stride 16, and 4096 features of each region."""
    layers = [f"classifier.{index}" for index in range(5)]
    backbone = TorchvisionBackbone("vgg16", ["features.29"], region_layers=layers)
    network = FasterRCNN(["a"], backbone, fpn=False, roi_pooling=pooling, min_size=64, max_size=96, proposals=(9, 9)).network.eval()
    inputs = network.inputs([torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)])
    with torch.no_grad():
        features = network.features(inputs)
        pooled = network.roi_pool(features, [torch.tensor([[0.0, 0, 64, 64]])], inputs.sizes)
        assert features["0"].shape == (1, 512, 4, 6)
        assert pooled.shape == (1, 512, 7, 7)
        assert network.box_head(pooled).shape == (1, 4096)
    assert not [name for name in network.state_dict() if name.startswith("box_head")]  # they are the backbone's, and there once


def test_conv5_is_the_head_of_the_default_without_fpn():
    detector = FasterRCNN(["a"], fpn=False, min_size=64, max_size=64)
    assert detector.network.box_predictor.cls_score.in_features == 2048
    assert [name for name in detector.backbone.state_dict() if name.startswith("region.0.2.conv3")]


def test_the_rpn_sees_32x32_cells_of_nine_anchors_at_512():
    """Faster R-CNN, section 3.1.1: stride 16, three scales and three aspect ratios."""
    network = FasterRCNN(["a"], fpn=False, min_size=512, max_size=512).network.eval()
    inputs = network.inputs([torch.zeros(3, 512, 512, dtype=torch.uint8)])
    with torch.no_grad():
        features = network.features(inputs)
    assert [tuple(feature.shape) for feature in features.values()] == [(1, 1024, 32, 32)]
    assert network.rpn.anchor_generator.num_anchors_per_location() == [9]


def test_anchors_of_the_pyramid_are_eight_strides_large():
    """FPN, section 4.1: 32 to 512 pixels on strides 4 to 64."""
    assert strides(FasterRCNN(["a"]).backbone) == [4, 8, 16, 32]
    assert FasterRCNN(["a"]).network.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))


def test_the_default_backbone_is_frozen_as_torchvisions_is():
    reference = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, trainable_backbone_layers=3)
    frozen = FasterRCNN(["a"]).backbone.train()
    trainable = {name for name, parameter in frozen.body.named_parameters() if parameter.requires_grad}
    assert all(name.startswith(("layer2", "layer3", "layer4")) for name in trainable)
    assert not any(module.training for module in frozen.modules() if isinstance(module, torch.nn.BatchNorm2d))
    theirs = {name for name, parameter in reference.backbone.body.named_parameters() if parameter.requires_grad and parameter.ndim == 4}
    assert trainable == {name for name in theirs if not name.startswith(("conv1", "layer1"))}


@pytest.mark.parametrize("dropped", [[0], [0, 1]])
def test_images_without_a_proposal_have_losses_and_no_detections(dropped, monkeypatch):
    network = FasterRCNN(["a", "b", "c"], TinyBackbone(), min_size=96, max_size=96, score_threshold=0.0).network.eval()
    images, targets = random_batch([(96, 96), (96, 96)], [2, 1])
    filter_proposals = network.rpn.filter_proposals

    def without(*args):
        proposals, scores = filter_proposals(*args)
        return [boxes[:0] if index in dropped else boxes for index, boxes in enumerate(proposals)], scores

    monkeypatch.setattr(network.rpn, "filter_proposals", without)
    with torch.no_grad():
        losses, detections = network.evaluate(images, targets)
    assert all(loss.isfinite() for loss in losses.values())
    assert [len(found["boxes"]) == 0 for found in detections] == [index in dropped for index in range(2)]


def test_boxes_of_a_bf16_run_are_within_half_a_pixel():
    network = FasterRCNN(["a", "b"], TinyBackbone(), fpn_channels=32, min_size=320, max_size=480).network.eval()
    inputs = network.inputs([torch.randint(0, 256, (3, 320, 480), dtype=torch.uint8)])
    proposals = [torch.tensor([[10.0, 20, 300, 310], [100, 50, 470, 110], [7.3, 9.1, 40.2, 33.3]])]
    anchors = Anchors(proposals[0][:, None])
    with torch.no_grad():
        exact = anchors.decode(network.refine(network.features(inputs), proposals, inputs.images.shape[-2:])[1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = network.features(inputs)
            _, deltas = network.refine(features, proposals, inputs.images.shape[-2:])
    assert deltas.dtype == next(iter(features.values())).dtype == torch.float32
    assert 0 < (anchors.decode(deltas) - exact).abs().max() < 0.5


@pytest.mark.parametrize(
    ("sizes", "message"), [([[32]], "Expected anchor_sizes for 3 maps"), ([[32], [64, 96], [128]], "as many anchor_sizes on each map")]
)
def test_anchor_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(InputError, match=message):
        FasterRCNN(["a"], TinyBackbone(), anchor_sizes=sizes)


def test_region_layers_with_a_pyramid_are_refused():
    with pytest.raises(InputError, match="Expected fpn: false"):
        FasterRCNN(["a"], TorchvisionBackbone("resnet18", ["layer3"], region_layers=["layer4"]))


def test_the_first_images_shape_does_not_fix_the_strides():
    network = FasterRCNN(["a"], TinyBackbone(), min_size=96, max_size=1000).network.eval()
    with torch.no_grad():
        network([torch.zeros(3, 30, 1000, dtype=torch.uint8)])
    assert network.roi_pool.scales == [1 / 16, 1 / 32]
