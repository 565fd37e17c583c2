"""Look up the packages of a lock in the OSV database, which has PyPI's advisories too.

    python deploy/audit.py requirements-image.lock

Exit codes: 0 no known vulnerability, or no answer from the database, which is reported; 1 a vulnerable package; 2 the
lock cannot be read. The query has names and versions of packages, and nothing else.
"""

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATABASE = "https://api.osv.dev/v1/querybatch"
TIMEOUT_S = 10.0
SAFE, VULNERABLE, UNREADABLE = 0, 1, 2
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", re.MULTILINE)


def main(argv: Sequence[str] | None = None) -> int:
    """Audit a lock and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--database", default=DATABASE)
    options = parser.parse_args(argv)
    try:
        packages = pinned(options.lock.read_text(encoding="utf-8"))
    except OSError as error:
        sys.stdout.write(f"{options.lock}: cannot be read: {error.strerror}\n")
        return UNREADABLE
    if not packages:
        sys.stdout.write(f"{options.lock}: pins no package\n")
        return UNREADABLE
    try:
        found = vulnerabilities(packages, options.database)
    except (OSError, ValueError) as error:
        sys.stdout.write(f"audit: NOT DONE: the database of vulnerabilities cannot be asked ({error})\n")
        return SAFE
    for name, ids in found.items():
        sys.stdout.write(f"audit: {name} {packages[name]} is vulnerable: {', '.join(ids)}\n")
    sys.stdout.write(f"audit: {len(packages)} packages of {options.lock}, {len(found)} with known vulnerabilities\n")
    return VULNERABLE if found else SAFE


def pinned(text: str) -> dict[str, str]:
    """Find the name and version of every package that a lock pins."""
    return {name.lower(): version for name, version in _PINNED.findall(text)}


def vulnerabilities(packages: Mapping[str, str], database: str) -> dict[str, list[str]]:
    """Find the ids of the advisories on each package that has any. Raises: OSError, ValueError if no answer."""
    queries = [
        {"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in packages.items()
    ]
    request = urllib.request.Request(  # noqa: S310 (the address is an option of this command)
        database, data=json.dumps({"queries": queries}).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
        results: Any = json.load(answer).get("results")
    if not isinstance(results, list) or len(results) != len(packages):
        raise ValueError("it does not answer as OSV does")
    pairs = zip(packages, results, strict=True)
    return {name: [found["id"] for found in result["vulns"]] for name, result in pairs if result.get("vulns")}


if __name__ == "__main__":
    sys.exit(main())
