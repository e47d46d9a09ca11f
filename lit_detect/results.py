"""The results of an evaluation, as plain data for a file and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor

from lit_detect.analysis import average_precision, best_f1
from lit_detect.data.dataset import of_sizes
from lit_detect.error_types import error_costs
from lit_detect.errors import printable
from lit_detect.matches import column, match_detections
from lit_detect.metrics import xywh

__all__ = ["coco_results", "results", "results_tables"]

AVERAGES = {
    "map": "AP",
    "map_50": "AP50",
    "map_75": "AP75",
    "map_small": "AP small (under 32² pixels)",
    "map_medium": "AP medium (to 96²)",
    "map_large": "AP large (over 96²)",
    "mar_100": "AR (100 detections an image)",
    "voc_map": "VOC's mAP (IoU .50)",
}
CLASS_COLUMNS = {
    "ap": "AP", "ap_50": "AP50", "voc_ap": "VOC AP", "f1": "F1", "threshold": "score", "precision": "precision", "recall": "recall",
}  # fmt: skip
MANY_CLASSES = 24  # above, a table has the lowest and the highest alone


def results(
    values: Mapping[str, float], detections: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Tensor]], classes: Sequence[str]
) -> dict[str, Any]:
    """What an evaluation found, as plain data; all shares are 0..1, and what has no value is absent.

    Args:
        values: what was logged, without the stage: ``map``, ``ap/<class>``, ...
        detections: of each image, as a metric has them after `compute`.
        targets: of the same images.
        classes: names of the labels 1..C.

    Returns:
        Numbers of ``images``, ``targets`` and ``detections``; ``metrics``, the values that are not of one class; ``targets_by_size``;
        for each of the ``classes`` its ``targets``, ``ap``, ``ap_50``, ``voc_ap``, and the best ``f1`` with the ``threshold`` of score
        that gives it, the ``precision`` and ``recall`` there; and for each type of ``errors`` (`lit_detect.error_types`) their ``count``
        and their ``cost`` in AP50.
    """
    matches = match_detections(detections, targets, classes)
    counts = matches.target_counts()
    found: dict[str, dict[str, Any]] = {name: {"targets": int(count)} for name, count in zip(classes, counts[1:], strict=True)}
    for key in ("ap", "voc_ap"):
        for name in classes:
            if f"{key}/{name}" in values:
                found[name][key] = values[f"{key}/{name}"]
    for name, value in average_precision(matches).items():
        found[name]["ap_50"] = value
    for name, point in best_f1(matches).items():
        found[name] |= point._asdict()
    by_size = of_sizes(column(targets, "area")[~matches.target_ignored])
    return {
        "images": len(targets),
        "targets": int(counts.sum()),
        "detections": len(matches.labels),
        "metrics": {name: value for name, value in values.items() if not name.startswith(("ap/", "voc_ap/"))},
        "targets_by_size": {name: int(rows.sum()) for name, rows in by_size.items()},
        "classes": found,
        "errors": {name: asdict(error) for name, error in error_costs(matches).items()},
    }


def results_tables(found: Mapping[str, Any], stage: str) -> Group:
    """The `results` of a stage as tables: the averages, the classes, and the types of errors; of many classes the lowest and highest."""
    averages = table("", stage)
    for key, name in AVERAGES.items():
        if key in found["metrics"]:
            averages.add_row(name, f"{found['metrics'][key]:.3f}")
    by_class, which = list(found["classes"].items()), "By class"
    if many := len(by_class) > MANY_CLASSES:
        which = f"The lowest and the highest of {len(by_class)} classes"
        by_class = sorted((one for one in by_class if "ap" in one[1]), key=lambda one: one[1]["ap"])
    shown = {key: name for key, name in CLASS_COLUMNS.items() if any(key in one for _, one in by_class)}
    classes = table("", "targets", *shown.values())
    half = MANY_CLASSES // 2
    for number, (name, one) in enumerate(by_class):
        if number < half or number >= len(by_class) - half:
            row = (f"{one[key]:.3f}" if key in one else "" for key in shown)
            classes.add_row(escape(printable(name)), str(one["targets"]), *row, end_section=many and number == half - 1)
    errors = table("", "number", "AP50")
    for name, error in found["errors"].items():
        errors.add_row(name, str(error["count"]), f"{error['cost']:+.3f}")
    parts = [
        (f"Average precision, {stage}; over IoU .50 to .95 unless said otherwise", averages),
        (f"{which}; F1 at the score where it is largest, IoU .50", classes),
        ("Errors by type, and what AP50 would gain without them (TIDE)", errors),
    ]
    return Group(*(part for title, one in parts if one.row_count for part in (f"\n{title}", one)))


def table(*headers: str) -> Table:
    """A table of numbers after names, no wider than a terminal."""
    made = Table(*(Column(header, justify="right") for header in headers), box=SIMPLE_HEAD, show_edge=False, collapse_padding=True)
    made.columns[0].justify, made.columns[0].no_wrap = "left", True
    return made


def coco_results(detections: dict[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's detections in COCO's results format.

    Boxes are to a thousandth of a pixel and scores to the last digit, as the metric sees them: AP of the file is that of the run.
    """
    rows = zip(xywh(detections["boxes"]).tolist(), detections["labels"].tolist(), detections["scores"].numpy(), strict=True)
    return [
        # the shortest number that is this float32
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": float(str(score))}
        for box, label, score in rows
    ]
