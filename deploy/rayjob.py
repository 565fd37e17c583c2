"""A RayJob file, as its rules look at it: the job, its cluster, and the cluster's groups of pods."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobcommand import JobCommand
from problems import mapping, sequence


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
    def containers(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the place and the values of every container: of the groups' pods, and of the submitter's."""
        pods = {group.pod_place: group.pod for group in self.groups}
        pods["spec.submitterPodTemplate.spec"] = mapping(self.spec, "submitterPodTemplate", "spec")
        return [
            (f"{place}.{key}[{index}]", mapping(container))
            for place, pod in pods.items()
            for key in ("containers", "initContainers")
            for index, container in enumerate(sequence(pod.get(key)))
        ]

    @cached_property
    def command(self) -> JobCommand | None:
        """Return what the entrypoint runs, None if it is no job of ours."""
        return JobCommand.parse(str(self.spec.get("entrypoint", "")))

    def override(self, key: str) -> str | None:
        """Return the value that the entrypoint gives to a key of the configuration."""
        return None if self.command is None else self.command.override(key)
