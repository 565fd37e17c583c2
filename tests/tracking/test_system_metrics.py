"""System metrics of a run: recorded while it goes on, through an outage, and never in its way."""

import shutil
import sys
import time

import pytest
from mlflow import MlflowClient

from distmil.tracking import server
from distmil.tracking import system_metrics as systemmetrics
from distmil.tracking.system_metrics import system_metrics
from distmil.tracking.tracker import Tracker

MONITOR = "mlflow.system_metrics.system_metrics_monitor.SystemMetricsMonitor"


@pytest.fixture
def tracker(empty_database, tmp_path):
    server.outage_of.cache_clear()
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    found = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "an experiment")
    found.start("a run", artifacts=str(tmp_path / "artifacts"))
    return found


def test_a_run_has_what_the_machine_did(tracker, monkeypatch):
    pytest.importorskip("psutil")
    monkeypatch.setattr(systemmetrics, "INTERVAL_S", 0.05)
    with system_metrics(tracker, is_wanted=True):
        time.sleep(0.3)
    client = MlflowClient(tracker.uri)
    values = client.get_run(tracker.run_id).data.metrics
    assert 0 < values["system/system_memory_usage_percentage"] < 100
    history = client.get_metric_history(tracker.run_id, "system/cpu_utilization_percentage")
    assert [metric.step for metric in history] == list(range(len(history)))
    assert len(history) > 1
    assert all(0 <= metric.value <= 100 for metric in history)


def test_a_run_shorter_than_the_interval_has_one_sample(tracker):
    pytest.importorskip("psutil")
    with system_metrics(tracker, is_wanted=True):
        pass
    history = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, "system/disk_usage_percentage")
    assert [metric.step for metric in history] == [0]


def test_without_psutil_the_work_goes_on(tracker, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, MONITOR.rpartition(".")[0], None)  # its import fails
    with system_metrics(tracker, is_wanted=True):
        pass
    assert "needs psutil" in caplog.messages[0]


def test_a_monitor_that_fails_is_said_and_stops_nothing(tracker, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise OSError("no /proc here")

    pytest.importorskip("psutil")
    monkeypatch.setattr(MONITOR, fail)
    with system_metrics(tracker, is_wanted=True):
        pass
    assert caplog.messages == ["system metrics are not recorded any more (OSError: no /proc here)"]


def test_nothing_is_watched_unless_asked(tracker, monkeypatch):
    monkeypatch.setattr(systemmetrics, "_import_monitor", lambda: pytest.fail("it was asked for"))
    for found, is_wanted in ((tracker, False), (Tracker(None, "none"), True)):
        with system_metrics(found, is_wanted=is_wanted):
            pass
