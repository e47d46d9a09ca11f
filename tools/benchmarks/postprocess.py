"""From scores to detections: ours against torchvision's loop over classes, on the same outputs, in turn in one process.

    python tools/benchmarks/postprocess.py --json postprocess.json
    python tools/benchmarks/postprocess.py --device cuda --batch 32
    python tools/benchmarks/postprocess.py --config lightning_logs/version_0/config.yaml --ckpt_path last.ckpt

For SSDLite320 (score threshold .001) and SSD300 (.01), with as many boxes as these have and 10 to 90 classes, on made-up outputs. How long
torchvision takes depends on how many scores pass the threshold, so that share is varied and said: it is large early in a training, and
small after. With a checkpoint of one of the two, on its outputs for the first images of its validation set. Before anything is timed
both give the same detections.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large

from lit_detect import PostProcess
from lit_detect.boxes import Anchors
from lit_detect.cost import in_turn, machine
from lit_detect.lightning_cli import read_config


class Kind(NamedTuple):
    """A detector's outputs, and the one of torchvision that post-processes them."""

    make: type
    anchors: int
    size: int
    post_process: PostProcess


class Outputs(NamedTuple):
    """Logits ``(N, A, C + 1)``, offsets ``(N, A, 4)`` and the A anchors."""

    logits: Tensor
    deltas: Tensor
    anchors: Tensor


KINDS = {
    "SSDLite320": Kind(ssdlite320_mobilenet_v3_large, 3234, 320, PostProcess(0.001, 0.55, 300, candidates_per_class=300)),
    "SSD300": Kind(ssd300_vgg16, 8732, 300, PostProcess(0.01, 0.45, 200, candidates_per_class=400)),
}


def made_up(kind: Kind, batch: int, classes: int, background: float) -> Outputs:
    """Random outputs; the more background, the fewer scores pass."""
    corners = torch.rand(kind.anchors, 2) * kind.size * 0.8
    anchors = torch.cat([corners, corners + kind.size * (0.05 + 0.3 * torch.rand(kind.anchors, 2))], dim=1)
    logits = 2 * torch.randn(batch, kind.anchors, classes + 1)
    logits[..., 0] += background
    return Outputs(logits, torch.randn(batch, kind.anchors, 4), anchors)


def trained(config: Path, checkpoint: Path, batch: int) -> tuple[str, Outputs]:
    """Which of `KINDS` a checkpoint is, and its outputs for the first images of its validation set."""
    data, detector = read_config(config)
    assert detector is not None
    detector.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    data.setup("validate")
    images = [data.splits["val"].load(index)[0] for index in range(batch)]
    network = detector.network.eval()
    inputs = network.inputs([torch.from_numpy(image).permute(2, 0, 1) for image in images])
    logits, deltas, anchors = network.predict(inputs.images)
    name = next((name for name, kind in KINDS.items() if kind.post_process == network.post_process and kind.anchors == len(anchors)), None)
    if name is None:
        raise SystemExit(f"Expected an SSDLite320 or an SSD300 with its default settings in {config}.")
    return name, Outputs(logits, deltas, anchors.boxes)


def measure(kind: Kind, outputs: Outputs, rounds: int, device: str) -> dict[str, float]:
    """Milliseconds an image of both, and the share of the scores that pass."""
    logits, deltas, anchors = (values.to(device) for values in outputs)
    batch = len(logits)
    reference = kind.make(weights=None, weights_backbone=None, num_classes=logits.shape[2])
    sizes = [(kind.size, kind.size)] * batch

    def theirs() -> list[dict[str, Tensor]]:  # which wait for the last detections, also on a GPU
        return reference.postprocess_detections({"bbox_regression": deltas, "cls_logits": logits}, [anchors] * batch, sizes)

    def ours() -> list[dict[str, Tensor]]:
        return kind.post_process(logits.softmax(dim=-1)[..., 1:], Anchors(anchors).decode(deltas), sizes)

    for expected, found in zip(theirs(), ours(), strict=True):
        for name in ("labels", "scores", "boxes"):
            torch.testing.assert_close(found[name], expected[name], atol=1e-3, rtol=1e-4)
    times = in_turn({"torchvision": lambda _: theirs(), "lit_detect": lambda _: ours()}, rounds)
    each = {name: statistics.median(values) / batch for name, values in times.items()}
    share = float((logits.softmax(dim=-1)[..., 1:] > kind.post_process.score_threshold).float().mean())
    return {"classes": logits.shape[2] - 1, "share": share, **each, "ratio": each["torchvision"] / each["lit_detect"]}


@torch.inference_mode()
def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--config", type=Path, help="of the training of an SSDLite320 or SSD300")
    parser.add_argument("--ckpt_path", type=Path, help="its checkpoint")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.config:
        cases = [trained(arguments.config, arguments.ckpt_path, arguments.batch)]
    else:
        mixed = ((90, 2), (90, 6), (90, 12), (30, 6), (10, 6))
        cases = [(name, made_up(kind, arguments.batch, *setting)) for name, kind in KINDS.items() for setting in mixed]
    rows: list[dict[str, Any]] = []
    print("| | classes | scores that pass, % | torchvision, ms an image | lit_detect | ratio |\n|---|---|---|---|---|---|")
    for name, outputs in cases:
        row = {"detector": name, **measure(KINDS[name], outputs, arguments.rounds, arguments.device)}
        rows.append(row)
        times = f"{row['torchvision']:.1f} | {row['lit_detect']:.1f} | {row['ratio']:.1f}"
        print(f"| {name} | {row['classes']} | {100 * row['share']:.1f} | {times} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(arguments.device), "batch": arguments.batch, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
