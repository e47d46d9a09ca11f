"""The README says what is so: its Python runs, its files exist."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text()


def test_python_in_the_readme_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_DETECT_CACHE", str(tmp_path))
    names: dict[str, object] = {}
    for block in blocks:
        quick = block.replace("max_epochs=3", "max_steps=1, limit_val_batches=1, accelerator='cpu', logger=False")
        exec(compile(quick, "README.md", "exec"), names)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|tools|docs|tests)/[\w./-]+\w", TEXT))))
def test_files_that_the_readme_names_exist(path):
    assert (README.parent / path).exists()


def test_the_tree_is_whole_and_its_line_counts_are_about_right():
    package = README.parent / "lit_detect"
    listed = {name: int(count) for name, count in re.findall(r"^  ([\w/]+\.py) +(\d+) ", TEXT, flags=re.M)}
    files = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert set(listed) == files
    for name, count in listed.items():
        assert abs(len((package / name).read_text().splitlines()) - count) <= max(5, 0.1 * count), name


def test_every_config_is_in_the_readme():
    for config in (README.parent / "configs").glob("*.yaml"):
        assert f"configs/{config.name}" in TEXT
