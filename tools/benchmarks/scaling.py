"""How training scales: a step alone, beside other processes, and with their gradients averaged, in turn in one group of processes.

    python tools/benchmarks/scaling.py --ranks 2 --json scaling.json
    python tools/benchmarks/scaling.py --project

Each process has one thread. *alone*: the first steps while the others wait; *beside*: all step, and nothing is exchanged, so that what it
takes longer is what they take from each other (memory, caches, clock); *together*: a step of plain ddp, whose excess over *beside* is
communication, with what DistributedDataParallel does for it. A round of a case takes what its slowest process takes. With --project
nothing is measured: a model of the same step on up to 64 GPUs, from the bytes that are exchanged and from bandwidths that are assumed;
docs/scaling.md has both.
"""

from __future__ import annotations

import argparse
import copy
import json
import socket
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lit_detect import SSD, COCOMeanAveragePrecision, Detector, FasterRCNN, SSDLite, TorchvisionBackbone
from lit_detect.cost import in_turn, machine
from lit_detect.ranks import gathered

CLASSES = [f"class {number}" for number in range(1, 81)]
MIB = 2**20


def ssd(size: int = 96) -> Detector:
    """The quickstart's SSD on ResNet-18."""
    backbone = TorchvisionBackbone("resnet18", ["layer2", "layer3"])
    return SSD(CLASSES, size=size, backbone=backbone, scales="linear", extra_channels=[128])


def ssdlite() -> Detector:
    """SSDLite320 on MobileNetV3, torchvision's reduced tail."""
    nodes = ["features.13.block.0", "features.16"]
    return SSDLite(CLASSES, backbone=TorchvisionBackbone("mobilenet_v3_large", nodes, arguments={"reduced_tail": True}))


DETECTORS: dict[str, tuple[Callable[[], Detector], int]] = {"SSD96, ResNet-18": (ssd, 96), "SSDLite320, MobileNetV3": (ssdlite, 320)}


def batch(count: int, size: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Images of noise with 8 boxes each."""
    corner = torch.rand(count, 8, 2) * size * 0.6
    boxes = torch.cat([corner, corner + 8 + torch.rand(count, 8, 2) * size * 0.3], dim=2)
    targets = [{"boxes": own, "labels": torch.randint(1, 81, (8,))} for own in boxes]
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8), targets


def measure(rank: int, arguments: argparse.Namespace, port: int, results: Any) -> None:
    """What one process does."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=arguments.ranks)
    for name, (make, size) in DETECTORS.items():
        network = make().network.to(memory_format=torch.channels_last).train()
        wrapped = DistributedDataParallel(copy.deepcopy(network))  # whose hooks would wait for the others in a step of one alone
        images, targets = batch(arguments.batch, size)

        def step(round: int, model: nn.Module, images: Tensor = images, targets: Any = targets) -> None:
            sum(model(images, targets).values()).backward()
            model.zero_grad(set_to_none=True)

        def beside(round: int, network: nn.Module = network, step: Callable[..., None] = step) -> None:
            with patch("lit_detect.losses.mean_over_ranks", lambda count: count.clamp(min=1)):  # nothing is exchanged
                step(round, network)

        cases = {"alone": beside if rank == 0 else lambda round: None, "beside": beside, "together": partial(step, model=wrapped)}
        # all processes begin a case at once
        interleaved = {key: run for case, step_of in cases.items() for key, run in ((f"wait {case}", wait), (case, step_of))}
        times = in_turn(interleaved, arguments.rounds, warm_up=1)
        of_ranks = gathered([{case: times[case] for case in cases}])
        if rank == 0:
            slowest = {case: [max(of_round) for of_round in zip(*(one[case] for one in of_ranks), strict=True)] for case in cases}
            gradients = sum(4 * parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
            results.put((name, gradients, {case: statistics.median(ms) for case, ms in slowest.items()}))
    rows = torch.rand(arguments.images // arguments.ranks * 109, 8)  # of 100 detections and 8 targets an image
    metric = COCOMeanAveragePrecision(CLASSES)

    def gather(round: int) -> None:
        metric.rows = [rows]
        metric._sync_dist()

    times = in_turn({"wait": wait, "gather": gather}, 5)
    if rank == 0:
        results.put(("gather", rows.numel() * 4 * arguments.ranks, {"gather": statistics.median(times["gather"])}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def wait(round: int) -> None:
    """Wait for all processes."""
    torch.distributed.barrier()


def report(found: list[tuple[str, int, dict[str, float]]], arguments: argparse.Namespace) -> None:
    """Print the table."""
    ranks = arguments.ranks
    print(f"| a step of {arguments.batch} images on each process | gradients, MB | alone, ms | {ranks} beside | {ranks} together |", end="")
    print(f" images/s, 1 | images/s, {ranks} | of {ranks} times | communication |\n|---|---|---|---|---|---|---|---|---|")
    for name, size, ms in found:
        if name == "gather":
            print(f"\nThe metric's gather of {arguments.images} images: {size / 1e6:.1f} MB, {ms['gather']:.0f} ms.")
            continue
        one, all_of_them = (1000 * arguments.batch / ms["alone"], 1000 * arguments.batch * ranks / ms["together"])
        share = (ms["together"] - ms["beside"]) / ms["together"]
        print(f"| {name} | {size / 1e6:.1f} | {ms['alone']:.0f} | {ms['beside']:.0f} | {ms['together']:.0f} |", end="")
        print(f" {one:.1f} | {all_of_them:.1f} | {all_of_them / one / ranks:.2f} | {share:.1%} |")


def exchange(ranks: int, size: float, per_node: int, within: float, between: float, latency: float) -> float:
    """Seconds of a ring all-reduce: each process sends 2 (n - 1) / n of the bytes in 2 (n - 1) messages, over the slowest link."""
    bandwidth = within if ranks <= per_node else between
    return 2 * (ranks - 1) * (size / ranks / bandwidth + latency) if ranks > 1 else 0.0


def efficiency(ranks: int, step: float, size: int, within: float, between: float) -> float:
    """Images a second over those of as many single devices.

    Plain ddp sends gradients while the backward pass, two thirds of a step, goes on; the first bucket is 1 MiB and the rest 25 MiB
    (torch's `bucket_cap_mb`), and the last one is full only when the backward pass is over.
    """
    link = {"per_node": 8, "within": within, "between": between, "latency": 15e-6}
    last = (size - MIB) % (25 * MIB) or min(size, 25 * MIB)
    hidden, shown = (exchange(ranks, part, **link) for part in (size - last, last))
    return step / (step + shown + max(0.0, hidden - step * 2 / 3))


def project() -> None:
    """Print the model of 1 to 64 GPUs."""
    numbers = (1, 2, 4, 8, 16, 32, 64)
    links = {"100 Gbit/s": 12.5e9, "10 Gbit/s": 1.25e9}
    print(f"| efficiency of a step; gradients; ms on one GPU; network | {' | '.join(map(str, numbers))} |")
    print("|---" * (len(numbers) + 1) + "|")
    for name, make in {"SSDLite320": ssdlite, "Faster R-CNN, ResNet-50 FPN": lambda: FasterRCNN(CLASSES)}.items():
        size = sum(4 * parameter.numel() for parameter in make().network.parameters() if parameter.requires_grad)
        for step in (0.03, 0.1) if name == "SSDLite320" else (0.2,):
            for link, bandwidth in links.items():
                row = (f"{efficiency(ranks, step, size, 100e9, bandwidth):.2f}" for ranks in numbers)
                print(f"| {name}; {size / 1e6:.0f} MB; {1000 * step:.0f}; {link} | {' | '.join(row)} |")
    print("\nSeconds of an epoch of COCO (118,287 images, 640 a second and GPU), and of its validation (5000 images):\n")
    print(f"| GPUs | {' | '.join(map(str, numbers))} |")
    print("|---" * (len(numbers) + 1) + "|")
    rows = {
        "training": [118287 / 640 / ranks for ranks in numbers],
        "validation: detections": [5000 / 640 / ranks for ranks in numbers],
        "validation: gather": [5000 * 109 * 32 / 1.25e9 if ranks > 1 else 0.0 for ranks in numbers],
        "validation: AP on the first rank": [22.0 for _ in numbers],
    }
    rows["share of training"] = [column[0] / sum(column) for column in zip(*rows.values(), strict=True)]
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.2f}' if value < 10 else f'{value:.0f}' for value in values)} |")


def main() -> None:
    """Measure or project, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="images of a step on each process")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=5000, help="of the metric's gather")
    parser.add_argument("--project", action="store_true", help="print the model of many GPUs instead")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    if arguments.project:
        project()
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(measure, (arguments, port, results), nprocs=arguments.ranks)
    found = [results.get() for _ in range(len(DETECTORS) + 1)]
    report(found, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine("cpu"), "batch": arguments.batch, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
