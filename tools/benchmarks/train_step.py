"""A training step (forward, losses, backward): ours against torchvision's and against what no detector can save, in turn in one process.

    python tools/benchmarks/train_step.py --json train_step.json
    python tools/benchmarks/train_step.py --device cuda --precision bf16 --batch 32 --detectors SSD300
    python tools/benchmarks/train_step.py --growth
    python tools/benchmarks/train_step.py --inference

Both have the same weights, images and targets, of 90 classes, and give the same losses, which is checked first. The floor of a one-stage
detector is the forward and backward pass of its extractor and heads. The optimizer is left out, which costs all the same. With
--inference detections are timed in place of steps. Each is as its own package runs it: ours with channels last and from uint8 images,
torchvision's from floats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TheirFasterRCNN
from torchvision.models.detection import RetinaNet as TheirRetinaNet
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from lit_detect import SSD, Detector, FasterRCNN, RetinaNet, SSDLite, TorchvisionBackbone
from lit_detect.cost import in_turn, machine
from lit_detect.models.compiling import compile_parts
from lit_detect.models.dense import DenseNetwork
from lit_detect.models.weights import start_from

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


def names(count: int) -> list[str]:
    """Names of classes."""
    return [f"class {number}" for number in range(1, count + 1)]


def ssdlite(classes: int) -> tuple[Detector, nn.Module]:
    """SSDLite320 on MobileNetV3."""
    nodes, half = ["features.13.block.0", "features.16"], [0.5] * 3
    backbone = TorchvisionBackbone("mobilenet_v3_large", nodes, mean=half, std=half, arguments={"reduced_tail": True})
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes + 1)
    return SSDLite(names(classes), backbone=backbone), theirs


def ssd(classes: int) -> tuple[Detector, nn.Module]:
    """SSD300 on VGG16."""
    return SSD(names(classes)), ssd300_vgg16(weights=None, weights_backbone=None, num_classes=classes + 1)


def retinanet(classes: int) -> tuple[Detector, nn.Module]:
    """RetinaNet on ResNet-50, its first two stages and all norms frozen."""
    extra = LastLevelP6P7(256, 256)
    trunk = resnet_fpn_backbone(backbone_name="resnet50", weights=None, returned_layers=[2, 3, 4], extra_blocks=extra)
    return RetinaNet(names(classes)), TheirRetinaNet(trunk, classes)


def faster_rcnn(classes: int) -> tuple[Detector, nn.Module]:
    """Faster R-CNN on ResNet-50 with FPN, its first two stages and all norms frozen."""
    return FasterRCNN(names(classes)), TheirFasterRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), classes + 1)


class Case(NamedTuple):
    """A detector, the size of its images, and how many fit a step on a CPU."""

    make: Callable[[int], tuple[Detector, nn.Module]]
    size: tuple[int, int]
    batch: int


CASES = {
    "SSDLite320": Case(ssdlite, (320, 320), 16),
    "SSD300": Case(ssd, (300, 300), 4),
    "RetinaNet": Case(retinanet, (480, 640), 1),
    "Faster R-CNN": Case(faster_rcnn, (480, 640), 2),
}


class Steps:
    """One detector and torchvision's, and a batch that both learn.

    Args:
        name: of `CASES`.
        batch: images.
        boxes: of each image.
        classes: how many.
        arguments: the command line's device, precision, compile.
    """

    def __init__(self, name: str, batch: int, boxes: int, classes: int, arguments: argparse.Namespace) -> None:
        self.device, self.dtype = arguments.device, DTYPES[arguments.precision]
        detector, theirs = CASES[name].make(classes)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(theirs.state_dict(), f"{folder}/weights.pth")
            start_from(detector.network, f"{folder}/weights.pth", detector.classes, detector.class_outputs())
        height, width = CASES[name].size
        self.images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
        self.floats = list((self.images / 255).to(self.device))
        corner = torch.rand(batch, boxes, 2) * torch.tensor([width, height]) * 0.7
        corners = torch.cat([corner, corner + 8 + torch.rand(batch, boxes, 2) * 0.29 * min(height, width)], dim=2)
        labels = torch.randint(1, classes + 1, (batch, boxes))
        images = zip(corners.to(self.device), labels.to(self.device), strict=True)
        self.targets = [{"boxes": own, "labels": of_image} for own, of_image in images]
        self.images = self.images.to(self.device)
        self.theirs = theirs.to(self.device).train()
        self.ours = detector.network.to(self.device, memory_format=torch.channels_last).train()
        self.check(tolerance=1e-3 if isinstance(self.ours, DenseNetwork) else 0.05)
        if arguments.compile:
            compile_parts(detector.network)
        self.runs: dict[str, Callable[[], None]] = {"torchvision": self.their_step, "lit_detect": self.step}
        if arguments.inference:
            self.theirs.eval()
            self.ours.eval()
            self.runs = {"torchvision": self.their_detections, "lit_detect": self.detections}
        elif isinstance(self.ours, DenseNetwork):
            with torch.no_grad():
                self.normalised = self.ours.inputs(self.images).images
            self.runs["floor"] = self.floor

    def their_losses(self) -> dict[str, Tensor]:
        """Torchvision's."""
        first = 0 if isinstance(self.theirs, TheirRetinaNet) else 1  # of their labels
        targets = [{**target, "labels": target["labels"] - 1 + first} for target in self.targets]
        losses: dict[str, Tensor] = self.theirs(self.floats, targets)
        return losses

    def check(self, tolerance: float) -> None:
        """Both cost the same; a two-stage detector's proposals nearly tie with random weights, so that rounding picks some of them.

        Raises:
            AssertionError: they do not.
        """
        totals = []
        for losses in (self.their_losses, lambda: self.ours(self.images, self.targets)):
            with torch.no_grad(), without_momentum(self.theirs, self.ours):
                torch.manual_seed(1)
                totals.append(float(sum(losses().values())))
        assert abs(totals[0] - totals[1]) <= tolerance * totals[0], totals

    def precision(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    @torch.inference_mode()
    def their_detections(self) -> None:
        with self.precision():
            self.theirs(self.floats)

    @torch.inference_mode()
    def detections(self) -> None:
        with self.precision():
            self.ours(self.images)

    def their_step(self) -> None:
        with self.precision():
            losses = self.their_losses()
        sum(losses.values()).backward()  # type: ignore[union-attr]

    def step(self) -> None:
        with self.precision():
            losses = self.ours(self.images, self.targets)
        sum(losses.values()).backward()

    def floor(self) -> None:
        with self.precision():
            logits, deltas, _ = self.ours.predict(self.normalised)
        torch.autograd.backward([logits, deltas], [torch.ones_like(logits), torch.ones_like(deltas)])


@contextmanager
def without_momentum(*networks: nn.Module) -> Iterator[None]:
    """Norms that take a batch's statistics and keep none of them."""
    norms = [module for network in networks for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def measure(name: str, arguments: argparse.Namespace, batch: int | None = None, boxes: int = 8, classes: int = 90) -> dict[str, Any]:
    """Medians in milliseconds an image, their ratios, and on a GPU the most memory that our step takes."""
    torch.manual_seed(0)
    batch = batch or arguments.batch or CASES[name].batch
    steps = Steps(name, batch, boxes, classes, arguments)
    times = in_turn({name: partial(timed, run, arguments.device) for name, run in steps.runs.items()}, arguments.rounds, limit=40)
    each = {name: statistics.median(values) / batch for name, values in times.items()}
    row: dict[str, Any] = {"detector": name, "batch": batch, "boxes": boxes, "classes": classes}
    row |= {f"{name}_ms": value for name, value in each.items()}
    row["torchvision_over_ours"] = each["torchvision"] / each["lit_detect"]
    if "floor" in each:
        row |= {f"{name}_over_floor": each[run] / each["floor"] for name, run in (("ours", "lit_detect"), ("torchvision", "torchvision"))}
    if arguments.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        steps.runs["lit_detect"]()
        row["memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
    if arguments.profile:
        row["profile"] = {run: profile(step, arguments.device) for run, step in steps.runs.items()}
    return row


def timed(run: Callable[[], None], device: str, _: int) -> None:
    """Run, and wait for a GPU to be done."""
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def profile(step: Callable[[], None], device: str) -> dict[str, float]:
    """What a step makes a GPU do: kernels started, waits of the processor for it, and the share of time in which it computes nothing."""
    start = time.perf_counter()
    timed(step, device, 0)
    took = 1e6 * (time.perf_counter() - start)
    with torch.profiler.profile() as profiler:
        timed(step, device, 0)
    events = profiler.events()
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA and "Mem" not in event.name]
    return {
        "kernels": len(kernels),
        "waits": sum(event.name in ("cudaStreamSynchronize", "cudaDeviceSynchronize") for event in events) - 1,  # one is ours
        "idle": max(0.0, 1 - sum(kernel.device_time_total for kernel in kernels) / took),
    }


COLUMNS = {
    "detector": "",
    "batch": "batch",
    "boxes": "boxes an image",
    "classes": "classes",
    "torchvision_ms": "torchvision, ms an image",
    "lit_detect_ms": "lit_detect",
    "floor_ms": "floor",
    "torchvision_over_ours": "torchvision / lit_detect",
    "torchvision_over_floor": "torchvision / floor",
    "ours_over_floor": "lit_detect / floor",
    "memory_gb": "GiB",
}


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=DTYPES, default="32")
    parser.add_argument("--compile", action="store_true", help="compile our extractor and heads")
    parser.add_argument("--batch", type=int, help="images a step; by default what suits a CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--inference", action="store_true", help="detections in place of training steps")
    parser.add_argument("--profile", action="store_true", help="count kernels and waits of a step, for the JSON")
    parser.add_argument("--growth", action="store_true", help="SSDLite320 against batch size, boxes an image and classes")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings: list[dict[str, Any]] = [{"name": name} for name in arguments.detectors]
    if arguments.growth:
        changes = [{"batch": count} for count in (2, 4, 16)] + [{"boxes": count} for count in (1, 20, 100)]
        settings = [{"name": "SSDLite320", **change} for change in (*changes, {"classes": 20}, {"classes": 365})]
        settings += [{"name": "SSD300", "boxes": count} for count in (1, 20, 100)]
    rows: list[dict[str, Any]] = []
    print(f"| {' | '.join(COLUMNS.values())} |\n|---{'|---' * (len(COLUMNS) - 1)}|")
    for setting in settings:
        rows.append(measure(arguments=arguments, **setting))
        cells = (rows[-1].get(name, "") for name in COLUMNS)
        print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True)
    if arguments.json:
        measured = {"machine": machine(arguments.device), "precision": arguments.precision, "compile": arguments.compile, "rows": rows}
        arguments.json.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
