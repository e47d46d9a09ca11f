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

from lit_detect.data.annotated import AnnotatedImages, Record, listed_once
from lit_detect.data.faults import Fault, Faults, OnInvalid
from lit_detect.data.images import IMAGE_SUFFIXES, inside
from lit_detect.errors import InputError

__all__ = ["VOC_CLASSES", "VOCDetection"]

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Annotation(NamedTuple):
    """One XML file: width and height in pixels (0 where it does not say), names, boxes ``(M, 4)``, difficult flags, and its faults."""

    size: tuple[int, int]
    names: list[str]
    boxes: np.ndarray
    difficult: np.ndarray
    faults: list[Fault]


class VOCDetection(AnnotatedImages):
    """Images and boxes in the format of Pascal VOC 2007 and 2012.

    The XML's 1-based corners become edges in 0-based pixels: ``xmin - 1, ymin - 1, xmax, ymax``.

    Args:
        root: the folder that holds ``JPEGImages``, ``Annotations`` and ``ImageSets/Main``, such as ``VOCdevkit/VOC2012``.
        image_set: a file of ``ImageSets/Main`` without its suffix, such as ``trainval``.
        classes: names of the labels 1..C. By default VOC's twenty if all names in ``Annotations`` are among them, else those names,
            sorted; so all image sets of one root have the same classes. A root called VOC2007 or VOC2012 is taken for the real one.
        on_invalid: what to do about faults: see `AnnotatedImages`.
        download: fetch the real VOC2007 or VOC2012, as the root is called, unless it is there: when it is first read, and once,
            whatever the number of processes.

    Raises:
        InputError: something is missing, is not XML, or is not what the format says; the message names the file and the object.
    """

    def __init__(
        self, root: str, image_set: str, classes: Sequence[str] | None = None, on_invalid: OnInvalid = "fix", download: bool = False
    ) -> None:
        super().__init__(Path(root) / "JPEGImages", on_invalid)
        self.root, self.image_set, self.download = Path(root), image_set, download
        self._classes = list(classes) if classes is not None else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r}, {self.image_set!r})"

    @property
    def image_set_file(self) -> Path:
        """The file that lists the images.

        Raises:
            InputError: a name that leads out of the folder.
        """
        return inside(self.root / "ImageSets" / "Main", f"{self.image_set}.txt")

    @cached_property
    def ids(self) -> list[str]:
        """Names of the images, without suffix, as the image set lists them."""
        path = self.image_set_file
        if self.download:
            from lit_detect.data.download import download_voc  # not on top: it imports torchvision

            download_voc(self.root, self.image_set)
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
        names = [line.strip() for line in lines if line.strip()]
        parts = [name.rsplit(maxsplit=1) for name in names]
        # VOC's sets of one class have a flag after each name; a name alone may end in one: frame 1
        return [name for name, _ in parts] if all(len(part) == 2 and part[1] in ("-1", "0", "1") for part in parts) else names

    temporary = ("annotations",)

    @cached_property
    def annotations(self) -> dict[str, Annotation | Fault]:
        """The annotations of the image set by the images' names, or what keeps them from being read."""
        return {name: self._annotation(name) for name in dict.fromkeys(self.ids)}

    def _annotation(self, name: str) -> Annotation | Fault:
        try:
            path = inside(self.root / "Annotations", f"{name}.xml")
        except InputError as error:
            return Fault("name leaves the folder", str(self.image_set_file), "", str(error))
        try:
            return read_annotation(path)
        except InputError as error:
            return Fault("annotation unreadable", str(path), "", str(error))

    @cached_property
    def classes(self) -> list[str]:
        if self._classes is not None:
            return self._classes
        names = self.annotations
        if not re.fullmatch(r"VOC20\d\d", self.root.name):  # the real one's 17,000 files would take seconds at each start
            others = sorted(path.stem for path in (self.root / "Annotations").glob("*.xml") if path.stem not in names)
            names = names | {name: self._annotation(name) for name in others}
        found = {name for annotation in names.values() if isinstance(annotation, Annotation) for name in annotation.names if name}
        return VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found)

    def records(self, faults: Faults) -> list[Record]:
        ids = listed_once(self.ids, self.image_set_file, faults.report)
        images = image_names(self.folder)
        records = []
        for number, name in enumerate(ids):
            annotation = self.annotations[name]
            if isinstance(annotation, Fault):
                faults.append(annotation)
                continue
            faults += annotation.faults
            records.append(
                Record(
                    image_id=number,
                    file_name=images.get(name, f"{name}.jpg"),
                    source=self.root / "Annotations" / f"{name}.xml",
                    names=annotation.names,
                    boxes=annotation.boxes,
                    annotations=[f"object {index}" for index in range(1, len(annotation.names) + 1)],
                    fields={"difficult": annotation.difficult},
                    size=annotation.size,
                    from_one=True,
                )
            )
        return records


def image_names(folder: Path) -> dict[str, str]:
    """The image files of a folder by their names without suffix; of two with one name a jpg."""
    files = [path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    return {path.stem: path.name for path in sorted(files, key=lambda path: path.suffix.lower() == ".jpg")}


def read_annotation(path: Path) -> Annotation:
    """Read one XML file.

    Raises:
        InputError: not there, not XML, or XML with entities.
    """
    try:
        root: Element = parse(path).getroot()
    except (OSError, ParseError, DefusedXmlException, ValueError, LookupError) as error:  # the last two: of encodings
        raise InputError(f"Expected a VOC annotation but could not read {path}: {error}.") from error
    if root.tag != "annotation":
        raise InputError(f"Expected a VOC annotation but {path} is XML of another kind: <{root.tag}>.")
    objects = root.findall("object")
    boxes = [[number(item.findtext(f"bndbox/{side}")) for side in CORNERS] for item in objects]
    faults = [
        Fault("boxes of parts", str(path), f"object {index}", f"{parts} of <part>, which are not objects.")
        for index, item in enumerate(objects, start=1)
        if (parts := len(item.findall("part")))
    ]
    sides = [number(root.findtext(f"size/{side}")) for side in ("width", "height")]
    return Annotation(
        size=(int(sides[0]), int(sides[1])) if np.isfinite(sides).all() else (0, 0),
        names=[(item.findtext("name") or "").strip() for item in objects],
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        difficult=np.array([(item.findtext("difficult") or "").strip() == "1" for item in objects], dtype=np.int64),
        faults=faults,
    )


def number(text: str | None) -> float:
    """A number from text, NaN for what is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
