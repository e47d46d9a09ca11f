"""The site: what its pages take in from README, where links lead on it, and that it has every public name."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

import lit_detect
from lit_detect.cli import VERBS

ROOT = Path(__file__).parents[1]
README = """# Name

What it is: see [below](#one).

## One

```bash
# a comment is no heading
```

See [two](#two), [a page](docs/deep/page.md#there), [a file](tools/x), [out](https://example.org/#a) and `code`:
![picture](.github/a.png)

## Two

### Below two

In two.

## Nowhere
"""


@pytest.fixture
def pages():
    pytest.importorskip("mkdocs", reason="needs mkdocs")
    if not (ROOT / "tools/pages.py").is_file():
        pytest.skip("needs the tools of a checkout")
    return runpy.run_path(str(ROOT / "tools/pages.py"))


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "docs/deep").mkdir(parents=True)
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## 1.0\n\nAll.\n")
    (tmp_path / "docs/index.md").write_text("# Name\n\n[Name](../README.md#name)\n\n## One\n\n[One](../README.md#one)\n")
    (tmp_path / "docs/deep/page.md").write_text("# There\n\n[Two](../../README.md#two)\n")
    (tmp_path / "docs/two.md").write_text("# Changes\n\n[Changes](../CHANGELOG.md)\n")
    return tmp_path


def made(pages, checkout, name):
    text = (checkout / "docs" / name).read_text()
    return pages["written"](text, f"docs/{name}", name, checkout, pages["homes"](checkout))


def test_sections_come_in_and_links_lead_to_the_pages_that_have_their_targets(pages, checkout):
    assert made(pages, checkout, "index.md") == (
        "# Name\n\nWhat it is: see [below](index.md#one).\n\n## One\n\n```bash\n# a comment is no heading\n```\n\n"
        "See [two](deep/page.md#two), [a page](deep/page.md#there), a file, [out](https://example.org/#a) and `code`:\n"
        "![picture](images/a.png)\n"
    )
    assert made(pages, checkout, "two.md") == "# Changes\n\n## 1.0\n\nAll.\n"
    assert made(pages, checkout, "deep/page.md") == "# There\n\n### Below two\n\nIn two.\n"


@pytest.mark.parametrize(
    ("link", "page", "address"),
    [
        ("../README.md", "two.md", "index.md"),
        ("../../README.md", "deep/page.md", "../index.md"),
        ("../../README.md#below-two", "deep/page.md", "page.md#below-two"),
        ("../README.md#nowhere", "two.md", None),
        ("../../CHANGELOG.md", "deep/page.md", "../two.md"),
        ("../two.md", "deep/page.md", "../two.md"),
        ("#there", "deep/page.md", "page.md#there"),
        ("../../.github/a.png", "deep/page.md", "../images/a.png"),
        ("../configs/a.yaml", "two.md", None),
        ("https://example.org", "two.md", "https://example.org"),
    ],
)
def test_links_of_a_page(pages, checkout, link, page, address):
    assert pages["address"](link, f"docs/{page}", page, pages["homes"](checkout)) == address


def test_a_link_within_a_sentence_and_one_in_code_stay(pages, checkout):
    (checkout / "docs/two.md").write_text("As in [two](../README.md#one).\n\n```\n[One](../README.md#one)\n```\n")
    assert made(pages, checkout, "two.md") == "As in [two](index.md#one).\n\n```\n[One](../README.md#one)\n```\n"


def test_a_section_that_is_not_there(pages, checkout):
    (checkout / "docs/index.md").write_text("[Three](../README.md#three)\n")
    with pytest.raises(Exception, match=r"Expected README\.md to have a section #three, which a page in docs/ takes in"):
        made(pages, checkout, "index.md")


def test_examples_in_docstrings_are_fenced():
    pytest.importorskip("griffe", reason="needs griffe")
    if not (ROOT / "tools/doctests.py").is_file():
        pytest.skip("needs the tools of a checkout")
    docstring = SimpleNamespace(value="What.\n\n>>> a = [\n...     1]\n>>> a\n[1]\n\nMore.\n\nArgs:\n    b: as\n\n    >>> b\n    2")
    runpy.run_path(str(ROOT / "tools/doctests.py"))["FencedDoctests"]().on_object(obj=SimpleNamespace(docstring=docstring))
    assert docstring.value == (
        "What.\n\n```pycon\n>>> a = [\n...     1]\n>>> a\n[1]\n```\n\nMore.\n\nArgs:\n    b: as\n\n    ```pycon\n    >>> b\n    2\n    ```"
    )


def test_every_public_name_and_every_verb_is_documented_once():
    documented = re.findall(r"^::: lit_detect\.(\S+)$", "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md")), re.M)
    verbs = [f"{module.removeprefix('lit_detect.')}.{verb}" for verb, module in VERBS.items()]
    assert sorted({*lit_detect.HOMES, *verbs} - set(documented)) == []
    assert len(documented) == len(set(documented))
