import pytest
import torch
from torchvision.models.detection import ssd300_vgg16

from lit_detect import HardNegativeMining
from lit_detect.boxes import assign
from tests.conftest import random_batch


@pytest.fixture(scope="module")
def torchvision_ssd():
    return ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4)


@pytest.mark.parametrize("counts", [[3, 1], [5, 0], [0, 0]])
def test_same_losses_as_torchvision(torchvision_ssd, counts):
    _, targets = random_batch([(300, 300), (300, 300)], counts)
    corner = torch.rand(500, 2) * 250
    anchors = torch.cat([corner, corner + 20 + torch.rand(500, 2) * 80], dim=1)
    logits, deltas = torch.randn(2, 500, 4), torch.randn(2, 500, 4)
    labels, boxes = assign(anchors, targets, 0.5)
    matches = [
        torchvision_ssd.proposal_matcher(overlaps(target["boxes"], anchors)) if len(target["boxes"]) else torch.full((500,), -1)
        for target in targets
    ]
    expected = torchvision_ssd.compute_loss(targets, {"bbox_regression": deltas, "cls_logits": logits}, [anchors] * 2, matches)
    losses = HardNegativeMining()(logits, deltas, anchors, labels, boxes)
    torch.testing.assert_close(losses["class_loss"], expected["classification"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses["box_loss"], expected["bbox_regression"], rtol=1e-5, atol=1e-5)


def overlaps(boxes, anchors):
    from torchvision.ops import box_iou

    return box_iou(boxes, anchors)


def test_three_negatives_for_each_positive_and_the_hardest_of_them():
    criterion = HardNegativeMining()
    loss = torch.tensor([[0.1, 0.9, 0.5, 0.8, 0.7, 9.0]])
    positive = torch.tensor([[False, False, False, False, False, True]])
    assert criterion.hardest(loss, positive).tolist() == [[False, True, False, True, True, False]]


def test_an_image_without_objects_teaches_only_with_min_negatives():
    logits = torch.zeros(1, 50, 3, requires_grad=True)
    anchors = torch.rand(50, 2).repeat(1, 2) + torch.tensor([0, 0, 1, 1])
    labels, boxes = torch.zeros(1, 50, dtype=torch.int64), anchors[None]
    silent = HardNegativeMining()(logits, torch.zeros(1, 50, 4), anchors, labels, boxes)
    assert silent["class_loss"].item() == 0
    taught = HardNegativeMining(min_negatives=10)(logits, torch.zeros(1, 50, 4), anchors, labels, boxes)
    assert taught["class_loss"].item() == pytest.approx(10 * torch.log(torch.tensor(3.0)).item(), rel=1e-5)


def test_scores_leave_the_background_out_and_sum_with_it_to_one():
    logits = torch.randn(2, 5, 4)
    scores = HardNegativeMining().scores(logits)
    torch.testing.assert_close(scores.sum(-1) + logits.softmax(-1)[..., 0], torch.ones(2, 5))
