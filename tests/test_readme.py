"""README and the pages of docs/ say what is so: their Python runs, their files exist, their links lead somewhere."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = {page.relative_to(ROOT).as_posix(): page for page in [README, *DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]}


def python_of(page):
    """The examples of a page, unless it has a test of its own, which reads them."""
    own = ROOT / "tests" / f"test_{page.stem}.py"
    if page != README and own.is_file() and page.name in own.read_text():
        return []
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


PYTHON = {name: blocks for name, page in PAGES.items() if (blocks := python_of(page))}
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`", re.M | re.S)


def anchors(page):
    """What code hosts make of headings: small letters, hyphens for spaces, and no other marks."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_readme_has_python():
    assert "README.md" in PYTHON


@pytest.mark.parametrize("page", PYTHON)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_DETECT_CACHE", str(tmp_path))
    names: dict[str, object] = {}
    for block in PYTHON[page]:
        quick = block.replace("max_epochs=3", "max_steps=1, limit_val_batches=1, accelerator='cpu', logger=False")
        exec(compile(quick, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    named = set(re.findall(r"(?<![\w/.-])(?:\.\./)?((?:configs|tools|docs|tests)/[\w./-]+\w)", PAGES[page].read_text()))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^()\s]+)\)", CODE.sub("", PAGES[page].read_text())):
        if re.match(r"\w+:", link):
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/\S*)?", link), link  # whether it is there is not asked: tests have no network
            continue
        path, _, anchor = link.partition("#")
        to = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert to.exists(), link
        assert not anchor or anchor in anchors(to), link


@pytest.mark.parametrize("page", PAGES)
def test_anchors_are_of_one_heading(page):
    if page != "CHANGELOG.md":  # "Added" is in each release
        assert len(set(anchors(PAGES[page]))) == len(anchors(PAGES[page]))


def test_every_page_is_in_the_navigation():
    def pages(nav):
        return [nav] if isinstance(nav, str) else [page for part in nav for page in pages(part if isinstance(nav, list) else nav[part])]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in DOCS)


def test_every_config_is_in_the_readme():
    for config in (ROOT / "configs").glob("*.yaml"):
        assert f"configs/{config.name}" in README.read_text()


def test_the_tree_is_whole_and_its_line_counts_are_about_right():
    assert runpy.run_path(str(ROOT / "tools/tree.py"))["main"](["--check"]) is None
