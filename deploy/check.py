"""Find mistakes in cluster.yaml and deploy/rayjob.yaml without a cloud, a cluster or a network.

    python deploy/check.py [FILE.yaml ...]      (default: cluster.yaml and deploy/rayjob.yaml)

Each problem is a line with the file, the place, the value, and what was expected. Exit codes: 0 no errors (warnings are
possible), 1 errors, 2 a file that cannot be read or is of another kind.
"""

import argparse
import os
import re
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from clusterfile import CLUSTER_IMAGE, cluster_problems
from rayjobfile import POD_IMAGE, rayjob_problems
from rules import AUTHENTICATION, ROOT, Problem, by_place, image_problems, text_problems

GOOD, BAD, UNREADABLE = 0, 1, 2
_PLACEHOLDER = re.compile(r"SET-ME|\bREGISTRY/|\bBUCKET\b")
_IDLE = "expected at most an hour: a node that has nothing to do costs until then"
_ALWAYS = "expected 0: a pool grows with the work; nodes that are always there cost as long as the cluster is up"
LIMITS = {
    "idle_timeout_minutes": (60, _IDLE),
    "idle_timeout_s": (3600, _IDLE),
    "idleTimeoutSeconds": (3600, _IDLE),
    "min_workers": (0, _ALWAYS),
    "minReplicas": (0, _ALWAYS),
}
"""The largest value of a key without a warning, and the warning."""


def main(argv: Sequence[str] | None = None) -> int:
    """Check files, write what is wrong, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.yaml")
    default = [Path(os.path.relpath(ROOT / name)) for name in ("cluster.yaml", "deploy/rayjob.yaml")]
    return max(_check(file) for file in parser.parse_args(argv).files or default)


def _check(file: Path) -> int:
    try:
        content = read_yaml(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        sys.stdout.write(f"{file}: error: {' '.join(str(error).split())}\n")
        return UNREADABLE
    found = check_values(content)
    sys.stdout.writelines(problem.line(str(file)) + "\n" for problem in found)
    errors = sum(problem.is_error for problem in found)
    sys.stdout.write(f"{file}: {errors} error(s), {len(found) - errors} warning(s)\n")
    return BAD if errors else GOOD


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a cluster file or a RayJob. Raises: OSError, UnicodeDecodeError or YAMLError if the file is none."""
    content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    if isinstance(content, dict) and content.keys() & {"provider", "kind"}:
        return content
    raise yaml.YAMLError("expected a cluster file (with provider:) or a RayJob (with kind:)")


class _Loader(yaml.SafeLoader):
    """Refuse a key that is there twice; YAML itself takes the last without a warning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.YAMLError(f"{key.value} is there twice, again in line {key.start_mark.line + 1}")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def check_values(content: Mapping[str, Any]) -> list[Problem]:
    """Find what is wrong with a file's content, errors first."""
    values, is_rayjob = by_place(content), "kind" in content
    found = [
        *(rayjob_problems(content) if is_rayjob else cluster_problems(content)),
        *image_problems(values, POD_IMAGE if is_rayjob else CLUSTER_IMAGE),
        *text_problems(values, AUTHENTICATION),
        *_warnings(values),
    ]
    return sorted(found, key=lambda problem: not problem.is_error)


def _warnings(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what the user has to set, at the first place that has it, and what keeps nodes that have nothing to do."""
    seen = set()
    for place, value in values.items():
        if isinstance(value, str) and _PLACEHOLDER.search(value) and value not in seen:
            seen.add(value)
            yield Problem(place, value, "a placeholder; set it before you start nodes", is_error=False)
        most, expected = LIMITS.get(place.rpartition(".")[2], (float("inf"), ""))
        if isinstance(value, int | float) and value > most:
            yield Problem(place, value, expected, is_error=False)


if __name__ == "__main__":
    sys.exit(main())
