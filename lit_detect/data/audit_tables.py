"""The tables that ``audit`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_detect.data.faults import MENDED, WRONG
from lit_detect.errors import printable

__all__ = ["print_tables"]

CLASSES = 30  # rows of the table of classes
EXAMPLES = 10  # duplicates that are printed
FILES = 4  # of each


def print_tables(console: Console, report: dict[str, Any], folder: Path) -> None:
    """Print what the audit found; names, which may hold anything, as plain text.

    Args:
        console: without markup.
        report: what ``audit.json`` holds.
        folder: where that is.
    """
    for table in (of_splits, of_classes, of_distributions, of_anchors, of_duplicates, of_faults, of_notes):
        if (made := table(report)).row_count:
            console.print(made)
    sizes = report["all"]["image_sizes"]
    frequent = ", ".join(f"{width} x {height} ({count})" for width, height, count in sizes[:5])
    console.print(f"image sizes: {frequent}{f' and {len(sizes) - 5} more' if len(sizes) > 5 else ''}")
    for warning in (report["anchors"] or {}).get("warnings", []):
        console.print(f"warning: {warning}", style="yellow")
    leaks = sum(bool(one["leak"]) for one in report["duplicates"])
    if leaks:
        console.print(f"warning: {leaks} images are in more than one split", style="yellow")
    for remark in report["remarks"]:
        console.print(printable(remark))
    counts = report["counts"]
    faults = f"{plural(counts['wrong'], 'fault')} that stop{'s' * (counts['wrong'] == 1)} a training"
    files = f"{folder / 'audit.json'} lists them all, {folder / 'audit.png'} shows the data"
    console.print(f"audit: {faults}, {counts['mended']} mended, {plural(counts['note'], 'note')}; {printable(files)}", soft_wrap=True)


def plural(count: int, noun: str) -> str:
    """A number of things.

    >>> plural(1, "fault"), plural(0, "note")
    ('1 fault', '0 notes')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def numbers(title: str, *columns: str) -> Table:
    """A table of numbers with a name in front."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(printable(column), justify="right" if number else "left", overflow="fold")
    return table


def of_splits(report: dict[str, Any]) -> Table:
    splits = report["splits"]
    counts = {"images": "images", "images_without_boxes": "empty", "boxes": "boxes", "difficult": "difficult", "crowds": "crowds"}
    columns = {
        title: [split[key] for split in splits.values()]
        for key, title in counts.items()
        if key in ("images", "boxes") or any(split[key] for split in splits.values())
    }
    columns |= {size: [split["sizes"][size] for split in splits.values()] for size in report["all"]["sizes"]}
    columns["MB"] = [f"{split['bytes'] / 1e6:.1f}" for split in splits.values()]
    table = numbers("splits; small, medium and large are COCO's", "split", *columns)
    for name, *values in zip(splits, *columns.values(), strict=True):
        table.add_row(printable(name), *map(str, values))
    return table


def of_classes(report: dict[str, Any]) -> Table:
    splits = report["splits"]
    table = numbers("boxes (images)", "class", *splits)
    classes = sorted(report["classes"], key=lambda name: -report["all"]["by_class"][name]["boxes"])
    for name in classes[:CLASSES]:
        found = [split["by_class"][name] for split in splits.values()]
        table.add_row(printable(name), *(f"{one['boxes']} ({one['images']})" for one in found))
    if len(classes) > CLASSES:
        table.add_row(f"... and {len(classes) - CLASSES} more")
    return table


def of_distributions(report: dict[str, Any]) -> Table:
    shown = ("min", "p5", "median", "p95", "max")
    table = numbers("sizes, of each image once", "", *shown)
    for name, values in report["all"]["distributions"].items():
        if values:
            table.add_row(name, *(f"{values[key]:.4g}" for key in shown))
    return table


def of_anchors(report: dict[str, Any]) -> Table:
    table = numbers("boxes with an anchor, %", "", "boxes", "IoU .4", ".5", ".6")
    if report["anchors"] is None:
        return table
    classes = sorted(report["anchors"]["by_class"].items(), key=lambda item: item[1].get("0.5", 2))
    rows = [("all", report["anchors"]["all"]), *report["anchors"]["by_size"].items(), None, *classes[:10]]
    for row in rows:
        if row is None:
            table.add_section()
        else:
            name, of_row = row
            table.add_row(printable(name), str(of_row["boxes"]), *(f"{100 * value:.1f}" for key, value in of_row.items() if key != "boxes"))
    if len(classes) > 10:
        table.add_row(f"... and {len(classes) - 10} classes with higher recall")
    return table


def of_duplicates(report: dict[str, Any]) -> Table:
    table = Table("", "file", "splits", title="images that are there more than once", title_justify="left", title_style="bold")
    for one in report["duplicates"][:EXAMPLES]:
        rows = [(printable(file), printable(", ".join(splits))) for file, splits in one["files"].items()]
        more = len(rows) - FILES
        rows = [*rows[:FILES], *([(f"... and {more} more files", "")] if more > 0 else [])]
        for number, row in enumerate(rows):
            kind = "LEAK" if one["leak"] else "duplicate"
            table.add_row("" if number else kind, *row, end_section=number == len(rows) - 1)
    if len(report["duplicates"]) > EXAMPLES:
        table.add_row("", f"... and {len(report['duplicates']) - EXAMPLES} more")
    return table


def of_faults(report: dict[str, Any]) -> Table:
    table = Table("fault", "count", "with on_invalid: fix", "example", title="faults", title_justify="left", title_style="bold")
    for kind, count in report["counts"]["kinds"].items():
        if kind in WRONG:
            table.add_row(kind, str(count), f"raises (drop: {WRONG[kind]} left out)", example(report, kind), style="red")
        elif kind in MENDED:
            table.add_row(kind, str(count), MENDED[kind], example(report, kind))
    return table


def of_notes(report: dict[str, Any]) -> Table:
    table = Table("note", "count", "example", title="notes: no faults", title_justify="left", title_style="bold")
    for kind, count in report["counts"]["kinds"].items():
        if kind not in WRONG and kind not in MENDED:
            table.add_row(kind, str(count), example(report, kind))
    return table


def example(report: dict[str, Any], kind: str) -> str:
    """The first fault of a kind, with the name of its file if it is there; ``audit.json`` has the whole path."""
    fault = next(fault for fault in report["faults"] if fault["kind"] == kind)
    path = Path(fault["file"])
    where = ", ".join(filter(None, [path.name if path.is_file() else str(path), fault["annotation"]]))
    return printable(f"{where}: {fault['detail']}")[:300]
