"""Find what lets people use a cluster without its token.

The job port runs code for whoever reaches it. A single process that starts Ray with authentication off is enough, and
nothing complains. So every text of a file is searched, not only the place where the mode belongs.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from problems import Problem
from values import dotted, mapping, sequence, walk

TOKEN = "/home/ray/.ray/auth_token"  # noqa: S105 (a path; deploy/Dockerfile makes that home)
OPEN_PORT = "the job port runs code for whoever reaches it"
_MODE, _TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
_SET = re.compile(rf"(?<![\w$])(?<!\${{){_MODE}['\"]?(?:=|:\s*)['\"]?([^\s'\";&|,}}]*)")
_UNSET = re.compile(rf"(?:\bunset\s+(?:-v\s+)?|\s-u\s*|--unset[=\s])['\"]?({_MODE})\b")
_WRITTEN = re.compile(rf"(?<!\w){_TOKEN}['\"]?(?:=|:\s*)['\"]?[^\s'\"$`]")


def authentication_problems(values: Any) -> Iterator[Problem]:
    """Yield the commands, options and variables that turn authentication off, or that show the token."""
    for path, value in walk(values):
        modes, is_written = [], False
        if isinstance(value, str):
            modes = [*_SET.findall(value), *(f"unset {name}" for name in _UNSET.findall(value))]
            is_written = bool(_WRITTEN.search(value))
        elif isinstance(value, Mapping):  # a variable of a container
            given = value.get("value") or value.get("valueFrom")
            modes = [given] if value.get("name") == _MODE else []
            is_written = value.get("name") == _TOKEN and bool(value.get("value"))
        for mode in modes:
            if mode != "token":
                yield Problem(f"{dotted(path)} {_MODE}", mode, f"expected token, as everywhere: {OPEN_PORT}")
        if is_written:
            expected = "expected the token in its file or secret alone: here others can read it"
            yield Problem(f"{dotted(path)} {_TOKEN}", "(not shown)", expected)


def option_problems(place: str, run_options: Any) -> Iterator[Problem]:
    """Yield whether a node's container starts without authentication."""
    if not any(_SET.search(text) for _, text in walk(run_options) if isinstance(text, str)):
        yield Problem(f"{place} {_MODE}", None, f"expected -e {_MODE}=token: {OPEN_PORT}")


def token_file_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with the file that holds the token on every node of cluster.yaml."""
    mounts = mapping(values, "file_mounts")
    source = mounts.get(TOKEN)
    if source is None:
        yield Problem("file_mounts", dict(mounts), f"expected {TOKEN}: ~/.ray/auth_token; Ray looks in its user's home")
    elif PurePosixPath(str(source)).name != PurePosixPath(TOKEN).name:
        expected = "expected ~/.ray/auth_token, or another file of that name: this becomes the key to the cluster"
        yield Problem(f"file_mounts.{TOKEN}", source, expected)
    commands = sequence(values.get("setup_commands"))
    if not any("chmod 600" in str(command) and TOKEN in str(command) for command in commands):
        expected = f"expected chmod 600 {TOKEN}: Ray makes the file readable for everyone"
        yield Problem("setup_commands", commands, expected)
