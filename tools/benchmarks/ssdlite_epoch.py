"""Training speed of our SSDLite against a plain torchvision loop over the same network, on BCCD.

Both train SSDLite 320 over MobileNetV2 with the first seven blocks and all norms frozen, batch 8, SGD, colour jitter and flip:
torchvision's SSD with its v2 transforms on PIL images, and ours through `DetectionDataModule` and `Detector`. They take turns by
chunks of steps in one process, after one chunk each that is not counted; medians over chunks are compared.

    python tools/benchmarks/ssdlite_epoch.py --root data/BCCD --chunks 5
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import albumentations as A
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD as ReferenceSSD  # noqa: N811
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes

from lit_detect import DetectionDataModule, SSDLite, TorchvisionBackbone, VOCDetection

BATCH = 8
JITTER = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.05, 0.05)}
SCALES = [0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0]  # as in configs/ssdlite320_mobilenetv2_bccd.yaml


class PlainDataset(Dataset[Any]):
    """What a user writes for torchvision: PIL images, tv_tensors, v2 transforms."""

    def __init__(self, voc: VOCDetection) -> None:
        self.voc = voc
        jitter = v2.ColorJitter(**JITTER)
        self.transforms = v2.Compose(
            [v2.PILToTensor(), v2.RandomApply([jitter], p=0.5), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self) -> int:
        return len(self.voc)

    def __getitem__(self, index: int) -> Any:
        image = Image.open(self.voc.root / "JPEGImages" / self.voc.file_name(index)).convert("RGB")
        target = self.voc.targets[index]
        boxes = BoundingBoxes(torch.as_tensor(target["boxes"]), format="XYXY", canvas_size=image.size[::-1])
        return self.transforms(image, {"boxes": boxes, "labels": torch.as_tensor(target["labels"])})


def plain_loader(voc: VOCDetection, workers: int) -> DataLoader[Any]:
    """Shuffled batches of lists, as torchvision's detectors take them."""
    dataset, persistent = PlainDataset(voc), workers > 0
    arguments = {"shuffle": True, "drop_last": True, "num_workers": workers, "persistent_workers": persistent}
    return DataLoader(dataset, BATCH, collate_fn=lambda samples: tuple(zip(*samples, strict=True)), **arguments)


def networks(classes: list[str], weights: str | None = None) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours, and torchvision's SSD over a copy of the same extractor, layers and heads, in training."""
    nodes = ["features.14.conv.0", "features.18"]
    backbone = TorchvisionBackbone("mobilenet_v2", nodes, weights, frozen=["features.[0-6]"], frozen_norms=True)
    backbone.load_weights()
    ours = SSDLite(classes, backbone=backbone, scales=SCALES).network
    trunk, head = copy.deepcopy(ours.backbone), copy.deepcopy(ours.head)
    boxes = DefaultBoxGenerator([[2, 3]] * 6, scales=SCALES)
    theirs = ReferenceSSD(
        trunk, boxes, (320, 320), len(classes) + 1, head=head,
        score_thresh=0.001, nms_thresh=0.55, detections_per_img=300, topk_candidates=300,
    )  # fmt: skip
    return ours.train(), theirs.train()


def forever(loader: DataLoader[Any]) -> Iterator[Any]:
    """Batches without end."""
    while True:
        yield from loader


def plain_steps(network: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Any]) -> Callable[[int], None]:
    """A function that takes so many training steps."""

    def steps(count: int) -> None:
        for images, targets in islice(batches, count):
            loss = torch.stack(list(network(images, targets).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data/BCCD")
    parser.add_argument("--chunks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="steps a chunk")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    voc = VOCDetection(args.root, "trainval")
    ours, theirs = networks(voc.classes)
    ours.to(memory_format=torch.channels_last)  # as Detector.setup does

    jitter = A.ColorJitter(**JITTER, p=0.5)
    data = DetectionDataModule(voc, transforms=[A.Resize(320, 320), jitter, A.HorizontalFlip()], batch_size=BATCH, num_workers=args.workers)
    data.setup("fit")
    plain = plain_loader(voc, args.workers)

    def sgd(network: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-4, momentum=0.9, weight_decay=5e-4)

    runs = {
        "torchvision": plain_steps(theirs, sgd(theirs), forever(plain)),
        "lit_detect": plain_steps(ours, sgd(ours), forever(data.train_dataloader())),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for chunk in range(args.chunks + 1):
        for name, steps in runs.items():
            start = time.perf_counter()
            steps(args.steps)
            if chunk:
                seconds[name].append((time.perf_counter() - start) / args.steps / BATCH)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"| | ms an image | s an epoch of {len(voc)} images |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value * 1000:.1f} | {value * len(voc):.1f} |")
    print(f"\ntorchvision / lit_detect: {medians['torchvision'] / medians['lit_detect']:.2f}")


if __name__ == "__main__":
    main()
