"""Each detector learns eight real images by heart: the whole chain from files to AP is right, or this fails."""

import pytest
import torch

from lit_detect import (
    DSSD,
    FCOS,
    RFCN,
    SSD,
    COCOMeanAveragePrecision,
    FasterRCNN,
    FocalLoss,
    IoULoss,
    RetinaNet,
    SSDLite,
    TorchvisionBackbone,
    VOCDetection,
    YOLOLoss,
    YOLOv3,
)  # fmt: skip
from lit_detect.data.feed import Feed

SCALES = [0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95]
ANCHORS = {"anchor_sizes": [[24], [48], [96], [192]]}
PYRAMID = [[16 * 2**step, 23 * 2**step] for step in range(5)]
SIDES = {"min_size": 192, "max_size": 288}
HEAD = {"head_channels": 256, "proposals": (200, 100), "roi_batch_size": 128}
C3_C5, C4_C5, C4 = ["features.6", "features.13", "features.18"], ["features.13", "features.18"], ["features.13"]

DETECTORS = {
    "ssdlite": (C4_C5, lambda classes, backbone: SSDLite(classes, 256, backbone, scales=SCALES[:6])),
    "ssd_focal_fpn": (
        C3_C5,
        lambda classes, backbone: SSD(
            classes, 224, backbone, FocalLoss(box_loss=IoULoss("giou")), scales=SCALES, fpn_channels=64, extra_channels=[128]
        ),
    ),
    "dssd": (
        C3_C5,
        lambda classes, backbone: DSSD(
            classes, 224, backbone, deconvolution_channels=64, prediction_channels=128, scales=SCALES, extra_channels=[128]
        ),
    ),
    "retinanet": (
        C3_C5,
        lambda classes, backbone: RetinaNet(classes, backbone, fpn_channels=64, anchor_sizes=PYRAMID, head_norms=True, **SIDES),
    ),
    "fcos": (C3_C5, lambda classes, backbone: FCOS(classes, backbone, fpn_channels=64, score_threshold=0.05, **SIDES)),
    "yolov3": (C3_C5, lambda classes, backbone: YOLOv3(classes, 224, backbone, YOLOLoss(prior=0.01), widths=[32, 64, 128])),
    "faster_rcnn": (C3_C5, lambda classes, backbone: FasterRCNN(classes, backbone, fpn_channels=64, **ANCHORS, **SIDES, **HEAD)),
    "faster_rcnn_ohem": (
        C4,
        lambda classes, backbone: FasterRCNN(
            classes, backbone, fpn=False, anchor_sizes=[[24, 48, 96, 192]], ohem=True, box_loss=IoULoss("giou", weight=2.0), **SIDES,
            **{**HEAD, "roi_batch_size": 64},
        ),
    ),
    "rfcn": (C4, lambda classes, backbone: RFCN(classes, backbone, 256, anchor_sizes=[[24, 48, 96, 192]], proposals=(200, 100), **SIDES)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_overfits_eight_images(shared, name):
    dataset = VOCDetection(str(shared / "data/voc_mini/VOCdevkit/VOC2012"), "train")
    easy = [index for index, target in enumerate(dataset.targets) if not target["difficult"].any()]
    images, targets = zip(*(Feed(dataset)[index] for index in easy[:8]), strict=True)
    nodes, build = DETECTORS[name]
    weights = str(shared / "weights" / "mobilenet_v2_imagenet.pth")
    detector = build(dataset.classes, TorchvisionBackbone("mobilenet_v2", nodes, weights, frozen=["features.[0-3]"], frozen_norms=True))
    detector.load_start_weights()
    network = detector.network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.2  # so few steps are over before statistics that follow more slowly are those of the weights
    steps, rate = 160 if name == "ssd_focal_fpn" else 120, 2e-3 if name == "rfcn" else 1e-3
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        loss = sum(network(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    metric = COCOMeanAveragePrecision(dataset.classes)
    with torch.no_grad():
        metric.update(network.eval()(images), list(targets))
    assert metric.compute()["map_50"] >= 0.9
