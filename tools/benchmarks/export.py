"""Latency of a detector by torch, torch.compile, ONNX Runtime and OpenVINO: one image on the CPU, in turn in one process.

    python tools/benchmarks/export.py --threads 1 --json export.json

SSDLite320 over MobileNetV3 and SSD300 over VGG16 with 20 classes, from a uint8 photograph of 640 x 427 pixels to detections in it.
The weights are random, but that the background's logit is raised until at most 300 scores pass the threshold. Before anything is timed
the files give the network's detections.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lit_detect import SSD, Detector, SSDLite
from lit_detect.cost import in_turn, machine
from lit_detect.export import images_to_check, write_graph
from lit_detect.export_check import check_detections, imported, load_exported
from lit_detect.models.compiling import compile_parts
from lit_detect.models.dense import class_layers

CLASSES = [f"class {number}" for number in range(20)]
PASSING = 300  # scores of an image that pass the threshold


DETECTORS: dict[str, type[Detector]] = {"SSDLite320, MobileNetV3": SSDLite, "SSD300, VGG16": SSD}  # with their defaults


def as_if_trained(detector: Detector, image: torch.Tensor) -> Detector:
    """Norms that fit the image, and the background's logit raised until `PASSING` scores of the image pass."""
    network: Any = detector.network
    layers = list(class_layers(network.head).values())
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    inputs = network.inputs([image, image.flip(-1)]).images
    network.train().predict(inputs)
    logits, _, _ = network.eval().predict(inputs[:1])
    low, high = 0.0, 50.0
    background = torch.eye(logits.shape[2])[0]
    for _ in range(30):
        middle = (low + high) / 2
        passing = int((network.criterion.scores(logits + middle * background) > network.post_process.score_threshold).sum())
        low, high = (middle, high) if passing > PASSING else (low, middle)
    for layer in layers:
        layer.bias.data[:: logits.shape[2]] += high
    return detector


def runs_of(detector: Detector, image: np.ndarray, folder: Path) -> dict[str, Callable[[int], Any]]:
    """What is timed, by name; each gives the same detections."""
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
    tensor = torch.from_numpy(pixels)
    compiled = copy.deepcopy(detector)
    compile_parts(compiled.network)
    found: dict[str, Callable[[int], Any]] = {
        "torch": lambda _: detector.network(tensor),
        "torch.compile": lambda _: compiled.network(tensor),
    }
    for name, suffix in (("ONNX Runtime", ".onnx"), ("OpenVINO", ".xml")):
        write_graph(detector, folder / f"graph{suffix}")
        run = load_exported(folder / f"graph{suffix}")
        print(name, check_detections(run, detector, {"photograph": image}))
        found[name] = lambda _, run=run: run(pixels)  # type: ignore[misc]
    return found


@torch.inference_mode()
def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch; the runtimes go by the process's cores")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    _, image = images_to_check(None, None, 2).popitem()
    rows: dict[str, dict[str, float]] = {}
    for name, make in DETECTORS.items():
        detector = as_if_trained(make(CLASSES), torch.from_numpy(image).permute(2, 0, 1))
        with tempfile.TemporaryDirectory() as folder:
            times = in_turn(runs_of(detector, image, Path(folder)), arguments.rounds, warm_up=3)
        rows[name] = {run: statistics.median(values) for run, values in times.items()}
    print(f"| ms an image | {' | '.join(next(iter(rows.values())))} |\n|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in row.values())} |")
    if arguments.json:
        versions = {package: imported(package).__version__ for package in ("onnxruntime", "openvino")}
        arguments.json.write_text(json.dumps({"machine": machine("cpu") | versions, "ms": rows}, indent=1))


if __name__ == "__main__":
    main()
