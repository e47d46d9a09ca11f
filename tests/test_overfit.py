"""Each detector learns eight real images by heart: the whole chain from files to AP is right, or this fails."""

import pytest
import torch

from lit_detect import COCOMeanAveragePrecision, FasterRCNN, SSDLite, TorchvisionBackbone, VOCDetection, YOLOLoss, YOLOv3
from lit_detect.data.dataset import Feed


def mobilenet(shared, nodes):
    return TorchvisionBackbone("mobilenet_v2", nodes, weights=str(shared / "weights" / "mobilenet_v2_imagenet.pth"), frozen_norms=True)


DETECTORS = {
    "ssdlite": lambda shared, classes: SSDLite(
        classes, backbone=mobilenet(shared, ["features.14.conv.0", "features.18"]), scales=[0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95]
    ),
    "yolov3": lambda shared, classes: YOLOv3(
        classes, 256, mobilenet(shared, ["features.6", "features.13", "features.18"]), YOLOLoss(prior=0.01), widths=[32, 64, 128]
    ),
    "faster_rcnn": lambda shared, classes: FasterRCNN(
        classes, mobilenet(shared, ["features.6", "features.13", "features.18"]), fpn_channels=64, head_channels=256,
        min_size=224, max_size=320, anchor_sizes=[[24], [48], [96], [192]], proposals=(200, 100), roi_batch_size=128,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_overfits_eight_images(shared, name):
    dataset = VOCDetection(str(shared / "data/voc_mini/VOCdevkit/VOC2012"), "train")
    easy = [index for index, target in enumerate(dataset.targets) if not target["difficult"].any()]
    images, targets = zip(*(Feed(dataset)[index] for index in easy[:8]), strict=True)
    detector = DETECTORS[name](shared, dataset.classes)
    detector.backbone.load_weights()
    network = detector.network.train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    steps = 120
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(steps):
        loss = sum(network(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    metric = COCOMeanAveragePrecision(dataset.classes)
    with torch.no_grad():
        metric.update(network.eval()(images), list(targets))
    assert metric.named()["map_50"] >= 0.9
