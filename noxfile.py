"""What is run over all Pythons and releases that lit_detect supports: `uvx nox -l` lists it. In a checkout `tools/test` is quicker."""

from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "docs", "release"]

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}  # all lower bounds of pyproject.toml at once, or what pip would take


@nox.session(python=PYTHONS, tags=["tests"])
@nox.parametrize("releases", [*RESOLUTIONS], ids=[*RESOLUTIONS])
def tests(session: nox.Session, releases: str) -> None:
    """The tests, with the oldest or the newest releases that the package allows; arguments after -- go to pytest."""
    # wheels alone, since the oldest release of a bound may be older than the Python: then it is the oldest that has a wheel for it
    wheels = ["--only-binary", ":all:", "--no-binary", "lit-detect"]
    session.install("--resolution", RESOLUTIONS[releases], *wheels, "--editable", ".[dev]")
    session.run("python", "-m", "pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, spelling and types."""
    session.install("--editable", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The pages, as a site."""
    session.install("--editable", ".[docs]")
    session.run("mkdocs", "build", "--strict")


@nox.session
def release(session: nox.Session) -> None:
    """The wheel and the source distribution, checked, into dist; `-- --tag v0.1.0` checks the tag too."""
    session.install("build", "hatchling", "twine")
    session.run("python", "tools/release.py", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """The wheel of dist, installed where there is nothing else: its commands run, and a step of training away from the checkout."""
    session.install(*(str(path.resolve()) for path in Path("dist").glob("*.whl")))
    session.chdir(session.create_tmp())
    session.run("python", "-m", "lit_detect", "--help")
    session.run("lit-detect", "fit", "--config", "quickstart.yaml", "--trainer.fast_dev_run", "true")
