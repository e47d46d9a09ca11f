"""What a plain torchvision loop reaches with the recipe of configs/ssdlite320_mobilenetv2_bccd.yaml, to compare AP with.

Torchvision's SSD over the same network, its v2 transforms, SGD with one-cycle, the trunk at a tenth of the learning rate, its first
seven blocks and norms frozen; trained on trainval, evaluated on test.

    python tools/benchmarks/ssdlite_torchvision.py --root data/BCCD --weights mobilenet_v2.pth
"""

from __future__ import annotations

import argparse
import time

import torch
from ssdlite_epoch import networks, plain_loader

from lit_detect import COCOMeanAveragePrecision, VOCDetection
from lit_detect.data.feed import Feed


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data/BCCD")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="a torchvision weights name or a file")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    torch.manual_seed(0)
    voc = VOCDetection(args.root, "trainval")
    voc.read_annotations()
    loader = plain_loader(voc, args.workers)
    _, network = networks(voc.classes, args.weights)
    trunk = [p for p in network.backbone.backbone.parameters() if p.requires_grad]
    rest = [p for p in network.parameters() if p.requires_grad and not any(p is other for other in trunk)]
    groups = [{"params": trunk, "lr": 0.002}, {"params": rest, "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.002, 0.02], total_steps=args.epochs * len(loader))
    start = time.perf_counter()
    for _ in range(args.epochs):
        for images, targets in loader:
            loss = torch.stack(list(network(images, targets).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - start

    network.eval()
    metric = COCOMeanAveragePrecision(voc.classes)
    for image, target in Feed(VOCDetection(args.root, "test")):
        with torch.no_grad():
            metric.update(network([image / 255]), [target])
    values = metric.compute()
    print(f"torchvision: {args.epochs} epochs in {seconds:.0f} s ({seconds / args.epochs:.1f} s each)")
    print(", ".join(f"{name} {value:.3f}" for name, value in values.items() if name in ("map", "map_50") or name.startswith("ap/")))


if __name__ == "__main__":
    main()
