"""Every shipped config parses, builds its model, takes a step, and is what it says: the papers' and torchvision's recipe."""

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights

from lit_detect import DetectionDataModule, Detector, OneCycle
from lit_detect.cli import CONFIGS
from lit_detect.data.transforms import compose
from lit_detect.lightning_cli import follow_the_model
from tests.conftest import random_batch

FILES = sorted(path for path in CONFIGS.glob("*.yaml") if "model" in yaml.safe_load(path.read_text()))  # not what `compare` reads
every_config = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)

# The papers' numbers of boxes: SSD, section 3 and table 7; DSSD, 8 on each cell of maps 40, 20, 10, 5, 3 and 1; YOLOv3 at 416.
BOXES = {"ssd300": 8732, "ssd512": 24564, "ssd321": 17080, "dssd321": 17080, "yolov3": 10647}
# An image is enough where no batch norm sees a map of 1x1; these networks have one size, and that is large.
ONE_IMAGE = ("ssd300", "ssd512", "yolov3")
TORCHVISION = {
    "faster_rcnn_resnet50_fpn_coco": "fasterrcnn_resnet50_fpn",
    "faster_rcnn_resnet50_fpn_v2_coco": "fasterrcnn_resnet50_fpn_v2",
    "faster_rcnn_mobilenetv3_fpn_coco": "fasterrcnn_mobilenet_v3_large_fpn",
    "faster_rcnn_mobilenetv3_320_fpn_coco": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "retinanet_resnet50_fpn_coco": "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2_coco": "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn_coco": "fcos_resnet50_fpn",
    "ssd300_vgg16_coco": "ssd300_vgg16",
    "ssdlite320_mobilenetv3_coco": "ssdlite320_mobilenet_v3_large",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Operations as small as these wait for each other's threads longer than they take, where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.add_argument("--checkpoint", type=dict)
    parser.add_subclass_arguments(Detector, "model")
    parser.add_class_arguments(DetectionDataModule, "data")
    return parser


def build(parser, path, classes, **overridden):
    """What a config builds, with some of the model's arguments replaced where the config gives them."""
    content = yaml.safe_load(path.read_text())
    arguments = content["model"]["init_args"]
    arguments |= {name: value for name, value in overridden.items() if name in arguments} | {"classes": classes}
    config = parser.parse_object(content)
    follow_the_model(config)
    return parser.instantiate_classes(config)


@every_config
def test_a_config_builds_and_takes_a_step(path, parser):
    assert f"#   python -m lit_detect fit --config configs/{path.name}\n" in path.read_text()
    built = build(
        parser, path, ["cat", "dog", "horse"], min_size=96, max_size=128, train_min_sizes=[64, 96],
        proposals=[20, 20], proposals_before_nms=[100, 100], roi_batch_size=16,
    )  # fmt: skip
    images, targets = random_batch([(240, 320), (200, 100)], [2, 1])
    if path.stem.startswith(ONE_IMAGE):
        images, targets = images[:1], targets[:1]
    detector = built.model
    network = detector.network.train()
    losses = network(images, targets)
    sum(losses.values()).backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in [*losses.values(), *gradients])
    if not isinstance(detector.lr_scheduler, OneCycle):  # which asks the trainer for the number of steps
        (optimizer,), _ = detector.configure_optimizers()
        optimizer.step()
    with torch.no_grad():
        losses, detections = network.eval().evaluate(images, targets)
    assert all(loss.isfinite() for loss in losses.values())
    assert len(detections) == len(images)

    for prefix, count in BOXES.items():
        if path.stem.startswith(prefix):
            size = network.inputs.size
            maps = [torch.zeros(1, 1, side, side) for side in detector.backbone.feature_sizes(size)]
            assert len(network.anchors(torch.zeros(1, 3, size, size), maps)) == count


@every_config
def test_augmentation_gives_images_that_the_network_takes(path, parser):
    content = yaml.safe_load(path.read_text())
    data, size = content["data"], content["model"]["init_args"].get("size")
    datamodule = parser.instantiate_classes(parser.parse_object({"data": {"image_size": size, **data}}, defaults=False)).data
    augment = compose(datamodule.transforms, datamodule.min_visibility)
    augment.set_random_seed(0)
    resized = data["transforms"] in ("ssd", "ssdlite") or "height" in str(data["transforms"])
    expected = {"lsj": 1024}.get(str(data["transforms"]), size or 320) if resized or data["transforms"] == "lsj" else None
    boxes = np.array([[10.0, 20, 110, 90], [60, 40, 200, 130], [150, 10, 155, 14]])
    found = 0
    for _ in range(10):
        image = np.random.randint(0, 256, (150, 220, 3), dtype=np.uint8)
        out = augment(image=image, bboxes=boxes, kept=np.arange(3))
        assert (out["image"].dtype, out["image"].shape) == (np.uint8, (expected or 150, expected or 220, 3))
        height, width, _channels = out["image"].shape
        assert (out["bboxes"][:, 2:] <= [width, height]).all()
        found += len(out["bboxes"])
    assert found >= 10


@every_config
def test_a_schedule_ends_within_the_run(path):
    content = yaml.safe_load(path.read_text())
    trainer, model = content["trainer"], content["model"]["init_args"]
    by_step = model.get("lr_interval") == "step"
    assert by_step == ("max_steps" in trainer)
    if by_step:
        assert trainer["max_epochs"] == -1
        assert trainer["max_steps"] % trainer["val_check_interval"] == 0  # the weights that a run ends with are evaluated
    else:
        assert trainer["max_epochs"] % trainer.get("check_val_every_n_epoch", 1) == 0
    arguments = model["lr_scheduler"].get("init_args", {})
    length = trainer["max_steps" if by_step else "max_epochs"]
    assert arguments.get("T_max", length) == length
    milestones = arguments.get("milestones", [0])
    assert milestones == sorted(milestones)
    assert milestones[-1] < length


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_config_is_torchvisions_detector(name, parser, monkeypatch):
    """The same tensors, of which the same are trained, and the same settings; what torchvision freezes depends on the weights."""
    path = CONFIGS / f"{name}.yaml"
    backbone = yaml.safe_load(path.read_text())["model"]["init_args"]["backbone"]["init_args"]
    classes = [f"class {number}" for number in range(91 if name.startswith(("retinanet", "fcos")) else 90)]  # 0 is one of sigmoids
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *args, **kwargs: {})  # shapes are enough
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *args, **kwargs: None)
    monkeypatch.setattr("lit_detect.detector.metrics_of", lambda classes, other: [])
    with torch.device("meta"):
        reference = get_model(TORCHVISION[name], weights=None, weights_backbone=backbone["weights"], num_classes=91)
        network = build(parser, path, classes).model.network

    def tensors(module):
        return sorted(tuple(tensor.shape) for key, tensor in module.state_dict().items() if not key.endswith("num_batches_tracked"))

    def trained(module):
        return sorted(tuple(parameter.shape) for parameter in module.parameters() if parameter.requires_grad)

    assert tensors(network) == tensors(reference)
    assert trained(network) == trained(reference)
    published = get_model_weights(TORCHVISION[name])["COCO_V1"].meta["num_params"]
    assert sum(parameter.numel() for parameter in reference.parameters()) == published

    ours, theirs = network.inputs, reference.transform
    if theirs.fixed_size:
        assert (ours.size, ours.size) == theirs.fixed_size
    else:
        assert ((ours.min_size,), ours.max_size) == (theirs.min_size, theirs.max_size)
    two_stage = hasattr(reference, "roi_heads")
    last, post = reference.roi_heads if two_stage else reference, network.post_process
    assert (post.score_threshold, post.nms_threshold) == (last.score_thresh, last.nms_thresh)
    assert post.detections_per_image == (last.detections_per_img if hasattr(last, "detections_per_img") else last.detections_per_image)
    if two_stage:
        for setting in ("_pre_nms_top_n", "_post_nms_top_n", "nms_thresh", "score_thresh", "min_size"):
            assert getattr(network.rpn, setting) == getattr(reference.rpn, setting)
        for setting in ("sizes", "aspect_ratios"):
            assert getattr(network.rpn.anchor_generator, setting) == getattr(reference.rpn.anchor_generator, setting)
        assert network.sampling.batch_size == reference.roi_heads.fg_bg_sampler.batch_size_per_image


def test_there_are_configs():
    assert "quickstart" in [path.stem for path in FILES]
