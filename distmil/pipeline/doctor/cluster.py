"""Checks of the Ray cluster: every node's resources, code, and view of the storage root."""

from collections.abc import Mapping
from typing import Any

import ray

import distmil
from distmil.errors import StorageError
from distmil.pipeline.cluster import is_autoscaling, start_ray, stop_ray
from distmil.pipeline.doctor.finding import FAILED, OK, WARNING, Finding, reason
from distmil.pipeline.nodes import CREDENTIALS, MOUNT, ask_nodes, failed_task, look_at_store, node_name
from distmil.storage.store import Store
from distmil.tracking.provenance import source_digest

_GIB = 2**30
_VERSIONS = "install equal versions on all nodes, or submit with --working-dir so that Ray brings this code to them"


def check_cluster(root: str | None) -> list[Finding]:
    """Connect to Ray, or start a local one if RAY_ADDRESS is not set, and look from every node.

    Args:
        root: The storage root; None: do not look at it.
    """
    start_ray()
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        cpus, gpus = (sum(node["Resources"].get(unit, 0) for node in nodes) for unit in ("CPU", "GPU"))
        store = Store(root) if root is not None else None
        try:
            answers = ask_nodes(nodes, look, store)
        except StorageError:  # the check of the storage reports it
            answers = ask_nodes(nodes, look, None)
        found = [Finding(OK, "cluster", f"{len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs; Ray {ray.__version__}")]
        found += [node_finding(node, answer, root) for node, answer in zip(nodes, answers, strict=True)]
        if store is not None and store.is_local and is_autoscaling():
            text = f"the cluster can start more nodes; {store.root} must be mounted there too"
            found.append(Finding(WARNING, "cluster", text, MOUNT))
        return found
    finally:
        stop_ray()


def code_version() -> str:
    """Name the version of distmil and the start of its source's digest."""
    return f"distmil {distmil.__version__}, source {source_digest()[:8]}"


def look(root: str | None, marker: str) -> tuple[str, str | None]:
    """Return this node's code version, and the fault of the store here; see ``look_at_store``."""
    return code_version(), None if root is None else look_at_store(root, marker)


def node_finding(node: Mapping[str, Any], answer: Any, root: str | None) -> Finding:
    """Compare a node with the driver; Ray itself refuses nodes of another Ray or Python.

    Args:
        node: Ray's description of the node.
        answer: The node's answer to ``look``, or the exception in its place.
        root: The storage root.
    """
    resources = node["Resources"]
    name = f"node {node_name(node)}"
    memory = resources.get("memory", 0) / _GIB
    text = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, {memory:.1f} GiB of memory"
    if failure := failed_task(answer):
        return Finding(FAILED, name, f"{text}; distmil does not run there: {failure}", _VERSIONS)
    if isinstance(answer, Exception):
        return Finding(WARNING, name, f"{text}; {reason(answer)}", "look at `ray status` and at the node's logs")
    version, fault = answer
    if version != code_version():
        return Finding(FAILED, name, f"{text}; other code: {version}, here {code_version()}", _VERSIONS)
    if fault:
        advice = CREDENTIALS if "://" in str(root) else MOUNT
        return Finding(FAILED, name, f"{text}; storage.root = {root!r} cannot be used: {fault}", advice)
    return Finding(OK, name, f"{text}; equal versions" + "; can use the storage" * (fault is not None))
