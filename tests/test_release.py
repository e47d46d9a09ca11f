"""What is released: the same bytes from any folder, with all that it needs and nothing else, of one version everywhere."""

import ast
import os
import re
import runpy
import subprocess
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import lit_detect

ROOT = Path(__file__).parents[1]
NOT_RELEASED = {".ci/run"}  # the source distribution is the rest of the checkout


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(ROOT / "tools" / "release.py"))


@pytest.fixture(scope="module")
def tracked():
    """What git has, by git's own word."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name for name in names if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def builds(tool, tracked, tmp_path_factory):
    return tool["build_twice"](ROOT, tmp_path_factory.mktemp("builds"))


def test_two_builds_have_the_same_bytes(builds):
    first, second = ({file.name: file.read_bytes() for file in files} for files in builds)
    version = lit_detect.__version__
    assert set(first) == {f"lit_detect-{version}.tar.gz", f"lit_detect-{version}-py3-none-any.whl"}
    assert first == second


def test_the_wheel_has_the_package_and_the_configs_and_nothing_else(builds, tool, tracked):
    wheel = next(file for file in builds[0] if file.suffix == ".whl")
    package = {name for name in tracked if name.startswith("lit_detect/")}
    configs = {f"lit_detect/{name}" for name in tracked if name.startswith("configs/")}
    about = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert {"lit_detect/py.typed", "lit_detect/report.html"} <= package
    assert "lit_detect/configs/quickstart.yaml" in configs
    assert set(tool["contents"](wheel)) == package | configs | {f"lit_detect-{lit_detect.__version__}.dist-info/{name}" for name in about}


def test_the_source_distribution_is_the_checkout(builds, tool, tracked):
    source = next(file for file in builds[0] if file.suffix == ".gz")
    assert set(tool["contents"](source)) == tracked - NOT_RELEASED | {"PKG-INFO"}


def test_what_the_wheel_says_of_itself(builds):
    wheel = next(file for file in builds[0] if file.suffix == ".whl")
    with zipfile.ZipFile(wheel) as archive:
        about = Parser().parsestr(archive.read(f"lit_detect-{lit_detect.__version__}.dist-info/METADATA").decode())
    assert (about["Name"], about["Version"], about["License-Expression"]) == ("lit_detect", lit_detect.__version__, "Apache-2.0")
    assert about["Requires-Python"] == ">=3.10"
    assert about.get_payload() == (ROOT / "README.md").read_text()
    tested = re.findall(r"^PYTHONS = \[(.*)\]$", (ROOT / "noxfile.py").read_text(), flags=re.M)[0]
    assert [name.removeprefix("Programming Language :: Python :: ") for name in about.get_all("Classifier") if "Python :: 3." in name] == [
        version.strip(' "') for version in tested.split(",")
    ]


def test_workflows_run_sessions_that_there_are():
    sessions = {node.name for node in ast.parse((ROOT / "noxfile.py").read_text()).body if isinstance(node, ast.FunctionDef)}
    run = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            lines = " ".join(step.get("run", "") for step in job.get("steps", []))
            run |= {name for names in re.findall(r"nox --session ([a-z ]+)", lines) for name in names.split()}
            matrix = job.get("strategy", {}).get("matrix", {}).get("session", [])
            run |= set(matrix) if isinstance(matrix, list) else set(re.findall(r"outputs\.(\w+)", matrix))
    assert run == sessions


def test_one_version_everywhere(tool):
    assert tool["version_faults"](ROOT, f"v{lit_detect.__version__}") == []
    assert f"version = {{{lit_detect.__version__}}}" in (ROOT / "docs" / "citing.md").read_text()


@pytest.mark.parametrize(
    ("changes", "cited", "tag", "fault"),
    [
        ("## [0.9.0] - 2027-01-01\n", "0.9.0\ndate-released: 2027-01-01", "v0.9.0", "newest release of CHANGELOG.md to be 1.0.0"),
        ("## [Unreleased]\n", "1.0.0\ndate-released: 2027-01-01", None, "newest release of CHANGELOG.md to be 1.0.0 but got []"),
        ("## [1.0.0] - 2027-01-01\n", "0.9.0\ndate-released: 2027-01-01", None, "1.0.0 of 2027-01-01 in CITATION.cff"),
        ("## [1.0.0] - 2027-01-01\n", "1.0.0\ndate-released: 2026-01-01", None, "1.0.0 of 2027-01-01 in CITATION.cff"),
        ("## [1.0.0] - 2027-01-01\n", "1.0.0\ndate-released: 2027-01-01", "1.0.0", "the tag v1.0.0 but got 1.0.0"),
    ],
)
def test_another_version_somewhere_is_said(changes, cited, tag, fault, tool, tmp_path):
    (tmp_path / "lit_detect").mkdir()
    (tmp_path / "lit_detect" / "__init__.py").write_text('__version__ = "1.0.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(changes)
    (tmp_path / "CITATION.cff").write_text(f"cff-version: 1.2.0\nversion: {cited}\n")
    assert any(fault in found for found in tool["version_faults"](tmp_path, tag))


def test_a_build_that_differs_has_another_digest(tool, tmp_path):
    files = [tmp_path / side / "a.whl" for side in ("one", "other")]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(os.fsencode(file.parent.name))
    assert tool["digests"](files[:1]) != tool["digests"](files[1:])
