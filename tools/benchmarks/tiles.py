"""What tiles bring: the digits' validation images side by side as large images, looked at as they are and in tiles.

A detector of 96 x 96 pixels sees digits of 18 to 60 pixels in them shrunk to a fifth. Digits lie anywhere to the tiles, so many are cut.

    python tools/benchmarks/tiles.py --ckpt_path lightning_logs/version_0/checkpoints/best.ckpt
"""

import time

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from lit_detect import SSD, COCOMeanAveragePrecision, DigitsCOCO


def main(ckpt_path: str, columns: int = 5, rows: int = 4, overlaps: list[float] = [0.25, 0.5]) -> None:  # noqa: B006
    """Print AP and time.

    Args:
        ckpt_path: of a training with configs/quickstart.yaml.
        columns: images side by side.
        rows: images below each other.
        overlaps: of tiles, as shares of their side.
    """
    detector = SSD.load_from_checkpoint(ckpt_path, map_location="cpu")
    images, targets = stitched(DigitsCOCO("val"), columns, rows)
    settings: dict[str, dict[str, float]] = {"as they are": {}}
    settings |= {f"tiles, overlap {overlap}": {"tile": 96, "overlap": overlap} for overlap in overlaps}
    for name, arguments in settings.items():
        start = time.perf_counter()
        detections = detector.predict(images, **arguments)
        seconds = time.perf_counter() - start
        metric = COCOMeanAveragePrecision(detector.classes, (1, 10, 100 * columns * rows))  # as many as of the images one by one
        metric.update(detections, targets)
        values = metric.compute()
        print(f"{name}: AP {values['map']:.3f}, AP50 {values['map_50']:.3f}, {1000 * seconds / len(images):.0f} ms an image", flush=True)


def stitched(dataset: DigitsCOCO, columns: int, rows: int) -> tuple[list[np.ndarray], list[dict[str, Tensor]]]:
    """Images of the data set put together in rows and columns, and their targets."""
    images, targets = [], []
    for first in range(0, len(dataset) - columns * rows + 1, columns * rows):
        parts = [dataset.load(first + number) for number in range(columns * rows)]
        grid = [np.hstack([image for image, _ in parts[row * columns : (row + 1) * columns]]) for row in range(rows)]
        images.append(np.vstack(grid))
        height, width = parts[0][0].shape[:2]
        boxes = [
            np.asarray(target["boxes"]) + np.tile([number % columns * width, number // columns * height], 2)
            for number, (_, target) in enumerate(parts)
        ]
        labels = np.concatenate([np.asarray(target["labels"]) for _, target in parts])
        targets.append({"boxes": torch.from_numpy(np.concatenate(boxes)).float(), "labels": torch.from_numpy(labels)})
    return images, targets


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
