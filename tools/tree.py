#!/usr/bin/env python3
"""Write the numbers of lines in README.md's tree anew; fails where a file of lit_detect/ has no line there, or a line no file.

``tools/tree.py --check`` writes nothing, and fails where a number is off by more than a fifth, too.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"^  ([\w/]+\.py)( +\d+)(?=  )", re.M)
DRIFT = 0.2, 10  # a share, and lines of a small file, that a number may be off, so that a commit need not touch README


def counts(root: Path) -> dict[str, int]:
    """The lines of each file of the package that the tree lists."""
    package = root / "lit_detect"
    files = [path for path in sorted(package.rglob("*.py")) if path.name != "__init__.py"]
    return {path.relative_to(package).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}


def misplaced(readme: str, lines: dict[str, int]) -> list[str]:
    """What only a person can mend: files without a line, which says what they are for, and lines without a file."""
    listed = [name for name, _ in LINE.findall(readme)]
    return [
        *(f"lit_detect/{name} has no line in README.md's tree" for name in lines if name not in listed),
        *(f"README.md's tree has a line for lit_detect/{name}, which is not there" for name in listed if name not in lines),
        *(f"README.md's tree has {name} more than once" for name in sorted({name for name in listed if listed.count(name) > 1})),
    ]


def off(readme: str, lines: dict[str, int]) -> list[str]:
    """Numbers that are too far from what they should be."""
    share, least = DRIFT
    return [
        f"README.md's tree says {int(count)} lines for lit_detect/{name}, which has {lines[name]}: run tools/tree.py"
        for name, count in LINE.findall(readme)
        if name in lines and abs(int(count) - lines[name]) > max(least, share * lines[name])
    ]


def rewritten(readme: str, lines: dict[str, int]) -> str:
    """README with the numbers as they are; each keeps its column."""
    return LINE.sub(lambda line: f"  {line[1]}{lines.get(line[1], int(line[2])):>{len(line[2])}}", readme)


def main(args: list[str]) -> str | None:
    """Check or write; what is wrong, or None."""
    if args not in ([], ["--check"]):
        return __doc__
    readme, lines = ROOT / "README.md", counts(ROOT)
    text = readme.read_text(encoding="utf-8")
    if not args:
        readme.write_text(rewritten(text, lines), encoding="utf-8")
    wrong = misplaced(text, lines) + (off(text, lines) if args else [])
    return "\n".join(wrong) or None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
