"""All that is worth measuring on a GPU, in under ten minutes: one command, a folder of JSON files and a summary.

    python tools/benchmarks/gpu.py --voc data/VOCdevkit/VOC2012 --out gpu

Post-processing in batches of 32; training steps and detections against torchvision's at the same precision, compiled too, with kernels and
waits counted; then SSDLite and Faster R-CNN over MobileNetV2 trained on VOC's train by the recipe of the BCCD configs, in larger batches,
and evaluated on its val, with images a second and memory. Each part has a limit of its own; one that fails says so and the others go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lit_detect.cost import machine
from lit_detect.data.yolo import read_yaml
from lit_detect.lightning_cli import read_config

HERE = Path(__file__).parent
PARTS = {
    "postprocess": ["postprocess.py", "--batch", "32"],
    "steps_bf16": ["train_step.py", "--precision", "bf16", "--batch", "32", "--detectors", "SSDLite320", "SSD300", "--profile"],
    "steps_bf16_compiled": ["train_step.py", "--precision", "bf16", "--batch", "32", "--detectors", "SSD300", "--compile"],
    "steps_two_stage": ["train_step.py", "--precision", "bf16", "--batch", "8", "--detectors", "Faster R-CNN", "--profile"],
    "inference": ["train_step.py", "--precision", "bf16", "--batch", "8", "--detectors", "SSD300", "Faster R-CNN", "--inference"],
}
CONFIGS = {"ssdlite": "ssdlite320_mobilenetv2_bccd.yaml", "faster_rcnn": "faster_rcnn_mobilenetv2_bccd.yaml"}


class Throughput(Callback):
    """Images a second of training, without the first steps and without validation."""

    def __init__(self, skipped: int = 20) -> None:
        self.skipped, self.images, self.seconds, self.last = skipped, 0, 0.0, 0.0

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if trainer.global_step > self.skipped and batch_idx:
            self.images, self.seconds = self.images + len(batch[0]), self.seconds + now - self.last
        self.last = now


def train(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on the train sets, evaluate on the val sets."""
    content = read_yaml(HERE.parents[1] / "configs" / CONFIGS[name])
    sets = {split: [{"class_path": "VOCDetection", "init_args": {"root": arguments.voc, "image_set": part}} for part in parts]
            for split, parts in (("train", arguments.train), ("val", arguments.val))}  # fmt: skip
    content["data"] |= {**sets, "test": None, "batch_size": arguments.batch, "num_workers": arguments.workers}
    if arguments.weights:
        content["model"]["init_args"]["backbone"]["init_args"]["weights"] = arguments.weights
    path = arguments.out / f"{name}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    data, detector = read_config(path)
    throughput = Throughput()
    cuda = arguments.device == "cuda"
    everywhere = {"accelerator": "gpu" if cuda else "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    everywhere["precision"] = "bf16-mixed" if cuda else "32-true"
    files = {"default_root_dir": arguments.out, "enable_checkpointing": False}
    trainer = Trainer(**everywhere, **files, max_epochs=arguments.epochs, limit_val_batches=0, callbacks=[throughput])
    trainer.fit(detector, data)
    memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    (values,) = Trainer(**everywhere).validate(detector, data, verbose=False)
    return {
        "steps": trainer.global_step,
        "images_per_second": throughput.images / max(throughput.seconds, 1e-9),
        "memory_gb": memory,
        **{key: value for key, value in values.items() if key.startswith("val/map")},
    }


def main() -> None:
    """Run the parts, print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", required=True, help="the folder of Annotations, ImageSets and JPEGImages")
    parser.add_argument("--train", nargs="+", default=["train"], help="image sets to train on")
    parser.add_argument("--val", nargs="+", default=["val"], help="image sets to evaluate on")
    parser.add_argument("--weights", help="a file of MobileNetV2's weights; by default fetched")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=8, help="of each training")
    parser.add_argument("--limit", type=int, default=110, help="seconds after which a part is given up")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=[*PARTS, *CONFIGS], default=[*PARTS, *CONFIGS])
    parser.add_argument("--train_now", choices=CONFIGS, help=argparse.SUPPRESS)  # a part's own process
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.train_now:
        result = train(arguments.train_now, arguments)
        (arguments.out / f"{arguments.train_now}.json").write_text(json.dumps(result, indent=1))
        print(result)
        return
    print(json.dumps(machine(arguments.device)), flush=True)
    for name in arguments.only:
        start = time.perf_counter()
        if name in PARTS:
            script, *options = PARTS[name]
            command = [str(HERE / script), *options, "--device", arguments.device, "--json", str(arguments.out / f"{name}.json")]
        else:
            command = [__file__, *sys.argv[1:], "--train_now", name]
        try:
            status = f"exit status {subprocess.run([sys.executable, *command], timeout=arguments.limit).returncode}"
        except subprocess.TimeoutExpired:
            status = "given up"
        print(f"== {name}: {status} after {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
