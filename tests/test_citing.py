"""Each paper that is named anywhere is in papers.bib, and each entry there is told of in citing.md."""

import re
from pathlib import Path

import yaml

import lit_detect

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"\b([A-Z][a-z]+)(?: et al\.| and [A-Z][a-z]+)[ ,(]+((?:19|20)\d\d)\b")
ENTRIES = {
    key: dict(re.findall(r"^ *(\w+) += \{(.*)\},$", fields, flags=re.M))
    for key, fields in re.findall(r"^@\w+\{(\w+),\n(.*?)^\}$", (ROOT / "docs" / "papers.bib").read_text(), flags=re.M | re.S)
}
TEXTS = [ROOT / "README.md", *(path for folder in ("lit_detect", "configs", "docs") for path in (ROOT / folder).rglob("*.*"))]


def first_author(entry):
    return entry["author"].split(",")[0]


def test_entries_are_whole():
    assert len(ENTRIES) == (ROOT / "docs" / "papers.bib").read_text().count("@")
    for key, entry in ENTRIES.items():
        assert {"author", "title", "year"} <= set(entry), key
        assert re.fullmatch(rf"{first_author(entry).lower()}{entry['year']}\w+", key)
        if "eprint" in entry:  # arXiv's numbers begin with year and month, and a paper is not printed before it is there
            assert re.fullmatch(r"\d{4}\.\d{4,5}", entry["eprint"])
            assert 2000 + int(entry["eprint"][:2]) <= int(entry["year"]) <= 2003 + int(entry["eprint"][:2]), key
    numbers = [entry["eprint"] for entry in ENTRIES.values() if "eprint" in entry]
    assert len(numbers) == len(set(numbers))


def test_papers_that_are_named_are_in_the_bibliography():
    known = {(first_author(entry), entry["year"]) for entry in ENTRIES.values()}
    numbers = {entry.get("eprint") for entry in ENTRIES.values()}
    named = 0
    for path in TEXTS:
        if path.suffix in (".py", ".yaml", ".md", ".html"):
            text = re.sub(r"\s+(# )?", " ", path.read_text())  # a name may end a line, also of a comment
            found = set(NAMED.findall(text))
            named += len(found)
            assert found <= known, path
            assert set(re.findall(r"arxiv(?:\.org/abs/|:)(\d{4}\.\d{4,5})", text, flags=re.I)) <= numbers, path
    assert named > 30


def test_the_pattern_finds_papers_as_they_are_written():
    found = NAMED.findall("YOLOv3 (Redmon and Farhadi 2018); TIDE (Bolya et al. 2020, section 2), as Liu et al. (2016)")
    assert found == [("Redmon", "2018"), ("Bolya", "2020"), ("Liu", "2016")]


def test_the_page_tells_of_every_entry_and_of_no_other():
    table = (ROOT / "docs" / "citing.md").read_text().partition("| What | Key |")[2]
    assert set(re.findall(r"`([a-z]+\d{4}\w+)`", table)) == set(ENTRIES)


def test_the_citation_file_is_of_this_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["type"], citation["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert citation["version"] == lit_detect.__version__
    assert citation["title"].startswith("lit_detect")
    assert citation["authors"]
