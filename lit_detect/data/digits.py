"""Handwritten digits scattered over textured grounds: a small real task that needs no download.

The digits are the 1,797 scans of the UCI "Optical Recognition of Handwritten Digits" set, which scikit-learn ships in its wheel. They
are written once to a cache folder as a VOC tree and as COCO files, and read back by the same readers as any other data.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from lit_detect.data.coco import COCODetection
from lit_detect.data.voc import VOCDetection
from lit_detect.data.writers import Labelled, encode_image, voc_annotation, write_coco

__all__ = ["DigitsCOCO", "DigitsVOC", "write_digits"]

IMAGES = {"train": 3000, "val": 200}
SIDE = 96  # pixels of an image
SMALLEST, LARGEST = 18, 60  # pixels of a digit's longer side, drawn evenly on a logarithmic scale
MOST_DIGITS = 6
MOST_COVERED = 0.25  # share of a digit's box that another may cover
TRAIN_SCANS = 1397  # the rest are for validation, so that no scan is in both


class DigitsVOC(VOCDetection):
    """The digits, read as VOC.

    Args:
        image_set: ``train`` (3000 images) or ``val`` (200).
        root: where they are written once; by default the user's cache folder.
    """

    def __init__(self, image_set: str = "train", root: str | None = None) -> None:
        super().__init__(str(write_digits(root)), image_set, classes=[str(digit) for digit in range(10)])


class DigitsCOCO(COCODetection):
    """The digits, read as COCO.

    Args:
        image_set: ``train`` (3000 images) or ``val`` (200).
        root: where they are written once; by default the user's cache folder.
    """

    def __init__(self, image_set: str = "val", root: str | None = None) -> None:
        folder = write_digits(root)
        super().__init__(str(folder / "JPEGImages"), str(folder / "annotations" / f"instances_{image_set}.json"))


class Scene(NamedTuple):
    """An image, and its digits: boxes ``(M, 4)`` of whole pixels and the digits themselves, 0..9."""

    image: np.ndarray
    boxes: np.ndarray
    digits: list[int]


def write_digits(root: str | None = None, images: dict[str, int] | None = None, seed: int = 0) -> Path:
    """Write the data set unless it is there already.

    Args:
        root: the folder; by default ``digits-1`` in ``$LIT_DETECT_CACHE``, or else in ``~/.cache/lit_detect``.
        images: number of images of ``train`` and ``val``, 3000 and 200 by default.
        seed: the same seed gives the same files.

    Returns:
        The folder, with ``JPEGImages``, ``Annotations``, ``ImageSets/Main`` and ``annotations/instances_{train,val}.json``.
    """
    cache = os.environ.get("LIT_DETECT_CACHE") or Path.home() / ".cache" / "lit_detect"
    folder = Path(root) if root else Path(cache) / "digits-1"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # written aside and renamed, so that a half-written set is never taken for a whole one, and several processes may try
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")  # for all who may read its parent, as no temporary folder is
    try:
        for name in ("JPEGImages", "Annotations", "ImageSets/Main", "annotations"):
            (aside / name).mkdir(parents=True)
        scans, digits = load_scans()
        rng = np.random.default_rng(seed)
        for split, pool in (("train", range(TRAIN_SCANS)), ("val", range(TRAIN_SCANS, len(scans)))):
            scenes = {}
            for index in range((images or IMAGES)[split]):
                chosen = rng.choice(pool, rng.integers(1, MOST_DIGITS + 1))
                scenes[f"{split}_{index:04d}"] = draw_scene(scans[chosen], digits[chosen], rng)
            write_split(aside, split, scenes)
        with contextlib.suppress(OSError):  # another process was first
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """The scans ``(1797, 8, 8)``, ink 0..1, and the digits they show."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.asarray(data.images, dtype=np.float32) / 16, np.asarray(data.target)


def draw_scene(scans: np.ndarray, digits: np.ndarray, rng: np.random.Generator) -> Scene:
    """Scatter scans over a ground; one that finds no free place in 20 trials is left out."""
    canvas = draw_ground(rng)
    boxes: list[np.ndarray] = []
    drawn = []
    for scan, digit in zip(scans, digits, strict=True):
        side = int(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
        ink = cv2.resize(scan, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = ink.shape
        for _ in range(20):
            x, y = rng.integers(0, SIDE - width + 1), rng.integers(0, SIDE - height + 1)
            box = np.array([x, y, x + width, y + height])
            if all(covered(box, other) <= MOST_COVERED for other in boxes):
                break
        else:
            continue
        patch = canvas[y : y + height, x : x + width]
        # light ink on dark ground and dark on light, in any tint
        colour = rng.uniform(0.75, 1, 3) if patch.mean() < 0.5 else rng.uniform(0, 0.25, 3)
        patch += ink[..., None] * (colour - patch)
        boxes.append(box)
        drawn.append(int(digit))
    noisy = canvas + rng.normal(0, 0.02, canvas.shape)
    return Scene((noisy.clip(0, 1) * 255).astype(np.uint8), np.array(boxes).reshape(-1, 4), drawn)


def draw_ground(rng: np.random.Generator) -> np.ndarray:
    """A textured ground ``(SIDE, SIDE, 3)``, 0..1: a tint, blotches of it at three scales, and stripes."""
    dark = rng.random() < 0.5
    ground = np.tile(rng.uniform(0.05, 0.4, 3) if dark else rng.uniform(0.6, 0.95, 3), (SIDE, SIDE, 1))
    for cells in (3, 8, 24):
        blotches = rng.normal(0, 0.03, (cells, cells, 3))
        ground += cv2.resize(blotches, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 40)
    y, x = np.mgrid[:SIDE, :SIDE]
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    textured: np.ndarray = np.clip(ground + rng.uniform(0, 0.06) * stripes[..., None], 0, 1)
    return textured


def covered(box: np.ndarray, other: np.ndarray) -> float:
    """The larger share of either box that lies in the other."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    smaller = min((box[2:] - box[:2]).prod(), (other[2:] - other[:2]).prod())
    return float(sides.clip(0).prod() / smaller)


def write_split(folder: Path, split: str, scenes: dict[str, Scene]) -> None:
    """Write images, XML, the image set and the JSON of one split."""
    classes = [str(digit) for digit in range(10)]
    images = []
    for number, (name, scene) in enumerate(scenes.items(), start=1):
        target = {"boxes": scene.boxes, "labels": np.array(scene.digits) + 1, "image_id": number}
        image = Labelled(f"{name}.jpg", SIDE, SIDE, target)
        encode_image(folder / "JPEGImages" / image.file_name, scene.image)
        (folder / "Annotations" / f"{name}.xml").write_bytes(voc_annotation(image, classes))
        images.append(image)
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(scenes) + "\n")
    categories = [{"id": number, "name": name, "supercategory": "digit"} for number, name in enumerate(classes, start=1)]
    write_coco(folder / "annotations" / f"instances_{split}.json", images, categories)
