"""Find mistakes in cluster.yaml and deploy/rayjob.yaml without a cloud, a cluster or a network.

    python deploy/check.py [FILE.yaml ...]      (default: cluster.yaml and deploy/rayjob.yaml)

Each problem is a line with the file, the place, the value, and what was expected. Exit codes: 0 no errors (warnings are
possible), 1 errors, 2 a file that cannot be read or is of another kind.
"""

import argparse
import os
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from clusterfile import cluster_problems
from images import ROOT
from jobcommand import example_problems
from problems import Problem, warnings
from rayjobfile import rayjob_problems

GOOD, BAD, UNREADABLE = 0, 1, 2


class UnreadableFile(Exception):
    """A file does not exist, is not YAML, or is of another kind."""


def main(argv: Sequence[str] | None = None) -> int:
    """Check files, write what is wrong, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.yaml")
    default = [Path(os.path.relpath(ROOT / name)) for name in ("cluster.yaml", "deploy/rayjob.yaml")]
    return max(_check(file) for file in parser.parse_args(argv).files or default)


def _check(file: Path) -> int:
    try:
        found = [*check_values(read_yaml(file)), *example_problems(file.read_text(encoding="utf-8"))]
    except UnreadableFile as error:
        sys.stdout.write(f"{file}: error: {error}\n")
        return UNREADABLE
    sys.stdout.writelines(problem.line(str(file)) + "\n" for problem in found)
    errors = sum(problem.is_error for problem in found)
    sys.stdout.write(f"{file}: {errors} error(s), {len(found) - errors} warning(s)\n")
    return BAD if errors else GOOD


def check_values(values: Any) -> list[Problem]:
    """Find what is wrong with a file's content, errors first. Raises: UnreadableFile if it is of another kind."""
    if isinstance(values, dict) and "kind" in values:
        found = rayjob_problems(values)
    elif isinstance(values, dict) and isinstance(values.get("provider"), dict):
        found = cluster_problems(values)
    else:
        raise UnreadableFile("expected a cluster file (with provider:) or a RayJob (with kind:)")
    once = {(problem.place, problem.expected): problem for problem in [*found, *warnings(values)]}
    return sorted(once.values(), key=lambda problem: not problem.is_error)


def read_yaml(file: Path) -> Any:
    """Read a YAML file. Raises: UnreadableFile if that fails, or if a key is there twice."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UnreadableFile(f"is not YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """Refuse a key that is there twice; YAML itself takes the last without a warning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise UnreadableFile(f"{key.value} is there twice, again in line {key.start_mark.line + 1}")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


if __name__ == "__main__":
    sys.exit(main())
