"""The load of the machine while a run trains: processors, memory, disk, network, and GPUs, in the run's record."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from distmil.processes.background import in_background
from distmil.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

INTERVAL_S = 10.0


@contextmanager
def system_metrics(tracker: Tracker, *, is_wanted: bool) -> Iterator[None]:
    """Record the load of this machine while the block runs, now and then and at its end. Never fails.

    MLflow's monitor takes the samples; its own thread would end with the first call that MLflow does not answer.
    """
    if not is_wanted or tracker.uri is None:
        yield
        return
    make_monitor = _import_monitor()
    if make_monitor is None:
        logger.warning("tracking.system_metrics needs psutil, which is not installed; the run goes on without them")
        yield
        return
    with in_background(partial(_watch, tracker, make_monitor), "system-metrics"):
        yield


def _import_monitor() -> Callable[..., Any] | None:
    """Import MLflow's monitor, None without psutil, which MLflow does not bring."""
    try:
        from mlflow.system_metrics.system_metrics_monitor import (  # noqa: PLC0415  # MLflow takes seconds to import
            SystemMetricsMonitor,
        )
    except ImportError:
        return None
    return SystemMetricsMonitor  # type: ignore[no-any-return]


def _watch(tracker: Tracker, make_monitor: Callable[..., Any], stop: threading.Event) -> None:
    try:
        monitor = make_monitor(tracker.run_id, tracking_uri=tracker.uri)
        monitor.collect_metrics()  # a share of time starts to count with its first sample
        is_last, step = False, 0
        while not is_last:
            for part in monitor.monitors:
                part.clear_metrics()
            is_last = stop.wait(INTERVAL_S)
            monitor.collect_metrics()
            values = {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            tracker.log_metrics(values, step=step)
            step += 1
    except Exception as error:  # noqa: BLE001 (the record must never stop the work)
        logger.warning("system metrics are not recorded any more (%s: %s)", type(error).__name__, error)
