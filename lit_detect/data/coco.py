"""COCO's instance annotations, and any data set in their format."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lit_detect.data.annotated import AnnotatedImages, Record
from lit_detect.data.faults import Faults, OnInvalid
from lit_detect.errors import InputError

__all__ = ["COCODetection"]

Entry = dict[str, Any]


class COCODetection(AnnotatedImages):
    """Images and boxes in COCO's format.

    Labels are 1..C in the order of the file's category ids, which may have gaps; `category_ids` has the file's own. Boxes that stand
    for a crowd are kept with ``iscrowd`` 1: evaluation needs them, training leaves them out.

    Args:
        images: the folder of images.
        annotations: the ``instances_*.json``.
        on_invalid: what to do about faults: see `AnnotatedImages`.
        download: fetch COCO 2017 unless it is there, with images in ``train2017`` or ``val2017`` and annotations in
            ``annotations/instances_train2017.json`` or ``instances_val2017.json``: when it is first read, and once, whatever the
            number of processes.

    Raises:
        InputError: something is missing, is not JSON, or is not what the format says; the message names the file and the annotation.
    """

    def __init__(self, images: str, annotations: str, on_invalid: OnInvalid = "fix", download: bool = False) -> None:
        super().__init__(Path(images), on_invalid)
        self.annotations, self.download = Path(annotations), download

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, {str(self.annotations)!r})"

    temporary = ("_parsed",)

    @cached_property
    def _categories(self) -> dict[int, Entry]:
        return self._parsed[0]

    @cached_property
    def _parsed(self) -> tuple[dict[int, Entry], list[Record], Faults]:
        """Categories by id, ascending; records; and faults. The file itself, with its polygons, is not kept."""
        faults = Faults()
        content = self._content()
        categories = dict(sorted(self._by_id(content["categories"], "category", "name", faults).items()))
        if any(later > earlier + 1 for earlier, later in pairwise(categories)):
            faults.report("gaps in category ids", self.annotations, "", f"{len(categories)} categories, ids up to {max(categories)}")
        images = self._by_id(content["images"], "image", "file_name", faults)
        by_image = self._boxes_by_image(content["annotations"], images, categories, faults)
        # difficult is VOC's; files converted from VOC have it as one more key, which programs that do not know it pass over
        difficult = any("difficult" in one for entries in by_image.values() for one in entries)
        flags = ["iscrowd", "difficult"] if difficult else ["iscrowd"]
        return categories, [self._record(image, by_image[key], categories, flags) for key, image in images.items()], faults

    def _content(self) -> dict[str, list[Any]]:
        """The file, which has the three lists."""
        if self.download:
            from lit_detect.data.download import download_coco  # not on top: it imports torchvision

            download_coco(self.folder, self.annotations)
        try:
            content: dict[str, list[Any]] = json.loads(self.annotations.read_bytes())
        except OSError as error:
            raise InputError(f"Expected COCO annotations but could not read {self.annotations}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"Expected COCO annotations but {self.annotations} is not JSON: {error}.") from error
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise InputError(f"Expected a list of {key} in {self.annotations}; is it an instances_*.json?")
        return content

    def _by_id(self, entries: list[Any], kind: str, name: str, faults: Faults) -> dict[int, Entry]:
        """Entries of one kind by their id, once each."""
        found: dict[int, Entry] = {}
        names: set[str] = set()
        for position, entry in enumerate(entries):
            where = f"{kind} {entry.get('id') if isinstance(entry, dict) else f'at {position}'}"
            if not isinstance(entry, dict) or not is_id(entry.get("id")) or not entry.get(name) or type(entry[name]) is not str:
                faults.report(
                    "id wrong", self.annotations, where, f"Expected a whole number as id and a {name} but got {str(entry)[:200]}."
                )
            elif entry["id"] in found or entry[name] in names:
                faults.report("id repeated", self.annotations, where, f"Expected id and name used once but got {str(entry)[:200]}.")
            else:
                found[entry["id"]] = entry
                names.add(entry[name])
        return found

    def _boxes_by_image(
        self, annotations: list[Any], images: dict[int, Entry], categories: dict[int, Entry], faults: Faults
    ) -> dict[int, list[Entry]]:
        """The annotations of each image."""
        found: dict[int, list[Entry]] = {image: [] for image in images}
        ids: set[str] = set()
        for position, one in enumerate(annotations):
            entry = one if isinstance(one, dict) else {}
            identity = str(entry.get("id", f"at {position}"))
            where = f"annotation {identity}"
            pointers = (("image_id", images), ("category_id", categories))
            dangling = [key for key, known in pointers if type(entry.get(key)) is not int or entry[key] not in known]
            if dangling:
                got = f"Expected {dangling[0]} of an entry but got {entry.get(dangling[0])!r}."
                faults.report("id dangling", self.annotations, where, got)
            elif identity in ids:
                faults.report("id repeated", self.annotations, where, "Expected an id used once.")
            else:
                if entry.get("iscrowd") == 1 and isinstance(entry.get("segmentation"), dict):
                    faults.report("crowd with RLE", self.annotations, where, "a region of many objects")
                found[entry["image_id"]].append({**entry, "where": where})
            ids.add(identity)
        return found

    def _record(self, image: Entry, annotations: list[Entry], categories: dict[int, Entry], flags: list[str]) -> Record:
        boxes = np.array([four(one.get("bbox")) for one in annotations], dtype=np.float64).reshape(-1, 4)
        with np.errstate(over="ignore"):
            boxes[:, 2:] += boxes[:, :2]
        width, height = number(image.get("width")), number(image.get("height"))
        return Record(
            image_id=image["id"],
            file_name=image["file_name"],
            source=self.annotations,
            names=[categories[one["category_id"]]["name"] for one in annotations],
            boxes=boxes,
            annotations=[one["where"] for one in annotations],
            fields={
                "area": np.array([number(one.get("area")) for one in annotations], dtype=np.float64),
                **{flag: np.array([one.get(flag) == 1 for one in annotations], dtype=np.int64) for flag in flags},
            },
            size=(int(width), int(height)) if math.isfinite(width) and math.isfinite(height) else (0, 0),
        )

    def records(self, faults: Faults) -> list[Record]:
        faults += self._parsed[2]
        return self._parsed[1]

    @property
    def classes(self) -> list[str]:
        return [category["name"] for category in self._categories.values()]

    @property
    def category_ids(self) -> list[int]:
        return list(self._categories)


def is_id(value: object) -> bool:
    """Whether it is a whole number of 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def number(value: object) -> float:
    """A number, NaN for what is none."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def four(value: object) -> Sequence[float]:
    """Four numbers, NaN for what is none."""
    return [number(one) for one in value] if isinstance(value, list) and len(value) == 4 else [math.nan] * 4
