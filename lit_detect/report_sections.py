"""What the report shows, as numbers and charts: its page is ``report.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lit_detect.analysis import OperatingPoint, average_precision, best_f1, calibration, confusion_matrix, operating_point, precision_recall
from lit_detect.error_types import error_costs
from lit_detect.matches import Matches, best_from_here
from lit_detect.report_charts import Chart, Series, columns, lines, thinned, ticks
from lit_detect.report_history import History

__all__ = ["best_threshold", "class_rows", "confusions", "curves", "data_figures", "error_rows", "score_figures", "size_rows"]

COLOURED = 8  # classes whose lines can be told apart
MATRIX = 24  # classes of which a whole matrix can be read
WORST = 15  # confusions in the table
SIZES = {"small": "under 32²", "medium": "32² to 96²", "large": "over 96²"}
RECALLS = np.linspace(0, 1, 101)
Figure = tuple[str, str, Chart]  # title, how it is to be read, drawing
ERRORS = {
    "class": "in place, wrong class",
    "localisation": "right class, out of place",
    "both": "wrong class, out of place",
    "duplicate": "a better detection has the target",
    "background": "on nothing",
    "missed": "targets that nothing came near",
}


def best_threshold(matches: Matches, score_threshold: float | None) -> OperatingPoint:
    """What a score threshold comes to over all classes; by default that of the largest F1, or .5 where there is none."""
    curve = precision_recall(matches)
    if score_threshold is None:
        return operating_point(curve) or OperatingPoint(0.5, 0.0, 0.0, 0.0)
    kept = int((curve.scores >= score_threshold).sum())
    precision, recall = (float(values[kept - 1]) if kept else 0.0 for values in (curve.precision, curve.recall))
    return OperatingPoint(score_threshold, 2 * precision * recall / max(precision + recall, 1e-9), precision, recall)


def curves(history: History, best_step: int | None, epoch: int | None) -> list[Figure]:
    """Losses and AP over the training, with a line at the checkpoint; values that are not finite are left out, and counted."""
    mark = None if best_step is None else (float(best_step), f"epoch {epoch}")
    history, lost = finite(history)
    found: list[Figure] = []

    def add(title: str, note: str, names: Sequence[str], every: Sequence[Series], top: float) -> None:
        if count := sum(lost[name] for name in names):
            note += f" {count} values are left out that are not finite."
        every = [one._replace(y=np.minimum(one.y, top)) for one in every]
        found.append((title, note, lines(f"{title} by step", every, "steps", (0, top), mark=mark)))

    losses = [name for name in ("train/loss", "val/loss") if name in history]
    if losses:
        every = [Series(name, *thinned(*history[name]), colour=number, dots=name == "val/loss") for number, name in enumerate(losses)]
        late = np.concatenate([values[len(values) // 20 :] for _, values in (history[name] for name in losses)])
        top = float(np.max(late, initial=0)) * 1.05 or 1.0  # the first few steps can be many times the rest
        add("Loss", "The mean over stretches of steps.", losses, every, top)
    names = {"val/map": "AP", "val/map_50": "AP50", "val/map_75": "AP75", "val/voc_map": "VOC AP"}
    every = [Series(text, *history[name], colour=number, dots=True) for number, (name, text) in enumerate(names.items()) if name in history]
    if every:
        add("Average precision", "After each validation.", [name for name in names if name in history], every, 1.0)
    parts = [name for name in history if name.startswith("train/") and name.endswith("_loss")]
    if len(parts) > 1:
        every = [Series(name.removeprefix("train/"), *thinned(*history[name]), colour=number) for number, name in enumerate(parts)]
        top = max((float(np.percentile(one.y, 98)) for one in every if len(one.y)), default=0.0) * 1.1 or 1.0
        add("Parts of the training loss", "Their sum is the loss.", parts, every, top)
    return found


def finite(history: History) -> tuple[History, dict[str, int]]:
    """The values of a history that are finite, and of each metric how many are not: a training that diverges logs those too."""
    good = {name: np.isfinite(steps) & np.isfinite(values) for name, (steps, values) in history.items()}
    kept = {name: (steps[good[name]], values[good[name]]) for name, (steps, values) in history.items()}
    return kept, {name: int((~one).sum()) for name, one in good.items()}


def class_rows(matches: Matches, values: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row a class: targets, AP, AP50 and the best threshold; those of the highest AP first, those without targets last."""
    targets, points, at_half = matches.target_counts().tolist(), best_f1(matches), average_precision(matches)
    rows = [
        {"name": name, "targets": targets[label], "ap": values.get(f"ap/{name}"), "ap50": at_half.get(name), "point": points.get(name)}
        for label, name in enumerate(matches.classes, start=1)
    ]
    return sorted(rows, key=lambda row: -1 if row["ap"] is None else row["ap"], reverse=True)


def size_rows(values: Mapping[str, float]) -> list[dict[str, Any]]:
    """AP by COCO's sizes, for those that there are."""
    return [{"name": name, "text": text, "ap": values[f"map_{name}"]} for name, text in SIZES.items() if f"map_{name}" in values]


def score_figures(matches: Matches) -> list[Figure]:
    """Precision and recall, the choice of a threshold, and calibration."""
    return [precision_and_recall(matches), precision_by_score(matches), calibrated(matches)]


def precision_and_recall(matches: Matches) -> Figure:
    """Precision from each recall on, of each class and their mean, the area under which is AP50."""
    ap = average_precision(matches)
    curves = {}
    for name in ap:
        curve = precision_recall(matches, matches.classes.index(name) + 1)
        curves[name] = from_recall(curve.precision, curve.recall)
    few = len(curves) <= COLOURED
    series = [
        Series(name if few else "", RECALLS, curves[name], place if few else None, width=1.5 if few else 0.5)
        for place, name in enumerate(curves)
    ]
    if len(curves) > 1:
        mean = np.mean([np.nan_to_num(values) for values in curves.values()], axis=0)  # what is not reached counts as 0
        series.append(Series("mean over classes", RECALLS, mean, None if few else 0, dashed=few, width=3))
    note = "At an IoU of .5; the area under a line is AP50." + ("" if few else " Each grey line is a class.")
    return "Precision and recall", note, lines("precision by recall", series, "recall", (0, 1), (0, 1))


def from_recall(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """The best precision from each of 101 recalls on, as COCO's AP has it; NaN for recalls that are not reached."""
    place = np.searchsorted(recall, RECALLS - 1e-9)
    return np.append(best_from_here(precision), np.nan)[place]


def precision_by_score(matches: Matches) -> Figure:
    """Precision, recall and F1 of the detections from each score on."""
    curve = precision_recall(matches)
    steps = np.linspace(0, 1, 101)
    kept = len(curve.scores) - np.searchsorted(curve.scores[::-1], steps)  # how many scores are at least so much
    precision, recall = (np.append(np.nan, values)[kept] for values in (curve.precision, curve.recall))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    series = [
        Series(name, steps, values, number)
        for number, (name, values) in enumerate((("precision", precision), ("recall", recall), ("F1", f1)))
    ]
    chart = lines("precision, recall and F1 by score threshold", series, "score threshold", (0, 1), (0, 1))
    return "Choice of a score threshold", "All classes as one, at an IoU of .5.", chart


def calibrated(matches: Matches) -> Figure:
    """Share of true detections by score."""
    found = calibration(matches)
    series = [
        Series("a score that is a probability", (0, 1), (0, 1), dashed=True, width=1),
        Series("detections", found.scores, found.precision, 0, dots=True),
    ]
    error = "" if np.isnan(found.error) else f" Expected calibration error {found.error:.3f}."
    note = f"How many detections of a score are true; below the dashed line, scores promise too much.{error}"
    return "Calibration", note, lines("precision by score", series, "score", (0, 1), (0, 1))


def data_figures(targets: Sequence[Mapping[str, Tensor]]) -> list[Figure]:
    """Sizes, shapes and numbers of the targets."""
    boxes = np.concatenate([np.zeros((0, 4)), *(target["boxes"].reshape(-1, 4).numpy() for target in targets)])
    width, height = (boxes[:, 2:] - boxes[:, :2]).clip(1e-3).T
    sides, an_image = np.sqrt(width * height), np.array([len(target["boxes"]) for target in targets])
    small, large = (float(chosen.mean()) if len(chosen) else 0.0 for chosen in (sides < 32, sides >= 96))
    shares = f"{len(boxes)} boxes, {small:.0%} of them small (under 32² pixels), {large:.0%} large (96² or more)."
    step = max(1, -(-int(an_image.max(initial=1)) // 40))
    numbers, _ = np.histogram(an_image, np.arange(0, an_image.max(initial=1) + 2 * step, step))
    mean = float(an_image.mean()) if len(an_image) else 0.0
    return [
        ("Sizes of the boxes", shares, doublings("boxes by size", sides, "√area, pixels")),
        ("Shapes of the boxes", "Width over height.", doublings("boxes by shape", width / height, "width : height")),
        (
            "Boxes an image",
            f"{mean:.1f} in the mean, {an_image.max(initial=0)} at most, {int((an_image == 0).sum())} images without any.",
            columns(
                "images by number of boxes",
                numbers,
                "boxes",
                [(value / step + 0.5, text) for value, text in ticks(0, len(numbers) * step - step)],
            ),
        ),
    ]


def doublings(title: str, values: np.ndarray, label: str) -> Chart:
    """A histogram over a logarithmic scale, four columns to each doubling."""
    logs = np.log2(values)
    low = int(np.floor(logs.min())) if len(logs) else 0
    high = max(int(np.floor(logs.max(initial=low))) + 1, low + 1)
    counts, _ = np.histogram(logs, bins=4 * (high - low), range=(low, high))
    every = 1 + (high - low) // 9
    marks = range(low, high + 1, every)
    return columns(title, counts, label, [(4.0 * (mark - low), f"{2**mark}" if mark >= 0 else f"1/{2**-mark}") for mark in marks])


def confusions(
    detections: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Tensor]], classes: Sequence[str], score_threshold: float
) -> dict[str, Any]:
    """The confusion matrix where it can be read, and the most frequent confusions.

    Returns:
        ``names`` of columns; ``rows``: a name and cells of a count, its share of the row and whether it is right; ``worst``: target,
        detected as, count and share of the targets.
    """
    matrix = confusion_matrix(detections, targets, classes, score_threshold)
    order = [*range(1, len(classes) + 1), 0]  # background last
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    rows = []
    if len(classes) <= MATRIX:
        for row in order:
            cells = [{"count": int(matrix[row, one]), "share": float(share[row, one]), "right": one == row} for one in order]
            rows.append({"name": classes[row - 1] if row else "nothing", "cells": cells})
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    wrong[0], wrong[:, 0] = 0, 0
    places = np.lexsort((-share.ravel(), -wrong.ravel()))[:WORST]
    pairs = [(int(place) // len(matrix), int(place) % len(matrix)) for place in places if wrong.flat[place]]
    worst = [{"target": classes[a - 1], "found": classes[b - 1], "count": int(wrong[a, b]), "share": float(share[a, b])} for a, b in pairs]
    return {"names": [*classes, "missed"], "rows": rows, "worst": worst}


def error_rows(matches: Matches) -> list[dict[str, Any]]:
    """What each type of error costs, the dearest first."""
    costs = error_costs(matches)
    rows = [{"name": name, "text": ERRORS[name], "count": error.count, "cost": error.cost} for name, error in costs.items()]
    return sorted(rows, key=lambda row: -row["cost"])
