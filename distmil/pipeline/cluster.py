"""Ray for a job: start it once when it is first needed, stream work through Ray Data, end what was started.

Where the job joins a cluster, every node is asked first whether it can use the store.
"""

import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distmil.config.root import Config
from distmil.errors import ConfigError, StorageError
from distmil.pipeline.job import Job
from distmil.processes.interruption import Interrupted, signals_held
from distmil.processes.tree import descendants, end_processes
from distmil.storage.store import Store

logger = logging.getLogger(__name__)

MAX_BLOCKS = 4096
MAX_ACTORS = 512
PROBE_LIMIT_S = 120.0
"""A node may have to fetch the job's working folder before it answers."""
SEEN_WITHIN_S = 5.0
"""A network folder may show a new file a little later on other machines."""
PATIENCE_S = 1.0
"""How long processes of Ray may take to end by themselves."""
_UNSEEN = "it does not see this folder"
_NODES_NAMED = 5
Row = dict[str, Any]


_after_start: list[Callable[[], None]] = []


def after_start(call: Callable[[], None]) -> None:
    """Have something done whenever Ray was started or ended in this process, for Ray takes the process's signals."""
    _after_start[:] = [call]


def start_ray() -> None:
    """Connect to the cluster of a submitted job or of RAY_ADDRESS, else start a local Ray; do nothing if it runs."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    where = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False}
    with _native_output_held(), _signals_kept():
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
        except SystemExit as error:  # Ray's own handler, which stands while Ray starts
            raise Interrupted(signal.SIGTERM) from error
    for call in _after_start:
        call()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Take the signals back before they come again: the native handlers of Ray's connection abort the process."""
    connect = ray._private.worker.connect

    def connect_quietly(*given: Any, **more: Any) -> None:
        with signals_held():
            connect(*given, **more)
            for call in _after_start:
                call()

    ray._private.worker.connect = connect_quietly
    try:
        yield
    finally:
        ray._private.worker.connect = connect


@contextmanager
def _native_output_held() -> Iterator[None]:
    """Keep what native code writes to stderr back, and show it only if the block fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def stop_ray() -> None:
    """Shut down the connection, and Ray itself where this process started it, to its last process."""
    if not ray.is_initialized():
        return
    started = descendants(_own_processes())  # Ray's agents would look for their node for another half minute
    with signals_held():  # Ray leaves them without a handler
        ray.shutdown()
        for call in _after_start:
            call()
    end_processes(started, patience_s=PATIENCE_S)


def _own_processes() -> list[int]:
    """Return the processes of a local Ray that this process started; none of a cluster that it joined."""
    node = ray._private.worker._global_node
    if node is None or not node.head:
        return []
    return [info.process.pid for infos in node.all_processes.values() for info in infos]


def check_cluster(job: Job) -> None:
    """Where the job is to join a cluster, see that all its nodes can use the store; alone, do nothing.

    Raises:
        ConfigError: If a node does not see the store's folder.
        StorageError: If a node cannot use the object store.
    """
    if os.environ.get("RAY_ADDRESS"):
        start_ray()
        check_nodes(job)


def check_nodes(job: Job) -> None:
    """Look at the store from every other node that can work, and warn of those to come; see ``check_cluster``."""
    store = job.store
    if store.is_local and is_autoscaling():
        job.console.note(f"storage: nodes that the cluster starts later must have {store.root} mounted, too")
    own = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own and _can_work(node)]
    if not nodes:
        return
    marker = f".seen-{uuid.uuid4().hex}"
    store.write(marker, b"distmil")
    try:
        answers = _ask_nodes(nodes, store.root, marker)
    finally:
        store.delete(marker)
    unasked = [name for name, answer in answers.items() if answer is None]
    if unasked:
        job.console.note(f"storage: {_some(unasked)} did not answer; whether the store can be used there is not known")
    judge_answers(store, answers)


def node_resources() -> list[dict[str, float]]:
    """Return what each node that is there has, whether it is in use or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _can_work(node: Mapping[str, Any]) -> bool:
    return any(node["Resources"].get(unit, 0) > 0 for unit in ("CPU", "GPU"))


def _ask_nodes(nodes: Sequence[Mapping[str, Any]], root: str, marker: str) -> dict[str, str | None]:
    """Return by node what is wrong with the store there: nothing (""), something, or None where no answer came."""
    probe = ray.remote(num_cpus=0, max_retries=1)(look_at_store)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
        asked[name] = probe.options(scheduling_strategy=there).remote(root, marker)
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=PROBE_LIMIT_S)
    return {name: _answer(reference) if reference in ready else None for name, reference in asked.items()}


def _answer(reference: Any) -> str | None:
    try:
        return str(ray.get(reference))
    except ray.exceptions.RayTaskError as error:  # the node cannot even run the probe
        return str(error).strip().splitlines()[-1]
    except ray.exceptions.RayError as error:
        logger.info("a node went before it could look at the store: %s", error)
        return None


def look_at_store(root: str, marker: str) -> str:
    """Return what is wrong with a store as it is seen from here, "" if it can be read and written."""
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


def judge_answers(store: Store, answers: Mapping[str, str | None]) -> None:
    """Refuse a store that not every node can use.

    Args:
        store: The store.
        answers: By node what is wrong there, as of ``look_at_store``; None where it is not known.

    Raises:
        ConfigError: If it is a folder that a node does not see or cannot write.
        StorageError: If it is an object store that a node cannot use.
    """
    wrong = {name: answer for name, answer in answers.items() if answer}
    if not wrong:
        return
    first = next(iter(wrong.values()))
    where = f"{len(wrong)} of {len(answers)} other nodes: {_some(list(wrong))}"
    if store.is_local:
        raise ConfigError(
            f"storage.root = {store.root!r} cannot be used on {where}: {first}. Work done there would be lost. Mount "
            "one shared folder at this path on all nodes, or give an s3:// or gs:// URI"
        )
    raise StorageError(
        f"storage.root = {store.root!r} cannot be used on {where}: {first}. Credentials must be there on all nodes: by "
        "the machines' role, in ~/.aws/credentials, or for this job by `ray job submit --runtime-env-json "
        "'{\"env_vars\": {...}}'`"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NODES_NAMED]) + ", ..." * (len(names) > _NODES_NAMED)


def cluster_resources() -> dict[str, float]:
    """Return what the cluster has, or could have at most where it scales by itself."""
    now: dict[str, float] = dict(ray.cluster_resources())
    possible = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return {name: max(now.get(name, 0), possible.get(name, 0)) for name in now.keys() | possible.keys()}


def is_autoscaling() -> bool:
    """Return whether the cluster can start more nodes."""
    return bool(ray._private.state.state.get_max_resources_from_cluster_config())


def stream(items: Sequence[Row], work: Callable[[Row], Row]) -> Iterator[Row]:
    """Run a function over rows in parallel, one CPU each, and yield its rows as they come, in any order."""
    if not items:
        return
    start_ray()
    blocks = min(len(items), MAX_BLOCKS)
    yield from ray.data.from_items(list(items), override_num_blocks=blocks).map(work, num_cpus=1).iter_rows()


def stream_actors(
    items: Sequence[Row], worker: type, arguments: Mapping[str, Any], *, num_gpus: float = 0
) -> Iterator[Row]:
    """Run rows through actors that each build ``worker`` once, and yield their rows as they come, in any order."""
    if not items:
        return
    start_ray()
    unit = "GPU" if num_gpus else "CPU"
    ready = int(ray.cluster_resources().get(unit, 0) / (num_gpus or 1)) or 1
    most = min(len(items), MAX_ACTORS if is_autoscaling() else ready)
    pool = ray.data.ActorPoolStrategy(min_size=min(ready, most), max_size=most)
    blocks = min(len(items), MAX_BLOCKS)
    dataset = ray.data.from_items(list(items), override_num_blocks=blocks)
    mapped = dataset.map(
        worker, fn_constructor_kwargs=dict(arguments), compute=pool, num_cpus=1, num_gpus=num_gpus or None
    )
    yield from mapped.iter_rows()


def wants_gpu(config: Config, *, count: int = 1) -> bool:
    """Return whether work should ask for GPUs: as configured, or where the cluster has or can start so many."""
    if config.training.use_gpu != "auto":
        return bool(config.training.use_gpu)
    start_ray()
    return cluster_resources().get("GPU", 0) >= count


def calm_worker() -> None:
    """Keep libraries in a worker to the one core that Ray gave it."""
    cv2.setNumThreads(1)
