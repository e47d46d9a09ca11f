"""What articles say about the detectors, held against the rows of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_detect.compare_report import ap

__all__ = ["claims"]

Row = Mapping[str, Any]
Claim = tuple[str, str, str]

SAME_LATENCY = 1.1  # up to so many times as slow is as slow: clocks vary
SAME_AP = 0.01  # up to so much less is as good: seeds vary
LIGHT = ("mobilenet", "shufflenet", "squeezenet", "mnasnet", "efficientnet")
HEAVY = ("resnet", "resnext", "vgg", "darknet")


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Claims that the rows can check, with the answer and the numbers; of models that are not there nothing is said.

    A claim is held if it is so for every pair of models that it is about.

    Args:
        rows: of ``compare.json``.

    Returns:
        The claim, ``held``, ``not held`` or ``cannot be told``, and the numbers.
    """
    rows = [row for row in rows if "error" not in row]
    return [*latency(rows), *small_objects(rows), *context(rows), *light_extractors(rows), *focal_loss(rows)]


def latency(rows: Sequence[Row]) -> Iterator[Claim]:
    """SSD does the same work whatever is in an image; Faster R-CNN's second stage works on each proposal."""
    single = [(row, "objects") for row in of(rows, "SSD", "SSDLite")]
    two_stage = [(row, "proposals") for row in of(rows, "FasterRCNN")]
    held: list[bool | None] = []
    found = []
    for row, counted in [*single, *two_stage]:
        points = row.get(f"latency_by_{counted}") or []
        if len(points) < 2:
            held.append(None)
            found.append(f"{row['name']}: too few numbers of {counted}")
            continue
        (few, before), (many, after) = points[0], points[-1]
        held.append((after > SAME_LATENCY * before) == (counted == "proposals"))
        found.append(f"{row['name']} {before:.1f} ms with {few:g} {counted}, {after:.1f} ms with {many:g}")
    if single and two_stage:
        claim = "SSD's latency does not grow with the objects in the image, Faster R-CNN's does with its proposals (Huang et al. 2017)"
        yield claim, answer(held), "; ".join(found)


def small_objects(rows: Sequence[Row]) -> Iterator[Claim]:
    """Few default boxes and weak features for what is small (Liu et al. 2016, section 3.1)."""
    if single := of(rows, "SSD"):
        held = [less(known(row, "ap_small"), known(row, "ap_large")) for row in single]
        found = [f"{row['name']} AP small {written(row, 'ap_small')}, large {written(row, 'ap_large')}" for row in single]
        yield "SSD is worse at small objects than at large ones (Liu et al. 2016)", answer(held), "; ".join(found)


def context(rows: Sequence[Row]) -> Iterator[Claim]:
    """What deeper maps know, brought back to the fine ones, over the same extractor and in the same size."""
    plain = [row for row in of(rows, "SSD") if "fpn_channels" not in row]
    for kind, with_it in (
        ("DSSD's deconvolutions lift", of(rows, "DSSD")),
        ("A feature pyramid lifts", [row for row in of(rows, "SSD") if "fpn_channels" in row]),
    ):
        pairs = [(one, other) for one in plain for other in with_it if alike(one, other, "extractor", "input_size")]
        article = "Fu et al. 2017" if kind.startswith("DSSD") else "Lin et al. 2017"
        if pairs:
            held = [less(known(one, "ap_small"), known(other, "ap_small")) for one, other in pairs]
            yield f"{kind} SSD's AP of small objects ({article})", answer(held), compared(pairs, "ap_small", "AP small")


def light_extractors(rows: Sequence[Row]) -> Iterator[Claim]:
    """A mobile network instead of ResNet or VGG, in the same size."""
    light = [row for row in of(rows, "SSD", "SSDLite") if any(name in row["extractor"].lower() for name in LIGHT)]
    heavy = [row for row in of(rows, "SSD") if any(name in row["extractor"].lower() for name in HEAVY)]
    if pairs := [(one, other) for one in heavy for other in light if alike(one, other, "input_size")]:
        held = [other["latency_ms"] < one["latency_ms"] for one, other in pairs]
        found = [f"{one['name']} {one['latency_ms']:.1f} ms, {other['name']} {other['latency_ms']:.1f} ms" for one, other in pairs]
        yield "A light extractor makes SSD faster (Howard et al. 2017)", answer(held), "; ".join(found)


def focal_loss(rows: Sequence[Row]) -> Iterator[Claim]:
    """The best one-stage detector with focal loss against the best Faster R-CNN, to within `SAME_AP`."""
    focal = [row for row in rows if row.get("criterion") == "FocalLoss"]
    two_stage = of(rows, "FasterRCNN")
    if focal and two_stage:
        one, other = (max(some, key=lambda row: known(row, "ap") or 0.0) for some in (two_stage, focal))
        target, reached = known(one, "ap"), known(other, "ap")
        held = None if target is None or reached is None else reached >= target - SAME_AP
        claim = "Focal loss closes the gap of one-stage detectors to Faster R-CNN (Lin et al. 2017)"
        yield claim, answer([held]), compared([(one, other)], "ap", "AP")


def of(rows: Sequence[Row], *detectors: str) -> list[Row]:
    """The rows of some detectors."""
    return [row for row in rows if row.get("detector") in detectors]


def alike(one: Row, other: Row, *keys: str) -> bool:
    """Whether two rows are the same in something."""
    return all(one.get(key) == other.get(key) for key in keys)


def known(row: Row, key: str) -> float | None:
    """An AP; None where there is nothing of that kind in the validation set."""
    value: float | None = row.get(key)
    return None if value is None or not value >= 0 else value


def less(one: float | None, other: float | None) -> bool | None:
    """Whether one is less; None where that cannot be told."""
    return None if one is None or other is None else one < other


def written(row: Row, key: str) -> str:
    """An AP as papers write it."""
    value = known(row, key)
    return "unknown" if value is None else ap(value)


def compared(pairs: Sequence[tuple[Row, Row]], key: str, title: str) -> str:
    """The numbers of pairs of rows."""
    return "; ".join(f"{title} of {one['name']} {written(one, key)}, of {other['name']} {written(other, key)}" for one, other in pairs)


def answer(held: Sequence[bool | None]) -> str:
    """Of all pairs together.

    >>> answer([True, None]), answer([True, False, None]), answer([True])
    ('cannot be told', 'not held', 'held')
    """
    if False in held:
        return "not held"
    return "cannot be told" if None in held else "held"
