"""The rules for deploy/rayjob.yaml."""

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import jsonschema
from authentication import rayjob_authentication
from problems import (
    FROM_ZERO,
    IDLE,
    LONGEST_IDLE_S,
    Problem,
    image_problems,
    in_gib,
    mapping,
    quantity_bytes,
    ray_of_image,
    ray_problem,
    schema_problem,
    schema_problems,
    sequence,
)
from rayjob import Group, RayJob
from rayjobschema import RAYJOB

KUBERNETES = "1.34"
GPU = "nvidia.com/gpu"


def rayjob_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with a RayJob."""
    job = RayJob(values)
    found = [*schema_problems(values, RAYJOB), *_unchecked()]
    for rule in (_lifetime, _idle, _entrypoint, rayjob_authentication, _access, _versions):
        found += rule(job)
    for group in job.groups:
        for group_rule in (_pod, _replicas, _work, _gpus, _memory, _mounts):
            found += group_rule(job, group)
    return found


def _lifetime(job: RayJob) -> Iterator[Problem]:
    if job.spec.get("shutdownAfterJobFinishes") is not True:
        expected = "expected true: the cluster would go on costing after the job"
        yield Problem("spec.shutdownAfterJobFinishes", job.spec.get("shutdownAfterJobFinishes"), expected)
    if not job.spec.get("backoffLimit"):
        expected = "expected at least 1: a lost head is a lost job, and a second try goes on where it stopped"
        yield Problem("spec.backoffLimit", job.spec.get("backoffLimit"), expected)
    if job.cluster.get("enableInTreeAutoscaling") is not True:
        expected = "expected true: groups would stay at their replicas, which are none"
        place = "spec.rayClusterSpec.enableInTreeAutoscaling"
        yield Problem(place, job.cluster.get("enableInTreeAutoscaling"), expected)


def _idle(job: RayJob) -> Iterator[Problem]:
    """Yield where pods are kept long after their work."""
    seconds = {"spec.rayClusterSpec.autoscalerOptions": mapping(job.cluster, "autoscalerOptions")}
    seconds |= {group.place: group.values for group in job.groups}
    for place, values in seconds.items():
        idle = values.get("idleTimeoutSeconds")
        if isinstance(idle, int) and idle > LONGEST_IDLE_S:
            yield Problem(f"{place}.idleTimeoutSeconds", idle, IDLE, is_error=False)


def _entrypoint(job: RayJob) -> Iterator[Problem]:
    text = job.spec.get("entrypoint")
    if job.command is None:
        expected = "expected a job with its settings: python jobs/train.py --config FILE.yaml storage.root=..."
        yield Problem("spec.entrypoint", text, expected)
    else:
        yield from job.command.problems("spec.entrypoint", text, is_in_image=True)


def _access(job: RayJob) -> Iterator[Problem]:
    place = "spec.rayClusterSpec"
    head = job.groups[0].values
    host = job.groups[0].start.get("dashboard-host")
    if host not in (None, "0.0.0.0"):  # noqa: S104 (inside the pod network, where the token guards it)
        expected = "expected nothing, which is 0.0.0.0: KubeRay reaches the job port over the pod network"
        yield Problem(f"{place}.headGroupSpec.rayStartParams.dashboard-host", host, expected)
    expected = "expected ClusterIP: the job port stays inside; kubectl port-forward is the way in"
    service = mapping(head, "headService", "spec").get("type")
    for name, kind in (("serviceType", head.get("serviceType")), ("headService.spec.type", service)):
        if kind not in (None, "ClusterIP"):
            yield Problem(f"{place}.headGroupSpec.{name}", kind, expected)
    if head.get("enableIngress"):
        yield Problem(f"{place}.headGroupSpec.enableIngress", True, expected)


def _versions(job: RayJob) -> Iterator[Problem]:
    place = "spec.rayClusterSpec"
    images = {f"{group.container_place}.image": group.container.get("image") for group in job.groups}
    images[f"{place}.autoscalerOptions.image"] = mapping(job.cluster, "autoscalerOptions").get("image")
    submitter = sequence(mapping(job.spec, "submitterPodTemplate", "spec").get("containers"))
    for index, container in enumerate(submitter):
        images[f"spec.submitterPodTemplate.spec.containers[{index}].image"] = mapping(container).get("image")
    yield from image_problems({where: str(image) for where, image in images.items() if image})
    version = str(job.cluster.get("rayVersion", ""))
    if problem := ray_problem(f"{place}.rayVersion", version):
        yield problem
    inside = ray_of_image(str(job.groups[0].container.get("image")))
    if inside not in (None, version):
        yield Problem(f"{place}.rayVersion", version, f"expected {inside}, which the head's image has")


def _pod(_job: RayJob, group: Group) -> Iterator[Problem]:
    policy = group.pod.get("restartPolicy")
    if policy != "Never":
        expected = "expected Never: a restarted pod would be a new Ray node under an old name"
        yield Problem(f"{group.pod_place}.restartPolicy", policy, expected)
    yield from _privileges(group)
    validator = kubernetes_validator()
    if validator is not None and group.pod:
        for problem in _kubernetes_problems(validator, json.dumps(group.pod, sort_keys=True)):
            yield replace(problem, place=group.pod_place + problem.place.removeprefix("spec"))


def _privileges(group: Group) -> Iterator[Problem]:
    """Yield what a pod may do that Ray does not need."""
    profile = mapping(group.pod, "securityContext", "seccompProfile").get("type")
    if profile != "RuntimeDefault":
        expected = "expected RuntimeDefault: system calls that no program here needs are refused"
        yield Problem(f"{group.pod_place}.securityContext.seccompProfile.type", profile, expected)
    if mapping(group.pod, "securityContext").get("runAsNonRoot") is not True:
        yield Problem(f"{group.pod_place}.securityContext.runAsNonRoot", None, "expected true")
    own = mapping(group.container, "securityContext")
    dropped = mapping(own, "capabilities").get("drop")
    if dropped != ["ALL"]:
        place = f"{group.container_place}.securityContext.capabilities.drop"
        yield Problem(place, dropped, "expected [ALL]: Ray and distmil need none")
    if own.get("allowPrivilegeEscalation") is not False:
        place = f"{group.container_place}.securityContext.allowPrivilegeEscalation"
        yield Problem(place, own.get("allowPrivilegeEscalation"), "expected false")
    token = group.pod.get("automountServiceAccountToken")
    if not group.is_head and token is not False:
        expected = "expected false: a worker has nothing to ask of Kubernetes, and runs code on strangers' files"
        yield Problem(f"{group.pod_place}.automountServiceAccountToken", token, expected)


@cache
def _kubernetes_problems(validator: Any, pod: str) -> list[Problem]:
    """Return what Kubernetes' schema refuses first in a pod's specification."""
    values = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": json.loads(pod)}
    try:
        validator.validate(values, KUBERNETES, strict=True)
    except jsonschema.ValidationError as error:
        return list(schema_problem(error))
    return []


def kubernetes_validator() -> Any | None:
    """Return the package kubernetes-validate, None where it is not installed."""
    try:
        return importlib.import_module("kubernetes_validate")
    except ImportError:
        return None


def _unchecked() -> Iterator[Problem]:
    if kubernetes_validator() is None:
        expected = "the pods were not compared with Kubernetes' schema; pip install kubernetes-validate does that"
        yield Problem("spec.rayClusterSpec", "...", expected, is_error=False)


def _replicas(_job: RayJob, group: Group) -> Iterator[Problem]:
    if group.is_head:
        return
    fewest, most = group.values.get("minReplicas", 0), group.values.get("maxReplicas")
    now = group.values.get("replicas", fewest)
    if most is None:
        yield Problem(f"{group.place}.maxReplicas", None, "expected a number: KubeRay's own is 2147483647")
    elif not all(isinstance(count, int) for count in (fewest, now, most)):
        return  # the schema says so
    elif most < max(1, fewest):
        yield Problem(f"{group.place}.maxReplicas", most, f"expected at least {max(1, fewest)}")
    elif not fewest <= now <= most:
        yield Problem(f"{group.place}.replicas", now, f"expected {fewest} to {most}, by minReplicas and maxReplicas")
    elif fewest:
        yield Problem(f"{group.place}.minReplicas", fewest, f"expected 0: {FROM_ZERO}", is_error=False)


def _work(_job: RayJob, group: Group) -> Iterator[Problem]:
    """Yield where the head could take work, or workers have no definite number of cores."""
    cpus = mapping(group.values, "resources").get("CPU", group.start.get("num-cpus"))  # which KubeRay prefers
    if not group.is_head:
        if cpus is None and group.amount("limits", "cpu") is None:
            expected = "expected the cores of a pod: Ray would take those of the whole node"
            yield Problem(f"{group.container_place}.resources.limits.cpu", None, expected)
        return
    expected = 'expected "0": work on the head can starve what holds the cluster together'
    if cpus != "0":
        yield Problem(f"{group.place}.rayStartParams.num-cpus", cpus, expected)
    if (gpus := group.amount("limits", GPU)) is not None:
        yield Problem(f"{group.container_place}.resources.limits.{GPU}", gpus, "expected none: nothing uses it there")


def _gpus(_job: RayJob, group: Group) -> Iterator[Problem]:
    place = f"{group.container_place}.resources.limits.{GPU}"
    limit, request, declared = group.amount("limits", GPU), group.amount("requests", GPU), group.start.get("num-gpus")
    if request is not None and str(request) != str(limit):
        yield Problem(place, limit, f"expected {request}, as requested: Kubernetes takes nothing else")
    elif declared is not None and str(declared) != str(limit or 0):
        expected = f"expected the limit of the container, {limit or 0}"
        yield Problem(f"{group.place}.rayStartParams.num-gpus", declared, expected)
    elif limit is None and GPU in _tolerated(group):
        yield Problem(place, None, "expected the GPUs of a pod: its toleration lets it onto GPU nodes")
    elif limit is not None and not group.is_head and not _tolerated(group) & {GPU, None}:
        expected = f"expected one of {GPU}: GPU nodes carry that taint, and the pods would wait for ever"
        yield Problem(f"{group.pod_place}.tolerations", group.pod.get("tolerations"), expected)


def _tolerated(group: Group) -> set[Any]:
    """Return the keys of NoSchedule taints that a group's pods tolerate; None stands for all."""
    tolerations = [mapping(one) for one in sequence(group.pod.get("tolerations"))]
    return {one.get("key") for one in tolerations if one.get("effect") in (None, "NoSchedule")}


def _memory(_job: RayJob, group: Group) -> Iterator[Problem]:
    place = f"{group.container_place}.resources"
    sizes = {kind: group.amount(kind, "memory") for kind in ("limits", "requests")}
    limit, request = (quantity_bytes(size) for size in sizes.values())
    for kind, size in sizes.items():
        if quantity_bytes(size) is None:
            expected = "expected a size such as 26Gi: a pod without one is the first to be evicted"
            yield Problem(f"{place}.{kind}.memory", size, expected)
    if None not in (limit, request) and limit != request:
        expected = f"expected the limit, {sizes['limits']}: Ray plans with that, on a node that may have less"
        yield Problem(f"{place}.requests.memory", sizes["requests"], expected)
    where, stored = f"{group.place}.rayStartParams.object-store-memory", group.start.get("object-store-memory")
    store = quantity_bytes(stored)
    if store is None:
        yield Problem(where, stored, "expected a size in bytes: Ray's own is 30 % of the memory")
    elif limit is not None and store > limit / 2:
        expected = f"expected at most half of the pod's memory, {in_gib(limit)}: /dev/shm counts towards it"
        yield Problem(where, stored, expected)


def _mounts(job: RayJob, group: Group) -> Iterator[Problem]:
    volumes = {mapping(volume).get("name") for volume in sequence(group.pod.get("volumes"))}
    paths = []
    for index, mount in enumerate(sequence(group.container.get("volumeMounts"))):
        name, path = mapping(mount).get("name"), mapping(mount).get("mountPath")
        paths += [PurePosixPath(str(path))]
        if name not in volumes:
            place = f"{group.container_place}.volumeMounts[{index}].name"
            yield Problem(place, name, f"expected a volume of the pod: {', '.join(map(str, volumes)) or 'it has none'}")
    for key in ("storage.root", "cohort.manifest"):
        needed = job.override(key)
        if needed and "://" not in needed and not any(PurePosixPath(needed).is_relative_to(path) for path in paths):
            expected = f"expected a mount that holds {key}={needed}: every node reads and writes there"
            yield Problem(f"{group.container_place}.volumeMounts", list(map(str, paths)), expected)
