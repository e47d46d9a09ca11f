"""Each detector learns eight images by heart: the whole chain from files to AP is right, or this fails."""

import pytest
from torch import Tensor, nn

from lit_detect import (
    DSSD,
    FCOS,
    RFCN,
    SSD,
    Backbone,
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
from lit_detect.data.digits import write_digits
from lit_detect.data.feed import Feed
from tests.conftest import learnt_by_heart

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


def overfit(detector, dataset, indices, steps, rate):
    """AP50 on the images that a detector was trained on."""
    images, targets = zip(*(Feed(dataset)[index] for index in indices), strict=True)
    return learnt_by_heart(detector, images, targets, steps, rate, momentum=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_overfits_eight_photographs(shared, name):
    dataset = VOCDetection(str(shared / "data/voc_mini/VOCdevkit/VOC2012"), "train")
    easy = [index for index, target in enumerate(dataset.targets) if not target["difficult"].any()]
    nodes, build = DETECTORS[name]
    weights = str(shared / "weights" / "mobilenet_v2_imagenet.pth")
    detector = build(dataset.classes, TorchvisionBackbone("mobilenet_v2", nodes, weights, frozen=["features.[0-3]"], frozen_norms=True))
    detector.load_start_weights()
    steps, rate = 160 if name == "ssd_focal_fpn" else 120, 2e-3 if name == "rfcn" else 1e-3
    assert overfit(detector, dataset, easy[:8], steps, rate) >= 0.9


class Small(Backbone):
    """Maps of stride 8, 16 and 32, of weights that a hundred steps are enough for."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.out_channels = [width, 2 * width, 2 * width]
        self.c3 = nn.Sequential(self.stage(3, width), self.stage(width, width), self.stage(width, width))
        self.c4, self.c5 = self.stage(width, 2 * width), self.stage(2 * width, 2 * width)

    @staticmethod
    def stage(a: int, b: int) -> nn.Module:
        halve, go_on = nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.Conv2d(b, b, 3, padding=1, bias=False)
        return nn.Sequential(halve, nn.BatchNorm2d(b), nn.ReLU(), go_on, nn.BatchNorm2d(b), nn.ReLU())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        c3 = self.c3(images)
        c4 = self.c4(c3)
        return {"c3": c3, "c4": c4, "c5": self.c5(c4)}


SIDES_96 = {"min_size": 96, "max_size": 96}
HEAD_96 = {"head_channels": 128, "proposals": (100, 50), "roi_batch_size": 64}
SHAPES = [[[12, 16], [18, 22]], [[24, 30], [32, 32]], [[40, 48], [56, 60]]]
DENSE_96 = {"scales": "linear", "extra_channels": [32]}

ON_DIGITS = {
    "ssdlite": lambda classes: SSDLite(classes, 96, Small(), **DENSE_96),
    "ssd_focal_fpn": lambda classes: SSD(classes, 96, Small(), FocalLoss(box_loss=IoULoss("giou")), fpn_channels=32, **DENSE_96),
    "dssd": lambda classes: DSSD(classes, 96, Small(), deconvolution_channels=32, prediction_channels=64, **DENSE_96),
    "retinanet": lambda classes: RetinaNet(
        classes, Small(), fpn_channels=32, anchor_sizes=[[12 * 2**step, 17 * 2**step] for step in range(5)], head_norms=True, **SIDES_96
    ),
    "fcos": lambda classes: FCOS(classes, Small(), fpn_channels=32, score_threshold=0.05, **SIDES_96),
    "yolov3": lambda classes: YOLOv3(classes, 96, Small(), YOLOLoss(prior=0.01), widths=[16, 32, 64], anchor_sizes=SHAPES),
    "faster_rcnn": lambda classes: FasterRCNN(
        classes, Small(), fpn_channels=32, anchor_sizes=[[12], [24], [48], [96]], **SIDES_96, **HEAD_96
    ),
}


@pytest.mark.parametrize("name", ON_DIGITS)
def test_overfits_eight_images_of_digits(tmp_path, name):
    root = write_digits(str(tmp_path / "digits"), {"train": 8, "val": 1})
    dataset = VOCDetection(str(root), "train")
    steps = 120 if name == "faster_rcnn" else 80
    assert overfit(ON_DIGITS[name](dataset.classes), dataset, range(8), steps, rate=5e-3) >= 0.9
