"""Ray for a job: start it once when it is first needed, map slides over it, end what was started."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import cv2
import ray
import ray.data
from ray import cloudpickle

from distmil.config.root import Config
from distmil.errors import ConfigError, StorageError
from distmil.processes.interruption import Interrupted, signals_held
from distmil.processes.tree import descendants, end_processes

MAX_BLOCKS = 4096
MAX_ACTORS = 512
FEW_PER_ACTOR = 4
"""Items of each actor up to which it matters more that all have work than that none waits for the driver."""
PATIENCE_S = 1.0
"""How long processes of Ray may take to end by themselves."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_after_start: list[Callable[[], None]] = []


def after_start(call: Callable[[], None]) -> None:
    """Have something done whenever Ray was started or ended in this process, for Ray takes the process's signals."""
    _after_start[:] = [call]


def _call_after_start() -> None:
    for call in _after_start:
        call()


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
    _call_after_start()
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
            _call_after_start()

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
    with signals_held(), _handlers_set_again():
        ray.shutdown()
    end_processes(started, patience_s=PATIENCE_S)


@contextmanager
def _handlers_set_again() -> Iterator[None]:
    """Set the signals' handlers again as soon as Ray has taken them away: before it ends its processes, not after."""
    node = ray._private.worker._global_node

    if node is not None:
        end = node.kill_all_processes

        def end_with_handlers(*given: Any, **more: Any) -> None:
            _call_after_start()
            end(*given, **more)

        node.kill_all_processes = end_with_handlers
    try:
        yield
    finally:
        _call_after_start()


def _own_processes() -> list[int]:
    """Return the processes of a local Ray that this process started; none of a cluster that it joined."""
    node = ray._private.worker._global_node
    if node is None or not node.head:
        return []
    return [info.process.pid for infos in node.all_processes.values() for info in infos]


def node_resources() -> list[dict[str, float]]:
    """Return the resources of each living node, free or in use."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def cluster_resources() -> dict[str, float]:
    """Return the cluster's resources, or the most that it can grow to."""
    now: dict[str, float] = dict(ray.cluster_resources())
    possible = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return {name: max(now.get(name, 0), possible.get(name, 0)) for name in now.keys() | possible.keys()}


def check_gpus(config: Config, *, count: float = 1) -> None:
    """Refuse ``training.use_gpu=true`` where there is no GPU, before anything is made.

    Raises:
        ConfigError: If a cluster that cannot grow has fewer than ``count``.
    """
    if config.training.use_gpu is not True:
        return
    start_ray()
    have = cluster_resources().get("GPU", 0.0)
    if have < count and not is_autoscaling():
        raise ConfigError(
            f"training.use_gpu = true: needs {count:g} GPU, this machine or cluster has {have:g}; set "
            "training.use_gpu=auto or false"
        )


def is_autoscaling() -> bool:
    """Return whether the cluster can start more nodes."""
    return bool(ray._private.state.state.get_max_resources_from_cluster_config())


def map_slides(
    items: Sequence[Item], worker: Callable[..., Callable[[Item], Answer]], *, num_gpus: float = 0, **arguments: Any
) -> Iterator[tuple[Item, Answer]]:
    """Answer items on the cluster by actors that each build their worker once.

    Args:
        items: What to work on, each small: what all of them share belongs to the arguments.
        worker: Makes the function of an actor, in which nothing but a failure of the store is raised.
        num_gpus: GPUs of each actor.
        arguments: Of ``worker``.

    Yields:
        Every item with its answer, in any order.

    Raises:
        StorageError: If the store fails in an actor: that concerns all slides.
    """
    if not items:
        return
    start_ray()
    unit = "GPU" if num_gpus else "CPU"
    ready = int(ray.cluster_resources().get(unit, 0) / (num_gpus or 1)) or 1
    most = min(len(items), MAX_ACTORS if is_autoscaling() else min(ready, MAX_ACTORS))
    mapped = numbered(items).map(
        RowWorker,
        fn_constructor_kwargs={"worker": worker, **arguments},
        compute=actor_pool(min(ready, most), most, num_items=len(items)),
        num_cpus=1,
        num_gpus=num_gpus or None,
    )
    for row in mapped.iter_rows():
        answer = cloudpickle.loads(row["answer"])
        if isinstance(answer, StorageError):
            raise answer
        yield items[row["number"]], answer


def numbered(items: Sequence[Item]) -> ray.data.Dataset:
    """Make rows of items, each with its number, in blocks that the actors share."""
    return ray.data.from_items(
        [{"number": number, "item": cloudpickle.dumps(item)} for number, item in enumerate(items)],
        override_num_blocks=min(len(items), MAX_BLOCKS),
    )


def actor_pool(size: int, most: int, *, num_items: int | None = None) -> ray.data.ActorPoolStrategy:
    """Describe a pool of actors that begins with ``size`` and may grow to ``most``.

    Ray gives an actor two blocks at a time, so that it need not wait for the driver between them. With few items the
    actor that starts first would take two while another has none: they are handed out one by one. A pool that may grow
    does so by what is queued, and keeps Ray's way.

    Args:
        size: Actors at the start.
        most: Actors at most.
        num_items: What they work on; None where that is not known.
    """
    are_few = num_items is not None and num_items <= FEW_PER_ACTOR * size
    in_flight = 1 if are_few and size == most else None
    return ray.data.ActorPoolStrategy(min_size=size, max_size=most, max_tasks_in_flight_per_actor=in_flight)


class RowWorker:
    """Ray Data's side of a worker: rows of bytes in, rows of bytes out, on the one core that Ray gave it."""

    def __init__(self, worker: Callable[..., Callable[[Any], Any]], **arguments: Any) -> None:
        cv2.setNumThreads(1)
        self._work = worker(**arguments)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one item."""
        return {"number": row["number"], "answer": cloudpickle.dumps(self.answer(row["item"]))}

    def answer(self, item: bytes) -> Any:
        """Answer one item; a failure of the store becomes the answer."""
        try:
            return self._work(cloudpickle.loads(item))
        except StorageError as error:
            return error


def wants_gpu(config: Config, *, count: int = 1) -> bool:
    """Return whether work should ask for GPUs: as configured, or where the cluster has or can start so many."""
    if config.training.use_gpu != "auto":
        return bool(config.training.use_gpu)
    start_ray()
    return cluster_resources().get("GPU", 0) >= count
