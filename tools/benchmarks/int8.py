"""AP of a checkpoint and of files that were exported from it, on a config's validation set, by the same metric.

python -m lit_detect export --ckpt_path best.ckpt --config my.yaml --count 100 --int8 true
python tools/benchmarks/int8.py --config my.yaml --ckpt_path best.ckpt --files best.onnx best.int8.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_detect import COCOMeanAveragePrecision, Detector
from lit_detect.data.dataset import DetectionDataset
from lit_detect.export_check import load_exported
from lit_detect.lightning_cli import read_config


def main() -> None:
    """Print AP and AP50 of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a training config")
    parser.add_argument("--ckpt_path", required=True, help="of a training with it")
    parser.add_argument("--files", nargs="+", required=True, help="as export writes them")
    arguments = parser.parse_args()
    data, _ = read_config(arguments.config, with_model=False)
    data.setup("validate")
    dataset = data.feeds["val"].dataset
    detector = Detector.load_from_checkpoint(arguments.ckpt_path, map_location="cpu")
    runs: dict[str, Callable[[np.ndarray], dict[str, Tensor]]] = {arguments.ckpt_path: lambda image: detector.predict(image)[0]}
    runs |= {file: of_file(file) for file in arguments.files}
    for name, run in runs.items():
        values = average_precision(run, dataset, detector.classes)
        print(f"{name}: AP {values['map']:.3f}, AP50 {values['map_50']:.3f}", flush=True)


def of_file(file: str) -> Callable[[np.ndarray], dict[str, Tensor]]:
    """Detections of a file on an image ``(H, W, 3)``."""
    exported = load_exported(Path(file))

    def run(image: np.ndarray) -> dict[str, Tensor]:
        found = exported(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
        return {name: found[name][0, : int(found["counts"][0])] for name in ("boxes", "labels", "scores")}

    return run


def average_precision(run: Callable[[np.ndarray], dict[str, Tensor]], dataset: DetectionDataset, classes: list[str]) -> dict[str, float]:
    """COCO's AP of detections on all images of a data set."""
    metric = COCOMeanAveragePrecision(classes)
    for index in range(len(dataset)):
        image, target = dataset.load(index)
        boxes, labels = torch.from_numpy(np.asarray(target["boxes"])).float(), torch.from_numpy(np.asarray(target["labels"]))
        metric.update([run(image)], [{"boxes": boxes.view(-1, 4), "labels": labels, "image_id": torch.tensor(index)}])
    return metric.compute()  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
