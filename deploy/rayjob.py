"""A RayJob file, as its rules look at it: the job, its cluster, and the cluster's groups of pods."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from problems import mapping, sequence

_JOB = re.compile(r"(?:python3? )?\S*jobs/\w+\.py(.*)", re.DOTALL)


@dataclass(frozen=True)
class Group:
    """The head, or a group of workers; the first container of its pods is Ray's."""

    place: str
    is_head: bool
    values: Mapping[str, Any]

    @property
    def pod(self) -> Mapping[str, Any]:
        """Return the specification of its pods."""
        return mapping(self.values, "template", "spec")

    @property
    def pod_place(self) -> str:
        """Return where that stands."""
        return f"{self.place}.template.spec"

    @property
    def container(self) -> Mapping[str, Any]:
        """Return the container that runs Ray."""
        return mapping(next(iter(sequence(self.pod.get("containers"))), None))

    @property
    def container_place(self) -> str:
        """Return where that stands."""
        return f"{self.pod_place}.containers[0]"

    @property
    def start(self) -> Mapping[str, Any]:
        """Return the options of its ``ray start``."""
        return mapping(self.values, "rayStartParams")

    def amount(self, kind: str, name: str) -> Any:
        """Return what its container requests of a resource, or is limited to."""
        return mapping(self.container, "resources", kind).get(name)


@dataclass(frozen=True)
class RayJob:
    """The file."""

    values: Mapping[str, Any]

    @property
    def spec(self) -> Mapping[str, Any]:
        """Return what the job is."""
        return mapping(self.values, "spec")

    @property
    def cluster(self) -> Mapping[str, Any]:
        """Return what its cluster is."""
        return mapping(self.spec, "rayClusterSpec")

    @cached_property
    def groups(self) -> list[Group]:
        """Return the head and every group of workers."""
        place = "spec.rayClusterSpec"
        workers = enumerate(sequence(self.cluster.get("workerGroupSpecs")))
        return [
            Group(f"{place}.headGroupSpec", is_head=True, values=mapping(self.cluster, "headGroupSpec")),
            *(Group(f"{place}.workerGroupSpecs[{i}]", is_head=False, values=mapping(group)) for i, group in workers),
        ]

    @cached_property
    def arguments(self) -> list[str]:
        """Return what the entrypoint gives to its job, empty if it runs none of ours."""
        found = _JOB.fullmatch(str(self.spec.get("entrypoint", "")).strip())
        try:
            return shlex.split(found[1]) if found else []
        except ValueError:  # a quote without its other end
            return []

    def override(self, key: str) -> str | None:
        """Return the value that the entrypoint gives to a key of the configuration."""
        return next((text.partition("=")[2] for text in self.arguments if text.startswith(f"{key}=")), None)
