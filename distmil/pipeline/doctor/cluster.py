"""Checks of the Ray cluster: every node's resources, versions, and view of the storage root."""

import uuid
from collections.abc import Mapping
from typing import Any

import ray
import ray.cloudpickle

from distmil.errors import StorageError
from distmil.pipeline.cluster import is_autoscaling, start_ray, stop_ray
from distmil.pipeline.doctor import node_probe
from distmil.pipeline.doctor.finding import FAILED, OK, WARNING, Finding, reason
from distmil.pipeline.nodes import ask_nodes, node_name
from distmil.storage.store import Store

_GIB = 2**30
_MOUNT = "mount one shared folder at this path on all nodes, or give an s3:// or gs:// URI"
_CREDENTIALS = (
    "give all nodes the credentials: by the machines' role, in ~/.aws/credentials, or for one job by `ray job submit "
    "--runtime-env-json '{\"env_vars\": {...}}'`"
)
_VERSIONS = "install equal versions on all nodes, or submit with --working-dir so that Ray brings this code to them"
Facts = dict[str, Any]


def check_cluster(root: str | None) -> list[Finding]:
    """Connect to Ray, or start a local one if RAY_ADDRESS is not set, and look from every node.

    Args:
        root: The storage root; None: do not look at it.
    """
    start_ray()
    try:
        return examine_nodes(root)
    finally:
        stop_ray()


def examine_nodes(root: str | None) -> list[Finding]:
    """Look from every node of the cluster that Ray is connected to."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    total = [sum(node["Resources"].get(unit, 0) for node in nodes) for unit in ("CPU", "GPU")]
    found = [Finding(OK, "cluster", f"{len(nodes)} nodes, {total[0]:g} CPUs, {total[1]:g} GPUs; Ray {ray.__version__}")]
    marker, store = f".seen-{uuid.uuid4().hex}", Store(root) if root is not None else None
    try:
        if store is not None:
            store.write(marker, b"distmil")
    except StorageError:  # the check of the storage reports it
        store = None
    try:
        answers = _ask(nodes, None if store is None else store.root, marker)
    finally:
        if store is not None:
            store.delete(marker)
    own = node_probe.look(None, marker)
    found += [node_finding(node, answer, own, root) for node, answer in zip(nodes, answers, strict=True)]
    if store is not None and store.is_local and is_autoscaling():
        text = f"the cluster can start more nodes; {store.root} must be mounted there too"
        found.append(Finding(WARNING, "cluster", text, _MOUNT))
    return found


def _ask(nodes: list[dict[str, Any]], root: str | None, marker: str) -> list[Facts]:
    """Run the probe on every node; return its facts, or only the reason under ``silent``."""
    ray.cloudpickle.register_pickle_by_value(node_probe)
    references = ask_nodes(nodes, node_probe.look, root, marker)
    return [{"silent": "no answer in time"} if ref is None else _facts(ref) for ref in references]


def _facts(reference: Any) -> Facts:
    try:
        return dict(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        return {"error": str(error).strip().splitlines()[-1]}
    except ray.exceptions.RayError as error:
        return {"silent": reason(error)}


def node_finding(node: Mapping[str, Any], facts: Facts, own: Facts, root: str | None) -> Finding:
    """Compare a node with the driver.

    Args:
        node: Ray's description of the node.
        facts: The node's answer; see ``node_probe.look``.
        own: The driver's facts.
        root: The storage root.
    """
    resources = node["Resources"]
    name = f"node {node_name(node)}"
    memory = resources.get("memory", 0) / _GIB
    text = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, {memory:.1f} GiB of memory"
    if "silent" in facts:
        return Finding(WARNING, name, f"{text}; {facts['silent']}", "look at `ray status` and at the node's logs")
    others = [f"{key} {facts[key]}, here {own[key]}" for key in _compared(facts) if facts[key] != own[key]]
    if others:
        return Finding(FAILED, name, f"{text}; other versions: {'; '.join(others)}", _VERSIONS)
    if "error" in facts:
        return Finding(FAILED, name, f"{text}; distmil does not run there: {facts['error']}", _VERSIONS)
    if facts.get("store"):
        advice = _CREDENTIALS if "://" in str(root) else _MOUNT
        return Finding(FAILED, name, f"{text}; storage.root = {root!r} cannot be used: {facts['store']}", advice)
    return Finding(OK, name, f"{text}; equal versions" + "; can use the storage" * ("store" in facts))


def _compared(facts: Facts) -> list[str]:
    return [key for key in ("python", "ray", "distmil", "source") if key in facts]
