import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from lit_detect import Anchors, FasterRCNN, InputError, TorchvisionBackbone
from lit_detect.models.pyramid import strides
from tests.conftest import TinyBackbone, random_batch
from tests.models.parity import CLASSES_91, assert_parity


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
    names = {
        "class_loss": "loss_classifier",
        "box_loss": "loss_box_reg",
        "rpn_class_loss": "loss_objectness",
        "rpn_box_loss": "loss_rpn_box_reg",
    }
    assert_parity(detector, reference, names, tmp_path)


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
    network = FasterRCNN(
        ["a", "b"], TorchvisionBackbone("resnet18", ["layer2", "layer3", "layer4"]), min_size=320, max_size=480
    ).network.eval()
    inputs = network.inputs([torch.randint(0, 256, (3, 320, 480), dtype=torch.uint8)])
    proposals = [torch.tensor([[10.0, 20, 300, 310], [100, 50, 470, 110], [7.3, 9.1, 40.2, 33.3]])]
    anchors = Anchors(proposals[0][:, None])
    with torch.no_grad():
        exact = anchors.decode(network.refine(network.features(inputs), proposals, inputs.sizes)[1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = network.features(inputs)
            _, deltas = network.refine(features, proposals, inputs.sizes)
    assert deltas.dtype == next(iter(features.values())).dtype == torch.float32
    assert 0 < (anchors.decode(deltas) - exact).abs().max() < 0.5


@pytest.mark.parametrize(
    ("sizes", "message"), [([[32]], "Expected anchor_sizes for 3 maps"), ([[32], [64, 96], [128]], "as many anchor_sizes on each map")]
)
def test_anchor_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(InputError, match=message):
        FasterRCNN(["a"], TinyBackbone(), anchor_sizes=sizes)
