"""Check deploy/rayjob.yaml.

Kubernetes' schema knows the pods, and KubeRay's own fields are known to the API server (`kubectl apply
--dry-run=server`). The rules here are about what both let through: it costs money, a stuck job or an open port.
"""

import importlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import jsonschema
from authentication import OPEN_PORT, authentication_problems
from images import image_problems, ray_of_image, ray_problems
from jobcommand import JobCommand
from problems import Problem, Rule, count_problems, rule_problems, schema_problems
from values import at, dotted, mapping, sequence, walk

KUBERNETES = "1.34"
GPU = "nvidia.com/gpu"
CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec"
_INSIDE = "ClusterIP: the job port stays inside; kubectl port-forward is the way in"
_EVERYWHERE = "0.0.0.0"  # noqa: S104 (inside the pod network, where the token guards it)
FILE_RULES: tuple[Rule, ...] = (
    ("apiVersion", ("ray.io/v1",), "ray.io/v1"),
    ("kind", ("RayJob",), "RayJob"),
    ("spec.shutdownAfterJobFinishes", (True,), "true: the cluster would go on costing after the job"),
    (f"{CLUSTER}.enableInTreeAutoscaling", (True,), "true: groups would stay at their replicas, which are none"),
    (f"{CLUSTER}.authOptions.mode", ("token",), f"token: {OPEN_PORT}"),
    (f"{HEAD}.serviceType", (None, "ClusterIP"), _INSIDE),
    (f"{HEAD}.headService.spec.type", (None, "ClusterIP"), _INSIDE),
    (f"{HEAD}.enableIngress", (None, False), _INSIDE),
    (
        f"{HEAD}.rayStartParams.dashboard-host",
        (None, _EVERYWHERE),
        "nothing: KubeRay reaches the job port over the pods",
    ),
)
NEEDED = {
    "spec.backoffLimit": "expected at least 1: the second try after a lost head goes on where the first stopped",
    f"{CLUSTER}.workerGroupSpecs": "expected at least one group: the head takes no work",
}
_OLD_NAME = "Never: a restarted pod would be a new Ray node under an old name"
_SECCOMP = "RuntimeDefault: system calls that no program here needs are refused"
_NO_TOKEN = "false: a worker has nothing to ask of Kubernetes, and runs code on strangers' files"  # noqa: S105
POD_RULES: tuple[Rule, ...] = (
    ("restartPolicy", ("Never",), _OLD_NAME),
    ("securityContext.runAsNonRoot", (True,), "true"),
    ("securityContext.seccompProfile.type", ("RuntimeDefault",), _SECCOMP),
    ("containers.0.securityContext.capabilities.drop", (["ALL"],), "[ALL]: Ray and distmil need none"),
    ("containers.0.securityContext.allowPrivilegeEscalation", (False,), "false"),
)
WORKER_RULES: tuple[Rule, ...] = (("automountServiceAccountToken", (False,), _NO_TOKEN),)


def rayjob_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with a RayJob."""
    yield from rule_problems(values, FILE_RULES)
    yield from authentication_problems(values)
    for path, expected in NEEDED.items():
        if not at(values, path):
            yield Problem(path, at(values, path), expected)
    text = str(at(values, "spec.entrypoint"))
    command = JobCommand.parse(text)
    if command is None:
        expected = "expected a job with its settings: distmil train --config FILE.yaml storage.root=..."
        yield Problem("spec.entrypoint", text, expected)
    else:
        yield from command.problems("spec.entrypoint", text, is_in_image=True)
    yield from _versions(values)
    if kubernetes_validator() is None:
        expected = "the pods were not compared with Kubernetes' schema; pip install kubernetes-validate does that"
        yield Problem(CLUSTER, "...", expected, is_error=False)
    workers = enumerate(sequence(at(values, f"{CLUSTER}.workerGroupSpecs")))
    groups = {
        HEAD: mapping(values, HEAD),
        **{f"{CLUSTER}.workerGroupSpecs[{i}]": mapping(group) for i, group in workers},
    }
    for place, group in groups.items():
        pod = mapping(group, "template.spec")
        rules = POD_RULES if place == HEAD else POD_RULES + WORKER_RULES
        in_pod = [*rule_problems(pod, rules), *_kubernetes_problems(json.dumps(pod, sort_keys=True)), *_gpus(pod)]
        in_pod += _mounts(pod, command)
        for found in in_pod:
            where = f"{place}.template.spec.{found.place}".replace("containers.0", "containers[0]")
            yield Problem(where, found.value, found.expected)
        yield from _work(place, group)


def _versions(values: Mapping[str, Any]) -> Iterator[Problem]:
    found = [(path, image) for path, image in walk(values) if path[-1:] == ("image",) and isinstance(image, str)]
    images = {dotted(path): image for path, image in sorted(found, key=lambda one: "headGroupSpec" not in one[0])}
    yield from image_problems(images)
    version = str(at(values, f"{CLUSTER}.rayVersion"))
    yield from ray_problems(f"{CLUSTER}.rayVersion", version, version)
    inside = ray_of_image(next(iter(images.values()), ""))
    if inside not in (None, version):
        yield Problem(f"{CLUSTER}.rayVersion", version, f"expected {inside}, which the head's image has")


def _work(place: str, group: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield where the head could take work, or where Ray would believe in other resources than a pod has."""
    limits = mapping(group, "template.spec.containers.0.resources.limits")
    cpus = at(group, "resources.CPU") or at(group, "rayStartParams.num-cpus")  # KubeRay prefers the first
    gpus, declared = str(limits.get(GPU, 0)), at(group, "rayStartParams.num-gpus")
    if declared is not None and str(declared) != gpus:
        expected = f"expected the limit of the container, {gpus}"
        yield Problem(f"{place}.rayStartParams.num-gpus", declared, expected)
    if place != HEAD:
        fewest, most = group.get("minReplicas", 0), group.get("maxReplicas")
        yield from count_problems(place, ("minReplicas", "maxReplicas"), fewest, most)
        yield from count_problems(place, ("replicas", "maxReplicas"), group.get("replicas", fewest), most)
        if cpus is None and "cpu" not in limits:
            expected = "expected the cores of a pod: Ray would take those of the whole node"
            yield Problem(f"{place}.template.spec.containers[0].resources.limits.cpu", None, expected)
        return
    if cpus != "0":
        expected = 'expected "0": work on the head can starve what holds the cluster together'
        yield Problem(f"{place}.rayStartParams.num-cpus", cpus, expected)
    if gpus != "0":
        place = f"{place}.template.spec.containers[0].resources.limits.{GPU}"
        yield Problem(place, gpus, "expected none: nothing uses it there")


# --- pods; their places begin in the pod -------------------------------------------------------------------------


@cache
def _kubernetes_problems(pod: str) -> list[Problem]:
    """Find what Kubernetes' schema refuses first in a pod."""
    values = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": json.loads(pod)}
    try:
        if validator := kubernetes_validator():
            validator.validate(values, KUBERNETES, strict=True)
    except jsonschema.ValidationError as error:
        found = schema_problems(error)
        return [Problem(one.place.removeprefix("spec."), one.value, one.expected) for one in found]
    return []


def kubernetes_validator() -> Any | None:
    """Import kubernetes-validate; None where it is not installed."""
    try:
        return importlib.import_module("kubernetes_validate")
    except ImportError:
        return None


def _gpus(pod: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield where a pod has no GPU on a GPU node, waits for one for ever, or is promised less than its limits."""
    resources = mapping(pod, "containers.0.resources")
    limits, requests = mapping(resources, "limits"), mapping(resources, "requests")
    given = [mapping(one) for one in sequence(pod.get("tolerations"))]
    keys = [one.get("key") for one in given if one.get("effect") in (None, "NoSchedule")]  # the key None stands for all
    place = f"containers.0.resources.limits.{GPU}"
    if GPU in keys and GPU not in limits:
        yield Problem(place, None, "expected the GPUs of a pod: its toleration lets it onto GPU nodes")
    if GPU in limits and GPU not in keys and None not in keys:
        expected = f"expected one of {GPU}: GPU nodes carry that taint, and the pods would wait for ever"
        yield Problem("tolerations", pod.get("tolerations"), expected)
    if "memory" not in limits:
        expected = "expected a size such as 26Gi: a pod without a limit is the first to be evicted"
        yield Problem("containers.0.resources.limits.memory", None, expected)
    for key in ("memory", GPU):
        if requests.get(key) != limits.get(key):
            expected = f"expected the limit, {limits.get(key)}: Ray plans with that, on a node that may have less"
            yield Problem(f"containers.0.resources.requests.{key}", requests.get(key), expected)


def _mounts(pod: Mapping[str, Any], command: JobCommand | None) -> Iterator[Problem]:
    """Yield mounts without a volume, and what the job needs and no mount holds."""
    volumes = [mapping(volume).get("name") for volume in sequence(pod.get("volumes"))]
    mounts = [mapping(mount) for mount in sequence(at(pod, "containers.0.volumeMounts"))]
    for index, mount in enumerate(mounts):
        if mount.get("name") not in volumes:
            place = f"containers.0.volumeMounts[{index}].name"
            yield Problem(place, mount.get("name"), f"expected a volume of the pod: {volumes or 'it has none'}")
    paths = [str(mount.get("mountPath")) for mount in mounts]
    for key in ("storage.root", "cohort.manifest"):
        needed = command and command.override(key)
        if needed and "://" not in needed and not any(PurePosixPath(needed).is_relative_to(path) for path in paths):
            expected = f"expected a mount that holds {key}={needed}: every node reads and writes there"
            yield Problem("containers.0.volumeMounts", paths, expected)
