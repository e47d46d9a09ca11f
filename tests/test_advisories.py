"""What pip-audit says of packages, and what is made of it."""

import json
import runpy
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "advisories.py"
FINE = {"name": "torch", "version": "2.15.0", "vulns": []}
WRONG = {"name": "pillow", "version": "9.0", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["9.1"]}]}
SKIPPED = {"name": "scipy", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.fixture
def tool():
    if not TOOL.is_file():
        pytest.skip("needs the tools of a checkout")
    return runpy.run_path(str(TOOL))


@pytest.mark.parametrize(
    ("packages", "status", "text"),
    [
        ([FINE], 0, "no known vulnerability in 1 packages"),
        ([FINE, SKIPPED], 0, "no known vulnerability in 1 packages; nothing is known of scipy"),
        ([FINE, WRONG], 1, "pillow 9.0: PYSEC-1, mended in 9.1"),
        ([SKIPPED, SKIPPED], 0, "not possible: PyPI's advisories are not to be had here, for none of 2 packages"),
    ],
)
def test_a_vulnerability_fails_and_silence_is_said(tool, packages, status, text):
    assert tool["judged"](int(packages[-1] is WRONG), json.dumps({"dependencies": packages}), "") == (status, text)


def test_without_a_network_nothing_fails(tool):
    assert tool["judged"](1, "", "Traceback\nConnectionError: no route to the index\n") == (
        0,
        "not possible: ConnectionError: no route to the index",
    )
    assert tool["judged"](1, "", "/usr/bin/python: No module named pip_audit")[0] == 0


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_an_exception_goes_by_any_of_its_names(tool, name):
    tool["HARMLESS"][name] = "of what is not used"
    assert tool["judged"](1, json.dumps({"dependencies": [WRONG]}), "") == (0, "no known vulnerability in 1 packages")
