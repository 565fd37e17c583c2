"""Two pools of actors behind each other: what the first has finished, the second takes up while the first goes on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import ray
import ray.data
from ray import cloudpickle

from distmil.errors import StorageError
from distmil.pipeline import cluster
from distmil.pipeline.cluster import RowWorker, actor_pool, numbered, start_ray
from distmil.pipeline.streaming.waiting import let_few_wait

WAITING_PER_ACTOR = 8
"""Items for each actor of the second pool that may wait before the first pool is held back."""
LEAST_WAITING = 64

Item = TypeVar("Item")


class Stage(NamedTuple):
    """One stage of a chain: what makes an actor's function, and its arguments."""

    worker: Callable[..., Callable[[Any], Any]]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Pool:
    """Actors of one stage."""

    size: int
    """At the start."""
    most: int
    num_cpus: float
    """Of each actor."""
    num_gpus: float = 0


def share_out(num_items: int, *, cpus: int, gpus: int, is_gpu: bool, limit: int, can_grow: bool) -> tuple[Pool, Pool]:
    """Share the cores, so that both pools always have actors.

    With GPUs each actor of the second pool has one, and counts as no core: a node whose cores the first pool took would
    leave its GPU idle. The first pool leaves as many cores free as there are such actors. Without GPUs a core has an
    actor of each pool, which take turns as there is work, down to a single core.

    Args:
        num_items: Of the first stage.
        cpus: Cores of the cluster now.
        gpus: GPUs of the cluster now.
        is_gpu: The second stage works on GPUs.
        limit: Most actors of a pool.
        can_grow: The cluster can start more nodes.
    """
    first, second = (cpus - gpus, gpus) if is_gpu else (cpus, cpus)

    def pool(ready: int, count: int | None, num_cpus: float, num_gpus: float = 0) -> Pool:
        most = max(1, min(limit if can_grow else ready, limit, *([] if count is None else [count])))
        return Pool(max(1, min(ready, most)), most, num_cpus, num_gpus)

    if is_gpu:
        return pool(first, num_items, 1), pool(second, None, 0, 1)
    return pool(first, num_items, 0.5), pool(second, None, 0.5)


def chain_slides(items: Sequence[Item], first: Stage, second: Stage, *, is_gpu: bool) -> Iterator[tuple[Any, Any]]:
    """Answer items on the cluster, and what follows of each answer by a second pool of actors, at the same time.

    Args:
        items: What to work on, each small.
        first: Its function returns an answer, and the items that follow.
        second: Its function answers one of these.
        is_gpu: The second stage has a GPU for each actor.

    Yields:
        Every item with its answer, and every item that followed with its own, in any order.

    Raises:
        StorageError: If the store fails in an actor: that concerns all slides.
    """
    if not items:
        return
    start_ray()
    now, can_grow = ray.cluster_resources(), cluster.is_autoscaling()
    pools = share_out(
        len(items), cpus=int(now.get("CPU", 1)), gpus=int(now.get("GPU", 0)), is_gpu=is_gpu,
        limit=cluster.MAX_ACTORS, can_grow=can_grow,
    )  # fmt: skip
    with ray.data.DataContext.current(_context(most_waiting=max(LEAST_WAITING, WAITING_PER_ACTOR * pools[1].size))):
        rows = numbered(items).flat_map(_First, **_options(first, pools[0], len(items)))
        rows = rows.map(_Second, **_options(second, pools[1], None))
        for row in rows.iter_rows():
            answer = cloudpickle.loads(row["answer"])
            if isinstance(answer, StorageError):
                raise answer
            yield items[row["number"]] if row["number"] >= 0 else cloudpickle.loads(row["item"]), answer


def _options(stage: Stage, pool: Pool, num_items: int | None) -> dict[str, Any]:
    return {
        "fn_constructor_kwargs": {"worker": stage.worker, **stage.arguments},
        "compute": actor_pool(pool.size, pool.most, num_items=num_items),
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus or None,
    }


def _context(*, most_waiting: int) -> ray.data.DataContext:
    """Describe the execution: each row goes on by itself, and few wait between the pools."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1
    let_few_wait(context, most=most_waiting)
    return context


class _First(RowWorker):
    """The first stage: one row in, a row for the answer and one for each item that follows out."""

    def __call__(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        """Answer one item."""
        found = self.answer(row["item"])
        answer, following = (found, ()) if isinstance(found, StorageError) else found
        rows = [{"number": row["number"], "item": b"", "answer": cloudpickle.dumps(answer)}]
        return rows + [{"number": -1, "item": cloudpickle.dumps(item), "answer": b""} for item in following]


class _Second(RowWorker):
    """The second stage: what follows is answered, an answer is handed on."""

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one item, unless the row holds an answer already."""
        return dict(row) if row["answer"] else {**row, "answer": cloudpickle.dumps(self.answer(row["item"]))}
