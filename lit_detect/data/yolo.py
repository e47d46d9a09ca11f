"""Data sets in YOLO's text format: a data.yaml, images, and a text file of boxes beside each."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
import yaml

from lit_detect.data.annotated import AnnotatedImages, Record, listed_once
from lit_detect.data.faults import Fault, Faults, OnInvalid
from lit_detect.data.images import images_below, inside
from lit_detect.data.voc import number
from lit_detect.errors import InputError

__all__ = ["YOLO_SETS", "YOLODetection", "read_yaml"]

YOLO_SETS = ("train", "val", "test")


class YOLODetection(AnnotatedImages):
    """Images and boxes in YOLO's text format.

    The boxes of ``images/train/a.jpg`` are in ``labels/train/a.txt``: the last folder of a path that is called ``images`` becomes
    ``labels``; without one the text file lies beside the image. An image without a text file has no boxes. A row is
    ``class x y width height``, with the centre of the box, in widths and heights of the image. Of a polygon, ``class x1 y1 x2 y2 ...``,
    the box around it is taken; of a row with keypoints (``kpt_shape`` is in the data.yaml) the box.

    Args:
        data: the ``data.yaml``, with ``names`` of the classes (a list, or a mapping from 0, 1, ...), and ``train``, ``val`` or ``test``: a
            folder of images, a text file that lists them, or a list of these, below ``path``, which is by default the file's folder.
        image_set: ``train``, ``val`` or ``test``.
        on_invalid: what to do about faults: see `AnnotatedImages`.

    Raises:
        InputError: something is missing, or is not what the format says; the message names the file and the key or the line.
    """

    def __init__(self, data: str, image_set: str = "train", on_invalid: OnInvalid = "fix") -> None:
        super().__init__(Path(data).parent, on_invalid)
        self.data, self.image_set = Path(data), image_set
        if image_set not in YOLO_SETS:
            raise InputError(f"Expected image_set as {', '.join(YOLO_SETS)} but got {image_set!r}.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.data)!r}, {self.image_set!r})"

    @cached_property
    def content(self) -> dict[Any, Any]:
        """What the data.yaml says."""
        return read_yaml(self.data)

    @cached_property
    def root(self) -> Path:
        """The folder that everything lies in."""
        path = self.content.get("path")
        root = self.data.parent / (path if isinstance(path, str) else "")
        if not isinstance(path, str | None) or not os.path.isdir(root):
            raise InputError(f"Expected path in {self.data} as a folder, absolute or from the file's own, but got {short(path)}.")
        return root

    @cached_property
    def classes(self) -> list[str]:
        names, count = self.content.get("names"), self.content.get("nc")
        if isinstance(names, dict):
            if any(type(key) is not int for key in names) or sorted(names) != list(range(len(names))):
                raise InputError(f"Expected names in {self.data} numbered from 0 without gaps but got {short(names)}.")
            names = [name for _, name in sorted(names.items())]
        # digits need no quotes; a YAML yes, no, on or off does, and would be True or False here
        if not isinstance(names, list) or not names or any(type(name) not in (str, int) or not str(name).strip() for name in names):
            raise InputError(f"Expected names in {self.data} as a list of names (yes, no, on and off in quotes) but got {short(names)}.")
        names = [str(name).strip() for name in names]
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise InputError(f"Expected each of the names in {self.data} once but {repeated!r} is there again.")
        if count is not None and (type(count) is not int or count != len(names)):
            raise InputError(f"Expected nc in {self.data} as the number of names, {len(names)}, but got {short(count)}.")
        return names

    def records(self, faults: Faults) -> list[Record]:
        self.folder = self.root
        names = listed_once(self._names(), self.data, faults.report)
        with ThreadPoolExecutor(16) as pool:  # on a network drive files are mostly waited for
            texts = list(pool.map(self._labels, names))
        if all(text is None for text in texts):
            example = self.root / label_name(names[0])
            raise InputError(f"Expected boxes for the {len(names)} images of {self}, such as in {example}, but there is no such file.")
        records = []
        for image_id, (name, text) in enumerate(zip(names, texts, strict=True)):
            if isinstance(text, Fault):
                faults.append(text)
            else:
                records.append(self._record(image_id, name, text, faults))
        return records

    def _names(self) -> list[str]:
        """The images' names, below the root."""
        entry = self.content.get(self.image_set)
        entries: list[Any] = entry if isinstance(entry, list) else [entry]
        if not entries or any(not isinstance(one, str) or not one.strip() for one in entries):
            there = [name for name in YOLO_SETS if self.content.get(name) is not None]
            raise InputError(
                f"Expected {self.image_set} in {self.data} as a folder of images, a text file that lists them, or a list of these, "
                f"but got {short(entry)}. There are: {', '.join(there) or 'none'}."
            )
        return [name for one in entries for name in self._listed(one.strip())]

    def _listed(self, entry: str) -> list[str]:
        """The images of a folder, sorted, or of a text file, as it lists them."""
        name = below(self.root, entry)
        if name.startswith("../") and os.path.exists(self.root / name[3:]):
            name = name[3:]  # Roboflow's exports say ../train/images for train/images
        path = inside(self.root, name)
        if os.path.isdir(path):
            names = sorted(file.relative_to(self.root).as_posix() for file in images_below(path))
        else:
            try:
                lines = path.read_text(encoding="utf-8-sig").split("\n")
            except (OSError, ValueError) as error:  # ValueError: not UTF-8
                raise InputError(f"Expected {self.image_set} in {self.data} as a folder or a list but got {entry}: {error}.") from error
            names = [below(self.root, line.strip(), os.path.dirname(name)) for line in lines if line.strip()]
        if not names:
            raise InputError(f"Expected images in {path}, which is {self.image_set} in {self.data}, but there are none.")
        return names

    def _labels(self, name: str) -> str | Fault | None:
        """The text of an image's boxes, None if it has none, or what keeps it from being read."""
        path = self.root / label_name(name)
        try:
            return inside(self.root, label_name(name)).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return None
        except InputError as error:
            return Fault("name leaves the folder", str(self.data), "", str(error))
        except (OSError, ValueError) as error:
            return Fault("annotation unreadable", str(path), "", f"Expected boxes as UTF-8 text but could not read {path}: {error}.")

    def _record(self, image_id: int, name: str, text: str | None, faults: Faults) -> Record:
        """The record of an image; rows that are no boxes are faults."""
        path = self.root / label_name(name)
        if text is None:
            faults.report("no label file", path, "", f"{name} has no boxes")
        names, boxes, lines, polygons = [], [], [], 0
        for position, line in enumerate((text or "").split("\n"), start=1):
            if not line.strip():
                continue
            where = f"line {position}"
            label, *values = [number(word) for word in line.split()]
            values = values[:4] if "kpt_shape" in self.content else values
            polygon = len(values) >= 6 and len(values) % 2 == 0
            if not (len(values) == 4 or polygon) or not all(map(math.isfinite, values)):
                expected = "Expected x y width height, or a polygon's points, after the class"
                faults.report("box not four numbers", path, where, f"{expected} but got {line.strip()[:200]!r}.")
            elif not label.is_integer() or not 0 <= label < len(self.classes):
                expected = f"Expected a class from 0 to {len(self.classes) - 1}"
                faults.report("class unknown", path, where, f"{expected} but got {line.strip()[:200]!r}.")
            else:
                polygons += polygon
                names.append(self.classes[int(label)])
                boxes.append(around(values) if polygon else corners(*values))
                lines.append(where)
        if polygons:  # once for a file: a data set of them has hundreds of thousands
            faults.report("polygon taken as its box", path, "", f"{polygons} of {len(boxes)} boxes")
        return Record(image_id, name, path, names, np.array(boxes, dtype=np.float64).reshape(-1, 4), lines, {}, size=None, relative=True)


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        InputError: not there, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InputError(f"Expected a YAML file but could not read {path}: {error.strerror}.") from error
    except Exception as error:  # beside its own, PyYAML lets through what its types raise: a ValueError for the month 13
        raise InputError(f"Expected YAML but could not read {path}: {' '.join(str(error).split()) or type(error).__name__}.") from error
    if not isinstance(content, dict):
        raise InputError(f"Expected a mapping in {path} but got {short(content)}.")
    return content


def below(root: Path, name: str, folder: str = "") -> str:
    """A path in a file of `folder` as one below the root; one with ``..`` in front if it leads out.

    >>> below(Path("/data"), "./images/a.jpg"), below(Path("/data"), "../images/a.jpg", "lists"), below(Path("/data"), "/data/images/a.jpg")
    ('images/a.jpg', 'images/a.jpg', 'images/a.jpg')
    """
    if os.path.isabs(name):
        bases = (os.path.abspath(root), os.path.realpath(root))
        base = next((base for base in bases if name.startswith(base + os.sep)), bases[0])
        return Path(os.path.relpath(name, base)).as_posix()
    return Path(os.path.normpath(os.path.join(folder, name))).as_posix()


def label_name(name: str) -> str:
    """The text file of an image.

    >>> label_name("images/train/a.jpg"), label_name("train/a.b.jpg")
    ('labels/train/a.txt', 'train/a.b.txt')
    """
    before, images, after = f"/{name}".rpartition("/images/")
    return os.path.splitext(f"{before}/labels/{after}"[1:] if images else name)[0] + ".txt"


def corners(x: float, y: float, width: float, height: float) -> list[float]:
    """The corners of a box from its centre and sides."""
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def around(points: list[float]) -> list[float]:
    """The box around ``x1, y1, x2, y2, ...``."""
    return [min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])]
