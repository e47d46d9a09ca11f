"""The verb ``audit``: what is in a data set, and what is wrong with it, before a training is started on it.

It writes ``audit.json``, which has

- ``lit_detect``, ``arguments``: the version, and what the command was given;
- ``classes``: names of all classes;
- ``splits``, by name, and ``all``, each image once: ``data``, ``images``, ``images_without_boxes``, ``boxes`` (to learn: crowds are
  counted apart), ``crowds``, ``difficult``, ``bytes``, ``sizes`` (boxes that are small, medium or large by COCO's areas), ``by_class``
  (the same by class name), ``image_sizes`` (width, height, images; the most frequent first), ``boxes_an_image`` (images by their
  number of boxes), and ``distributions``: percentiles of width and height, aspect ratios (width over height), box sizes (square
  root of the area in pixels) and relative box sizes (square root of the share of the image's area);
- ``anchors``: null unless the data is a training's config with a model that has anchors. For all boxes, by size and by class: how many
  there are, and the shares that have an anchor with an IoU of .4, .5 and .6; boxes are scaled as the model's inputs do it in
  evaluation, without augmentation; of a two-stage detector the proposal network's anchors count; and ``warnings``;
- ``duplicates``: files of the same bytes or in several splits: ``files`` with their splits, and ``leak``, the pairs of splits that
  share the image. VOC's ``trainval`` has ``train`` and ``val`` in it, which is no leak;
- ``counts`` of faults by severity and by kind, and ``faults``: ``kind``, ``severity`` (``wrong`` stops a training unless on_invalid
  is drop, ``mended`` does not, ``note`` is no fault), ``file``, ``annotation``, ``detail``, ``splits``;
- ``remarks``: what could not be looked at, and why.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import lit_detect
from lit_detect.data.audit_page import draw_page
from lit_detect.data.audit_reading import Boxes, FileCheck, SplitContents, check_file, merge, parts_of, unlisted
from lit_detect.data.audit_tables import print_tables
from lit_detect.data.dataset import DetectionDataset, of_sizes
from lit_detect.data.faults import MENDED, WRONG, Fault
from lit_detect.data.images import ImageFile
from lit_detect.data.splits import open_splits
from lit_detect.data.yolo import read_yaml
from lit_detect.errors import InputError, printable

__all__ = ["THRESHOLDS", "audit"]

THRESHOLDS = (0.4, 0.5, 0.6)  # intersection over union of a box and an anchor
ENOUGH = 0.9  # share of boxes with an anchor at .5 below which the audit warns
PERCENTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}
Findings = dict[Fault, list[str]]


def audit(data: str, out: str = "audit", workers: int = 8) -> None:
    """Read a whole data set, every annotation and every image, and say what is in it and what is wrong.

    Prints tables, draws a page, ``audit.png``, and writes ``audit.json``, whose keys `lit_detect.data.audit` lists.

    Args:
        data: a VOC folder, a COCO folder or json, a YOLO data.yaml, or a training's config.
        out: folder to write ``audit.json`` and ``audit.png`` into.
        workers: threads that read and decode images.

    Raises:
        InputError: no data set is there.
    """
    if workers < 1:
        raise InputError(f"Expected at least 1 worker but got {workers}.")
    console = Console(markup=False, emoji=False, highlight=False)  # names in data sets may look like markup
    datasets = open_splits(data)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    bars = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bars, console=console) as progress:
        classes, splits = read_splits(datasets, progress)
        checks = read_files(splits, workers, progress)
    everything, names = merge(splits), list(classes)
    anchors, overlaps, remarks = recall_of_anchors(data, everything, names)
    if any(split.failed for split in splits):
        remarks.append("Files that no split lists were not looked for, since a split could not be read.")
    findings = collect(splits, checks)
    report = {
        "lit_detect": lit_detect.__version__,
        "arguments": {"data": data, "out": out, "workers": workers},
        "classes": names,
        "splits": {split.name: summary(split, names, checks) for split in splits},
        "all": summary(everything, names, checks),
        "anchors": anchors,
        "duplicates": duplicates(splits, checks),
        **listed(findings),
        "remarks": remarks,
    }
    (folder / "audit.json").write_text(json.dumps(report, indent=1))
    draw_page(folder / "audit.png", report, everything, overlaps)
    print_tables(console, report, folder)


def read_splits(datasets: dict[str, DetectionDataset], progress: Progress) -> tuple[dict[str, int], list[SplitContents]]:
    """All annotations, with the position of each class."""
    classes: dict[str, int] = {}
    splits: list[SplitContents] = []
    expected: tuple[str, list[str]] | None = None
    for name, dataset in datasets.items():
        split = SplitContents(name)
        for part in parts_of(dataset):
            task = progress.add_task(printable(f"annotations of {name}"), total=None)
            split.add(part, classes, lambda numbers, task=task: progress.track(numbers, task_id=task))  # type: ignore[misc]
            progress.update(task, total=len(split.images), completed=len(split.images))
            if split.failed:
                continue
            expected = expected or (repr(part), part.classes)
            if part.classes != expected[1]:
                detail = f"Expected the classes of {expected[0]}, {expected[1]}, but got {part.classes}."
                split.faults.report("class unknown", repr(part), "", detail)
        splits.append(split)
    return classes, splits


def read_files(splits: Sequence[SplitContents], workers: int, progress: Progress) -> dict[Path, FileCheck]:
    """Every file that a split lists, read, hashed and decoded."""
    files: dict[Path, ImageFile | None] = {}
    for split in splits:
        files |= {path: files.get(path) or file for path, file in split.files.items()}
    messages = getattr(cv2.utils, "logging", cv2)  # its place since OpenCV 5, and before
    before = messages.setLogLevel(0)  # what OpenCV says of a broken image does not say of which
    try:
        with (
            warnings.catch_warnings(),
            ThreadPoolExecutor(workers) as pool,
        ):  # decoding and hashing need no lock, so that processes would be no faster
            warnings.simplefilter("ignore")  # Pillow's, of what is a fault or a note here
            task = progress.add_task("images", total=len(files))
            return dict(zip(files, progress.track(pool.map(check_file, files, files.values()), task_id=task), strict=True))
    finally:
        messages.setLogLevel(before)


def network_of(data: str) -> tuple[Any, list[str]]:
    """The network, a module, that a training's config makes, None for other data; and why there is none, if there should be."""
    path = Path(data)
    if path.suffix not in (".yaml", ".yml") or "model" not in read_yaml(path):
        return None, []
    from lit_detect.cli import mendable
    from lit_detect.lightning_cli import read_config  # not on top: only configs need Lightning

    try:
        model = read_config(path)[1]
    except Exception as error:
        if mendable(error) is None:
            raise
        return None, [f"The model's anchors were not looked at: {mendable(error)}"]
    return (None if model is None else model.network), []


def recall_of_anchors(data: str, contents: SplitContents, classes: Sequence[str]) -> tuple[dict[str, Any] | None, np.ndarray, list[str]]:
    """How many boxes have an anchor that overlaps them enough, the best overlap of each box, and remarks."""
    network, remarks = network_of(data)
    if network is None or not contents.images:
        return None, np.zeros(0), remarks
    import torch  # not on top: only networks need it

    from lit_detect.data.anchor_recall import overlaps_with_anchors

    boxes = contents.boxes.of(~contents.boxes.crowd)
    by_image = np.split(boxes.xyxy, np.cumsum(np.bincount(boxes.image, minlength=len(contents.images)))[:-1])
    sizes = [(width, height) for width, height in contents.sizes.tolist()]
    found = overlaps_with_anchors(network, sizes, [torch.from_numpy(of_image) for of_image in by_image])
    if found is None:
        return None, np.zeros(0), ["The model has no anchors that are matched by their overlap."]
    best = torch.cat([torch.zeros(0), *found]).numpy()

    def shares(rows: np.ndarray) -> dict[str, Any]:
        return {"boxes": int(rows.sum())} | {str(least): float((best[rows] >= least).mean()) for least in THRESHOLDS if rows.any()}

    by_size = {name: shares(rows) for name, rows in of_sizes(boxes.area).items()}
    recall = {
        "all": shares(np.ones(len(best), dtype=bool)),
        "by_size": by_size,
        "by_class": {name: shares(boxes.label == label) for label, name in enumerate(classes)},
        "warnings": [
            f"anchors miss {100 * (1 - of_size['0.5']):.0f} % of the {name} boxes (IoU .5)"
            for name, of_size in by_size.items()
            if of_size.get("0.5", 1) < ENOUGH
        ],
    }
    return recall, best, remarks


def collect(splits: Sequence[SplitContents], checks: dict[Path, FileCheck]) -> Findings:
    """Every fault once, with the splits that have it."""
    findings: Findings = defaultdict(list)
    for split in splits:
        known = {fault.file for fault in split.faults if fault.kind == "image unreadable"}
        wrong = {str(path): checks[path].wrong for path in split.files if checks[path].wrong}
        late = "Only decoding shows it: on_invalid: drop does not leave it out."
        decoded = [Fault("image unreadable", file, "", f"{detail} {late}") for file, detail in wrong.items() if file not in known]
        for fault in dict.fromkeys([*split.faults, *decoded]):
            findings[fault].append(split.name)
    for fault in () if any(split.failed for split in splits) else unlisted(splits):
        findings[fault] = []
    return findings


def listed(findings: Findings) -> dict[str, Any]:
    """The faults, and how many there are, as they are written."""
    severities = {**dict.fromkeys(WRONG, "wrong"), **dict.fromkeys(MENDED, "mended")}
    faults = [{**fault._asdict(), "severity": severities.get(fault.kind, "note"), "splits": splits} for fault, splits in findings.items()]
    of_severity, of_kind = (Counter(fault[key] for fault in faults) for key in ("severity", "kind"))
    counts = {severity: of_severity[severity] for severity in ("wrong", "mended", "note")}
    return {"counts": {**counts, "kinds": dict(of_kind.most_common())}, "faults": faults}


def duplicates(splits: Sequence[SplitContents], checks: dict[Path, FileCheck]) -> list[dict[str, Any]]:
    """Images that are there more than once, those that several splits share first."""
    places: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for split in splits:
        for path in split.files:
            if checks[path].digest:
                places[checks[path].digest][str(path)].append(split.name)
        for name, digest in split.pixels.items():
            places[digest][name].append(split.name)
    found = []
    for files in places.values():
        names = list(dict.fromkeys(name for own in files.values() for name in own))
        pairs = [[one, other] for number, one in enumerate(names) for other in names[number + 1 :]]
        leaks = [pair for pair in pairs if "trainval" not in pair or not {"train", "val"} & set(pair)]
        if len(files) > 1 or leaks:
            found.append({"leak": leaks, "files": dict(files)})
    return sorted(found, key=lambda one: not one["leak"])


def summary(split: SplitContents, classes: Sequence[str], checks: dict[Path, FileCheck]) -> dict[str, Any]:
    """A split in numbers."""
    boxes = split.boxes.of(~split.boxes.crowd)
    crowds = split.boxes.of(split.boxes.crowd)
    an_image = np.bincount(boxes.image, minlength=len(split.images))
    width, height = split.sizes.T
    of_box = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).T
    paths = split.files or {Path(name) for name in split.images}  # of all splits as one there are the names alone
    by_class = {
        name: {
            "images": len(np.unique(boxes.image[boxes.label == label])),
            **counts(boxes, crowds, boxes.label == label, crowds.label == label),
        }
        for label, name in enumerate(classes)
    }
    return {
        "data": split.data,
        "images": len(split.images),
        "images_without_boxes": int((an_image == 0).sum()),
        **counts(boxes, crowds),
        "bytes": sum(checks[path].bytes for path in paths if path in checks),
        "by_class": by_class,
        "image_sizes": [[*map(int, size), count] for size, count in Counter(map(tuple, split.sizes.tolist())).most_common()],
        "boxes_an_image": dict(sorted(Counter(an_image.tolist()).items())),
        "distributions": {
            "image width": distribution(width),
            "image height": distribution(height),
            "image aspect ratio": distribution(width / height),
            "boxes an image": distribution(an_image),
            "√ of box area": distribution(np.sqrt(boxes.area)),
            "√ of its share of the image": distribution(np.sqrt(of_box.prod(axis=0) / split.sizes[boxes.image].prod(axis=1))),
            "box aspect ratio": distribution(of_box[0] / of_box[1]),
        },
    }


def counts(boxes: Boxes, crowds: Boxes, rows: Any = slice(None), of_crowds: Any = slice(None)) -> dict[str, Any]:
    """Numbers of some boxes."""
    area = boxes.area[rows]
    return {
        "boxes": len(area),
        "crowds": len(crowds.area[of_crowds]),
        "difficult": int(boxes.difficult[rows].sum()),
        "sizes": {name: int(rows.sum()) for name, rows in of_sizes(area).items()},
    }


def distribution(values: np.ndarray) -> dict[str, float] | None:
    """Percentiles and mean."""
    if not len(values):
        return None
    return {"mean": float(np.mean(values))} | {
        name: float(value) for name, value in zip(PERCENTILES, np.percentile(values, list(PERCENTILES.values())), strict=True)
    }
