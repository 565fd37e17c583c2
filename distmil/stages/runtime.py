"""Ray for a job: start it once when it is first needed, stream work through Ray Data, end what was started."""

import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import ray
import ray.data

from distmil.config import Config
from distmil.console import Console
from distmil.errors import TooManyBadSlides
from distmil.storage import Record, Store

logger = logging.getLogger(__name__)

MAX_BLOCKS = 4096
MAX_ACTORS = 512
Row = dict[str, Any]


@dataclass
class Job:
    """What every stage needs: the configuration, the store, and someone to talk to."""

    config: Config
    store: Store
    console: Console = field(default_factory=Console)


@dataclass
class Tiled:
    """What tiling a cohort came to."""

    records: dict[str, Record] = field(default_factory=dict)
    """Of every slide, by its id."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Work on each slide that was not done before."""
    wall_s: float = 0.0


def start_ray() -> None:
    """Connect to the cluster of a submitted job or of RAY_ADDRESS, else start a local Ray; do nothing if it runs."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    where = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False}
    with _native_output_held():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


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
    """Shut down the connection, and Ray itself where this process started it."""
    if ray.is_initialized():
        ray.shutdown()


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


def wants_gpu(config: Config) -> bool:
    """Return whether work should ask for GPUs: as configured, or where the cluster has or can start one."""
    if config.training.use_gpu != "auto":
        return bool(config.training.use_gpu)
    start_ray()
    return cluster_resources().get("GPU", 0) >= 1


def calm_worker() -> None:
    """Keep libraries in a worker to the one core that Ray gave it."""
    cv2.setNumThreads(1)


def status_counts(records: Mapping[str, Record]) -> dict[str, int]:
    """Return how many slides ended in each status."""
    return dict(Counter(record.status for record in records.values()))


def check_bad_fraction(job: Job, records: Mapping[str, Record]) -> None:
    """Show what was skipped and why.

    Raises:
        TooManyBadSlides: If that is more than ``tiling.max_bad_fraction``, or everything.
    """
    bad = sorted((r.status, r.slide_id, r.error or "") for r in records.values() if not r.ok)
    if not bad:
        return
    rows = [(slide_id, status, error) for status, slide_id, error in bad]
    job.console.table(f"{len(bad)} of {len(records)} slides are skipped", ("slide", "status", "why"), rows)
    allowed = job.config.tiling.max_bad_fraction
    if len(bad) > allowed * len(records) or len(bad) == len(records):
        raise TooManyBadSlides(
            f"{len(bad)} of {len(records)} slides cannot be used, more than tiling.max_bad_fraction = {allowed} allows"
        )
