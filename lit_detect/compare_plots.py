"""The pictures that ``compare`` draws: accuracy over latency, and what latency depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_detect.compare_report import front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_lines", "draw_pictures", "draw_speed_accuracy"]

Row = Mapping[str, Any]

# Okabe and Ito's colours, which people who see few colours tell apart, without the yellow, and a grey
COLOURS = {
    "SSD": "#0072b2",
    "SSDLite": "#56b4e9",
    "DSSD": "#000000",
    "RetinaNet": "#009e73",
    "FCOS": "#7f7f7f",
    "YOLOv3": "#cc79a7",
    "FasterRCNN": "#d55e00",
    "RFCN": "#e69f00",
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def draw_pictures(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Draw what there is to draw.

    Args:
        folder: where to.
        rows: of ``compare.json``.

    Returns:
        The names of the files.
    """
    measured = [row for row in rows if "latency_ms" in row and "ap" in row]
    drawn = []
    if measured:
        figure, axis = new_figure()
        draw_speed_accuracy(axis, measured)
        figure.savefig(folder / "speed_accuracy.png")
        drawn.append("speed_accuracy.png")
    for name, key, title in (
        ("latency_proposals.png", "latency_by_proposals", "proposals that reach the second stage"),
        ("latency_objects.png", "latency_by_objects", "objects in the image"),
    ):
        lines = {row["name"]: row[key] for row in measured if row.get(key)}
        if lines:
            without = [row for row in measured if row["name"] not in lines] if key == "latency_by_proposals" else []
            figure, axis = new_figure()
            colours = {row["name"]: colour(row) for row in measured}
            draw_lines(axis, lines, colours, title, {row["name"]: row["latency_ms"] for row in without})
            figure.savefig(folder / name)
            drawn.append(name)
    return drawn


def new_figure() -> tuple[Figure, Axes]:
    """A white figure of README's width, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def colour(row: Row) -> str:
    """A detector's colour; classes of the user's own share one."""
    return COLOURS.get(row["detector"], "#8c6d31")


def draw_speed_accuracy(axis: Axes, rows: Sequence[Row]) -> None:
    """AP over latency, a colour for each detector and a marker for each extractor, with the Pareto front (Huang et al. 2017, figure 6)."""
    extractors = dict(zip(dict.fromkeys(row["extractor"] for row in rows), MARKERS * len(rows), strict=False))
    best = front(rows)
    axis.step([row["latency_ms"] for row in best], [row["ap"] for row in best], where="post", color="0.88", linewidth=4, zorder=1)
    for row in rows:
        axis.scatter(row["latency_ms"], row["ap"], s=64, color=colour(row), marker=extractors[row["extractor"]], zorder=3)
        axis.plot([row["latency_ms"], row["latency_p95_ms"]], [row["ap"]] * 2, color=colour(row), linewidth=1, alpha=0.6, zorder=2)
    slowest, fastest = (pick(row["latency_ms"] for row in rows) for pick in (max, min))
    if slowest > 8 * fastest:
        axis.set_xscale("log")
        plain_ticks(axis)
    axis.margins(x=0.12, y=0.12)
    for name, marker in extractors.items():
        axis.scatter([], [], s=50, color="0.35", marker=marker, label=name)
    axis.plot([], [], color="0.88", linewidth=4, label="Pareto front")
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    finish(axis, "latency of one image, ms (to the 95th percentile: the line beside each)", "AP")
    write_names(axis, [(row["latency_ms"], row["ap"], row["name"], colour(row)) for row in rows])


def write_names(axis: Axes, names: Sequence[tuple[float, float, str, str]]) -> None:
    """Names beside their points, each where it covers no point and no other name, as far as that can be."""
    figure: Any = axis.figure
    figure.draw_without_rendering()  # only now is it known where what is
    renderer, width = figure.canvas.get_renderer(), figure.bbox.width
    taken: list[Sequence[float]] = [(x - 6, y - 6, x + 6, y + 6) for x, y in (axis.transData.transform(name[:2]) for name in names)]
    for x, y, text, shade in sorted(names, key=lambda name: -name[1]):
        trials = []
        for dx, dy, side in ((0, 9, "center"), (0, -19, "center"), (9, 3, "left"), (-9, 3, "right"), (0, 20, "center"), (0, -30, "center")):
            label = axis.annotate(text, (x, y), (dx, dy), textcoords="offset points", ha=side, fontsize=9, color=shade, zorder=4)
            box = label.get_window_extent(renderer).extents
            trials.append((sum(overlap(box, other) for other in taken) + 1e4 * (box[0] < 0 or box[2] > width), label, box))
        _, chosen, box = min(trials, key=lambda trial: trial[0])
        for _, label, _ in trials:
            if label is not chosen:
                label.remove()
        taken.append(box)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two boxes share.

    >>> overlap((0, 0, 2, 2), (1, 1, 3, 3)), overlap((0, 0, 1, 1), (2, 0, 3, 1))
    (1, 0)
    """
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def draw_lines(
    axis: Axes,
    lines: Mapping[str, Sequence[Sequence[float]]],
    colours: Mapping[str, str],
    title: str,
    flat: Mapping[str, float] | None = None,
) -> None:
    """Latency against something, both on logarithmic scales.

    Args:
        axis: to draw on.
        lines: counts and milliseconds by model.
        colours: by model.
        title: what is counted.
        flat: milliseconds of models that have none of it, drawn as level lines.
    """
    counts = [count for points in lines.values() for count, _ in points]
    for name, points in lines.items():
        axis.plot(*zip(*points, strict=True), "o-", color=colours[name], label=name, markersize=4)
    for name, ms in (flat or {}).items():
        axis.plot([min(counts), max(counts)], [ms, ms], "--", color=colours[name], label=f"{name} (has none)", linewidth=1.2)
    axis.set(xscale="log", yscale="log")
    axis.set_ylim(axis.get_ylim()[0] / 1.4, axis.get_ylim()[1] * 1.4)  # what is level looks level
    plain_ticks(axis)
    # beside the picture and in the order of the lines' ends, so that each is found
    handles, labels = axis.get_legend_handles_labels()
    ends: list[float] = [handle.get_ydata()[-1] for handle in handles]  # type: ignore[attr-defined]
    order = sorted(range(len(ends)), key=lambda index: -ends[index])
    axis.legend(
        [handles[i] for i in order], [labels[i] for i in order], frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    finish(axis, title, "latency of one image, ms")


def plain_ticks(axis: Axes) -> None:
    """Plain numbers on logarithmic axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for scale, of_axis, steps in ((axis.get_xscale(), axis.xaxis, (1, 2, 3, 5)), (axis.get_yscale(), axis.yaxis, (1, 1.5, 2, 3, 5, 7))):
        if scale == "log":
            of_axis.set_major_locator(LogLocator(subs=steps))
            of_axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            of_axis.set_minor_formatter(NullFormatter())


def finish(axis: Axes, x: str, y: str) -> None:
    """Titles, a grid and no frame."""
    axis.set(xlabel=x, ylabel=y)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
