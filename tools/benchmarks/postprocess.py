"""From scores to detections: ours against torchvision's loop over classes, on the same made-up outputs, in turn in one process.

    python tools/benchmarks/postprocess.py --json postprocess.json

For SSDLite320 (score threshold .001) and SSD300 (.01), with as many boxes as these have and 10 to 90 classes. How long torchvision takes
depends on how many scores pass the threshold, so that share is varied and said: it is large early in a training, and small after.
Before anything is timed both give the same detections.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large

from lit_detect import PostProcess
from lit_detect.boxes import Anchors

BATCH = 8


class Kind(NamedTuple):
    """A detector's outputs, and the one of torchvision that post-processes them."""

    make: type
    anchors: int
    size: int
    post_process: PostProcess


KINDS = {
    "SSDLite320": Kind(ssdlite320_mobilenet_v3_large, 3234, 320, PostProcess(0.001, 0.55, 300, candidates_per_class=300)),
    "SSD300": Kind(ssd300_vgg16, 8732, 300, PostProcess(0.01, 0.45, 200, candidates_per_class=400)),
}


def outputs(kind: Kind, classes: int, background: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, offsets and anchors; the more background, the fewer scores pass."""
    corners = torch.rand(kind.anchors, 2) * kind.size * 0.8
    anchors = torch.cat([corners, corners + kind.size * (0.05 + 0.3 * torch.rand(kind.anchors, 2))], dim=1)
    logits = 2 * torch.randn(BATCH, kind.anchors, classes + 1)
    logits[..., 0] += background
    return logits, torch.randn(BATCH, kind.anchors, 4), anchors


def measure(kind: Kind, classes: int, background: float, rounds: int) -> dict[str, float]:
    """Milliseconds an image of both, and the share of the scores that pass."""
    logits, deltas, anchors = outputs(kind, classes, background)
    reference = kind.make(weights=None, weights_backbone=None, num_classes=classes + 1)
    sizes = [(kind.size, kind.size)] * BATCH

    def theirs() -> list[dict[str, Tensor]]:
        return reference.postprocess_detections({"bbox_regression": deltas, "cls_logits": logits}, [anchors] * BATCH, sizes)

    def ours() -> list[dict[str, Tensor]]:
        scores, boxes = logits.softmax(dim=-1)[..., 1:], Anchors(anchors).decode(deltas)
        return kind.post_process(scores, boxes, sizes)

    for expected, found in zip(theirs(), ours(), strict=True):
        for name in ("labels", "scores", "boxes"):
            torch.testing.assert_close(found[name], expected[name], atol=1e-3, rtol=1e-4)
    took: dict[str, list[float]] = {"torchvision": [], "lit_detect": []}
    for _ in range(rounds):
        for name, run in (("torchvision", theirs), ("lit_detect", ours)):
            start = time.perf_counter()
            run()
            took[name].append((time.perf_counter() - start) * 1000 / BATCH)
    ratio = statistics.median(a / b for a, b in zip(*took.values(), strict=True))
    share = float((logits.softmax(dim=-1)[..., 1:] > kind.post_process.score_threshold).float().mean())
    return {"share": share, **{name: statistics.median(values) for name, values in took.items()}, "ratio": ratio}


@torch.inference_mode()
def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = []
    print("| | classes | scores that pass, % | torchvision, ms an image | lit_detect | ratio |\n|---|---|---|---|---|---|")
    for name, kind in KINDS.items():
        for classes, background in ((90, 2), (90, 6), (90, 12), (30, 6), (10, 6)):
            row = {"detector": name, "classes": classes, **measure(kind, classes, background, arguments.rounds)}
            rows.append(row)
            times = f"{row['torchvision']:.1f} | {row['lit_detect']:.1f} | {row['ratio']:.1f}"
            print(f"| {name} | {classes} | {100 * row['share']:.1f} | {times} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "threads": arguments.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
