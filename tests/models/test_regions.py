import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import box_iou

from lit_detect import IoULoss, SmoothL1
from lit_detect.models.regions import RegionSampling, hardest, label_proposals, region_losses
from tests.conftest import random_batch


def random_boxes(count, largest=60.0):
    corner = torch.rand(count, 2) * 80
    return torch.cat([corner, corner + 2 + torch.rand(count, 2) * largest], dim=1)


def test_labels_and_losses_are_torchvisions():
    heads = RoIHeads(None, None, None, 0.5, 0.5, 64, 0.25, None, 0.05, 0.5, 100)
    _, targets = random_batch([(100, 100)] * 3, [3, 0, 1])
    proposals = [torch.cat([target["boxes"] + 1, random_boxes(30)]) for target in targets]
    labels, boxes = label_proposals(proposals, targets, 0.5)
    matches, expected = heads.assign_targets_to_proposals(proposals, [t["boxes"] for t in targets], [t["labels"] for t in targets])
    assert all(torch.equal(a, b) for a, b in zip(labels, expected, strict=True))
    theirs = [torch.cat([t["boxes"], torch.ones(1, 4)])[m] for t, m in zip(targets, matches, strict=True)]
    offsets = heads.box_coder.encode(theirs, proposals)
    logits, deltas = torch.randn(len(torch.cat(labels)), 4), torch.randn(len(torch.cat(labels)), 4, 4)
    class_loss, box_loss = fastrcnn_loss(logits, deltas.flatten(1), labels, offsets)
    losses = region_losses(logits, deltas, torch.cat(proposals), torch.cat(labels), torch.cat(boxes), SmoothL1(beta=1 / 9))
    torch.testing.assert_close(losses.mean(dim=0), torch.stack([class_loss, box_loss]))


def test_offsets_that_all_classes_share():
    proposals, labels, boxes = random_boxes(5), torch.tensor([0, 2, 1, 0, 3]), random_boxes(5)
    logits, deltas = torch.randn(5, 4), torch.randn(5, 1, 4)
    shared = region_losses(logits, deltas, proposals, labels, boxes, IoULoss("diou"))
    repeated = region_losses(logits, deltas.expand(-1, 4, -1), proposals, labels, boxes, IoULoss("diou"))
    torch.testing.assert_close(shared, repeated)
    assert (shared[:, 1] > 0).tolist() == [False, True, True, False, True]


@pytest.mark.parametrize("threshold", [0.3, 0.7, 1.0])
def test_the_hardest_after_nms_as_a_loop_picks_them(threshold):
    boxes, loss = random_boxes(60), torch.rand(60)
    chosen = []
    for index in loss.argsort(descending=True).tolist():  # OHEM, section 4.1: the largest loss first, without those that overlap it
        if all(box_iou(boxes[[index]], boxes[[other]]).item() <= threshold for other in chosen):
            chosen.append(index)
    assert hardest(loss, boxes, 12, threshold).tolist() == chosen[:12]


def test_only_the_hardest_of_each_image_are_learnt():
    sampling = RegionSampling(batch_size=2, ohem=True, nms_threshold=1.0)
    proposals = [random_boxes(4), random_boxes(0), random_boxes(3)]
    assert [len(places) for places in sampling.sample([torch.zeros(4), torch.zeros(0), torch.zeros(3)])] == [4, 0, 3]
    losses = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3, 0.2, 0.4])
    assert sampling.learnt(losses, proposals).tolist() == [1, 3, 6, 4]


def test_a_random_sample_has_at_most_a_quarter_of_positives():
    labels = [torch.cat([torch.ones(50), torch.zeros(500)]).long(), torch.zeros(10).long()]
    places = RegionSampling(batch_size=64).sample(labels)
    assert [len(place) for place in places] == [64, 10]
    assert labels[0][places[0]].sum() == 16
    assert torch.equal(RegionSampling(batch_size=64).learnt(torch.rand(74), []), torch.arange(74))
