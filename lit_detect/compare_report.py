"""What ``compare`` says: the Pareto front, a verdict in words, and a page of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["front", "markdown", "pareto_front", "time_to", "verdict"]

Row = Mapping[str, Any]

# title, what it is of a row, and how it is written; a column that no row has is left out
COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("detector", "detector", str),
    ("extractor", "extractor", str),
    ("input", "input_size", str),
    ("AP", "ap", lambda value: ap(value)),
    ("AP50", "ap50", lambda value: ap(value)),
    ("AP small", "ap_small", lambda value: ap(value)),
    ("AP medium", "ap_medium", lambda value: ap(value)),
    ("AP large", "ap_large", lambda value: ap(value)),
    ("ms", "latency_ms", "{:.1f}".format),
    ("ms, 95 %", "latency_p95_ms", "{:.1f}".format),
    ("images/s", "images_per_second", "{:.0f}".format),
    ("batch", "batch_size", str),
    ("parameters, M", "parameters", lambda value: f"{value / 1e6:.1f}"),
    ("GFLOPs", "gflops", "{:.2f}".format),
    ("memory, MB", "memory_mb", "{:.0f}".format),
    ("training, s", "training_seconds", "{:.0f}".format),
    ("to the AP, s", "seconds_to_least_ap", "{:.0f}".format),
    ("mJ an image", "joules_an_image", lambda value: f"{1000 * value:.0f}"),
)


def ap(value: float) -> str:
    """An average precision as papers write it.

    >>> ap(0.4567), ap(1.0)
    ('.457', '1.000')
    """
    return f"{value:.3f}".removeprefix("0")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Where the points are of which no other is as good in both and better in one, the cheapest first.

    Args:
        points: cost, of which less is better, and gain, of which more is.

    >>> pareto_front([(3, 0.5), (1, 0.2), (2, 0.1), (4, 0.5)])
    [1, 0]
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not found or points[index][1] > points[found[-1]][1] or points[index] == points[found[-1]]:
            found.append(index)
    return found


def front(rows: Sequence[Row]) -> list[Row]:
    """The measured rows on the Pareto front of latency and AP, the fastest first."""
    measured = [row for row in rows if "latency_ms" in row and "ap" in row]
    return [measured[index] for index in pareto_front([(row["latency_ms"], row["ap"]) for row in measured])]


def limits(rows: Sequence[Row], least_ap: float | None, most_ms: float | None) -> tuple[float, float]:
    """What the verdict is about where it was not said: nine tenths of the best AP, and the median latency."""
    measured = [row for row in rows if "latency_ms" in row and "ap" in row]
    if not measured:
        return least_ap or 0.0, most_ms or 0.0
    best = max(row["ap"] for row in measured)
    middle = statistics.median(row["latency_ms"] for row in measured)
    return round(0.9 * best, 3) if least_ap is None else least_ap, float(f"{middle:.3g}") if most_ms is None else most_ms


def verdict(rows: Sequence[Row], least_ap: float, most_ms: float) -> list[str]:
    """Which model to take, in sentences: the fastest that is good enough, the best that is fast enough.

    >>> rows = [{"name": "A", "ap": 0.5, "latency_ms": 20.0}, {"name": "B", "ap": 0.3, "latency_ms": 9.0}]
    >>> verdict(rows, 0.4, 10.0)
    ['Fastest with AP of .400 or more: A (AP .500, 20.0 ms).', 'Most accurate within 10 ms: B (AP .300, 9.0 ms).']
    """
    best = front(rows)
    accurate = next((row for row in best if row["ap"] >= least_ap), None)
    fast = next((row for row in reversed(best) if row["latency_ms"] <= most_ms), None)

    def named(row: Row | None) -> str:
        return "none" if row is None else f"{row['name']} (AP {ap(row['ap'])}, {row['latency_ms']:.1f} ms)"

    return [f"Fastest with AP of {ap(least_ap)} or more: {named(accurate)}.", f"Most accurate within {most_ms:g} ms: {named(fast)}."]


def time_to(epochs: Sequence[tuple[float, float]], least_ap: float) -> float | None:
    """Seconds of training until a validation gave so much AP; None if none did.

    >>> time_to([(10.0, 0.1), (20.0, 0.3)], 0.2)
    20.0
    """
    return next((seconds for seconds, found in epochs if found >= least_ap), None)


def markdown(report: Mapping[str, Any]) -> str:
    """The page of a comparison."""
    report = without_markup(report)
    rows, on_front = report["rows"], {row["name"] for row in front(report["rows"])}
    columns = [column for column in COLUMNS if any(column[1] in row for row in rows)]
    cells = []
    for row in rows:
        name = f"{row['name']} (failed)" if "error" in row else f"**{row['name']}**" if row["name"] in on_front else row["name"]
        cells.append([name, *(written(row[key]) if key in row else "" for _, key, written in columns)])
    failed = [f"- {row['name']}: {' '.join(row[key].split())}" for row in rows for key in ("error", "warning") if key in row]
    parts = [
        "# Speed and accuracy",
        " ".join(report["verdict"]),
        table(["", *(title for title, _, _ in columns)], cells),
        *(["Failed:\n\n" + "\n".join(failed)] if failed else []),
        f"Bold: nothing else is both faster and more accurate. {notes(report)}",
    ]
    if report["claims"]:
        parts.append(
            "## What the article says\n\n" + "\n".join(f"- {claim}: {answer}. {found}." for claim, answer, found in report["claims"])
        )
    if report["pictures"]:
        parts.append("\n".join(f"![{name}]({name})" for name in report["pictures"]))
    for title, key in (("proposals that reach the second stage", "latency_by_proposals"), ("objects in the image", "latency_by_objects")):
        if found := [row for row in rows if row.get(key)]:
            lines = [f"- {row['name']}: " + ", ".join(f"{ms:.1f} ({count:g})" for count, ms in row[key]) for row in found]
            parts.append(f"Latency in ms (and {title}):\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def without_markup(value: Any) -> Any:
    r"""What a report holds, with text as Markdown shows it: names and errors are no elements and no links.

    >>> without_markup({"name": "<b> [a](b)", "ap": 0.5})
    {'name': '&lt;b> \\[a](b)', 'ap': 0.5}
    """
    if isinstance(value, str):
        return value.replace("&", "&amp;").replace("<", "&lt;").replace("[", "\\[")
    if isinstance(value, Mapping):
        return {key: item if key in ("command", "pictures") else without_markup(item) for key, item in value.items()}
    return [without_markup(item) for item in value] if isinstance(value, list | tuple) else value


def notes(report: Mapping[str, Any]) -> str:
    """How it was measured."""
    found = report["machine"]
    where = f"{found['gpu']}, " if "gpu" in found else ""
    sets = {row["name"]: (row["validation_images"], row["validation_boxes"]) for row in report["rows"] if "validation_boxes" in row}
    named = "; ".join(f"{name}: {images} images with {boxes} boxes" for name, (images, boxes) in sets.items())
    differ = f" **Validation data differ, so AP is not comparable** ({named})." if len({*sets.values()}) > 1 else ""
    command = f"\n\n```bash\n{report['command']}\n```" if "command" in report else ""
    energy = " Energy is that of the whole device, idling too." if any("joules_an_image" in row for row in report["rows"]) else ""
    return (
        f"AP is that of `validate`; to the AP: training until a validation gave {ap(report['least_ap'])}.{differ} Latency is the median of "
        f"{report['images']} validation images, one at a time, from uint8 pixels to detections, all models in turn in one process. "
        "Memory is the most that inference on one image adds to the process (on a GPU: that tensors take). GFLOPs are those of "
        f"convolutions and matrix products, two a multiplication and addition.{energy} {where}{found['cpu']}, {found['cores']} cores, "
        f"{found['threads']} threads, {found['precision']}, torch {found['torch']}, torchvision {found['torchvision']}, "
        f"Python {found['python']}.{command}"
    )


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are as wide as what is in them."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [titles, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    written = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in lines]
    return "\n".join([written[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *written[1:]])
