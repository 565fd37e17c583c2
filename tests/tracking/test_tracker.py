"""The record of a run on a real MLflow: what is kept, that a run goes on, and that a failure stops nothing."""

import itertools
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.processes.interruption import SIGNALS, Interrupted, Interruption
from distmil.tracking import server
from distmil.tracking import tracker as tracking
from distmil.tracking.artifacts import log_once
from distmil.tracking.dataset import RunData
from distmil.tracking.server import resolve_uri
from distmil.tracking.tracker import Tracker
from distmil.tracking.training_run import link_training


@pytest.fixture(autouse=True)
def no_outage():
    """What this process learned of MLflow in another test is forgotten."""
    server.outage_of.cache_clear()


@pytest.fixture
def uri(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def tracker(uri, tmp_path):
    found = Tracker(uri, "an experiment")
    found.start("a run", artifacts=str(tmp_path / "artifacts"))
    assert found.run_id
    return found


def run_of(tracker):
    return MlflowClient(tracking_uri=tracker.uri).get_run(tracker.run_id)


def test_a_run_keeps_what_it_is_told(tracker, tmp_path, caplog):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "roc.txt").write_text("0.9")
    (tmp_path / "config.yaml").write_text("training: {}")
    tracker.log_params(Config(), **{"data.fingerprint": "abc"})
    for step, loss in enumerate([0.7, 0.4]):
        tracker.log_metrics({"loss": loss, "slide_auc": None}, step=step)
    tracker.log_artifact(tmp_path / "config.yaml")
    tracker.log_artifact(tmp_path / "report", "report")
    tracker.set_tags({"distmil.version": "1"})
    tracker.finish("FINISHED")
    run, client = run_of(tracker), MlflowClient(tracking_uri=tracker.uri)
    assert messages(caplog) == []
    assert run.info.run_name == "a run"
    assert run.info.status == "FINISHED"
    assert run.data.params["training.lr"] == "0.001"
    assert run.data.params["data.fingerprint"] == "abc"
    assert [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, "train/loss")] == [(0, 0.7), (1, 0.4)]
    assert "train/slide_auc" not in run.data.metrics
    assert run.data.tags["distmil.version"] == "1"
    assert (tmp_path / "artifacts" / tracker.run_id / "artifacts" / "report" / "roc.txt").read_text() == "0.9"
    assert client.get_experiment(run.info.experiment_id).name == "an experiment"


def test_every_key_is_recorded_but_no_path(tracker, caplog):
    config = build_config(
        {
            "cohort": {"manifest": "/home/jane/m.csv", "classes": [f"class number {i}" for i in range(60)]},
            "storage": {"root": "/home/jane/store"},
            "prediction": {"model": "/home/jane/model"},
            "encoder": {"name": "resnet18", "weights": "/home/jane/weights.pt"},
            "tracking": {"uri": "sqlite:////home/jane/x.db"},
            "features": {"export_folder": "/home/jane/out"},
            "export": {"out": "/home/jane/exports"},
            "view": {"export": "/home/jane/shown", "drawn": "/home/jane/drawn", "beside_model": "/home/jane/other"},
        }
    )
    tracker.log_params(config)
    params = run_of(tracker).data.params
    private = {"cohort.manifest", "storage.root", "prediction.model", "tracking.uri"}
    private |= {"features.folder", "features.export_folder", "export.out"}
    private |= {"view.export", "view.drawn", "view.beside_model"}
    assert set(params) == set(config.flat()) - private
    assert params["encoder.weights"] == "weights.pt"
    assert not any("jane" in value for value in params.values())
    assert messages(caplog) == []


def test_a_resumed_run_goes_on_in_the_same_run(tracker, uri, tmp_path, caplog):
    tracker.log_params(Config())
    tracker.log_metrics({"loss": 0.7}, step=0)
    tracker.finish("KILLED")
    again = Tracker(uri, "an experiment")
    again.start("a run", artifacts=str(tmp_path / "artifacts"), resume=tracker.run_id)
    assert again.run_id == tracker.run_id
    assert run_of(again).info.status == "RUNNING"
    # what does not change a result may differ: MLflow refuses another value for a parameter that is there
    again.log_params(build_config({"training": {"num_workers": 4}}), more="new")
    again.log_metrics({"loss": 0.4}, step=1)
    again.finish("FINISHED")
    assert messages(caplog) == []
    run = run_of(again)
    assert run.info.status == "FINISHED"
    assert (run.data.params["training.num_workers"], run.data.params["more"]) == ("1", "new")
    history = MlflowClient(tracking_uri=uri).get_metric_history(again.run_id, "train/loss")
    assert [metric.step for metric in history] == [0, 1]


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_run_that_is_gone_is_made_anew(tracker, uri, tmp_path, is_deleted):
    if is_deleted:
        MlflowClient(tracking_uri=uri).delete_run(tracker.run_id)
    old = tracker.run_id if is_deleted else "0" * 32
    again = Tracker(uri, "an experiment")
    again.start("a run", artifacts=str(tmp_path), resume=old)
    assert again.run_id not in {None, old}
    assert run_of(again).info.experiment_id == run_of(tracker).info.experiment_id


def call_everything(tracker, tmp_path):
    tracker.start("a run", artifacts=str(tmp_path))
    tracker.log_params(Config())
    tracker.log_metrics({"loss": 0.5}, step=0)
    tracker.log_artifact(tmp_path / "report.html")
    tracker.set_tags({"a": "b"})
    tracker.sync([{"loss": 0.5}])
    tracker.finish("FINISHED")


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("distmil")]


@pytest.mark.parametrize(
    "uri", ["sqlite:////proc/none/mlflow.db", "nonsense://host", "http://127.0.0.1:9", "http://no-such-host.invalid"]
)
def test_without_mlflow_the_work_goes_on_and_it_is_said_twice(tmp_path, caplog, uri, capfd):
    tracker, started_s = Tracker(uri, "an experiment"), time.monotonic()
    call_everything(tracker, tmp_path)
    assert time.monotonic() - started_s < 20
    assert tracker.run_id is None
    first, last = messages(caplog)
    assert "MLflow does not answer" in first
    assert "the work goes on" in first
    assert "missing in the record: metrics, parameters, tags, the end of the run, report.html" in last
    assert capfd.readouterr().out == ""


class Flaky:
    """MLflow's client, which fails while it is told to, and counts what it is asked."""

    def __init__(self, uri):
        self.client, self.is_down, self.asked = MlflowClient(tracking_uri=uri), False, []

    def __getattr__(self, name):
        def call(*args, **options):
            self.asked.append(name)
            if self.is_down:
                raise ConnectionError("nobody there")
            return getattr(self.client, name)(*args, **options)

        return call


@pytest.fixture
def flaky(uri, monkeypatch):
    found = Flaky(uri)
    monkeypatch.setattr(tracking, "connect", lambda _: found)
    return found


def test_what_waits_in_an_outage_is_recorded_after_it(flaky, tracker, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    tracker.log_metrics({"loss": 0.9}, step=0)
    flaky.is_down = True
    tracker.log_metrics({"loss": 0.8}, step=1)
    tracker.log_metrics({"loss": 0.7, "slide_auc": 0.6}, step=2)
    tracker.set_tags({"a": "b"})
    tracker.log_values({"k": 1})
    flaky.is_down = False
    asked = len(flaky.asked)
    tracker.log_metrics({"loss": 0.6}, step=3)  # too early for another try
    assert len(flaky.asked) == asked
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + server.RETRY_S)
    tracker.log_metrics({"loss": 0.5}, step=4)
    run = run_of(tracker)
    history = MlflowClient(tracking_uri=tracker.uri).get_metric_history(tracker.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(0, 0.9), (1, 0.8), (2, 0.7), (3, 0.6), (4, 0.5)]
    assert (run.data.metrics["train/slide_auc"], run.data.tags["a"], run.data.params["k"]) == (0.6, "b", "1")
    first, last = messages(caplog)
    assert "MLflow does not answer (ConnectionError: nobody there)" in first
    assert re.fullmatch(r"MLflow did not answer from \d\d:\d\d:\d\d to \d\d:\d\d:\d\d; the record goes on", last)


def test_finish_tries_once_more_whatever_the_wait(flaky, tracker, tmp_path, caplog):
    (tmp_path / "maps").mkdir()
    flaky.is_down = True
    tracker.log_metrics({"loss": 0.8}, step=0)
    tracker.log_artifact(tmp_path / "maps", "maps")
    flaky.is_down = False
    tracker.finish("FINISHED")
    run = run_of(tracker)
    assert (run.info.status, run.data.metrics["train/loss"]) == ("FINISHED", 0.8)
    assert messages(caplog)[-1] == "MLflow: missing in the record: maps"


def test_what_is_missing_at_the_end_is_said(flaky, tracker, caplog):
    flaky.is_down = True
    for step in range(12):
        tracker.log_metrics({"loss": 0.8}, step=step)
    tracker.finish("FINISHED")
    assert re.fullmatch(
        r"MLflow did not answer from \d\d:\d\d:\d\d: missing in the record: metrics, the end of the run",
        messages(caplog)[-1],
    )
    assert flaky.asked.count("log_batch") == 2  # the first that failed, and the last try


def test_a_run_that_could_not_be_opened_is_opened_later(flaky, uri, tmp_path, caplog):
    flaky.is_down = True
    found = Tracker(uri, "an experiment")
    found.start("a run", artifacts=str(tmp_path), tags={"a": "b"})
    found.log_params(Config())
    found.log_metrics({"loss": 0.7}, step=0)
    assert found.run_id is None
    flaky.is_down = False
    found.sync([{"loss": 0.7}, {"loss": 0.6}])
    assert found.run_id is None  # too early for another try
    found.flush()
    run = run_of(found)
    assert (run.data.params["training.lr"], run.data.tags["a"]) == ("0.001", "b")
    history = MlflowClient(tracking_uri=uri).get_metric_history(found.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(0, 0.7), (1, 0.6)]


def test_many_runs_find_out_about_an_outage_once(flaky, uri, tmp_path, caplog):
    flaky.is_down = True
    for name in ("a", "b", "c"):
        Tracker(uri, "an experiment").start(name, artifacts=str(tmp_path))
    assert len(flaky.asked) == 1
    assert len(messages(caplog)) == 1


def test_a_slow_failure_takes_a_small_share_of_the_time():
    outage = server.Outage()
    assert outage.fail(took_s=20)
    assert outage.retry_at_s - time.monotonic() > 190
    assert not outage.may_try()
    assert not outage.fail(took_s=0)


def test_metrics_of_a_long_outage_are_kept_up_to_a_number(flaky, tracker, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "MAX_METRICS", 3)
    flaky.is_down = True
    for step in range(5):
        tracker.log_metrics({"loss": float(step)}, step=step)
    flaky.is_down = False
    tracker.finish("FINISHED")
    history = MlflowClient(tracking_uri=tracker.uri).get_metric_history(tracker.run_id, "train/loss")
    assert [m.step for m in history] == [2, 3, 4]


def test_metrics_of_many_steps_go_in_few_calls(flaky, uri, tmp_path):
    found = Tracker(uri, "an experiment")
    found.start("a run", artifacts=str(tmp_path))
    rows = [{"loss": float(step)} for step in range(2500)]
    for count in range(1, 2501):
        found.sync(rows[:count], interval_s=60)
    assert flaky.asked.count("log_batch") == 0
    found.finish("FINISHED")
    assert flaky.asked.count("log_batch") == 3
    history = MlflowClient(tracking_uri=uri).get_metric_history(found.run_id, "train/loss")
    assert [m.step for m in history] == list(range(2500))


def test_what_waits_is_not_taken_for_missing(flaky, tracker, monkeypatch):
    rows = [{"loss": 0.9, "slide_auc": 0.5}, {"loss": 0.8, "slide_auc": None}]
    flaky.is_down = True
    for step, row in enumerate(rows):
        tracker.log_metrics(row, step=step)
    flaky.is_down = False
    assert tracker.sync(rows) == 0  # too early for another try
    monkeypatch.setattr(server.outage_of(tracker.uri), "retry_at_s", 0.0)
    assert tracker.sync(rows) == 0
    history = MlflowClient(tracking_uri=tracker.uri).get_metric_history(tracker.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(0, 0.9), (1, 0.8)]


def test_a_call_that_fails_half_way_is_made_up_by_the_next(flaky, tracker, monkeypatch):
    rows = [{"loss": float(step), "lr": 0.1} for step in range(1200)]
    real, calls = flaky.client.log_batch, []

    def fail_at_the_second(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise ConnectionError("nobody there")
        return real(*args, **options)

    monkeypatch.setattr(flaky.client, "log_batch", fail_at_the_second)
    tracker.sync(rows)
    assert tracker.finish("FINISHED")
    client = MlflowClient(tracking_uri=tracker.uri)
    for key, value in (("train/loss", None), ("train/lr", 0.1)):
        history = client.get_metric_history(tracker.run_id, key)
        assert [m.step for m in history] == list(range(1200))
        assert value is None or {m.value for m in history} == {value}


@pytest.mark.parametrize("is_erased", [False, True])
def test_a_run_deleted_on_the_way_is_let_go(tracker, tmp_path, caplog, is_erased):
    client = MlflowClient(tracking_uri=tracker.uri)
    client.delete_run(tracker.run_id)
    if is_erased:
        client._tracking_client.store._hard_delete_run(tracker.run_id)
    tracker.log_values({"k": 1})
    tracker.log_metrics({"loss": 0.5}, step=0)
    tracker.log_artifact(tmp_path / "nothing")
    tracker.finish("FINISHED")
    (said,) = messages(caplog)
    assert said.endswith("was deleted in MLflow; the work goes on without its record")
    assert not tracker.is_recording


def test_what_mlflow_refuses_holds_nothing_up(tracker, caplog):
    tracker.log_metrics({"bad name?": 0.5}, step=0)
    tracker.log_metrics({"loss": 0.5}, step=1)
    tracker.finish("FINISHED")
    run = run_of(tracker)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"train/loss": 0.5})
    (said,) = messages(caplog)
    assert "MLflow refused a part of the record" in said
    assert "bad name?" in said


def test_epochs_that_nobody_recorded_are_added(tracker, caplog):
    caplog.set_level("INFO")
    tracker.log_metrics({"loss": 0.9, "epoch_s": 1.0}, step=0)
    tracker.log_metrics({"loss": 0.7, "epoch_s": 1.0}, step=2)
    rows = [{"loss": value, "val_loss": None} for value in (0.9, 0.8, 0.7, 0.6)]
    assert [tracker.sync(rows), tracker.sync(rows)] == [2, 0]
    history = MlflowClient(tracking_uri=tracker.uri).get_metric_history(tracker.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(0, 0.9), (1, 0.8), (2, 0.7), (3, 0.6)]
    assert messages(caplog) == []


DATA = RunData("cohort", "abc", {"num_rows": 3})


def inputs_of(tracker):
    return [
        (found.dataset.name, found.dataset.digest, json.loads(found.dataset.profile), [tag.value for tag in found.tags])
        for found in run_of(tracker).inputs.dataset_inputs
    ]


def test_the_data_of_a_run_is_recorded_once_and_after_an_outage_too(flaky, tracker, uri, tmp_path, caplog):
    flaky.is_down = True
    tracker.log_data(DATA, context="training")
    assert inputs_of(tracker) == []
    flaky.is_down = False
    assert tracker.finish("FINISHED")
    again = Tracker(uri, "an experiment")
    again.start("a run", artifacts=str(tmp_path), resume=tracker.run_id)
    again.log_data(DATA, context="training")
    assert again.finish("FINISHED")
    assert inputs_of(tracker) == [("cohort", "abc", {"num_rows": 3}, ["training"])]


def test_data_that_mlflow_never_got_is_named(flaky, tracker, caplog):
    flaky.is_down = True
    tracker.log_data(DATA, context="training")
    tracker.finish("FINISHED")
    assert messages(caplog)[-1].endswith("missing in the record: data, the end of the run")


def test_a_server_too_old_for_a_call_holds_nothing_up(flaky, tracker, caplog, monkeypatch):
    def refuse(*_, **__):
        raise MlflowException("no such endpoint", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(flaky.client, "log_inputs", refuse)
    tracker.log_data(DATA, context="training")
    tracker.log_metrics({"loss": 0.5}, step=0)
    assert tracker.finish("FINISHED")
    assert (run_of(tracker).info.status, run_of(tracker).data.metrics) == ("FINISHED", {"train/loss": 0.5})
    (said,) = messages(caplog)
    assert "MLflow refused a part of the record (MlflowException: no such endpoint)" in said


def test_a_run_knows_its_experiment_when_it_is_resumed_too(tracker, uri, tmp_path):
    again = Tracker(uri, "an experiment")
    again.start("a run", artifacts=str(tmp_path), resume=tracker.run_id)
    assert again.experiment_id == tracker.experiment_id == run_of(tracker).info.experiment_id


@pytest.mark.parametrize("most", [1, 3])
def test_files_of_a_kind_are_recorded_once_and_in_a_limited_number(tracker, most):
    for _ in range(2):
        files = {f"s{i}_sheet.png": b"%d" % i for i in range(5)}
        log_once(tracker, files, folder="maps", most=most)
    log_once(tracker, {"s9_sheet.png": b"9"}, folder="maps", most=most)
    log_once(tracker, {"s1_fused.png": b"1"}, folder="maps", most=most)
    found = MlflowClient(tracking_uri=tracker.uri).list_artifacts(tracker.run_id, "maps")
    assert {item.path for item in found} == {"maps/s1_fused.png", *(f"maps/s{i}_sheet.png" for i in range(most))}


def test_a_run_lies_under_the_newest_training_of_its_bundle(tracker, uri, tmp_path):
    for name, tags in (
        ("older", {"distmil.bundle_digest": "d"}),  # as an earlier distmil left it: without its job
        ("trained", {"distmil.bundle_digest": "d", "distmil.job": "train"}),
        ("evaluated", {"distmil.bundle_digest": "d", "distmil.job": "evaluate"}),
        ("other", {"distmil.bundle_digest": "e", "distmil.job": "train"}),
    ):
        found = Tracker(uri, "an experiment")
        found.start(name, artifacts=str(tmp_path), tags=tags)
        time.sleep(0.01)
    link_training(tracker, "d")
    parent = run_of(tracker).data.tags["mlflow.parentRunId"]
    assert MlflowClient(tracking_uri=uri).get_run(parent).info.run_name == "trained"
    link_training(found, "f")
    assert "mlflow.parentRunId" not in run_of(found).data.tags


def test_a_child_names_its_parent(uri, tmp_path, tracker):
    child = Tracker(uri, "an experiment")
    child.start("child", artifacts=str(tmp_path), tags={"mlflow.parentRunId": tracker.run_id})
    assert run_of(child).data.tags["mlflow.parentRunId"] == tracker.run_id
    child.finish("KILLED")
    again = Tracker(uri, "an experiment")
    again.start("child", artifacts=str(tmp_path), resume=child.run_id, tags={"more": "tags"})
    assert again.run_id == child.run_id
    assert (run_of(again).info.status, run_of(again).data.tags["more"]) == ("RUNNING", "tags")


@pytest.fixture
def busy_server():
    """A server that answers everything with 503 and asks to come back in two minutes."""

    class Busy(BaseHTTPRequestHandler):
        def refuse(self):
            self.send_response(503)
            self.send_header("Retry-After", "120")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = refuse

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_is_busy_holds_nothing_up(busy_server, tmp_path, caplog):
    tracker, started_s = Tracker(busy_server, "an experiment"), time.monotonic()
    call_everything(tracker, tmp_path)
    assert time.monotonic() - started_s < 20
    assert "503" in messages(caplog)[0]
    assert "missing in the record: metrics" in messages(caplog)[1]


def test_without_a_record_nothing_is_called(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "connect", lambda _: pytest.fail("MLflow was called"))
    tracker = Tracker(None, "an experiment")
    call_everything(tracker, tmp_path)
    assert (tracker.run_id, tracker.is_recording, messages(caplog)) == (None, False, [])


def test_a_copy_logs_into_the_same_run_and_takes_nothing_along(flaky, tracker):
    flaky.is_down = True
    tracker.log_metrics({"loss": 0.5}, step=0)
    flaky.is_down = False
    server.outage_of.cache_clear()  # as in another process
    copy = pickle.loads(pickle.dumps(tracker))
    copy.log_metrics({"loss": 0.25}, step=3)
    tracker.finish("FINISHED")
    history = MlflowClient(tracking_uri=tracker.uri).get_metric_history(tracker.run_id, "train/loss")
    assert sorted(m.step for m in history) == [0, 3]


def test_a_copy_of_a_tracker_without_a_run_does_nothing(flaky, uri, tmp_path, caplog):
    flaky.is_down = True
    found = Tracker(uri, "an experiment")
    found.start("a run", artifacts=str(tmp_path))
    copy, asked = pickle.loads(pickle.dumps(found)), len(flaky.asked)
    copy.log_metrics({"loss": 0.25}, step=3)
    assert (copy.is_recording, len(flaky.asked)) == (False, asked)


@pytest.mark.parametrize(
    ("uri", "root", "found"),
    [
        (None, "/data/store", "sqlite:////data/store/mlflow.db"),
        (None, "s3://bucket/store", "sqlite:///{home}/.distmil/mlflow.db"),
        ("http://mlflow:5000", "/data/store", "http://mlflow:5000"),
        ("none", "/data/store", None),
    ],
)
def test_the_record_is_where_it_was_asked_for(monkeypatch, tmp_path, uri, root, found):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_uri(uri, root) == (found and found.format(home=tmp_path))


def test_artifacts_go_where_the_root_is(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "")
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL")
    assert server.artifact_location(f"{tmp_path}/why?") == f"{tmp_path}/why?"
    assert server.artifact_location("gs://bucket/a?scheme=http") == "gs://bucket/a"
    assert "MLFLOW_S3_ENDPOINT_URL" not in os.environ
    for address in ("http://first:9000", "http://second:9000"):  # what is set stays: it may be the user's
        assert server.artifact_location(f"s3://bucket/a?endpoint_override={address}") == "s3://bucket/a"
        assert os.environ["MLFLOW_S3_ENDPOINT_URL"] == "http://first:9000"


@pytest.mark.slow  # a new database: several seconds of migrations
def test_a_folder_that_is_not_there_yet_is_made(tmp_path):
    # a store on s3 keeps its record under ~/.distmil, which a fresh machine does not have
    uri = f"sqlite:///{tmp_path / 'fresh home' / '.distmil' / 'mlflow.db'}"
    tracker = Tracker(uri, "an experiment")
    tracker.start("a run", artifacts=str(tmp_path))
    assert tracker.run_id


def test_a_signal_at_any_moment_leaves_the_database_free_and_the_run_closed(tracker, tmp_path):
    rng = random.Random(14)
    usual = {number: signal.getsignal(number) for number in SIGNALS}
    for _ in range(40):
        run = Tracker(tracker.uri, tracker.experiment)
        run.start("interrupted", artifacts=str(tmp_path / "artifacts"))
        interruption = Interruption("interrupted")
        interruption.install()
        alarm = threading.Timer(rng.uniform(0.0, 0.1), os.kill, (os.getpid(), signal.SIGTERM))
        try:
            with pytest.raises(Interrupted):
                send_for_ever(run, alarm)
            assert run.finish("KILLED")
        finally:
            alarm.join()
            for number, handler in usual.items():
                signal.signal(number, handler)
        assert run_of(run).info.status == "KILLED"


def send_for_ever(run, alarm):
    alarm.start()
    for step in itertools.count():
        child = Tracker(run.uri, run.experiment)
        child.start("child", artifacts="", tags={"mlflow.parentRunId": run.run_id})
        child.finish("FINISHED")
        run.log_metrics({"loss": 0.5}, step=step)


def test_a_prediction_without_a_record_does_not_import_mlflow():
    code = (
        "import sys\n"
        "import distmil.pipeline.predict, distmil.pipeline.evaluate\n"
        "from distmil.config.root import Config\n"
        "from distmil.tracking.tracker import Tracker\n"
        "tracker = Tracker(None, 'x')\n"
        "tracker.start('a run', artifacts='a')\n"
        "tracker.log_params(Config())\n"
        "tracker.log_metrics({'loss': 1.0}, step=0)\n"
        "tracker.attempt('the model', lambda client, run_id: 1 / 0)\n"
        "tracker.finish('FINISHED')\n"
        "print('mlflow' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
