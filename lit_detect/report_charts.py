"""Charts of the report as SVG: a few hundred bytes each, in the page's colours, light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from markupsafe import Markup

__all__ = ["Chart", "Series", "columns", "lines", "thinned", "ticks"]

WIDTH, HEIGHT = 400, 250  # what a phone shows one to one, so that letters stay as large as the text
LEFT, RIGHT, TOP, BOTTOM = 44, 18, 10, 40
COLOURS = 8  # variables --c0 to --c7 of the page


class Series(NamedTuple):
    """One line of a chart.

    Attributes:
        name: in the legend; a line without is not in it.
        x: ``(K,)``; where x or y is not finite, the line has a gap.
        y: ``(K,)``.
        colour: number of a colour, 0 to 7; grey by default.
        dots: show the points too.
        dashed: a dashed line.
        width: in pixels.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int | None = None
    dots: bool = False
    dashed: bool = False
    width: float = 2

    @property
    def css(self) -> str:
        """Its colour in the page."""
        return "var(--muted)" if self.colour is None else f"var(--c{self.colour % COLOURS})"


class Chart(NamedTuple):
    """A drawing, and the names and colours of what is in it."""

    svg: Markup
    legend: list[tuple[str, str]]


class Frame:
    """Axes with ticks, labels and a grid, into which values are drawn.

    Args:
        title: what a screen reader says.
        x_label: under the axis.
        x_range: the values at its ends.
        y_range: likewise.
        x_ticks: where ticks are, and what they say; round numbers by default.
    """

    def __init__(
        self,
        title: str,
        x_label: str,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        x_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        self.svg = Element("svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
        SubElement(self.svg, "title").text = title
        self.x, self.y = scale(x_range, LEFT, WIDTH - RIGHT), scale(y_range, HEIGHT - BOTTOM, TOP)
        for value, text in ticks(*y_range):
            self.add("line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=self.y(value), y2=self.y(value))
            self.add("text", "tick end", text, x=LEFT - 6, y=self.y(value) + 4)
        for value, text in ticks(*x_range) if x_ticks is None else x_ticks:
            self.add("line", "grid", x1=self.x(value), x2=self.x(value), y1=TOP, y2=HEIGHT - BOTTOM)
            self.add("text", "tick middle", text, x=self.x(value), y=HEIGHT - BOTTOM + 15)
        self.add("text", "label middle", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6)

    def add(self, tag: str, css: str, text: str = "", style: str = "", **numbers: float) -> None:
        """Add an element; its text is escaped."""
        places = {name: f"{value:.1f}".removesuffix(".0") for name, value in numbers.items()}
        SubElement(self.svg, tag, {"class": css, **({"style": style} if style else {}), **places}).text = text or None

    def markup(self) -> Markup:
        """The SVG."""
        return Markup(tostring(self.svg, encoding="unicode"))  # noqa: S704  # ElementTree has escaped what it was given


def scale(values: tuple[float, float], first: float, last: float) -> Callable[[float], float]:
    """From values to pixels."""
    span = (values[1] - values[0]) or 1.0
    return lambda value: first + (value - values[0]) / span * (last - first)


def ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """Round numbers from low to high, about `count`, and as text.

    >>> [text for _, text in ticks(0, 1)], [text for _, text in ticks(0, 24000)]
    (['0', '0.2', '0.4', '0.6', '0.8', '1'], ['0', '5k', '10k', '15k', '20k'])
    """
    raw = (high - low or 1.0) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda one: abs(one - raw))
    values = [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(value, f"{value / 1000:g}k" if abs(value) >= 1000 else f"{round(value, 10):g}") for value in values]


def lines(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
) -> Chart:
    """A line chart.

    Args:
        title: what a screen reader says.
        series: the lines, later ones on top.
        x_label: under the axis.
        y_range: by default from 0 to the largest value.
        x_range: by default from the smallest value to the largest.
        mark: a vertical line at this x, and what it says.
    """
    series = [one._replace(x=np.asarray(one.x, float), y=np.asarray(one.y, float)) for one in series]
    every_x, every_y = (np.concatenate([np.zeros(0), *(getattr(one, axis) for one in series)]) for axis in "xy")
    every_x, every_y = every_x[np.isfinite(every_x)], every_y[np.isfinite(every_y)]
    if x_range is None:
        x_range = (float(every_x.min()), float(every_x.max())) if len(every_x) else (0.0, 1.0)
    if y_range is None:
        y_range = (min(0.0, float(every_y.min(initial=0))), float(every_y.max(initial=0)) * 1.05 or 1.0)
    frame = Frame(title, x_label, x_range, y_range)
    for one in series:
        good = np.isfinite(one.x) & np.isfinite(one.y)
        for part in np.split(np.arange(len(good)), np.flatnonzero(~good)):
            points = [(frame.x(one.x[index]), frame.y(one.y[index])) for index in part if good[index]]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            style = f"stroke: {one.css}; stroke-width: {one.width}" + ("; stroke-dasharray: 5 4" if one.dashed else "")
            if len(points) > 1:
                SubElement(frame.svg, "polyline", {"class": "line", "style": style, "points": path})
            for x, y in points if one.dots else ():
                frame.add("circle", "", style=f"fill: {one.css}", cx=x, cy=y, r=3)
    if mark is not None:
        x, near_end = frame.x(mark[0]), frame.x(mark[0]) > WIDTH - 110
        high = bool(len(every_y)) and float(np.mean([one.y[-1] for one in series if len(one.y)])) > (y_range[0] + y_range[1]) / 2
        frame.add("line", "mark", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM)
        y = HEIGHT - BOTTOM - 8 if high else TOP + 14  # where the lines are not
        frame.add("text", "label end" if near_end else "label", mark[1], x=x - 5 if near_end else x + 5, y=y)
    return Chart(frame.markup(), [(one.name, one.css) for one in series if one.name])


def columns(title: str, counts: Sequence[float] | np.ndarray, x_label: str, x_ticks: Sequence[tuple[float, str]]) -> Chart:
    """A histogram.

    Args:
        title: what a screen reader says.
        counts: ``(B,)``, a column each.
        x_label: under the axis.
        x_ticks: where ticks are, in columns from 0 to B, and what they say.
    """
    counts = np.asarray(counts, float)
    frame = Frame(title, x_label, (0, len(counts)), (0, float(counts.max(initial=0)) * 1.05 or 1.0), x_ticks)
    for index, count in enumerate(counts.tolist()):
        left, right, top = frame.x(index), frame.x(index + 1), frame.y(count)
        frame.add("rect", "column", x=left + 0.5, width=right - left - 1, y=top, height=HEIGHT - BOTTOM - top)
    return Chart(frame.markup(), [])


def thinned(x: np.ndarray, y: np.ndarray, most: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """A long line as means over stretches of it.

    >>> thinned(np.arange(4.0), np.array([1.0, 3, 5, 7]), most=2)
    (array([0.5, 2.5]), array([2., 6.]))
    """
    if len(x) <= most:
        return x, y
    return tuple(np.array([part.mean() for part in np.array_split(values, most)]) for values in (x, y))  # type: ignore[return-value]
