"""Whether every node of a cluster can use the store, asked before a job begins: work done elsewhere would be lost."""

import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distmil.errors import ConfigError, StorageError
from distmil.pipeline.cluster import is_autoscaling, start_ray
from distmil.pipeline.job import Job
from distmil.storage.store import Store

logger = logging.getLogger(__name__)

PROBE_LIMIT_S = 120.0
"""A node may have to fetch the job's working folder before it answers."""
SEEN_WITHIN_S = 5.0
"""A network folder may show a new file a little later on other machines."""
MOUNT = "mount one shared folder at this path on all nodes, or give an s3:// or gs:// URI"
CREDENTIALS = (
    "give all nodes the credentials: by the machines' role, in ~/.aws/credentials, or for one job by `ray job submit "
    "--runtime-env-json '{\"env_vars\": {...}}'`"
)
_UNSEEN = "it does not see this folder"
_NODES_NAMED = 5


def check_cluster(job: Job) -> None:
    """Check that every node of the cluster that the job joins can use the store; without a cluster, do nothing.

    Raises:
        ConfigError: If a node does not see the store's folder.
        StorageError: If a node cannot use the object store.
    """
    if os.environ.get("RAY_ADDRESS"):
        start_ray()
        check_nodes(job)


def check_nodes(job: Job) -> None:
    """Try the store from every other node that can work, and warn of nodes that start later; see ``check_cluster``."""
    store = job.store
    if store.is_local and is_autoscaling():
        job.console.note(f"storage: nodes that the cluster starts later must have {store.root} mounted, too")
    own = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
    nodes = [node for node in others if any(node["Resources"].get(unit, 0) > 0 for unit in ("CPU", "GPU"))]
    found = dict(zip(map(node_name, nodes), ask_nodes(nodes, look_at_store, store), strict=True))
    answers = {name: failed_task(answer) or answer for name, answer in found.items()}
    unasked = [name for name, answer in answers.items() if isinstance(answer, Exception)]
    if unasked:
        job.console.note(f"storage: {_some(unasked)} did not answer; whether the store can be used there is not known")
    check_answers(store, {name: None if name in unasked else answer for name, answer in answers.items()})


def node_name(node: Mapping[str, Any]) -> str:
    """Name a node of ``ray.nodes()`` by host, address and the start of its id."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def ask_nodes(nodes: Sequence[Mapping[str, Any]], look: Callable[..., Any], store: Store | None) -> list[Any]:
    """Run a function on every node, without a CPU.

    Args:
        nodes: Of ``ray.nodes()``.
        look: Gets the store's root, or None, and the name of a file that the store holds meanwhile.
        store: The store that is looked at.

    Returns:
        The nodes' answers, an exception in the place of each that did not come.
    """
    marker = f".seen-{uuid.uuid4().hex}"
    probe = ray.remote(num_cpus=0, max_retries=1)(look)
    if store is not None and nodes:
        store.write(marker, b"distmil")
    try:
        asked = []
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append(probe.options(scheduling_strategy=there).remote(store and store.root, marker))
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=PROBE_LIMIT_S) if asked else ([], [])
        return [_answer(ref) if ref in ready else TimeoutError("no answer in time") for ref in asked]
    finally:
        if store is not None and nodes:
            store.delete(marker)


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        logger.info("a node did not answer: %s", error)
        return error


def failed_task(answer: Any) -> str | None:
    """Return why a node cannot even run the function that it was asked for; None if it can, or was lost."""
    return str(answer).strip().splitlines()[-1] if isinstance(answer, ray.exceptions.RayTaskError) else None


def look_at_store(root: str, marker: str) -> str:
    """Return the fault of a store as this node sees it, "" if it can be read and written."""
    store = Store(root)
    deadline = time.monotonic() + SEEN_WITHIN_S
    try:
        while not store.exists(marker):
            if time.monotonic() > deadline:
                return _UNSEEN
            time.sleep(0.2)
        store.check()
    except StorageError as error:
        return str(error)
    return ""


def check_answers(store: Store, answers: Mapping[str, str | None]) -> None:
    """Refuse a store that not every node can use.

    Args:
        store: The store.
        answers: The fault by node, as of ``look_at_store``; None where it is not known.

    Raises:
        ConfigError: If it is a folder that a node does not see or cannot write.
        StorageError: If it is an object store that a node cannot use.
    """
    wrong = {name: answer for name, answer in answers.items() if answer}
    if not wrong:
        return
    first = next(iter(wrong.values()))
    where = f"{len(wrong)} of {len(answers)} other nodes: {_some(list(wrong))}"
    advice = f"Work done there would be lost; {MOUNT}" if store.is_local else f"Way out: {CREDENTIALS}"
    kind = ConfigError if store.is_local else StorageError
    raise kind(f"storage.root = {store.root!r} cannot be used on {where}: {first}. {advice}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NODES_NAMED]) + ", ..." * (len(names) > _NODES_NAMED)
