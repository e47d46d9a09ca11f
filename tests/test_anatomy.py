"""docs/anatomy.md says what is so: its lines run and print what it prints, and the files and names in it exist."""

import doctest
import operator
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from lit_detect.data import digits

TEXT = (Path(__file__).parents[1] / "docs" / "anatomy.md").read_text()
# **`file.py`: `name`, `Class.name`; `other.py`: `name`.**
PLACES = [place for line in re.findall(r"^\*\*(`.*?)\.\*\*", TEXT, flags=re.M | re.S) for place in re.split(r";\s", line)]


def test_its_lines_run_and_print_what_it_prints(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_DETECT_CACHE", str(tmp_path))
    monkeypatch.setattr(digits, "IMAGES", {"train": 12, "val": 4})
    torch.manual_seed(0)
    parts = re.split(r"^```.*$", TEXT, flags=re.M)  # prose and code in turn; prose becomes as many empty lines
    lines = "\n".join(part if index % 2 else "\n" * part.count("\n") for index, part in enumerate(parts))
    test = doctest.DocTestParser().get_doctest(lines, {}, "anatomy.md", "docs/anatomy.md", 0)
    assert len(test.examples) > 50
    said = []
    assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)


@pytest.mark.parametrize("place", PLACES)
def test_names_are_in_the_files_that_it_says(place):
    file, names = re.fullmatch(r"`([\w/]+)\.py`:\s(`[\w.]+`(?:,\s`[\w.]+`)*)", place).groups()
    module = import_module("lit_detect." + file.replace("/", "."))
    for name in re.findall(r"`([\w.]+)`", names):
        found = operator.attrgetter(name)(module)
        found = getattr(found, "func", found)  # of a cached property
        assert getattr(found, "__module__", module.__name__) == module.__name__


def test_it_goes_through_every_stage():
    assert len(PLACES) > 20
