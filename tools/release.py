"""Build wheel and source distribution twice, from copies in two folders, and compare them; one pair is left in dist.

    uvx nox -s release -- --tag v0.1.0    # in an environment of its own
    python tools/release.py               # where build, hatchling and twine are installed

It fails where the two builds differ by a byte, where `twine check` finds fault, and where the tag, CHANGELOG.md or CITATION.cff have
another version than the package.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def files_of(checkout: Path) -> list[str]:
    """What git has in a checkout: what lies about there besides is not released."""
    command = ["git", "ls-files", "-z"]
    found = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout
    return [name for name in found.split("\0") if (checkout / name).is_file()]


def copy(checkout: Path, target: Path, mode: int) -> Path:
    """The files of a checkout in another folder, of now and with other permissions."""
    for name in files_of(checkout):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkout / name, target / name)
        (target / name).chmod(mode)
    return target


def build(source: Path, out: Path) -> list[Path]:
    """A source distribution, and the wheel that it gives."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    environment = {"SOURCE_DATE_EPOCH": "1577836800", **os.environ}  # 2020, since a zip file has no times before 1980
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"Expected {source} to build but:\n{result.stdout}{result.stderr}")
    return sorted(out.iterdir())


def build_twice(checkout: Path, folder: Path) -> list[list[Path]]:
    """Two builds of one checkout, in folders of different names, from files of different times and permissions."""
    sources = [copy(checkout, folder / "a", 0o644), copy(checkout, folder / "another" / "folder", 0o600)]
    return [build(source, source.parent / f"{source.name}-dist") for source in sources]


def digests(files: list[Path]) -> dict[str, str]:
    """SHA-256 of files by name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def contents(archive: Path) -> list[str]:
    """Names of the files in a wheel or a source distribution; of the latter without the folder that all are in."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return sorted(wheel.namelist())
    with tarfile.open(archive) as source:
        return sorted(member.name.partition("/")[2] for member in source if member.isfile())


def version_faults(checkout: Path, tag: str | None = None) -> list[str]:
    """Where another version is named than the package has."""
    texts = {name: (checkout / name).read_text() for name in ("lit_detect/__init__.py", "CHANGELOG.md", "CITATION.cff")}
    version = re.findall(r'^__version__ = "(.+)"$', texts["lit_detect/__init__.py"], flags=re.M)[0]
    changes = re.findall(r"^## \[(\d.*)\] - (\d{4}-\d\d-\d\d)$", texts["CHANGELOG.md"], flags=re.M)
    cited = re.findall(r"^(?:version|date-released): (.+)$", texts["CITATION.cff"], flags=re.M)
    faults = []
    if not changes or changes[0][0] != version:
        faults.append(f"Expected the newest release of CHANGELOG.md to be {version} but got {changes[:1]}.")
    elif cited != [*changes[0]]:
        faults.append(f"Expected {version} of {changes[0][1]} in CITATION.cff but got {cited}.")
    if tag is not None and tag != f"v{version}":
        faults.append(f"Expected the tag v{version} but got {tag}.")
    return faults


def main() -> None:
    """Build, compare and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tag", help="the release's tag, v and the version")
    faults = version_faults(ROOT, parser.parse_args().tag)
    if faults:
        raise SystemExit("\n".join(faults))
    with tempfile.TemporaryDirectory() as folder:
        first, second = build_twice(ROOT, Path(folder))
        for file in first:
            print(file.name, *contents(file), sep="\n  ")
        if digests(first) != digests(second):
            raise SystemExit(f"Expected equal bytes from two builds but got {digests(first)} and {digests(second)}.")
        subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, first)], check=True)
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        shutil.copytree(first[0].parent, ROOT / "dist")
        for name, digest in digests(first).items():
            print(f"{digest}  dist/{name}")


if __name__ == "__main__":
    main()
