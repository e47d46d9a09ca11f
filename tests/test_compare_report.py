"""The Pareto front against its definition; the verdict and the page on hand-made rows."""

from hypothesis import given
from hypothesis import strategies as st

from lit_detect.compare_report import limits, markdown, pareto_front, verdict

ROWS = [
    {"name": "slow", "detector": "FasterRCNN", "ap": 0.6, "latency_ms": 30.0},
    {"name": "broken", "error": "Expected | but\ngot none."},
    {"name": "fast", "detector": "SSDLite", "ap": 0.3, "latency_ms": 5.0, "ap_small": 0.1},
    {"name": "worse", "detector": "SSD", "ap": 0.2, "latency_ms": 6.0, "ap_small": 0.2},
    {"name": "middle", "detector": "SSD", "ap": 0.55, "latency_ms": 10.0, "gflops": 1.0},
]
MACHINE = {"cpu": "CPU", "cores": 2, "threads": 1, "precision": "32-true", "torch": "2", "torchvision": "0", "python": "3"}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_nothing_is_better_than(points):
    def better(one, other):
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    expected = {index for index, point in enumerate(points) if not any(better(other, point) for other in points)}
    found = pareto_front(points)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [points[index][0] for index in found] == sorted(points[index][0] for index in found)


def test_the_verdict_names_the_fastest_and_the_most_accurate():
    assert verdict(ROWS, 0.5, 9.0) == [
        "Fastest with AP of .500 or more: middle (AP .550, 10.0 ms).",
        "Most accurate within 9 ms: fast (AP .300, 5.0 ms).",
    ]
    assert verdict(ROWS, 0.9, 1.0) == ["Fastest with AP of .900 or more: none.", "Most accurate within 1 ms: none."]
    assert verdict([], 0.5, 5.0)[0].endswith("none.")


def test_limits_that_are_not_given_follow_from_the_rows():
    assert limits(ROWS, None, None) == (0.54, 8.0)
    assert limits(ROWS, 0.1, 2.0) == (0.1, 2.0)
    assert limits([ROWS[1]], None, None) == (0.0, 0.0)


def test_the_page_has_what_there_is_and_says_what_failed():
    report = {"rows": ROWS, "verdict": ["One.", "Two."], "pictures": ["a.png"], "machine": MACHINE, "images": 7, "least_ap": 0.5}
    page = markdown({**report, "claims": [("So it is", "held", "1 and 2")], "command": "lit-detect compare"})
    header, _, slow, broken, fast, worse, middle = [line for line in page.splitlines() if line.startswith("|")]
    titles = [cell.strip() for cell in header.split("|")]
    assert titles == ["", "", "detector", "AP", "AP small", "ms", "GFLOPs", ""]
    assert len({len(line) for line in (header, slow, broken, middle)}) == 1
    cells = [[cell.strip() for cell in line.split("|")] for line in (slow, broken, fast, worse, middle)]
    assert cells[0][1:-1] == ["**slow**", "FasterRCNN", ".600", "", "30.0", ""]
    assert cells[1][1:-1] == ["broken (failed)", "", "", "", "", ""]
    assert [row[1] for row in cells[2:]] == ["**fast**", "worse", "**middle**"]
    assert "- broken: Expected | but got none." in page
    assert "![a.png](a.png)" in page
    assert "## What the article says\n\n- So it is: held. 1 and 2." in page
    assert "Energy" not in page
    assert "Validation data" not in page


def test_the_page_says_that_validation_data_differ():
    rows = [{**ROWS[0], "validation_images": 5, "validation_boxes": boxes, "name": name} for name, boxes in (("a", 7), ("b", 8))]
    report = {"rows": rows, "verdict": [], "pictures": [], "claims": [], "machine": MACHINE, "images": 7, "least_ap": 0.5}
    assert "**Validation data differ, so AP is not comparable** (a: 5 images with 7 boxes; b: 5 images with 8 boxes)." in markdown(report)


def test_names_are_no_markup():
    row = {"name": "<script>alert(1)</script>", "detector": "[a](javascript:alert(1))", "ap": 0.5, "latency_ms": 1.0}
    rows = [row, {"name": "b", "error": "Expected <img src=x onerror=alert(2)>"}]
    page = markdown(
        {"rows": rows, "verdict": verdict(rows, 0.1, 9.0), "claims": [], "pictures": [], "machine": MACHINE, "images": 1, "least_ap": 0.1}
    )
    assert "&lt;script>alert(1)&lt;/script>" in page
    assert "<" not in page
    assert "[a]" not in page.replace("\\[", "")
