"""What several tests use: real data where it is at hand, and one small instance of each detector."""

import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_detect import (
    DSSD,
    FCOS,
    RFCN,
    SSD,
    Backbone,
    COCOMeanAveragePrecision,
    Detector,
    FasterRCNN,
    FocalLoss,
    HardNegativeMining,
    IoULoss,
    RetinaNet,
    SSDLite,
    TorchvisionBackbone,
    YOLOv3,
)

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    threads = max(1, (os.cpu_count() or 1) // workers)  # more threads than cores slow each other many times over
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of the processes that tests start

# processes are forked by a server without threads: forked from a test they could wait for ever for a lock that its threads held
torch.multiprocessing.set_forkserver_preload(["tests.data.test_download", "tests.test_losses", "tests.test_metrics", "tests.test_ranks"])

SHARED = Path(os.environ.get("LIT_DETECT_SHARED", Path(__file__).parents[2] / "shared"))
CLASSES = ["cat", "dog", "horse"]


class TinyBackbone(Backbone):
    """Two maps of stride 16 and 32, of a few thousand weights."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.out_channels = [width, width]
        sides = [3, width, width, width, width]
        self.stem = nn.Sequential(*(self.block(a, b) for a, b in itertools.pairwise(sides)))
        self.last = self.block(width, width)

    @staticmethod
    def block(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.stem(images)
        return {"fine": fine, "coarse": self.last(fine)}


class OneStride(TinyBackbone):
    """Two maps of stride 16, of different widths, as R-FCN's conv4 and dilated conv5."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.last = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.out_channels = [width, 2 * width]


class Conv4(TinyBackbone):
    """A map of stride 16, and a last layer that goes on from regions of it, as ResNet's conv5."""

    region_layers = ("last",)

    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.out_channels = [width]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"fine": self.stem(images)}

    def regions(self, pooled: Tensor) -> Tensor:
        return self.last(pooled).mean(dim=(2, 3))


DETECTORS: dict[str, Callable[..., Detector]] = {
    "ssd": lambda **kwargs: SSD(CLASSES, size=96, backbone=TinyBackbone(), scales="linear", extra_channels=[16], **kwargs),
    "ssd_resnet18": lambda **kwargs: SSD(
        CLASSES, size=96, backbone=TorchvisionBackbone("resnet18", ["layer2", "layer3"]), scales="linear", extra_channels=[16], **kwargs
    ),
    "ssdlite": lambda **kwargs: SSDLite(CLASSES, size=96, backbone=TinyBackbone(), extra_channels=[16], **kwargs),
    "yolov3": lambda **kwargs: YOLOv3(
        CLASSES, size=96, backbone=TinyBackbone(), anchor_sizes=[[[10, 13], [16, 30]], [[33, 23], [60, 60]]], widths=[8, 16], **kwargs
    ),
    "faster_rcnn_fpn": lambda **kwargs: FasterRCNN(
        CLASSES, TinyBackbone(), fpn_channels=16, head_channels=16, min_size=96, max_size=160, proposals=(50, 50), **kwargs
    ),
    "faster_rcnn_last_map": lambda **kwargs: FasterRCNN(
        CLASSES, TinyBackbone(), fpn=False, anchor_sizes=[[32, 64]], head_channels=16, min_size=96, max_size=160, **kwargs
    ),
    "faster_rcnn_c4": lambda **kwargs: FasterRCNN(
        CLASSES, Conv4(), fpn=False, anchor_sizes=[[32, 64]], min_size=96, max_size=160, proposals=(50, 50), roi_batch_size=32, **kwargs
    ),
    "faster_rcnn_v2": lambda **kwargs: FasterRCNN(
        CLASSES,
        TinyBackbone(),
        fpn_channels=16,
        fpn_norms=True,
        rpn_convs=2,
        head_convs=2,
        head_channels=16,
        min_size=96,
        max_size=160,
        proposals=(50, 50),
        ohem=True,
        roi_batch_size=16,
        box_loss=IoULoss("giou"),
        **kwargs,
    ),
    "faster_rcnn_roi_pool": lambda **kwargs: FasterRCNN(
        CLASSES,
        TinyBackbone(),
        fpn=False,
        roi_pooling="pool",
        anchor_sizes=[[32, 64]],
        head_channels=16,
        min_size=96,
        max_size=160,
        proposals=(50, 50),
        **kwargs,
    ),
    "rfcn": lambda **kwargs: RFCN(
        CLASSES, OneStride(), region_channels=16, grid=3, anchor_sizes=[[32, 64]], min_size=96, max_size=160, proposals=(50, 50), **kwargs
    ),
    "ssd_focal": lambda **kwargs: SSD(
        CLASSES,
        size=96,
        backbone=TinyBackbone(),
        scales="linear",
        extra_channels=[16],
        criterion=FocalLoss(box_loss=IoULoss("ciou")),
        **kwargs,
    ),
    "ssd_fpn": lambda **kwargs: SSD(
        CLASSES, size=96, backbone=TinyBackbone(), scales="linear", extra_channels=[16], fpn_channels=16, **kwargs
    ),
    "dssd": lambda **kwargs: DSSD(
        CLASSES,
        size=96,
        backbone=TinyBackbone(),
        scales="linear",
        extra_channels=[16],
        deconvolution_channels=16,
        prediction_channels=32,
        **kwargs,
    ),
    "retinanet": lambda **kwargs: RetinaNet(CLASSES, TinyBackbone(), fpn_channels=64, min_size=96, max_size=160, **kwargs),
    "retinanet_v2": lambda **kwargs: RetinaNet(
        CLASSES,
        TinyBackbone(),
        FocalLoss(box_loss=IoULoss()),
        fpn_channels=64,
        p6_from="c5",
        head_norms=True,
        min_size=96,
        max_size=160,
        train_min_sizes=[64, 96],
        **kwargs,
    ),
    "retinanet_mining": lambda **kwargs: RetinaNet(
        CLASSES, TinyBackbone(), HardNegativeMining(), fpn_channels=64, min_size=96, max_size=160, **kwargs
    ),
    "fcos": lambda **kwargs: FCOS(CLASSES, TinyBackbone(), fpn_channels=64, min_size=96, max_size=160, **kwargs),
    "fcos_focal": lambda **kwargs: FCOS(
        CLASSES, TinyBackbone(), FocalLoss(box_loss=IoULoss("giou")), fpn_channels=64, min_size=96, max_size=160, **kwargs
    ),
}


@pytest.fixture(params=DETECTORS)
def build(request: pytest.FixtureRequest) -> Callable[..., Detector]:
    """Every detector in turn: a function that makes it."""
    return DETECTORS[request.param]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def shared() -> Path:
    """The folder of real data that is not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real data in {SHARED} (or where LIT_DETECT_SHARED says)")
    return SHARED


def learnt_by_heart(detector, images, targets, steps, rate, momentum):
    """AP50 on the images that a detector is trained on, some steps of one cycle; with what momentum norms follow their statistics."""
    network = detector.network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum  # so few steps are over before statistics that follow more slowly are those of the weights
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        loss = sum(network(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    metric = COCOMeanAveragePrecision(detector.classes)
    with torch.no_grad():
        metric.update(network.eval()(images), list(targets))
    return metric.compute()["map_50"]


def random_batch(sizes: list[tuple[int, int]], boxes: list[int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of random pixels, and targets of as many random boxes as asked for."""
    images = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for height, width in sizes]
    targets = []
    for index, ((height, width), count) in enumerate(zip(sizes, boxes, strict=True)):
        limits = torch.tensor([width, height])
        corner = torch.rand(count, 2) * limits * 0.6
        sides = torch.rand(count, 2) * limits * 0.3 + 8
        targets.append(
            {
                "boxes": torch.cat([corner, torch.minimum(corner + sides, limits)], dim=1),
                "labels": torch.randint(1, len(CLASSES) + 1, (count,)),
                "image_id": torch.tensor(index),
            }
        )
    return images, targets


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """A VOC tree of four images with one box each, and one image without."""
    root = tmp_path / "VOC"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    names = [f"image{number}" for number in range(5)]
    for number, name in enumerate(names):
        write_image(root / "JPEGImages" / f"{name}.jpg", height=60, width=80)
        box = f"<bndbox><xmin>{11 + number}</xmin><ymin>21</ymin><xmax>40</xmax><ymax>50</ymax></bndbox>"
        item = f"<object><name>{CLASSES[number % 3]}</name><difficult>{number % 2}</difficult>{box}</object>" if number < 4 else ""
        size = "<size><width>80</width><height>60</height><depth>3</depth></size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{item}</annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names) + "\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("\n".join(names[:2]) + "\n")
    return root


@pytest.fixture
def coco_files(tmp_path: Path) -> tuple[Path, Path]:
    """A COCO folder and file with gaps in the category ids: two images, one of them with a crowd and a box of no area."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("b.jpg", "a.jpg"):
        write_image(folder / name, height=60, width=80)
    content = {
        "images": [{"id": 7, "file_name": "b.jpg", "width": 80, "height": 60}, {"id": 3, "file_name": "a.jpg", "width": 80, "height": 60}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 10, 20, 30], "area": 500, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 70, 50], "area": 3000, "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 7, "bbox": [5, 5, 0, 10], "area": 0, "iscrowd": 0},
        ],
        "categories": [{"id": 90, "name": "horse"}, {"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return folder, path


def write_image(path: Path, height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)


def write_video(path: Path, frames: Sequence[np.ndarray], rate: float = 10.0, codec: str = "mp4v") -> Path:
    """A video of RGB frames."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (width, height))
    if not writer.isOpened():
        pytest.skip(f"needs an OpenCV that encodes {codec}")
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path
