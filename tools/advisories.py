"""Ask PyPI which of the installed packages have known vulnerabilities. One that has fails; a service out of reach is said, and does not.

.venv/bin/python tools/advisories.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig

SECONDS = 50  # for all packages together
# advisories that do not concern this package, each with its reason: {"PYSEC-2030-1": "of a server that is never started"}
HARMLESS: dict[str, str] = {}


def judged(status: int, output: str, errors: str) -> tuple[int, str]:
    """The exit status, and a line, or several, that say what was found.

    Args:
        status: of ``pip-audit --format json``.
        output: what it wrote.
        errors: what it complained of.

    >>> judged(0, '{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', "")
    (0, 'no known vulnerability in 1 packages')
    """
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        reason = (errors.strip().splitlines() or [f"pip-audit ended with status {status}"])[-1]
        return 0, f"not possible: {reason[:300]}"
    known = [package for package in packages if "vulns" in package]
    unknown = [package["name"] for package in packages if "vulns" not in package]
    found = [
        f"{package['name']} {package['version']}: {one['id']}, mended in {', '.join(one['fix_versions']) or 'no version'}"
        for package in known
        for one in package["vulns"]
        if not {one["id"], *one.get("aliases", [])} & set(HARMLESS)
    ]
    if found:
        return 1, "\n".join(found)
    if not known:
        return 0, f"not possible: PyPI's advisories are not to be had here, for none of {len(unknown)} packages"
    left = f"; nothing is known of {', '.join(unknown)}" if unknown else ""
    return 0, f"no known vulnerability in {len(known)} packages{left}"


def main() -> None:
    """Run pip-audit on the environment that this runs in."""
    command = [sys.executable, "-m", "pip_audit", "--path", sysconfig.get_path("purelib"), "--skip-editable", "--format", "json"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off", "--timeout", "10"], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        status, text = 0, f"not possible: PyPI did not answer for all packages within {SECONDS} seconds"
    else:
        status, text = judged(done.returncode, done.stdout, done.stderr)
    print(f"advisories: {text}")
    sys.exit(status)


if __name__ == "__main__":
    main()
