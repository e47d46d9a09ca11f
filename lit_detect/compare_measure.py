"""What ``compare`` measures of one trained model, in a process of its own."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_detect.cost import Pass, PeakMemory, detection_pass, energy_counter, gflops, images_per_second
from lit_detect.data.datamodule import DetectionDataModule
from lit_detect.detector import Detector
from lit_detect.lightning_cli import read_config

__all__ = ["load_detector", "measure", "validation_images", "write_json"]

# of a row, and what `validate` calls them
METRICS = {"ap": "map", "ap50": "map_50", "ap75": "map_75", "ap_small": "map_small", "ap_medium": "map_medium", "ap_large": "map_large"}
ENERGY_SECONDS = 3.0  # for so long images are looked at where energy is counted, since the counters move in steps


def load_detector(checkpoint: Path | str) -> Detector:
    """A trained detector of whatever class the checkpoint says, on the CPU and in eval.

    Raises:
        InputError: the checkpoint does not say it: its class is in a script, which cannot be imported.
    """
    return Detector.load_from_checkpoint(checkpoint, map_location="cpu").eval()


def validation_images(data: DetectionDataModule, count: int) -> list[tuple[Tensor, int]]:
    """Images ``(3, H, W)`` uint8 of the validation set, evenly from all of it, and how many boxes each has."""
    data.setup("validate")
    feed = data.feeds["val"]
    step = max(1.0, len(feed) / count)
    samples = [feed[int(index * step)] for index in range(min(count, len(feed)))]
    return [(image, len(target["boxes"])) for image, target in filter(None, samples)]


def measure(config: Path, checkpoint: Path, device: str, precision: str, count: int) -> Iterator[dict[str, Any]]:
    """What a model gives and costs; what cannot be measured here is absent.

    It is given twice: before the best batch size is searched, which may end the process for want of memory, and whole.

    Args:
        config: of the training; its data is read.
        checkpoint: the trained model.
        device: ``cpu`` or ``cuda``.
        precision: see `lit_detect.cost.detection_pass`.
        count: how many images of the validation set are looked at, but for AP, which is that of all.

    Yields:
        A row of ``compare.json``, without latency: see `lit_detect.compare`.
    """
    data, _ = read_config(config, with_model=False)
    images = [image for image, _ in validation_images(data, count)]
    with PeakMemory(device) as memory:  # first, while nothing else has been in memory
        detector = load_detector(checkpoint)
        detect = detection_pass(detector.network, device, precision)
        for image in images:
            detect([image])
    inputs, backbone = detector.network.inputs, detector.backbone
    row: dict[str, Any] = {
        "detector": type(detector).__name__,
        "extractor": getattr(backbone, "name", type(backbone).__name__),
        "input_size": getattr(inputs, "size", None) or getattr(inputs, "min_size", None),
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "fpn_channels": detector.hparams.get("fpn_channels"),
        "criterion": type(detector.network.criterion).__name__ if hasattr(detector.network, "criterion") else None,
        "gflops": gflops(lambda: detect(images[:1])),
        "memory_mb": memory.megabytes,
    }
    row |= validated(detector, data, device, precision)
    row = {name: value for name, value in row.items() if value is not None}
    yield row
    detect = detection_pass(detector.network, device, precision)  # the trainer has taken it back to the CPU
    if (joules := joules_an_image(detect, images, device)) is not None:
        row["joules_an_image"] = joules
    speeds = images_per_second(detect, images)
    row["batch_size"], row["images_per_second"] = max(speeds.items(), key=lambda item: item[1])
    yield row


def validated(detector: Detector, data: DetectionDataModule, device: str, precision: str) -> dict[str, Any]:
    """AP, and on how much; None where `validate` gives no such value."""
    trainer = Trainer(
        accelerator=device,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (metrics,) = trainer.validate(detector, data, verbose=False)
    targets = detector.metrics["val"][0].targets
    counts = {"validation_images": len(targets), "validation_boxes": sum(len(target["boxes"]) for target in targets)}
    return {**{name: metrics.get(f"val/{key}") for name, key in METRICS.items()}, **counts}


def joules_an_image(detect: Pass, images: list[Tensor], device: str) -> float | None:
    """Energy an image, one at a time; None where nothing counts it."""
    counter = energy_counter(device)
    if counter is None:
        return None
    start, before, seen = time.perf_counter(), counter(), 0
    while time.perf_counter() - start < ENERGY_SECONDS:
        detect([images[seen % len(images)]])
        seen += 1
    return (counter() - before) / seen


def write_json(path: Path, content: Any) -> None:
    """Write a file that is whole whenever it is there."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps(content, indent=1))
    half.replace(path)


def main() -> None:
    """Measure, and write the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("config", "checkpoint", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for row in measure(arguments.config, arguments.checkpoint, arguments.device, arguments.precision, arguments.images):
        write_json(arguments.out, row)


if __name__ == "__main__":
    main()
