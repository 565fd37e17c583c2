"""Who may use a cluster: the token that every node asks for, and what would let others in past it.

The job port runs code for whoever reaches it. A single process that starts Ray with authentication off is enough, and
nothing complains: so each place where a mode can be set is looked at, not only the one where it belongs.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from cluster import Cluster, Node
from problems import Problem, mapping, sequence
from rayjob import RayJob

TOKEN = "/home/ray/.ray/auth_token"  # noqa: S105 (a path; deploy/Dockerfile makes that home)
_MODE, _TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
_WHY = "the job port runs code for whoever reaches it"
_OPTION = re.compile(rf"(?:^|\s)(?:-e|--env)[=\s]\s*['\"]?{_MODE}=['\"]?([^\s'\"]*)")
_SET = re.compile(rf"(?<![\w${{]){_MODE}=['\"]?([^\s'\";&|]*)")
_UNSET = re.compile(rf"(?:\bunset\s+(?:-v\s+)?|\s-u\s*|--unset[=\s])['\"]?({_MODE})\b")
_WRITTEN = re.compile(rf"(?<!\w){_TOKEN}=['\"]?[^\s'\"$`]")


# --- cluster.yaml ------------------------------------------------------------------------------------------------


def command_problems(cluster: Cluster) -> Iterator[Problem]:
    """Yield the commands that turn it off for what they start, or show the token."""
    for place, command in cluster.commands:
        yield from _text_problems(place, command)


def option_problems(node: Node) -> Iterator[Problem]:
    """Yield where a node's container starts without it, or shows the token."""
    place = f"docker.run_options ({node.name})"
    modes = _OPTION.findall(node.run_options)
    if not modes or modes[-1] != "token":
        yield Problem(f"{place} {_MODE}", modes[-1] if modes else None, f"expected -e {_MODE}=token")
    if _WRITTEN.search(node.run_options):
        expected = "expected the token in its file alone: an option is in the process list of the node"
        yield Problem(f"{place} {_TOKEN}", "(not shown)", expected)


def token_file_problems(cluster: Cluster) -> Iterator[Problem]:
    """Yield what is wrong with the file that holds the token on every node."""
    mounts = mapping(cluster.values, "file_mounts")
    source = mounts.get(TOKEN)
    if source is None:
        yield Problem("file_mounts", dict(mounts), f"expected {TOKEN}: ~/.ray/auth_token; Ray looks in its user's home")
    elif PurePosixPath(str(source)).name != PurePosixPath(TOKEN).name:
        expected = "expected ~/.ray/auth_token, or another file of that name: this becomes the key to the cluster"
        yield Problem(f"file_mounts.{TOKEN}", source, expected)
    commands = sequence(cluster.values.get("setup_commands"))
    if not any("chmod 600" in str(command) and TOKEN in str(command) for command in commands):
        expected = f"expected chmod 600 {TOKEN}: Ray makes the file readable for everyone"
        yield Problem("setup_commands", commands, expected)


# --- rayjob.yaml -------------------------------------------------------------------------------------------------


def rayjob_authentication(job: RayJob) -> Iterator[Problem]:
    """Yield where a RayJob's cluster does not ask for the token, or a pod has its own mind about it."""
    mode = mapping(job.cluster, "authOptions").get("mode")
    if mode != "token":
        yield Problem("spec.rayClusterSpec.authOptions.mode", mode, f"expected token: {_WHY}")
    for place, container in job.containers:
        for index, variable in enumerate(sequence(container.get("env"))):
            yield from _variable_problems(f"{place}.env[{index}]", mapping(variable))
        for key in ("command", "args"):
            for index, text in enumerate(sequence(container.get(key))):
                yield from _text_problems(f"{place}.{key}[{index}]", str(text))


def _variable_problems(place: str, variable: Mapping[str, Any]) -> Iterator[Problem]:
    name, value = variable.get("name"), variable.get("value")
    if name == _MODE and value != "token":
        expected = f"expected nothing, or token, which authOptions sets: {_WHY}"
        yield Problem(f"{place} {_MODE}", value or variable.get("valueFrom"), expected)
    if name == _TOKEN and value:
        expected = "expected nothing: KubeRay gives every pod the token from a secret, which no file shows"
        yield Problem(f"{place} {_TOKEN}", "(not shown)", expected)


def _text_problems(place: str, text: str) -> Iterator[Problem]:
    for mode in [*_SET.findall(text), *(f"unset {name}" for name in _UNSET.findall(text))]:
        if mode != "token":
            yield Problem(f"{place} {_MODE}", mode, f"expected token, as everywhere: {_WHY}")
    if _WRITTEN.search(text):
        expected = "expected the token in its file alone: this one is in the process list"
        yield Problem(f"{place} {_TOKEN}", "(not shown)", expected)
