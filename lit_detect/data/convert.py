"""The verb ``convert``: any data set as VOC or COCO."""

from __future__ import annotations

import logging
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from lit_detect.data.dataset import DecodedImage, DetectionDataset
from lit_detect.data.images import IMAGE_SUFFIXES, ImageFile
from lit_detect.data.splits import open_splits
from lit_detect.data.writers import Labelled, encode_image, voc_annotation, write_coco
from lit_detect.errors import InputError, printable

__all__ = ["convert"]

log = logging.getLogger(__name__)

Image = ImageFile | DecodedImage
FIELDS = {"boxes", "labels", "image_id", "area", "iscrowd", "difficult"}
NOT_XML = re.compile("^\\s|\\s$|[\x00-\x1f\ud800-\udfff\ufffe\uffff]")


def convert(data: str, format: Literal["voc", "coco"], out: str) -> None:
    """Write every split of a data set in another format.

    Boxes keep their full precision. Image files are linked, or else copied, as they are; one that its boxes expect turned as its EXIF
    tag says is written turned, and pixels without a file as PNG. Polygons, masks and keypoints are not carried over. What the format
    cannot hold is counted in the log.

    Args:
        data: a VOC folder, a COCO folder or json, a YOLO data.yaml, or a training's config: see `open_splits`.
        format: ``voc`` (``JPEGImages``, ``Annotations``, ``ImageSets/Main``) or ``coco`` (``images/SPLIT``,
            ``annotations/instances_SPLIT.json``).
        out: the folder to write, new or empty.

    Raises:
        InputError: a folder that is not empty, annotations with faults, or something that the format cannot hold.
    """
    if format not in WRITERS:
        raise InputError(f"Expected format as {' or '.join(WRITERS)} but got {format!r}.")
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"Expected a new or an empty folder to write to but {folder} has something in it.")
    splits = open_splits(data)
    for dataset in splits.values():
        dataset.read_annotations()  # whatever is wrong shows before anything is written
    writer = WRITERS[format](folder)
    try:
        for split, dataset in splits.items():
            writer.write(split, dataset)
    except BaseException:
        for left in folder.iterdir():  # half of a data set looks like a whole one
            shutil.rmtree(left)
        raise
    if lost := {name: count for name, count in writer.lost(splits).items() if count}:
        log.warning(printable(f"{folder} does not hold: {'; '.join(f'{count} {name}' for name, count in lost.items())}."))
    print(printable(f"converted: {folder} ({'; '.join(writer.counts)})"))


class Writer(ABC):
    """Writes the splits of a data set, one after the other.

    Args:
        folder: where; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: list[str] = []
        self.changed: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def add(self, split: str, name: str, source: Image, image: Labelled, classes: list[str]) -> Labelled:
        """Write an image, and give it as it was written. `name` is where it should lie, without suffix."""

    @abstractmethod
    def finish(self, split: str, images: list[Labelled], dataset: DetectionDataset) -> None:
        """Write what is of a whole split: last, so that a split that is there is whole."""

    def write(self, split: str, dataset: DetectionDataset) -> None:
        """Write a split."""
        images = []
        for index in track(range(len(dataset)), escape(printable(f"{split:12}")), console=Console(stderr=True)):
            source, target = dataset.open(index)
            target = {"image_id": index, **target}
            name = safe(dataset.file_name(index))
            written = self.add(split, name, source, Labelled(name, source.width, source.height, target), dataset.classes)
            if isinstance(source, ImageFile):
                self.changed["names of images as they were"] += written.file_name != dataset.file_name(index)
                self.changed["image files as they were"] += not copied(source)
            self.changed.update(f"values of {field}" for field in target.keys() - FIELDS)
            images.append(written)
        self.finish(split, images, dataset)
        self.counts.append(f"{split}: {len(images)} images, {sum(len(image.boxes) for image in images)} boxes")

    def lost(self, splits: dict[str, DetectionDataset]) -> Counter[str]:
        """What the written files do not say, and how much there was of it."""
        return self.changed


class COCOWriter(Writer):
    """Images in ``images/SPLIT``, in their own sub-folders, and one file of annotations a split."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.names: set[str] = set()
        (folder / "annotations").mkdir()

    def add(self, split: str, name: str, source: Image, image: Labelled, classes: list[str]) -> Labelled:
        suffix = suffix_of(source)
        name = unused(self.names, [f"images/{split}/{name}"], suffix)
        write_image(source, self.folder / (name + suffix))
        self.changed["difficult flags in a key that COCO's own programs read"] += int(image.flags("difficult").sum())
        return image._replace(file_name=(name + suffix).removeprefix(f"images/{split}/"))

    def finish(self, split: str, images: list[Labelled], dataset: DetectionDataset) -> None:
        (self.folder / "images" / split).mkdir(parents=True, exist_ok=True)
        categories = [{"id": number, "name": name} for number, name in zip(dataset.category_ids, dataset.classes, strict=True)]
        write_coco(self.folder / "annotations" / f"instances_{split}.json", images, categories)


class VOCWriter(Writer):
    """All images in one folder, with one file of annotations each, and a list for each split."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.names: set[str] = set()
        self.written: dict[Path, str] = {}
        self.found: set[str] = set()
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)

    def add(self, split: str, name: str, source: Image, image: Labelled, classes: list[str]) -> Labelled:
        for wrong in filter(NOT_XML.search, classes):
            raise InputError(f"Expected names of classes that XML keeps as they are but got {wrong!r}.")
        self._count(image, classes)
        suffix = suffix_of(source)
        before = self.written.get(source.path) if isinstance(source, ImageFile) else None
        if before is not None:  # an image may be of several splits
            again = image._replace(file_name=before + suffix)
            if (self.folder / "Annotations" / f"{before}.xml").read_bytes() == voc_annotation(again, classes):
                return again
        # the lists take no sub-folders, and some programs no spaces
        flat = re.sub(r"\s", "_", name)
        stem = unused(self.names, [os.path.basename(flat), flat.replace("/", "_")])
        image = image._replace(file_name=stem + suffix)
        write_image(source, self.folder / "JPEGImages" / image.file_name)
        (self.folder / "Annotations" / f"{stem}.xml").write_bytes(voc_annotation(image, classes))
        if isinstance(source, ImageFile):
            self.written.setdefault(source.path, stem)
        return image

    def _count(self, image: Labelled, classes: list[str]) -> None:
        boxes = image.boxes
        own = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        self.changed["areas other than their boxes'"] += int((~np.isclose(image.areas, own, rtol=1e-5)).sum())
        self.changed["crowd boxes, which are written as difficult"] += int(image.flags("iscrowd").sum())
        self.found.update(classes[label - 1] for label in image.labels(len(classes)))

    def finish(self, split: str, images: list[Labelled], dataset: DetectionDataset) -> None:
        self.changed["image ids"] += sum(image.target["image_id"] != number for number, image in enumerate(images))
        lines = [f"{os.path.splitext(image.file_name)[0]}\n" for image in images]
        (self.folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(lines), encoding="utf-8")

    def lost(self, splits: dict[str, DetectionDataset]) -> Counter[str]:
        classes = {name for dataset in splits.values() for name in dataset.classes}
        ids = {number for dataset in splits.values() for number in dataset.category_ids}
        unused_classes = sorted(classes - self.found)
        gaps = len(ids) if ids != set(range(1, len(classes) + 1)) else 0
        return self.changed + Counter({f"classes without boxes ({', '.join(unused_classes)})": len(unused_classes), "category ids": gaps})


WRITERS: dict[str, type[Writer]] = {"voc": VOCWriter, "coco": COCOWriter}


def safe(name: str) -> str:
    """A file's name without its suffix, as one that can be written below any folder.

    >>> safe("train/a.jpg"), safe("/data/../a b.c"), safe("Scans[3]")
    ('train/a', 'data/a b.c', 'Scans[3]')
    """
    name = "".join(letter if letter.isprintable() and letter != "\\" else "_" for letter in name)
    stem, suffix = os.path.splitext(name)
    parts = (stem if suffix.lower() in IMAGE_SUFFIXES else name).split("/")
    return "/".join(part for part in parts if part.strip(".")) or "image"


def unused(names: set[str], candidates: list[str], suffix: str = "") -> str:
    """The first of the candidates that is not among the names, or the last with a number; it is added to them.

    >>> names = set()
    >>> [unused(names, ["a", "x_a"], ".jpg") for _ in range(3)], unused(names, ["A"], ".jpg")
    (['a', 'x_a', 'x_a_2'], 'A_2')
    """
    numbered = (f"{candidates[-1]}_{number}" for number in range(2, len(names) + 3))
    # some file systems take upper and lower case for the same
    found = next(name for name in [*candidates, *numbered] if (name + suffix).casefold() not in names)
    names.add((found + suffix).casefold())
    return found


def copied(source: Image) -> bool:
    """Whether an image's file is what its boxes are of, and is called what it is."""
    return isinstance(source, ImageFile) and not source.rotate and source.path.suffix.lower() in IMAGE_SUFFIXES


def suffix_of(source: Image) -> str:
    """The suffix that an image is written with."""
    own = source.path.suffix if isinstance(source, ImageFile) else ""
    return own if copied(source) or own.lower() in (".jpg", ".jpeg") else ".png"


def write_image(source: Image, path: Path) -> None:
    """Write an image: its file, if possible as another name of the same file, or its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(source, ImageFile) or not copied(source):
        return encode_image(path, source.read())
    file = os.path.realpath(source.path)  # a link to a link would dangle where the data set is moved
    try:
        os.link(file, path)
    except OSError:  # on another drive, or somebody else's
        shutil.copyfile(file, path)
