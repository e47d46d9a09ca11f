import math
import os
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD

from lit_detect import FocalLoss, HardNegativeMining, InputError, IoULoss, SmoothL1, YOLOLoss
from lit_detect.boxes import Anchors, assign, match, match_or_ignore
from lit_detect.losses import mean_over_ranks
from tests.conftest import DETECTORS, random_batch


@pytest.mark.parametrize("counts", [[3, 1], [5, 0], [0, 0]])
def test_same_losses_as_torchvision(counts):
    theirs = SSD(nn.Identity(), None, (300, 300), 4, head=nn.Identity())
    _, targets = random_batch([(300, 300), (300, 300)], counts)
    corner = torch.rand(500, 2) * 250
    anchors = torch.cat([corner, corner + 20 + torch.rand(500, 2) * 80], dim=1)
    logits, deltas = torch.randn(2, 500, 4), torch.randn(2, 500, 4)
    labels, boxes = assign(Anchors(anchors), targets, partial(match, threshold=0.5))
    matches = [
        theirs.proposal_matcher(overlaps(target["boxes"], anchors)) if len(target["boxes"]) else torch.full((500,), -1)
        for target in targets
    ]
    expected = theirs.compute_loss(targets, {"bbox_regression": deltas, "cls_logits": logits}, [anchors] * 2, matches)
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


def test_what_is_to_be_left_out_costs_nothing_and_is_no_negative():
    """An anchor of label -1, though it is the hardest."""
    criterion, loss = HardNegativeMining(ratio=1.5), torch.tensor([[9.0, 0.1, 0.9, 0.5, 0.7, 9.0], [9.0, 0.1, 0.9, 0.5, 0.7, 9.0]])
    labels = torch.tensor([[-1, 0, 0, 0, 2, 1], [-1, 0, 0, 0, 0, 1]])
    assert criterion.hardest(loss, labels).int().tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 0]]  # 3 for 2, and 2 of 1.5 for 1
    anchors = Anchors(torch.tensor([[0.0, 0, 10, 10]] * 3))
    logits = torch.tensor([[[0.0, 0.0], [9.0, -9.0], [0.0, math.log(3.0)]]])
    losses = criterion(logits, torch.zeros(1, 3, 4), anchors, torch.tensor([[1, -1, 0]]), anchors.boxes[None])
    assert losses["class_loss"].item() == pytest.approx(math.log(2) + math.log(4), rel=1e-5)


def test_scores_leave_the_background_out_and_sum_with_it_to_one():
    logits = torch.randn(2, 5, 4)
    scores = HardNegativeMining().scores(logits)
    torch.testing.assert_close(scores.sum(-1) + logits.softmax(-1)[..., 0], torch.ones(2, 5))


@pytest.mark.parametrize("counts", [[3, 1], [5, 0], [0, 0]])
def test_focal_loss_is_torchvisions_retinanets(counts):
    head = RetinaNetHead(in_channels=8, num_anchors=1, num_classes=4)
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


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_has_a_gradient_at_any_logit(gamma):
    logits = torch.tensor([-200.0, -120.0, -1.0, 0.0, 1.0, 120.0, 200.0]).reshape(1, -1, 1).requires_grad_()
    for label in (0, 1):
        (gradient,) = torch.autograd.grad(FocalLoss(gamma=gamma).class_loss(logits, torch.full((1, 7), label)).sum(), logits)
        assert gradient.isfinite().all()


def test_focal_loss_by_hand():
    """One positive with a score of .9 and one negative with .2: equation 5."""
    logits = torch.tensor([[[math.log(9.0)], [math.log(0.25)]]])
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 2)
    losses = FocalLoss()(logits, torch.zeros(1, 2, 4), Anchors(boxes), torch.tensor([[1, 0]]), boxes[None])
    expected = -0.25 * 0.1**2 * math.log(0.9) - 0.75 * 0.2**2 * math.log(0.8)
    assert losses["class_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_with_other_weights_by_hand():
    """With gamma 0 and alpha a half it is half the cross-entropy; what is left out costs nothing; a positive counts in its own image."""
    logits = torch.tensor([[[math.log(9.0), 0.0], [math.log(0.25), 0.0], [5.0, 5.0]], [[0.0, 0.0]] * 3])
    anchors = Anchors(torch.tensor([[0.0, 0, 10, 10]] * 3))
    labels = torch.tensor([[1, 0, -1], [2, 1, -1]])
    losses = FocalLoss(alpha=0.5, gamma=0)(logits, torch.full((2, 3, 4), 2.0), anchors, labels, anchors.boxes.expand(2, 3, 4))
    first, second = -math.log(0.9) - math.log(0.8) + 2 * math.log(2), 4 * math.log(2) / 2
    assert losses["class_loss"].item() == pytest.approx((first + second) / 2 / 2, rel=1e-5)
    assert losses["box_loss"].item() == pytest.approx(4 * 1.5)  # of each positive: smooth L1 of 2 is 1.5
    assert FocalLoss().scores(logits)[0, :2].flatten().tolist() == pytest.approx([0.9, 0.5, 0.2, 0.5])


def test_where_layers_of_logits_start():
    """RetinaNet, sections 3.3 and 4.1: a prior of .01 and weights of a standard deviation of .01; darknet's objectness: a half."""
    for criterion, score in ((HardNegativeMining(), 0.5), (FocalLoss(), 0.01), (FocalLoss(prior=0.2), 0.2), (YOLOLoss(), 0.5)):
        layer = nn.Conv2d(64, 200, 3)
        before = layer.weight.clone()
        criterion.initialise(layer)
        torch.testing.assert_close(layer.bias.sigmoid(), torch.full((200,), score))
        if isinstance(criterion, FocalLoss):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
        else:
            assert torch.equal(layer.weight, before)


def test_what_logits_stand_for():
    assert HardNegativeMining().logit_names(["cat", "dog"]) == ["__background__", "cat", "dog"]
    assert FocalLoss().logit_names(["cat", "dog"]) == ["cat", "dog"]
    assert YOLOLoss().logit_names(["cat", "dog"]) == ["__objectness__", "cat", "dog"]


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


def test_smooth_l1_by_hand():
    """Half the square over beta below beta, the difference less half of beta above; offsets of weight 10."""
    anchors = Anchors(torch.tensor([[0.0, 0, 10, 10]] * 2))
    deltas = torch.tensor([[0.5, 0.0, 0.0, 0.0], [3.0, -3.0, 0.0, 0.0]])
    assert SmoothL1()(deltas, anchors, anchors.boxes).tolist() == pytest.approx([0.125, 5.0])
    assert SmoothL1(beta=2.0)(deltas, anchors, anchors.boxes).tolist() == pytest.approx([0.0625, 4.0])


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_boxes_of_no_size_have_finite_gradients(kind):
    anchors = Anchors(torch.tensor([[0.0, 0, 10, 10]]))
    deltas = torch.tensor([[0.0, 0.0, -1e3, -1e3]], requires_grad=True)
    loss = IoULoss(kind)(deltas, anchors, torch.tensor([[0.0, 0, 10, 20]])).sum()
    loss.backward()
    assert loss.isfinite()
    assert deltas.grad.isfinite().all()


def test_another_kind_of_iou_loss_is_named():
    with pytest.raises(InputError, match="Expected giou, diou or ciou as the kind of IoULoss but got 'iou'"):
        IoULoss("iou")


def test_one_process_divides_by_its_own_count():
    assert [mean_over_ranks(torch.tensor(count)).item() for count in (0, 1, 5)] == [1, 1, 5]


def divisors(rank, path):
    """A process of two: what it divides by, with and without gradients, for some counts of the two."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    counts = [torch.tensor(pair[rank]) for pair in ((5, 0), (0, 0), (1, 2))]
    found = [mean_over_ranks(count).item() for count in counts]
    with torch.no_grad():
        found += [mean_over_ranks(count).item() for count in counts]
    assert [count.item() for count in counts] == [pair[rank] for pair in ((5, 0), (0, 0), (1, 2))]  # which others use too
    torch.save(found, path / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="to start afresh takes each process many seconds")
def test_processes_divide_by_the_mean_of_their_counts_when_they_train(tmp_path):
    torch.multiprocessing.start_processes(divisors, (tmp_path,), nprocs=2, start_method="forkserver")
    assert torch.load(tmp_path / "0.pt") == [2.5, 0.5, 1.5, 5, 1, 1]
    assert torch.load(tmp_path / "1.pt") == [2.5, 0.5, 1.5, 1, 1, 2]
