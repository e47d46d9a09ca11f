import pytest
import torch
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2

from lit_detect import FocalLoss, InputError, IoULoss, RetinaNet, TorchvisionBackbone
from tests.conftest import TinyBackbone
from tests.models.parity import COCO_80, assert_parity, only_coco

LOSSES = {"class_loss": "classification", "box_loss": "bbox_regression"}


@pytest.mark.parametrize(("version", "std"), [(1, 0.05), (2, 0.025)])
def test_retinanet_on_resnet50_is_torchvisions(version, std, tmp_path):
    builder = retinanet_resnet50_fpn if version == 1 else retinanet_resnet50_fpn_v2
    # a few of a million random scores: of more, many are tied but for rounding
    reference = builder(weights=None, weights_backbone=None, min_size=96, max_size=160, score_thresh=0.5)
    backbone = TorchvisionBackbone("resnet50", ["layer2", "layer3", "layer4"])
    second = {"p6_from": "c5", "head_norms": True, "criterion": FocalLoss(box_loss=IoULoss("giou"))} if version == 2 else {}
    detector = RetinaNet(
        COCO_80, backbone, min_size=96, max_size=160, score_threshold=0.5, **second
    )  # fmt: skip

    def prepare(reference, images):
        head = reference.head.classification_head
        torch.nn.init.normal_(head.cls_logits.weight, std=std)
        torch.nn.init.normal_(reference.head.regression_head.bbox_reg.weight, std=0.02)
        torch.nn.init.constant_(head.cls_logits.bias, -3.0)
        only_coco(head.cls_logits, per_cell=9)

    assert_parity(detector, reference, LOSSES, tmp_path, prepare)


def test_anchors_of_the_paper():
    """Section 4: five levels, nine anchors a cell, sides of 32 to 813 pixels."""
    network = RetinaNet(["a"]).network
    anchors = network.anchors(torch.zeros(1, 3, 512, 512), [torch.zeros(1, 1, side, side) for side in (64, 32, 16, 8, 4)])
    assert len(anchors) == 9 * (64**2 + 32**2 + 16**2 + 8**2 + 4**2) == sum(anchors.per_map)
    areas = (anchors.boxes[:, 2:] - anchors.boxes[:, :2]).prod(dim=1).sqrt()
    assert areas.min() == pytest.approx(32, abs=1)
    assert areas.max() == pytest.approx(512 * 2 ** (2 / 3), abs=2)


def test_at_first_every_anchor_scores_the_prior():
    network = RetinaNet(["a", "b"], TinyBackbone(), FocalLoss(prior=0.02), fpn_channels=32, min_size=64, max_size=64).network.eval()
    with torch.no_grad():
        logits, _, _ = network.predict(torch.zeros(1, 3, 64, 64))
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.02), atol=2e-3, rtol=0)


def test_in_training_the_size_is_drawn_and_in_eval_it_is_not():
    inputs = RetinaNet(["a"], TinyBackbone(), fpn_channels=32, min_size=96, max_size=200, train_min_sizes=[64, 128]).network.inputs
    image = torch.zeros(3, 100, 150, dtype=torch.uint8)
    assert {min(inputs.train()([image]).sizes[0]) for _ in range(20)} == {64, 128}
    assert {min(inputs.eval()([image]).sizes[0]) for _ in range(20)} == {96}


def test_anchor_sizes_for_other_maps_are_refused():
    with pytest.raises(InputError, match="Expected anchor_sizes for 4 maps"):
        RetinaNet(["a"], TinyBackbone(), anchor_sizes=[[32]], fpn_channels=32)
