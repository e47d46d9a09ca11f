"""What a checkout has in tools/ and no other test runs: the benchmarks."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "tools" / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_a_benchmark_can_be_imported(file, monkeypatch):
    monkeypatch.syspath_prepend(str(file.parent))
    assert "main" in runpy.run_path(str(file), run_name="imported")
