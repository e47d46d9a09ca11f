"""What every detector owes its users, whatever its architecture."""

import copy
from functools import partialmethod

import pytest
import torch
from lightning.pytorch import Trainer

from lit_detect import FCOS, FocalLoss, HardNegativeMining, IoULoss, RetinaNet, SmoothL1, YOLOLoss
from lit_detect.models.compiling import compile_parts
from tests.conftest import CLASSES, DETECTORS, TinyBackbone, random_batch

EMPTY = [0, 0]
SMALL = {"fpn_channels": 64, "min_size": 96, "max_size": 160}
DENSE = {
    "ssd": DETECTORS["ssd"],
    "yolov3": DETECTORS["yolov3"],
    "retinanet": lambda **kwargs: RetinaNet(CLASSES, TinyBackbone(), **SMALL, **kwargs),
    "fcos_any": lambda **kwargs: FCOS(CLASSES, TinyBackbone(), **SMALL, **kwargs),
}


@pytest.mark.parametrize("counts", [[2, 3], [0, 3], EMPTY])
def test_losses_are_named_and_finite_and_reach_every_parameter(build, counts):
    network = build().network.train()
    images, targets = random_batch([(96, 96), (96, 96)], counts)
    losses = network(torch.stack(images), targets)
    assert all(name.endswith("_loss") and loss.ndim == 0 and loss.isfinite() for name, loss in losses.items())
    sum(losses.values()).backward()
    without = [name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.requires_grad)
    if counts != EMPTY:
        assert all(loss > 0 for loss in losses.values())


@pytest.mark.parametrize("sizes", [[(96, 96)], [(33, 157), (120, 61)], [(500, 375), (8, 9)]])
def test_detections_are_in_pixels_of_the_images_as_given(build, sizes):
    network = build(score_threshold=0.0).network.eval()
    images, _ = random_batch(sizes, [0] * len(sizes))
    with torch.no_grad():
        detections = network(images)
    for found, (height, width) in zip(detections, sizes, strict=True):
        assert {name: value.dtype for name, value in found.items()} == {
            "boxes": torch.float32, "scores": torch.float32, "labels": torch.int64,
        }  # fmt: skip
        assert len(found["boxes"]) > 0
        assert found["boxes"].min() >= 0
        assert (found["boxes"] <= torch.tensor([width, height] * 2) + 1e-3).all()
        assert ((found["scores"] >= 0) & (found["scores"] <= 1)).all()
        assert set(found["labels"].tolist()) <= set(range(1, len(CLASSES) + 1))
        assert found["scores"].diff().max() <= 0


def test_a_stacked_batch_and_a_list_give_the_same(build):
    network = build(score_threshold=0.0).network.eval()
    images, _ = random_batch([(96, 96), (96, 96)], [0, 0])
    with torch.no_grad():
        for a, b in zip(network(images), network(torch.stack(images)), strict=True):
            torch.testing.assert_close(a, b)


def test_evaluate_gives_the_detections_of_eval_and_leaves_norms_and_random_numbers_alone(build):
    network = build(score_threshold=0.0).network.eval()
    images, targets = random_batch([(96, 120), (96, 96)], [2, 0])
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    random_state = torch.get_rng_state()
    with torch.no_grad():
        losses, detections = network.evaluate(images, targets)
        again, _ = network.evaluate(images, targets)
        expected = network(images)
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.testing.assert_close(losses, again)
    torch.testing.assert_close(detections, expected)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(torch.equal(value, buffers[name]) for name, value in network.named_buffers())


def test_a_checkpoint_alone_gives_the_detector_back(build, tmp_path):
    detector = build(category_ids=[3, 7, 90], score_threshold=0.0)
    path = tmp_path / "detector.ckpt"
    save(detector, path)
    images, _ = random_batch([(96, 96)], [0])
    loaded = type(detector).load_from_checkpoint(path, weights_only=True)
    assert (loaded.classes, loaded.category_ids) == (CLASSES, [3, 7, 90])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images), detector.eval()(images))


def save(detector, path):
    """A checkpoint as the trainer writes it."""
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=0, accelerator="cpu")
    trainer.strategy.connect(detector)
    trainer.save_checkpoint(path)


def test_half_precision_stops_before_boxes_and_losses(build):
    network = build(score_threshold=0.0).network.eval()
    images, targets = random_batch([(96, 96), (96, 160)], [1, 1])
    with torch.no_grad():
        exact, _ = network.evaluate(images, targets)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses, detections = network.evaluate(images, targets)
    for found in detections:
        assert found["boxes"].dtype == found["scores"].dtype == torch.float32
        edges = found["boxes"].unique()
        assert not torch.equal(edges, edges.bfloat16().float())  # boxes that were bf16 at any time would all survive this
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = network.train()(images, targets)
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("box_loss", [SmoothL1(), IoULoss("giou"), IoULoss("diou"), IoULoss("ciou")])
@pytest.mark.parametrize("criterion", [FocalLoss, HardNegativeMining, YOLOLoss])
@pytest.mark.parametrize("detector", ["ssd", "retinanet", "fcos_any", "yolov3"])
def test_criteria_and_box_losses_swap_freely(detector, criterion, box_loss):
    network = DENSE[detector](criterion=criterion(box_loss=box_loss)).network.train()
    images, targets = random_batch([(96, 96), (96, 96)], [2, 3])
    losses = network(torch.stack(images), targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.requires_grad)


def test_the_networks_copy_has_its_own_weights(build):
    """As averaging of weights needs it; a box head may be a method of the backbone."""
    network = build(score_threshold=0.0).network.eval()
    copied = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.data.fill_(float("nan"))
    images, _ = random_batch([(96, 96)], [0])
    with torch.no_grad():
        (found,) = copied(images)
    assert len(found["boxes"])
    assert found["scores"].isfinite().all()


@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in ("ssd_focal", "retinanet_mining", "fcos_focal")])
def test_compiled_parts_have_no_graph_break_and_are_not_compiled_again(name, monkeypatch):
    """Captured as they are for the real compiler, but run as they were: the same losses, also for another batch of the same size.

    Detectors that differ in the criterion alone, which is not compiled, are left out.
    """
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    detector = DETECTORS[name]()
    network = detector.network.train()
    plain = copy.deepcopy(network)
    torch._dynamo.reset()
    compile_parts(detector.network)
    for index, counts in enumerate(([2, 3], [5, 0])):
        images, targets = random_batch([(96, 96)] * 2, counts)
        with torch._dynamo.config.patch(error_on_recompile=index > 0):
            torch.manual_seed(0)
            losses = network(torch.stack(images), targets)
            sum(losses.values()).backward()
        torch.manual_seed(0)
        expected = plain(torch.stack(images), targets)
        for name, loss in expected.items():
            torch.testing.assert_close(losses[name], loss)
    assert list(network.state_dict()) == list(plain.state_dict())
