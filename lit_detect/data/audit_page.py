"""The page that ``audit`` draws."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_detect.data.audit_reading import Boxes, SplitContents
from lit_detect.data.audit_tables import plural
from lit_detect.data.dataset import of_sizes
from lit_detect.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_page"]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
CLASSES = 40  # bars
SPLITS = len(COLOURS)
LETTERS = 22  # of a name
LINES = 14  # of splits


def draw_page(path: Path, report: dict[str, Any], contents: SplitContents, overlaps: np.ndarray) -> None:
    """Draw one page about a data set.

    Args:
        path: of the PNG.
        report: what ``audit.json`` holds.
        contents: all images.
        overlaps: the best overlap of each box but crowds with an anchor; empty without anchors.
    """
    from matplotlib.figure import Figure  # takes a second, which other commands need not wait for

    boxes = contents.boxes.of(~contents.boxes.crowd)
    columns = text_columns(report)
    below = 0.5 + 0.17 * max(len(lines) for _, lines in columns)  # inches of text
    figure = Figure(figsize=(17, 9.5 + below), layout="constrained")
    rows: Any = [["classes", "sizes", "ratios", "images"], ["classes", "an image", "centres", "anchors"], ["text"] * 4]
    axes: dict[str, Axes] = figure.subplot_mosaic(rows, width_ratios=[1.25, 1, 1, 1], height_ratios=[4.75, 4.75, below])
    draw_classes(axes["classes"], report)
    draw_sizes(axes["sizes"], boxes)
    draw_ratios(axes["ratios"], boxes, contents)
    draw_images(axes["images"], contents)
    draw_counts(axes["an image"], boxes, contents)
    draw_centres(axes["centres"], boxes, contents)
    if len(overlaps):
        draw_anchors(axes["anchors"], boxes, overlaps)
    else:
        draw_relative(axes["anchors"], boxes, contents)
    write_text(axes["text"], columns, below)
    for name, axis in axes.items():
        axis.spines[["top", "right"]].set_visible(False)
        if name not in ("text", "centres"):
            axis.grid(alpha=0.3, axis="x" if name == "classes" else "both")
            axis.set_axisbelow(True)
    figure.suptitle(shown(report["arguments"]["data"], 120), parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of names in scripts that matplotlib's font does not have
        figure.savefig(path, dpi=100)


def shown(name: object, letters: int = LETTERS) -> str:
    """A name as it is drawn, cut where it is long.

    >>> shown("a" * 30, 5)
    'aaaa…'
    """
    text = printable(name)
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def draw_classes(axis: Axes, report: dict[str, Any]) -> None:
    """Boxes of each class, a bar for each split."""
    by_class = report["all"]["by_class"]
    names = sorted(report["classes"], key=lambda name: -by_class[name]["boxes"])
    splits = list(report["splits"].items())[:SPLITS]
    thickness = 0.8 / max(1, len(splits))
    for number, (split, content) in enumerate(splits):
        counts = [content["by_class"][name]["boxes"] for name in names[:CLASSES]]
        places = np.arange(len(counts)) - 0.4 + (number + 0.5) * thickness
        axis.barh(places, counts, thickness, color=COLOURS[number], label=shown(split))
    axis.set_yticks(range(len(names[:CLASSES])), [shown(name) for name in names[:CLASSES]], parse_math=False)
    axis.tick_params(axis="y", labelsize=10 if len(names) <= 20 else 8)
    slots = max(10, len(names[:CLASSES]) * (1 + 0.032 * (len(splits) + 1)))  # few bars stay thin, and the legend is below the bars
    axis.set_ylim(slots - 0.4, -0.6)
    present = [content["by_class"][name]["boxes"] for _, content in splits for name in names[:CLASSES]]
    if max(present, default=0) > 50 * max(1, min(present, default=0)):
        axis.set_xscale("log")
        axis.set_xlim(left=0.8)
        ticks(axis, (1,))
    more = f" (the most frequent {CLASSES} of {len(names)})" if len(names) > CLASSES else ""
    without = sum(split["images_without_boxes"] for split in report["splits"].values())
    axis.set(title=f"boxes by class{more}", xlabel=f"boxes; images without any: {without}")
    if splits:
        for text in axis.legend(loc="lower right", fontsize=9).get_texts():
            text.set_parse_math(False)


def log_histogram(axis: Axes, values: np.ndarray, steps: int = 60) -> None:
    """A histogram over a logarithmic scale."""
    if len(values):
        low, high = values.min() / 1.05, values.max() * 1.05
        axis.hist(values, bins=np.geomspace(low, high, steps).tolist(), color=COLOURS[0])
    axis.set_xscale("log")


def draw_sizes(axis: Axes, boxes: Boxes) -> None:
    """Square roots of the boxes' areas."""
    log_histogram(axis, np.sqrt(boxes.area))
    for limit in (32, 96):
        axis.axvline(limit, color=COLOURS[3], linewidth=1)
    small, _, large = (100 * np.mean(rows) if len(rows) else 0 for rows in of_sizes(boxes.area).values())
    axis.set(title=f"box sizes: {small:.0f} % small, {large:.0f} % large", xlabel="√area, pixels; lines at 32 and 96", ylabel="boxes")
    ticks(axis)


def draw_ratios(axis: Axes, boxes: Boxes, contents: SplitContents) -> None:
    """Widths over heights."""
    width, height = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).T
    ratios, of_images = width / height, contents.sizes[:, 0] / contents.sizes[:, 1]
    limits = np.geomspace(1 / 8, 8, 61).tolist()
    for values, colour, label in ((ratios, COLOURS[0], "boxes"), (of_images, COLOURS[1], "images")):
        if len(values):
            weights = np.full(len(values), 100 / len(values))
            inside = values.clip(limits[0], limits[-1])
            axis.hist(inside, limits, weights=weights, color=colour, label=label, histtype="stepfilled" if label == "boxes" else "step")
            axis.legend(fontsize=9)
    axis.set_xscale("log")
    names = ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"]
    axis.set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], names)
    axis.minorticks_off()
    axis.set(title="aspect ratios", xlabel="width : height (beyond 8 at the edge)", ylabel="% of them")


def draw_images(axis: Axes, contents: SplitContents) -> None:
    """Widths and heights of images, larger dots for more of them."""
    sizes, counts = np.unique(contents.sizes, axis=0, return_counts=True)
    if len(sizes):
        area = 12 + 300 * counts / counts.max()
        axis.scatter(sizes[:, 0], sizes[:, 1], s=area, color=COLOURS[0], alpha=0.5, linewidth=0)
        limit = 1.1 * sizes.max()
        axis.set(xlim=(0, limit), ylim=(0, limit))
        axis.plot([0, limit], [0, limit], color="0.6", linewidth=1)
    axis.set(title="image sizes", xlabel=f"width, pixels ({plural(len(sizes), 'size')})", ylabel="height, pixels")


def draw_counts(axis: Axes, boxes: Boxes, contents: SplitContents) -> None:
    """Boxes an image."""
    an_image = np.bincount(boxes.image, minlength=len(contents.images))
    if len(an_image):
        step = max(1, -(-int(an_image.max()) // 60))
        axis.hist(an_image, np.arange(-0.5, an_image.max() + step, step).tolist(), color=COLOURS[0])
        axis.locator_params(axis="x", integer=True)
        axis.set_xlabel(f"boxes (mean {an_image.mean():.1f}, at most {an_image.max()})")
    axis.set(title="boxes an image", ylabel="images")


def draw_centres(axis: Axes, boxes: Boxes, contents: SplitContents) -> None:
    """Where the boxes' centres are in their images."""
    centres = (boxes.xyxy[:, :2] + boxes.xyxy[:, 2:]) / 2 / contents.sizes[boxes.image]
    counts, _, _ = np.histogram2d(centres[:, 0], centres[:, 1], bins=24, range=[(0, 1), (0, 1)])
    axis.imshow(np.sqrt(counts.T), extent=(0, 1, 1, 0), cmap="magma", aspect="auto", interpolation="nearest")
    axis.set(title="centres of the boxes (√ of their number)", xlabel="x, of the width", ylabel="y, of the height")


def draw_relative(axis: Axes, boxes: Boxes, contents: SplitContents) -> None:
    """Square roots of the share that boxes have of their images."""
    shares = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).prod(axis=1) / contents.sizes[boxes.image].prod(axis=1)
    log_histogram(axis, np.sqrt(shares))
    axis.set(title="relative box sizes", xlabel="√(share of the image's area)", ylabel="boxes")
    ticks(axis)


def draw_anchors(axis: Axes, boxes: Boxes, overlaps: np.ndarray) -> None:
    """Boxes that have an anchor, by their size."""
    sizes = np.sqrt(boxes.area)
    edges = np.unique(np.quantile(sizes, np.linspace(0, 1, 21)))  # as many boxes in each step
    step = np.digitize(sizes, edges[1:-1])
    places = [np.median(sizes[step == number]) for number in range(len(edges) - 1) if (step == number).any()]
    for least, colour in ((0.4, COLOURS[2]), (0.5, COLOURS[0]), (0.6, COLOURS[1])):
        shares = [100 * (overlaps[step == number] >= least).mean() for number in range(len(edges) - 1) if (step == number).any()]
        axis.plot(places, shares, "o-", color=colour, markersize=3, label=f"IoU ≥ {least} ({100 * (overlaps >= least).mean():.1f} %)")
    for limit in (32, 96):
        axis.axvline(limit, color=COLOURS[3], linewidth=1)
    axis.set_xscale("log")
    axis.set(title="boxes with an anchor", xlabel="√area of the box, pixels", ylabel="%", ylim=(-2, 102))
    axis.legend(loc="lower right", fontsize=9)
    ticks(axis)


def ticks(axis: Axes, steps: tuple[int, ...] = (1, 2, 5)) -> None:
    """Plain numbers on a logarithmic x axis, at these multiples of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def text_columns(report: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Splits, duplicates, faults and notes in numbers: titles and lines."""
    splits = [
        f"{shown(name)}: {split['images']} images, {split['boxes']} boxes, {split['difficult']} difficult, {split['crowds']} crowds"
        for name, split in report["splits"].items()
    ]
    kinds: dict[str, list[str]] = {"wrong": [], "mended": [], "note": []}
    severity = {fault["kind"]: fault["severity"] for fault in report["faults"]}
    for kind, count in report["counts"]["kinds"].items():
        kinds[severity[kind]].append(f"{count} x {kind}")
    leaks = sum(bool(one["leak"]) for one in report["duplicates"])
    duplicates = [f"{plural(leaks, 'image')} in more than one split", f"{plural(len(report['duplicates']) - leaks, 'other')} twice or more"]
    warned = (report["anchors"] or {}).get("warnings", [])
    counts = report["counts"]
    return [
        ("splits", [*splits[:LINES], *([f"... and {len(splits) - LINES} more"] if len(splits) > LINES else [])]),
        ("duplicates and anchors" if warned else "duplicates", [*duplicates, *warned]),
        (f"{plural(counts['wrong'], 'fault')} that {'stops' if counts['wrong'] == 1 else 'stop'} a training", kinds["wrong"]),
        (f"{counts['mended']} mended", kinds["mended"]),
        (plural(counts["note"], "note"), kinds["note"]),
    ]


def write_text(axis: Axes, columns: list[tuple[str, list[str]]], inches: float) -> None:
    """Columns of text, under each other what belongs together."""
    axis.axis("off")
    for place, (title, lines) in zip((0, 0.3, 0.53, 0.7, 0.85), columns, strict=True):
        axis.text(place, 1, title, weight="bold", va="top", fontsize=10, transform=axis.transAxes)
        axis.text(place, 1 - 0.25 / inches, "\n".join(lines), va="top", fontsize=9, transform=axis.transAxes, parse_math=False)
