"""Check deploy/rayjob.yaml.

Kubernetes' schema knows the pods, and KubeRay's own fields are known to the API server (`kubectl apply
--dry-run=server`). The rules here are about what both let through: it costs money, a stuck job or an open port.
"""

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import jsonschema
from jobcommand import job_config
from rules import OPEN_PORT, STARVES, Problem, by_place, rule_problems, schema_problems, texts

from distmil.errors import ConfigError

KUBERNETES = "1.34"
CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec"
POD = "template.spec"
POD_IMAGE = f"{HEAD}.{POD}.containers[0].image"
GPU = "nvidia.com/gpu"
GPU_LIMIT = f"{POD}.containers[0].resources.limits.{GPU}"
_INSIDE = "ClusterIP: the job port stays inside; kubectl port-forward is the way in"
_NEXT_TRY = "at least 1: the second try after a lost head goes on where the first stopped"
_OLD_NAME = "Never: a restarted pod would be a new Ray node under an old name"
_NO_TOKEN = "false: a worker has nothing to ask of Kubernetes, and runs code on strangers' files"  # noqa: S105
FILE_RULES = (
    ("spec.shutdownAfterJobFinishes", (True,), "true: the cluster would go on costing after the job"),
    ("spec.backoffLimit", range(1, 1000), _NEXT_TRY),
    (f"{CLUSTER}.enableInTreeAutoscaling", (True,), "true: groups would stay at their replicas, which are none"),
    (f"{CLUSTER}.authOptions.mode", ("token",), f"token: {OPEN_PORT}"),
    (f"{HEAD}.serviceType", (None, "ClusterIP"), _INSIDE),
    (f"{HEAD}.headService.spec.type", (None, "ClusterIP"), _INSIDE),
    (f"{HEAD}.enableIngress", (None, False), _INSIDE),
    (f"{HEAD}.rayStartParams.num-cpus", ("0",), f'"0": {STARVES}'),
    (f"{HEAD}.resources.CPU", (None, "0"), f'"0": {STARVES}'),  # KubeRay prefers it to num-cpus
    (f"{HEAD}.{GPU_LIMIT}", (None, 0, "0"), "none: nothing uses it there"),
    (f"{HEAD}.{POD}.restartPolicy", ("Never",), _OLD_NAME),
)
WORKER_RULES = (
    ("maxReplicas", range(10**6), "a number: the group would grow without end"),
    (f"{POD}.restartPolicy", ("Never",), _OLD_NAME),
    (f"{POD}.automountServiceAccountToken", (False,), _NO_TOKEN),
)


def rayjob_problems(content: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with a RayJob."""
    values = by_place(content)
    yield from rule_problems(values, FILE_RULES)
    entrypoint, root = str(values.get("spec.entrypoint")), None
    try:
        config, is_whole = job_config(entrypoint)
        root = config.storage.root
        if not is_whole:
            expected = "its --config cannot be read from here; what is in it was not checked"
            yield Problem("spec.entrypoint", entrypoint, expected, is_error=False)
        elif root is None:
            expected = "expected storage.root=, on a volume or a bucket: a pod's own disk goes with the pod"
            yield Problem("spec.entrypoint", entrypoint, expected)
    except ConfigError as error:
        yield Problem("spec.entrypoint", entrypoint, f"expected a job's command: {' '.join(str(error).split())}")
    for place in values:
        if re.fullmatch(rf"{CLUSTER}\.(headGroupSpec|workerGroupSpecs\[\d+\])", place):
            yield from rule_problems(values, () if place == HEAD else WORKER_RULES, place)
            yield from _pod_problems(values, place, root)
            yield from _schema_problems(f"{place}.{POD}", values.get(f"{place}.{POD}"))


def _pod_problems(values: Mapping[str, Any], group: str, root: str | None) -> Iterator[Problem]:
    """Yield where a pod has other GPUs than Ray or a GPU node expects, and where it does not mount storage.root."""
    limit, declared = values.get(f"{group}.{GPU_LIMIT}"), values.get(f"{group}.rayStartParams.num-gpus")
    if declared is not None and str(declared) != str(limit or 0):
        yield Problem(f"{group}.rayStartParams.num-gpus", declared, f"expected the container's limit, {limit or 0}")
    if limit is None and GPU in texts(values, f"{group}.{POD}.tolerations", ".key"):
        yield Problem(f"{group}.{GPU_LIMIT}", None, "expected the pod's GPUs: its toleration lets it onto GPU nodes")
    place = f"{group}.{POD}.containers[0].volumeMounts"
    mounts = texts(values, place, ".mountPath")
    if root and "://" not in root and not any(PurePosixPath(root).is_relative_to(path) for path in mounts):
        expected = f"expected a mount that holds storage.root={root}: every node reads and writes there"
        yield Problem(place, mounts, expected)


def _schema_problems(place: str, pod: Any) -> Iterator[Problem]:
    """Yield what Kubernetes' schema refuses first in a pod."""
    try:
        kubernetes = importlib.import_module("kubernetes_validate")
        kubernetes.validate({"apiVersion": "v1", "kind": "Pod", "spec": pod}, KUBERNETES, strict=True)
    except ImportError:
        expected = "not compared with Kubernetes' schema; pip install kubernetes-validate does that"
        yield Problem(place, "...", expected, is_error=False)
    except jsonschema.ValidationError as error:
        for found in schema_problems(error):
            yield Problem(f"{place}{found.place.removeprefix('spec')}", found.value, found.expected)
