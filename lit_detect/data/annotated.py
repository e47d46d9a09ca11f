"""What readers of annotation files share: from what a file says to targets that a network can learn from, and a list of faults."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_detect.data.dataset import DetectionDataset, Target
from lit_detect.data.faults import Fault, Faults, OnInvalid
from lit_detect.data.images import QUARTER_TURNS, ImageFile, ImageHeader, inside, read_header
from lit_detect.errors import InputError

__all__ = ["AnnotatedImages", "Contents", "Record"]

ROUNDING = 1.0  # pixels: boxes that reach less outside the image are clipped without a word
MODES = {"1": "grey", "L": "grey", "LA": "grey", "I": "grey", "P": "palette", "PA": "palette", "CMYK": "CMYK"}


class Record(NamedTuple):
    """One image as its annotation says, unchecked.

    Attributes:
        image_id: a whole number.
        file_name: of the image, below the data set's folder of images.
        source: the annotation file.
        names: a class name for each box.
        boxes: ``(M, 4)`` float64, xyxy in the image's pixels; NaN for what is no number.
        annotations: what to call each box in a message.
        fields: what else there is of each box, ``(M,)``.
        size: width and height; 0 where the file should say and does not, None where the format does not have it.
        from_one: whether pixels are counted from 1, and boxes include their last ones: VOC's way.
        relative: whether the boxes are in widths and heights of the image: YOLO's way.
    """

    image_id: int
    file_name: str
    source: Path
    names: list[str]
    boxes: np.ndarray
    annotations: list[str]
    fields: dict[str, np.ndarray]
    size: tuple[int, int] | None
    from_one: bool = False
    relative: bool = False


class Contents(NamedTuple):
    """What a data set holds: one file and one target for each image that can be used, and all faults.

    `listed` has all images, also those that cannot be used, each with its annotation file.
    """

    files: list[ImageFile]
    targets: list[Target]
    listed: list[tuple[Path, Path]]
    faults: Faults


class AnnotatedImages(DetectionDataset):
    """A data set in files. A reader sets `folder` and `classes` and implements `records`.

    Annotations and the images' headers are read once and checked as `lit_detect.data.faults` lists.

    Args:
        folder: of the images; their names may not lead out of it.
        on_invalid: at a fault ``raise``; or ``fix`` what is safe to fix and raise at the rest; or ``drop`` what cannot be fixed.
            Whatever is fixed or left out is counted and named in the log.

    Raises:
        InputError: another `on_invalid`; when annotations are read, faults that it does not allow.
    """

    temporary: tuple[str, ...] = ()  # cached properties of a reader that are not needed any more once `contents` is there

    def __init__(self, folder: Path, on_invalid: OnInvalid = "fix") -> None:
        self.folder, self.on_invalid = folder, on_invalid
        if on_invalid not in ("raise", "fix", "drop"):
            raise InputError(f"Expected on_invalid as raise, fix or drop but got {on_invalid!r}.")

    @abstractmethod
    def records(self, faults: Faults) -> list[Record]:
        """All images as the annotations say. What cannot be read is left out, and a fault."""

    @cached_property
    def contents(self) -> Contents:
        """Everything that can be used, and all faults, whatever `on_invalid` says."""
        faults = Faults()
        records = self.records(faults)
        labels = {name: label for label, name in enumerate(self.classes, start=1)}
        with warnings.catch_warnings(), ThreadPoolExecutor(16) as pool:  # on a network drive headers are mostly waited for
            warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF tags and of half of `MOST_PIXELS`
            headers = list(pool.map(self._header, records))
        files, targets, listed = [], [], []
        for record, (path, found) in zip(records, headers, strict=True):
            if not isinstance(found, Fault) or found.kind != "name leaves the folder":
                listed.append((path, record.source))
            file = found if isinstance(found, Fault) else image_file(record, path, found, faults.report)
            if isinstance(file, Fault):
                faults.append(file)
            else:
                files.append(file)
                targets.append(to_target(record, file, labels, faults.report))
        for name in self.temporary:
            self.__dict__.pop(name, None)
        return Contents(files, targets, listed, faults)

    def _header(self, record: Record) -> tuple[Path, ImageHeader | Fault]:
        path = self.folder / record.file_name
        try:
            inside(self.folder, record.file_name)
        except InputError as error:
            return path, Fault("name leaves the folder", str(record.source), "", str(error))
        try:
            return path, read_header(path)
        except InputError as error:
            return path, Fault("image unreadable" if os.path.isfile(path) else "image missing", str(path), "", str(error))

    @cached_property
    def _settled(self) -> Contents:
        self.contents.faults.settle(str(self), self.on_invalid)
        return self.contents

    @property
    def targets(self) -> list[Target]:
        """All targets.

        Raises:
            InputError: faults that `on_invalid` does not allow.
        """
        return self._settled.targets

    def read_annotations(self) -> None:
        len(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def load(self, index: int) -> tuple[np.ndarray, Target]:
        image, target = self.open(index)
        return image.read(), target

    def open(self, index: int) -> tuple[ImageFile, Target]:
        return self._settled.files[index], self.targets[index]

    def num_boxes(self, index: int) -> int:
        target = self.targets[index]
        return int((target["iscrowd"] == 0).sum()) if "iscrowd" in target else len(target["labels"])

    def file_name(self, index: int) -> str:
        return Path(os.path.relpath(self._settled.files[index].path, self.folder)).as_posix()  # either may be absolute


Report = Callable[[str, object, str, str], None]


def image_file(record: Record, path: Path, header: ImageHeader, report: Report) -> ImageFile | Fault:
    """The image of a record, turned if the record's size is that of the turned image."""
    stored, turned = (header.width, header.height), header.orientation in QUARTER_TURNS
    rotate = record.size is None and header.orientation != 1  # boxes without a size were drawn on what a viewer shows
    if record.size is not None and min(record.size) <= 0 and turned:
        sizes = f"Expected the size of {path}, since its boxes may be of the turned image or of the stored one, but got none."
        return Fault("size not the image's", str(record.source), "", sizes)
    if record.size is not None and min(record.size) <= 0:
        report("size missing", record.source, "", f"Expected the size of {record.file_name} ({stored[0]} x {stored[1]}) but got none.")
    elif record.size is not None and record.size != stored:
        rotate = turned and record.size == stored[::-1]
        sizes = f"Expected the size of {path}, {stored[0]} x {stored[1]}, but got {record.size[0]} x {record.size[1]}."
        if not rotate:
            return Fault("size not the image's", str(record.source), "", sizes)
        report("size of the turned image", record.source, "", sizes)
    for note in notes(header):
        report(note, path, "", f"{header.format} {header.mode} {header.width} x {header.height}, orientation {header.orientation}")
    return ImageFile.from_header(path, header, rotate)


def notes(header: ImageHeader) -> list[str]:
    """What is unusual about an image."""
    mode = header.mode.partition(";")[0]
    found = {
        MODES.get(mode, ""): True,
        "16 bits": ";16" in header.mode,
        "alpha": mode in ("RGBA", "LA", "PA"),
        "EXIF orientation": header.orientation != 1,
        "animated": header.frames > 1,
    }
    return [note for note, true in found.items() if true and note]


def to_target(record: Record, image: ImageFile, labels: dict[str, int], report: Report) -> Target:
    """The boxes of a record that can be learnt, inside their image. The others, and what was mended, are faults."""
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = record.boxes * np.tile([image.width, image.height], 2) if record.relative else record.boxes.copy()
        good = np.ones(len(boxes), dtype=bool)

        def check(kind: str, wrong: np.ndarray, expected: str, keep: bool = False) -> None:
            """Report boxes with anything wrong, unless they are left out already, and leave them out if they are not to be kept."""
            nonlocal good
            rows = np.atleast_2d(wrong.T).any(axis=0)
            for number in np.flatnonzero(rows & good):
                got = f"{expected} but got {record.boxes[number].tolist()} ({record.names[number]})."
                report(kind, record.source, record.annotations[number], got)
            good = good if keep else good & ~rows

        size = f"{image.width} x {image.height} pixels of {record.file_name}"
        known = np.array([name in labels for name in record.names], dtype=bool)
        named = np.array([bool(name) for name in record.names], dtype=bool)
        check("class missing", ~named, "Expected a class")
        check("class unknown", ~known, f"Expected one of the {len(labels)} classes {list(labels)[:20]}")
        check("box not four numbers", ~np.isfinite(boxes), "Expected four numbers")
        # counted from 1, a box of xmin 5 and xmax 4.5 is half a pixel wide; one of xmax 5 is a slip much more often than a whole one
        swapped = boxes[:, 2:] < boxes[:, :2] - record.from_one
        check("corners swapped", swapped, "Expected x1 < x2 and y1 < y2", keep=True)
        boxes = np.where(np.tile(swapped, 2), boxes[:, [2, 3, 0, 1]], boxes)
        same = boxes[:, 2:] == boxes[:, :2]
        boxes -= np.array([1, 1, 0, 0]) * record.from_one
        check(
            "box without area", same | (boxes[:, 2:].astype(np.float32) <= boxes[:, :2].astype(np.float32)), "Expected x1 < x2 and y1 < y2"
        )
        if record.from_one:
            check("float coordinates", boxes % 1 != 0, "Whole pixels are usual", keep=True)
        clipped = boxes.clip(0, np.tile([image.width, image.height], 2)).astype(np.float32)
        check("box outside", clipped[:, 2:] <= clipped[:, :2], f"Expected a box in the {size}")
        check("box partly outside", np.abs(clipped - boxes) > ROUNDING, f"Expected a box in the {size}", keep=True)
    kept = clipped[good]
    areas = (kept[:, 2:] - kept[:, :2]).prod(axis=1)
    given = record.fields.get("area", np.full(len(good), np.nan))[good]
    return {
        "boxes": kept,
        "labels": np.array([labels[name] for name, ok in zip(record.names, good, strict=True) if ok], dtype=np.int64),
        "image_id": record.image_id,
        **{name: values[good] for name, values in record.fields.items()},
        "area": np.where((given > 0) & (given <= image.width * image.height), given, areas).astype(np.float32),
    }


def listed_once(names: list[str], source: Path, report: Report) -> list[str]:
    """Each name once, in order; the others are faults."""
    for name, count in Counter(names).items():
        if count > 1:
            report("listed twice", source, "", f"Expected {name} once but it is there {count} times.")
    return list(dict.fromkeys(names))
