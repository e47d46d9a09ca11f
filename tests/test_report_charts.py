from xml.etree.ElementTree import fromstring

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_detect.report_charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, columns, lines, thinned, ticks

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@given(NUMBERS, st.floats(1e-3, 1e6))
def test_ticks_are_a_few_round_numbers_inside(low, span):
    found = [value for value, _ in ticks(low, low + span)]
    assert 2 <= len(found) <= 11
    assert all(low - 1e-6 * span <= value <= low + span * (1 + 1e-6) for value in found)
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert f"{steps[0]:.0e}"[0] in "125"


def points(chart):
    """The coordinates of each line."""
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in fromstring(str(chart.svg)).iter("polyline")
    ]


def test_values_are_drawn_to_scale():
    (line,) = points(lines("a", [Series("b", [0, 5, 10], [0, 1, 0.5])], "x", (0, 1)))
    assert line == [(LEFT, HEIGHT - BOTTOM), ((LEFT + WIDTH - RIGHT) / 2, TOP), (WIDTH - RIGHT, (TOP + HEIGHT - BOTTOM) / 2)]


def test_a_gap_is_a_gap_and_nothing_is_drawn_of_nothing():
    assert [len(line) for line in points(lines("a", [Series("b", range(5), [1, 2, np.nan, 3, 4])], "x"))] == [2, 2]
    for series in ([], [Series("b", [], [])], [Series("b", [np.nan], [1.0])], [Series("b", [3], [4])]):
        assert points(lines("a", series, "x", mark=(0.5, "here"))) == []


def test_columns_are_as_high_as_their_counts():
    chart = columns("a", [0, 10, 5], "x", [(0, "0"), (3, "3")])
    heights = [float(column.get("height")) for column in fromstring(str(chart.svg)).iter("rect")]
    assert heights[0] == 0
    assert heights[1] == pytest.approx(2 * heights[2], abs=0.1)
    assert columns("a", [], "x", []).svg


def test_markup_in_names_is_escaped():
    chart = lines("<b>", [Series("<i>", [0, 1], [0, 1])], "&<script>", mark=(0.5, "<u>"))
    assert not {"b", "i", "script", "u"} & {element.tag for element in fromstring(str(chart.svg)).iter()}
    assert {"<b>", "&<script>", "<u>"} <= {element.text for element in fromstring(str(chart.svg)).iter()}


@given(st.lists(NUMBERS, min_size=1, max_size=500))
def test_a_thinned_line_keeps_its_mean(values):
    x, y = thinned(np.arange(len(values), dtype=float), np.array(values), most=1)
    assert len(x) == len(y) == 1
    assert y[0] == pytest.approx(np.mean(values), abs=1e-3)
    assert len(thinned(np.arange(500.0), np.arange(500.0))[0]) == 150
