"""A hook of mkdocs (mkdocs.yml names it): pages of the site take in what is written elsewhere, so that each thing is written once.

Where a line of a page in docs/ is a link to a section of README.md, or to another Markdown file of the checkout, and nothing else, the site
has that text in its place. Links lead to where their targets are on the site; where they are not on it, the link's text alone stays.
"""

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FENCED = re.compile(r"(^ *```.*?^ *```$)", re.M | re.S)
HEADING = re.compile(r"^(#+) (.+)$", re.M)
LINK = re.compile(r"(?P<mark>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<to>[^()\s]+)\)")
PICTURES = ".github"  # where README has its pictures; mkdocs leaves out what begins with a dot


def slug(title: str) -> str:
    """The anchor of a heading, as code hosts and mkdocs make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def headings(text: str) -> list[re.Match[str]]:
    """The headings of a page, each with its marks and its title; a comment in a code block is none."""
    return list(HEADING.finditer(FENCED.sub(lambda code: " " * len(code[0]), text)))


def section(file: Path, anchor: str) -> str:
    """What stands under a heading, up to the next one that is not below it; of a page's title, what comes before the first section.

    Without an anchor it is all that comes after the title.
    """
    text = file.read_text(encoding="utf-8")
    found = headings(text)
    start = next((heading for heading in found if not anchor or slug(heading[2]) == anchor), None)
    if start is None:
        raise PluginError(f"Expected {file.name} to have a section #{anchor}, which a page in docs/ takes in, but it has none.")
    depth = max(2, len(start[1])) if anchor else 0
    ends = (heading.start() for heading in found if heading.start() > start.start() and len(heading[1]) <= depth)
    return text[start.end() : next(ends, len(text))].strip("\n")


def place(link: str, source: str) -> tuple[str, str]:
    """The file of the checkout to which a link in another leads, and the anchor in it."""
    path, _, anchor = link.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source, anchor


def taken_in(text: str, source: str) -> list[tuple[str, str]]:
    """The files beside docs/, each with an anchor or none, that a page in docs/ takes in."""
    links = re.findall(rf"^{LINK.pattern}$", FENCED.sub("", text), re.M)
    found = [place(to, source) for _, _, to in links]
    return [(path, anchor) for path, anchor in found if source.startswith("docs/") and re.fullmatch(r"\w+\.md", path)]


def homes(root: Path) -> dict[str, str]:
    """The page of each section, ``README.md#which-detector``, and of each file, that some page takes in."""
    found = {}
    for page in (root / "docs").rglob("*.md"):
        uri = page.relative_to(root / "docs").as_posix()
        for path, anchor in taken_in(page.read_text(encoding="utf-8"), f"docs/{uri}"):
            if anchor in ("", slug(headings((root / path).read_text(encoding="utf-8"))[0][2])):
                found[path] = uri
            below = [slug(heading[2]) for heading in headings(section(root / path, anchor))]
            found.update({f"{path}#{name}": uri for name in [anchor, *below]})
    return found


def address(link: str, source: str, page: str, homes: Mapping[str, str]) -> str | None:
    """Where a link in a file of the checkout leads from a page of the site, or None."""
    if re.match(r"\w+:", link):
        return link
    path, anchor = place(link, source)
    if path.startswith("docs/"):
        found = path.removeprefix("docs/")
    elif path.startswith(f"{PICTURES}/"):
        found = f"images/{posixpath.basename(path)}"
    else:
        found = homes.get(f"{path}#{anchor}" if anchor else path, "")
    return posixpath.relpath(found, posixpath.dirname(page) or ".") + (anchor and f"#{anchor}") if found else None


def written(text: str, source: str, page: str, root: Path, homes: Mapping[str, str]) -> str:
    """The text of a file of the checkout, as a page of the site has it."""

    def turn(link: re.Match[str]) -> str:
        before, after = link.string[: link.start()], link.string[link.end() :]
        alone = before[-1:] in ("", "\n") and after[:1] in ("", "\n")
        for path, anchor in taken_in(link[0], source) if alone else []:
            return written(section(root / path, anchor), path, page, root, homes)
        to = address(link["to"], source, page, homes)
        return link["text"] if to is None else f"{link['mark']}[{link['text']}]({to})"

    parts = FENCED.split(text)  # what is in brackets comes out at odd places
    return "".join(part if place % 2 else LINK.sub(turn, part) for place, part in enumerate(parts))


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """README's pictures are the site's."""
    for picture in sorted((Path(config.config_file_path).parent / PICTURES).iterdir()):
        if picture.suffix in (".jpg", ".png"):
            files.append(File.generated(config, f"images/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page as the site has it."""
    root = Path(config.config_file_path).parent
    uri = page.file.src_uri
    return written(markdown, f"docs/{uri}", uri, root, homes(root))
