"""The numbers of README's tree: written, and found to be off."""

import re
import runpy
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "tree.py"
TREE = "  a.py            10  what a is\n  deep/b.py      100  what b is\nconfigs/            kept\n"


@pytest.fixture
def tree():
    if not TOOL.is_file():
        pytest.skip("needs the tools of a checkout")
    return runpy.run_path(str(TOOL))


def test_lines_are_counted(tree, tmp_path):
    (tmp_path / "lit_detect/deep").mkdir(parents=True)
    for name, text in {"__init__.py": "1\n", "a.py": "1\n\n3\n", "deep/__init__.py": "", "deep/b.py": "1\n"}.items():
        (tmp_path / "lit_detect" / name).write_text(text)
    assert tree["counts"](tmp_path) == {"a.py": 3, "deep/b.py": 1}


def test_numbers_keep_their_column(tree):
    assert tree["rewritten"](TREE, {"a.py": 7, "deep/b.py": 1234}) == (
        "  a.py             7  what a is\n  deep/b.py     1234  what b is\nconfigs/            kept\n"
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({"a.py": 10, "deep/b.py": 100}, []),
        ({"a.py": 20, "deep/b.py": 84}, []),  # ten lines, and a fifth of 84
        ({"a.py": 21, "deep/b.py": 83}, [r"a\.py, which has 21: run tools/tree\.py", r"deep/b\.py, which has 83: run tools/tree\.py"]),
        ({"a.py": 10}, [r"a line for lit_detect/deep/b\.py, which is not there"]),
        ({"a.py": 10, "deep/b.py": 100, "c.py": 1}, [r"lit_detect/c\.py has no line"]),
    ],
)
def test_what_is_off_or_misplaced_is_said(tree, lines, said):
    found = [*tree["misplaced"](TREE, lines), *tree["off"](TREE, lines)]
    assert len(found) == len(said)
    assert all(re.search(pattern, sentence) for pattern, sentence in zip(said, found, strict=True))


def test_writing_mends_what_is_off(tree):
    lines = {"a.py": 21, "deep/b.py": 83}
    assert tree["off"](tree["rewritten"](TREE, lines), lines) == []
