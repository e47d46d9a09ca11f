"""What a detector's cost depends on: Faster R-CNN, R-FCN and SSD over the same extractor, against proposals and against objects.

Latency of one image from uint8 pixels to detections, post-processing included; the detectors take turns in one process, and the
median of the rounds counts. Weights are random, which costs what trained ones do but for two things that depend on what is found:
- against proposals, nothing is left out by NMS or a threshold, so that as many proposals as asked for reach the second stage;
- against objects, the RPN's scores are set so that the anchors over so many random boxes, and no others, are found, and proposals that
  score under .05 are dropped; and every proposal or matched default box is a detection.

    python tools/benchmarks/cost.py --out cost.png
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lit_detect import RFCN, SSD, Detector, FasterRCNN, TorchvisionBackbone
from lit_detect.boxes import overlaps
from lit_detect.compare_plots import COLOURS as OF_DETECTORS
from lit_detect.compare_plots import draw_lines
from lit_detect.cost import gflops, in_turn, proposals

CLASSES = [f"class {number}" for number in range(20)]
SIZE = 320
PROPOSALS = [50, 100, 200, 300, 500, 1000, 2000]
OBJECTS = [1, 3, 10, 30, 100]
COLOURS = {
    "SSD": OF_DETECTORS["SSD"],
    "R-FCN": OF_DETECTORS["RFCN"],
    "Faster R-CNN, FPN": OF_DETECTORS["FasterRCNN"],
    "Faster R-CNN, conv5": "#8b2500",  # the same detector, darker
}


def detectors() -> dict[str, Detector]:
    """The same ResNet-50 under each; thresholds and limits so that nothing is dropped but where it is asked for."""
    atrous = {"replace_stride_with_dilation": [False, False, True]}
    two_stage: dict[str, Any] = {"min_size": SIZE, "max_size": SIZE, "rpn_nms_threshold": 2.0}
    single: dict[str, Any] = {"anchor_sizes": [[32, 64, 128, 256]]}
    conv5 = TorchvisionBackbone("resnet50", ["layer3"], region_layers=["layer4"])
    return {
        "SSD": SSD(CLASSES, SIZE, TorchvisionBackbone("resnet50", ["layer2", "layer3"]), scales="linear"),
        "R-FCN": RFCN(CLASSES, TorchvisionBackbone("resnet50", ["layer3", "layer4"], arguments=atrous), **two_stage, **single),
        "Faster R-CNN, FPN": FasterRCNN(CLASSES, TorchvisionBackbone("resnet50", [f"layer{n}" for n in (1, 2, 3, 4)]), **two_stage),
        "Faster R-CNN, conv5": FasterRCNN(CLASSES, conv5, fpn=False, roi_size=14, **two_stage, **single),
    }


def with_proposals(network: Any, count: int, images: Tensor) -> Callable[[int], Any]:
    """Run with so many proposals, where the network has any."""

    def run(round_number: int = 0) -> Any:
        with proposals(network, count):
            return network(images)

    return run


def with_objects(network: Any, count: int, images: Tensor) -> Callable[[int], Any]:
    """Run as if so many objects were found, and nothing else."""
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * (SIZE - 64)
    boxes = torch.cat([corner, corner + 24 + 40 * torch.rand(count, 2, generator=generator)], dim=1)
    two_stage = hasattr(network, "rpn")

    def scored(anchors: Tensor) -> Tensor:
        found = (overlaps(boxes[None], anchors)[0] >= 0.5).any(dim=0)
        return torch.where(found, 3.0, -9.0) + 0.01 * torch.rand(len(anchors), generator=generator)

    def plant_rpn(module: nn.Module, args: tuple[list[Tensor]], output: tuple[list[Tensor], list[Tensor]]) -> Any:
        grids = [tuple(scores.shape[-2:]) for scores in output[0]]
        strides = [[torch.tensor(SIZE // side) for side in grid] for grid in grids]
        of_maps = network.rpn.anchor_generator.grid_anchors(grids, strides)
        planted = [scored(anchors).view(1, *grid, -1).permute(0, 3, 1, 2) for anchors, grid in zip(of_maps, grids, strict=True)]
        return planted, [deltas * 0 for deltas in output[1]]

    def plant_ssd(module: nn.Module, args: Any, output: dict[str, Tensor]) -> Any:
        logits = torch.zeros_like(output["cls_logits"])
        logits[..., 1] = scored(network.anchors.boxes)
        return {**output, "cls_logits": logits}

    def run(round_number: int = 0) -> Any:
        if two_stage:
            network.rpn._pre_nms_top_n = network.rpn._post_nms_top_n = {"training": 1000, "testing": 1000}
            network.rpn.score_thresh, network.rpn.nms_thresh = 0.05, 0.7
        planted = network.rpn.head if two_stage else network.head
        hook = planted.register_forward_hook(plant_rpn if two_stage else plant_ssd)
        try:
            return network(images)
        finally:
            hook.remove()

    return run


def plot(times: dict[str, dict[tuple[str, int], float]], path: str) -> None:
    """Latency against proposals and against objects."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axis, (against, values) in zip(figure.subplots(1, 2), times.items(), strict=True):
        lines = {name: [(count, ms) for (model, count), ms in values.items() if model == name] for name in COLOURS}
        draw_lines(axis, lines, COLOURS, against)
    figure.suptitle(f"ResNet-50 at {SIZE} x {SIZE}, one image, {torch.get_num_threads()} CPU threads")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print the tables, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default="cost.png")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    networks: dict[str, Any] = {name: detector.network.eval() for name, detector in detectors().items()}
    for network in networks.values():
        if hasattr(network, "rpn"):
            nn.init.zeros_(network.rpn.head.bbox_pred.weight)  # random ones move boxes out of the image, where they are left out
    images = torch.randint(0, 256, (1, 3, SIZE, SIZE), dtype=torch.uint8)
    times: dict[str, dict[tuple[str, int], float]] = {}
    with torch.inference_mode():
        print("| | parameters, M | GFLOPs, 50 proposals | 300 | 2000 |\n|---|---|---|---|---|")
        for name, network in networks.items():
            total = sum(parameter.numel() for parameter in network.parameters()) / 1e6
            counts = " | ".join(f"{gflops(with_proposals(network, count, images)):.1f}" for count in (50, 300, 2000))
            print(f"| {name} | {total:.1f} | {counts} |", flush=True)
        for against, counts, make in (("proposals", PROPOSALS, with_proposals), ("objects", OBJECTS, with_objects)):
            runs = {(name, count): make(network, count, images) for name, network in networks.items() for count in counts}
            of_rounds = in_turn(runs, arguments.rounds, limit=10)  # what takes long has fewer rounds
            times[against] = {key: statistics.median(values) for key, values in of_rounds.items()}
            print(f"\n| ms an image against {against} | {' | '.join(map(str, counts))} |\n|---{'|---' * len(counts)}|")
            for name in networks:
                print(f"| {name} | {' | '.join(f'{times[against][name, count]:.0f}' for count in counts)} |", flush=True)
    plot(times, arguments.out)


if __name__ == "__main__":
    main()
