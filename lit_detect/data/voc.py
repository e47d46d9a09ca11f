"""Pascal VOC, and any data set in its format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from lit_detect.data.dataset import IMAGE_SUFFIXES, DetectionDataset, Target, read_image, report_dropped, valid_boxes
from lit_detect.errors import InputError

__all__ = ["VOC_CLASSES", "VOCDetection"]

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]


class Annotation(NamedTuple):
    """One image's XML: size in pixels (0 where the file does not say), names, boxes ``(M, 4)`` and the difficult flags."""

    width: int
    height: int
    names: list[str]
    boxes: np.ndarray
    difficult: np.ndarray


class VOCDetection(DetectionDataset):
    """Images and boxes in the format of Pascal VOC 2007 and 2012.

    The XML's 1-based corners become edges in 0-based pixels: ``xmin - 1, ymin - 1, xmax, ymax``.

    Args:
        root: the folder that holds ``JPEGImages``, ``Annotations`` and ``ImageSets/Main``, such as ``VOCdevkit/VOC2012``.
        image_set: a file of ``ImageSets/Main`` without its suffix, such as ``trainval``.
        classes: names of the labels 1..C. By default VOC's twenty if all names in ``Annotations`` are among them, else those names,
            sorted; so all image sets of one root have the same classes. A root called VOC2007 or VOC2012 is taken for the real one.

    Raises:
        InputError: something is missing, is not XML, or is not what the format says; the message names the file and the object.
    """

    def __init__(self, root: str, image_set: str, classes: Sequence[str] | None = None) -> None:
        self.root, self.image_set = Path(root), image_set
        self._classes = list(classes) if classes is not None else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r}, {self.image_set!r})"

    @cached_property
    def ids(self) -> list[str]:
        """Names of the images, without suffix."""
        path = self.root / "ImageSets" / "Main" / f"{self.image_set}.txt"
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"Expected the image set {path} as UTF-8 text: {error}.") from error
        except OSError as error:
            sets = sorted(file.stem for file in path.parent.glob("*.txt"))
            raise InputError(
                f"Expected the image set {path} but could not read it: {error.strerror}. "
                + (
                    f"There are: {', '.join(sets)}."
                    if sets
                    else f"Is {self.root} a folder with JPEGImages, Annotations and ImageSets/Main?"
                )
            ) from error
        # VOC's sets of one class have a flag after each name
        return [re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in lines if line.strip()]

    @cached_property
    def annotations(self) -> list[Annotation]:
        """All annotations of the image set."""
        return [read_annotation(self.root / "Annotations" / f"{name}.xml") for name in self.ids]

    @cached_property
    def classes(self) -> list[str]:  # type: ignore[override]
        if self._classes is not None:
            return self._classes
        annotations = self.annotations
        if not re.fullmatch(r"VOC20\d\d", self.root.name):  # the real one's 17,000 files would take seconds at each start
            annotations = [read_annotation(path) for path in sorted((self.root / "Annotations").glob("*.xml"))]
        found = {name for annotation in annotations for name in annotation.names}
        return VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found)

    @cached_property
    def targets(self) -> list[Target]:
        """All targets of the image set; boxes without area are left out, with a warning that names them."""
        labels = {name: label for label, name in enumerate(self.classes, start=1)}
        dropped: list[str] = []
        targets = []
        for index, (name, annotation) in enumerate(zip(self.ids, self.annotations, strict=True)):
            unknown = sorted(set(annotation.names) - set(labels))
            if unknown:
                raise InputError(f"Expected objects of the {len(labels)} classes {self.classes} but {name}.xml has {unknown}.")
            width, height = annotation.width, annotation.height
            if not width or not height:  # some public files say 0 x 0
                height, width = read_image(self.root / "JPEGImages" / self.file_name(index)).shape[:2]
            boxes = valid_boxes(annotation.boxes, width, height)
            one_pixel = (annotation.boxes[:, 2:] - annotation.boxes[:, :2] <= 1).any(axis=1)  # xmin == xmax: a slip of the mouse
            good = ~(np.isnan(boxes).any(axis=1) | one_pixel)
            dropped += [f"{name}.xml object {number + 1}" for number in np.flatnonzero(~good)]
            boxes = boxes[good]
            targets.append(
                {
                    "boxes": boxes,
                    "labels": np.array([labels[found] for found in annotation.names], dtype=np.int64)[good],
                    "image_id": index,
                    "area": (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
                    "difficult": annotation.difficult[good],
                }
            )
        report_dropped(str(self), sum(len(annotation.names) for annotation in self.annotations), dropped)
        return targets

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int) -> tuple[np.ndarray, Target]:
        return read_image(self.root / "JPEGImages" / self.file_name(index)), self.targets[index]

    def read_annotations(self) -> None:
        len(self.targets)

    def num_boxes(self, index: int) -> int:
        return len(self.targets[index]["labels"])

    def file_name(self, index: int) -> str:
        """The image's file under ``JPEGImages``: a jpg, or what else is there."""
        name = self.ids[index]
        folder = self.root / "JPEGImages"
        for suffix in (".jpg", *IMAGE_SUFFIXES):
            for written in (suffix, suffix.upper()):
                if (folder / f"{name}{written}").exists():
                    return f"{name}{written}"
        raise InputError(f"Expected an image {folder / name}.jpg but there is none (nor .png, .jpeg, ...).")


def read_annotation(path: Path) -> Annotation:
    """Read one XML file.

    Raises:
        InputError: not there, not XML, or an object without a name or a box of four numbers.
    """
    try:
        root: Element = parse(path).getroot()
    except (OSError, ParseError, DefusedXmlException) as error:
        raise InputError(f"Expected a VOC annotation but could not read {path}: {error}.") from error
    names, boxes, difficult = [], [], []
    for number, item in enumerate(root.findall("object"), start=1):
        name = (item.findtext("name") or "").strip()
        try:
            box = [float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError as error:
            raise InputError(f"Expected xmin, ymin, xmax and ymax as numbers in object {number} ({name}) of {path}.") from error
        if not name or not np.isfinite(box).all():
            raise InputError(f"Expected a name and a finite box in object {number} of {path} but got {name!r} and {box}.")
        names.append(name)
        boxes.append(box)
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    width, height = (number_or_zero(root.findtext(f"size/{side}")) for side in ("width", "height"))
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4) - [1, 1, 0, 0]
    return Annotation(width, height, names, corners, np.array(difficult, dtype=np.int64))


def number_or_zero(text: str | None) -> int:
    """A whole number, or 0 for text that is none."""
    try:
        return int(float(text or 0))
    except ValueError:
        return 0
