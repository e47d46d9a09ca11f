"""What zoom augmentation brings to SSD: the same steps on the same images, with and without, AP by the size of the objects.

    python tools/benchmarks/zoom.py --out zoom.json
    python tools/benchmarks/zoom.py --voc data/VOCdevkit/VOC2012 --weights IMAGENET1K_V1 --steps 12000 --batch-size 32 --workers 8

The first trains SSD over ResNet-18 from scratch on handwritten digits at low resolution; the second SSD over MobileNetV2 on the
`train` set of a VOC root, evaluated on its `val`. Each way of zooming is trained once with each seed. Prints a Markdown table of
means over the seeds, by COCO's sizes (small < 32^2 pixels of area <= medium < 96^2 <= large, in pixels of the original images).
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import albumentations as A
import torch
from lightning.pytorch import Trainer, seed_everything

from lit_detect import (
    SSD,
    DetectionDataModule,
    DetectionDataset,
    DigitsVOC,
    OneCycle,
    RandomIoUCrop,
    RandomPhotometricDistort,
    RandomResizedZoom,
    RandomZoomOut,
    TorchvisionBackbone,
    VOCDetection,
)
from lit_detect.data.digits import write_digits

WAYS = {
    "no zoom": {},
    "zoom-in (IoU crop)": {"crop": RandomIoUCrop()},
    "zoom-out": {"zoom_out": RandomZoomOut()},
    "both": {"zoom_out": RandomZoomOut(), "crop": RandomIoUCrop()},
}
DIGITS_SIZE, VOC_SIZE = 64, 300  # sides of the networks' input in pixels; digits are images of 96
KEYS = {"map": "AP", "map_50": "AP50", "map_small": "small", "map_medium": "medium", "map_large": "large"}


def digits(images: int) -> tuple[dict[str, DetectionDataset], SSD, list[A.BasicTransform]]:
    """Data, a detector, and what is done to the images beside zooming."""
    root = str(write_digits(str(Path(tempfile.mkdtemp()) / "digits"), {"train": images or 3000, "val": 500}))
    sets = {name: DigitsVOC(name, root) for name in ("train", "val")}
    backbone = TorchvisionBackbone("resnet18", ["layer2", "layer3"])
    adamw = partial(torch.optim.AdamW, lr=0.002, weight_decay=0.05)
    ratios, scales = [[2, 3], [2, 3], [2], [2]], [0.16, 0.33, 0.6, 0.8, 0.95]
    detector = SSD(
        sets["val"].classes,
        size=DIGITS_SIZE,
        backbone=backbone,
        extra_channels=[128],
        scales=scales,
        aspect_ratios=ratios,
        optimizer=adamw,
        lr_scheduler=OneCycle(pct_start=0.2),
    )
    return sets, detector, [A.ColorJitter()]


def voc(root: str, weights: str) -> tuple[dict[str, DetectionDataset], SSD, list[A.BasicTransform]]:
    """The same for photographs."""
    sets = {name: VOCDetection(root, name) for name in ("train", "val")}
    nodes = ["features.14.conv.0", "features.18"]
    backbone = TorchvisionBackbone("mobilenet_v2", nodes, weights, frozen=["features.[0-6]"], frozen_norms=True)
    sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4)
    detector = SSD(
        sets["val"].classes,
        size=VOC_SIZE,
        backbone=backbone,
        scales="linear",
        backbone_lr_factor=0.1,
        optimizer=sgd,
        lr_scheduler=OneCycle(pct_start=0.1),
    )
    return sets, detector, [A.HorizontalFlip(), RandomPhotometricDistort()]


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", help="a VOC root instead of digits")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="MobileNetV2's, a name or a file")
    parser.add_argument("--images", type=int, default=500, help="digits to train on")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", help="a JSON file")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    size = VOC_SIZE if args.voc else DIGITS_SIZE

    rows: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    for seed in args.seeds:
        for way in args.ways:
            seed_everything(seed, verbose=False)
            sets, detector, others = voc(args.voc, args.weights) if args.voc else digits(args.images)
            transforms = [RandomResizedZoom(size, size, **WAYS[way]), *others]
            data = DetectionDataModule(**sets, transforms=transforms, batch_size=args.batch_size, num_workers=args.workers, seed=seed)
            trainer = Trainer(
                max_steps=args.steps,
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
                num_sanity_val_steps=0,
            )
            start = time.perf_counter()
            trainer.fit(detector, data)
            seconds = time.perf_counter() - start
            trainer.limit_val_batches = 1.0
            (found,) = trainer.validate(detector, data, verbose=False)
            rows[way].append({key: found[f"val/{key}"] for key in KEYS if f"val/{key}" in found} | {"seconds": seconds, "seed": seed})
            print(way, rows[way][-1], flush=True)

    keys = [key for key in KEYS if key in rows[args.ways[0]][0]]
    print(f"\n| | {' | '.join(KEYS[key] for key in keys)} |\n|---|{'---|' * len(keys)}")
    for way, runs in rows.items():
        print(f"| {way} | {' | '.join(f'{statistics.mean(run[key] for run in runs):.3f}' for key in keys)} |")
    if args.out:
        Path(args.out).write_text(json.dumps({"arguments": vars(args), "torch": torch.__version__, "runs": rows}, indent=1))


if __name__ == "__main__":
    main()
