import math
from functools import partial

import pytest
import torch
from torchvision.models.detection import retinanet_resnet50_fpn, ssd300_vgg16
from torchvision.models.detection._utils import Matcher

from lit_detect import FocalLoss, HardNegativeMining, IoULoss, SmoothL1
from lit_detect.boxes import Anchors, assign, match, match_or_ignore
from tests.conftest import DETECTORS, random_batch


@pytest.fixture(scope="module")
def torchvision_ssd():
    return ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4)


@pytest.mark.parametrize("counts", [[3, 1], [5, 0], [0, 0]])
def test_same_losses_as_torchvision(torchvision_ssd, counts):
    _, targets = random_batch([(300, 300), (300, 300)], counts)
    corner = torch.rand(500, 2) * 250
    anchors = torch.cat([corner, corner + 20 + torch.rand(500, 2) * 80], dim=1)
    logits, deltas = torch.randn(2, 500, 4), torch.randn(2, 500, 4)
    labels, boxes = assign(Anchors(anchors), targets, partial(match, threshold=0.5))
    matches = [
        torchvision_ssd.proposal_matcher(overlaps(target["boxes"], anchors)) if len(target["boxes"]) else torch.full((500,), -1)
        for target in targets
    ]
    expected = torchvision_ssd.compute_loss(targets, {"bbox_regression": deltas, "cls_logits": logits}, [anchors] * 2, matches)
    losses = HardNegativeMining()(logits, deltas, Anchors(anchors), labels, boxes)
    torch.testing.assert_close(losses["class_loss"], expected["classification"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses["box_loss"], expected["bbox_regression"], rtol=1e-5, atol=1e-5)


def overlaps(boxes, anchors):
    from torchvision.ops import box_iou

    return box_iou(boxes, anchors)


def test_three_negatives_for_each_positive_and_the_hardest_of_them():
    criterion = HardNegativeMining()
    loss = torch.tensor([[0.1, 0.9, 0.5, 0.8, 0.7, 9.0]])
    labels = torch.tensor([[0, 0, 0, 0, 0, 2]])
    assert criterion.hardest(loss, labels).tolist() == [[False, True, False, True, True, False]]


def test_a_positive_counts_once_where_fewer_negatives_are_left_than_wanted():
    """Where torchvision, whose ranks go on among the positives, counts them twice."""
    logits = torch.randn(1, 4, 3)
    anchors = torch.rand(4, 2).repeat(1, 2) + torch.tensor([0, 0, 1, 1])
    labels = torch.tensor([[1, 2, 1, 0]])
    losses = HardNegativeMining()(logits, torch.zeros(1, 4, 4), Anchors(anchors), labels, anchors[None])
    expected = -logits[0].log_softmax(dim=-1)[range(4), labels[0]].sum() / 3
    torch.testing.assert_close(losses["class_loss"], expected)


def test_an_image_without_objects_teaches_only_with_min_negatives():
    logits = torch.zeros(1, 50, 3, requires_grad=True)
    anchors = torch.rand(50, 2).repeat(1, 2) + torch.tensor([0, 0, 1, 1])
    labels, boxes = torch.zeros(1, 50, dtype=torch.int64), anchors[None]
    silent = HardNegativeMining()(logits, torch.zeros(1, 50, 4), Anchors(anchors), labels, boxes)
    assert silent["class_loss"].item() == 0
    taught = HardNegativeMining(min_negatives=10)(logits, torch.zeros(1, 50, 4), Anchors(anchors), labels, boxes)
    assert taught["class_loss"].item() == pytest.approx(10 * torch.log(torch.tensor(3.0)).item(), rel=1e-5)


def test_scores_leave_the_background_out_and_sum_with_it_to_one():
    logits = torch.randn(2, 5, 4)
    scores = HardNegativeMining().scores(logits)
    torch.testing.assert_close(scores.sum(-1) + logits.softmax(-1)[..., 0], torch.ones(2, 5))


@pytest.mark.parametrize("counts", [[3, 1], [5, 0], [0, 0]])
def test_focal_loss_is_torchvisions_retinanets(counts):
    head = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4).head
    _, targets = random_batch([(300, 300), (300, 300)], counts)
    corner = torch.rand(500, 2) * 250
    anchors = torch.cat([corner, corner + 20 + torch.rand(500, 2) * 80], dim=1)
    logits, deltas = torch.randn(2, 500, 3), torch.randn(2, 500, 4)
    matcher = partial(match_or_ignore, threshold=0.5, background=0.4)
    ours = Anchors(anchors, (1.0, 1.0, 1.0, 1.0))
    labels, boxes = assign(ours, targets, matcher)
    assert (labels == -1).any() or not any(counts)
    theirs = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    matches = [theirs(overlaps(target["boxes"], anchors)) if len(target["boxes"]) else torch.full((500,), -1) for target in targets]
    outputs = {"bbox_regression": deltas, "cls_logits": torch.cat([torch.full((2, 500, 1), -1e4), logits], dim=2)}
    expected = head.compute_loss(targets, outputs, [anchors] * 2, matches)  # whose class 0 never occurs
    losses = FocalLoss(box_loss=SmoothL1(beta=0))(logits, deltas, ours, labels, boxes)
    torch.testing.assert_close(losses["class_loss"], expected["classification"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses["box_loss"], expected["bbox_regression"], rtol=1e-5, atol=1e-5)


def test_focal_loss_by_hand():
    """One positive with a score of .9 and one negative with .2: equation 5."""
    logits = torch.tensor([[[math.log(9.0)], [math.log(0.25)]]])
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 2)
    losses = FocalLoss()(logits, torch.zeros(1, 2, 4), Anchors(boxes), torch.tensor([[1, 0]]), boxes[None])
    expected = -0.25 * 0.1**2 * math.log(0.9) - 0.75 * 0.2**2 * math.log(0.8)
    assert losses["class_loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["ssd", "ssdlite", "dssd", "yolov3", "retinanet", "fcos_focal"])
def test_with_focal_loss_every_anchor_starts_with_the_prior(name):
    """RetinaNet, section 4.1: even where features are large, as those of an extractor without norms after them."""
    images, _ = random_batch([(96, 96)] * 2, [0, 0])
    given = {} if name == "fcos_focal" or name == "retinanet" else {"criterion": FocalLoss(prior=0.02)}
    network = DETECTORS[name](**given).network.eval()
    with torch.no_grad():
        logits, _, _ = network.predict(network.inputs(torch.stack(images)).images)
    prior = network.criterion.prior
    assert (logits.sigmoid() / prior).log().abs().median() < 0.2


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_iou_losses_by_hand(kind):
    """Two squares of side 2 that share a quarter: IoU 1/7, hull 3 x 3, centres 1 apart on both axes; same aspect ratio."""
    anchors = Anchors(torch.tensor([[0.0, 0, 2, 2]]))
    loss = IoULoss(kind, weight=2.0)(torch.zeros(1, 4), anchors, torch.tensor([[1.0, 1, 3, 3]]))
    expected = {"giou": 1 - 1 / 7 + 2 / 9, "diou": 1 - 1 / 7 + 2 / 18, "ciou": 1 - 1 / 7 + 2 / 18}
    assert loss.tolist() == pytest.approx([2 * expected[kind]], rel=1e-5)


@pytest.mark.parametrize("box_loss", [SmoothL1(), SmoothL1(beta=0), IoULoss("giou"), IoULoss("diou"), IoULoss("ciou")])
@pytest.mark.parametrize("criterion", [HardNegativeMining, FocalLoss])
def test_the_right_offsets_cost_nothing_and_others_do(criterion, box_loss):
    anchors = Anchors(torch.tensor([[0.0, 0, 10, 10], [5, 5, 30, 20]]))
    boxes = torch.tensor([[[2.0, 1, 9, 14], [4, 4, 28, 21]]])
    labels, logits = torch.tensor([[1, 2]]), torch.zeros(1, 2, 3)
    right = anchors.encode(boxes)
    assert criterion(box_loss=box_loss)(logits, right, anchors, labels, boxes)["box_loss"].item() == pytest.approx(0, abs=1e-5)
    assert criterion(box_loss=box_loss)(logits, right + 1, anchors, labels, boxes)["box_loss"].item() > 0.1
