"""What COCO's AP costs: ours against torchmetrics as it comes (pycocotools) and on `faster_coco_eval`, all with AP of each class.

Made-up images of up to 14 targets and 100 detections each, of 80 classes. The metrics take turns in one process, which collects the
images and computes; the median of the rounds counts. All numbers and the classes' AP are compared first.

    python tools/benchmarks/evaluation.py --images 100 300 1000
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from lit_detect import COCOMeanAveragePrecision

CLASSES = [f"class {number}" for number in range(80)]
DETECTIONS = 100
OURS, DEFAULT, FASTER = "ours", "torchmetrics, pycocotools", "torchmetrics, faster_coco_eval"
Images = list[tuple[dict[str, Tensor], dict[str, Tensor]]]


def made_up(count: int) -> Images:
    """Detections and targets; half the detections are of a target's class and near it. Whole pixels, so that no format rounds them."""
    generator = torch.Generator().manual_seed(count)
    images = []
    for index in range(count):
        number = int(torch.randint(1, 15, (1,), generator=generator))
        corner = torch.randint(0, 400, (number, 2), generator=generator)
        boxes = torch.cat([corner, corner + torch.randint(10, 240, (number, 2), generator=generator)], dim=1).float()
        labels = torch.randint(1, len(CLASSES) + 1, (number,), generator=generator)
        near = torch.randint(0, number, (DETECTIONS,), generator=generator)
        found = boxes[near] + torch.randint(-4, 5, (DETECTIONS, 4), generator=generator)
        guessed = torch.randint(1, len(CLASSES) + 1, (DETECTIONS,), generator=generator)
        guessed = torch.where(torch.rand(DETECTIONS, generator=generator) < 0.5, labels[near], guessed)
        scores = torch.rand(DETECTIONS, generator=generator)
        target = {"boxes": boxes, "labels": labels, "image_id": torch.tensor(index)}
        images.append(({"boxes": found, "labels": guessed, "scores": scores}, target))
    return images


def torchmetrics_values(images: Images, **settings: Any) -> dict[str, float]:
    """What torchmetrics gives, by our names; its default thresholds are in float32, so it is told pycocotools' own."""
    thresholds: dict[str, Any] = {
        "iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(),
        "rec_thresholds": np.linspace(0, 1, 101).tolist(),
    }
    metric = MeanAveragePrecision(class_metrics=True, **thresholds, **settings)
    for found, target in images:
        metric.update([found], [target])
    values = metric.compute()
    classes = zip(values.pop("classes").tolist(), values.pop("map_per_class").tolist(), strict=True)
    values.pop("mar_100_per_class")
    values |= {f"ap/{CLASSES[label - 1]}": value for label, value in classes}
    return {name: float(value) for name, value in values.items() if value >= 0}


def our_values(images: Images) -> dict[str, float]:
    """What ours gives."""
    metric = COCOMeanAveragePrecision(CLASSES)
    for found, target in images:
        metric.update([found], [target])
    return metric.compute()


METRICS = {
    OURS: our_values,
    DEFAULT: lambda images: torchmetrics_values(images),
    FASTER: lambda images: torchmetrics_values(images, backend="faster_coco_eval"),
}


def measure(images: Images, rounds: int) -> dict[str, float]:
    """Median seconds of each, in turn in every round.

    Raises:
        AssertionError: the metrics differ.
    """
    times: dict[str, list[float]] = {name: [] for name in METRICS}
    for index in range(rounds + 1):
        results = {}
        for name, run in METRICS.items():
            gc.collect()  # one does not clean up after another
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                results[name] = run(images)
            times[name].append(time.perf_counter() - start)
        if index == 0:  # the round that warms up and is not counted
            for name, values in results.items():
                assert values.keys() == results[OURS].keys(), name
                assert all(abs(value - results[OURS][key]) < 1e-6 for key, value in values.items()), name
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="where to write the seconds")
    arguments = parser.parse_args()
    print(f"| images | {' | '.join(f'{name}, s' for name in METRICS)} | {DEFAULT} / ours | {FASTER} / ours |")
    print(f"|---{'|---' * (len(METRICS) + 2)}|")
    results = {}
    for count in arguments.images:
        seconds = results[count] = measure(made_up(count), arguments.rounds)
        ratios = [f"{seconds[name] / seconds[OURS]:.1f}" for name in (DEFAULT, FASTER)]
        print(f"| {' | '.join([str(count), *(f'{value:.2f}' for value in seconds.values()), *ratios])} |", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
