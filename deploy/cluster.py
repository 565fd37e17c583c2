"""A cluster file, as its rules look at it: its node types, and the commands that its nodes run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from problems import mapping, sequence

SETUP = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
START = {True: "head_start_ray_commands", False: "worker_start_ray_commands"}
_RAY_START = re.compile(r"\bray\s+start\b[^;&|\n]*")


@dataclass(frozen=True)
class Node:
    """A node type, and the Docker options that its containers start with."""

    name: str
    is_head: bool
    values: Mapping[str, Any]
    run_options: str

    @property
    def place(self) -> str:
        """Return where it stands."""
        return f"available_node_types.{self.name}"

    @property
    def config(self) -> Mapping[str, Any]:
        """Return what goes to EC2."""
        return mapping(self.values, "node_config")

    @property
    def instance(self) -> str:
        """Return its instance type."""
        return str(self.config.get("InstanceType"))

    @property
    def resources(self) -> Mapping[str, Any]:
        """Return what Ray takes it to have."""
        return mapping(self.values, "resources")


@dataclass(frozen=True)
class Cluster:
    """A cluster file, with Ray's defaults where it says nothing."""

    values: Mapping[str, Any]

    @cached_property
    def nodes(self) -> list[Node]:
        """Return every node type."""
        types = mapping(self.values, "available_node_types")
        return [self._node(name, mapping(types, name)) for name in types]

    def _node(self, name: str, values: Mapping[str, Any]) -> Node:
        is_head = name == self.values.get("head_node_type")
        docker = {**mapping(self.values, "docker"), **mapping(values, "docker")}
        own = docker.get("head_run_options" if is_head else "worker_run_options")
        options = [*sequence(docker.get("run_options")), *sequence(own)]
        return Node(name, is_head, values, " ".join(map(str, options)))

    @cached_property
    def commands(self) -> list[tuple[str, str]]:
        """Return the place and the text of every command that some node runs."""
        lists = {key: self.values.get(key) for key in (*SETUP, *START.values())}
        for node in self.nodes:
            lists |= {f"{node.place}.{key}": node.values.get(key) for key in SETUP}
        return [
            (f"{key}[{index}]", str(command))
            for key, commands in lists.items()
            for index, command in enumerate(sequence(commands))
        ]

    def starts(self, *, is_head: bool) -> list[tuple[str, str]]:
        """Return the place and the text of each ``ray start`` of the head or the workers; one without text if none."""
        key = START[is_head]
        commands = [(place, text) for place, text in self.commands if place.startswith(f"{key}[")]
        return [(place, start) for place, text in commands for start in _RAY_START.findall(text)] or [(key, "")]


def option(command: str, name: str) -> str | None:
    """Return the value of an option in a command line, None if it is not there; of several the last one counts."""
    found = re.findall(rf"(?:^|\s){re.escape(name)}[=\s]\s*(\S+)", command)
    return found[-1].strip("'\"") if found else None
