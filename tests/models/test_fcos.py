import math

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn

from lit_detect import FCOS, SSD, Anchors, FCOSLoss, FocalLoss, InputError, TorchvisionBackbone
from lit_detect.models.fcos import Points, centerness, match_points
from tests.conftest import CLASSES, TinyBackbone, random_batch
from tests.models.parity import COCO_80, assert_parity, only_coco


def test_fcos_on_resnet50_is_torchvisions(tmp_path):
    # a few of the random scores: of more, many are tied but for rounding
    reference = fcos_resnet50_fpn(weights=None, weights_backbone=None, min_size=96, max_size=160, score_thresh=0.75)
    backbone = TorchvisionBackbone("resnet50", ["layer2", "layer3", "layer4"])
    detector = FCOS(COCO_80, backbone, min_size=96, max_size=160, score_threshold=0.75)

    def prepare(reference, images):
        torch.nn.init.normal_(reference.head.classification_head.cls_logits.weight, std=0.05)
        torch.nn.init.constant_(reference.head.classification_head.cls_logits.bias, -3.0)
        torch.nn.init.normal_(reference.head.regression_head.bbox_reg.weight, std=0.05)
        torch.nn.init.constant_(reference.head.regression_head.bbox_reg.bias, 2.0)
        torch.nn.init.normal_(reference.head.regression_head.bbox_ctrness.weight, std=0.05)
        only_coco(reference.head.classification_head.cls_logits, per_cell=1)

    names = {"class_loss": "classification", "box_loss": "bbox_regression", "centerness_loss": "bbox_ctrness"}
    assert_parity(detector, reference, names, tmp_path, prepare)


def test_points_encode_distances_in_strides():
    points = Points(torch.tensor([[0.0, 0, 8, 8]]))
    distances = points.encode(torch.tensor([[0.0, -4, 12, 8]]))
    assert distances.tolist() == [[0.5, 1, 1, 0.5]]
    assert points.decode(distances).tolist() == [[0, -4, 12, 8]]


def test_centerness_by_hand():
    """Equation 3: left 1, right 3, top 2, bottom 2."""
    assert centerness(torch.tensor([[1.0, 2, 3, 2]])).item() == pytest.approx(math.sqrt(1 / 3))


def matched(points, boxes, radius):
    """The matches of one image's boxes, which has fewer than another."""
    padded = torch.cat([boxes, points.boxes])[None]
    return match_points(points, padded, torch.arange(padded.shape[1])[None] < len(boxes), radius)[0].tolist()


def test_the_smallest_of_the_boxes_at_a_point_in_the_range_of_its_map():
    # one point on a map of stride 8, one on stride 16, one on stride 32; the finest and the coarsest have no limit on that side
    points = Anchors(torch.tensor([[46.0, 46, 54, 54], [42, 42, 58, 58], [34, 34, 66, 66]]))
    assert matched(points, torch.tensor([[30.0, 30, 70, 70], [10, 10, 90, 90]]), 1.5) == [0, -1, -1]
    assert matched(points, torch.tensor([[-50.0, -50, 150, 150], [-250, -250, 350, 350]]), 1.5) == [-1, 0, 1]
    assert matched(points, torch.tensor([[60.0, 60, 90, 90]]), 1.5) == [-1, -1, -1]  # lies in none
    aside = torch.tensor([[45.0, 45, 105, 105]])  # the point lies in it, 25 pixels from its centre: over 1.5 strides of 8
    assert matched(points, aside, 1.5) == [-1, -1, -1]
    assert matched(points, aside, 10) == [0, -1, -1]


def test_a_criterion_without_centerness_leaves_it_out():
    detector = FCOS(["a", "b", "c"], TinyBackbone(), FocalLoss(), fpn_channels=64, min_size=96, max_size=96)
    images, targets = random_batch([(96, 96)], [2])
    losses = detector.network.train()(images, targets)
    assert set(losses) == {"class_loss", "box_loss"}
    assert not any(p.requires_grad for p in detector.network.head.regression_head.bbox_ctrness.parameters())


def test_scores_are_the_geometric_mean_of_class_and_centerness():
    logits = torch.tensor([[[0.0, math.log(3.0), math.log(4.0)]]])
    assert FCOSLoss().scores(logits).flatten().tolist() == pytest.approx([math.sqrt(0.5 * 0.8), math.sqrt(0.75 * 0.8)])


def test_its_loss_is_refused_by_detectors_without_points():
    detector = SSD(CLASSES, 96, TinyBackbone(), FCOSLoss(), scales="linear", extra_channels=[16])
    with pytest.raises(InputError, match="Expected FCOS"):
        detector.network.train()(*random_batch([(96, 96)] * 2, [1, 1]))
