"""The record of a run on a real MLflow: what is kept, that a run goes on, and that a failure stops nothing."""

import pickle
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from distmil.config import Config
from distmil.configfile import build_config
from distmil.tracking import Tracker, resolve_uri


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """An MLflow database without runs; making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


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


def test_a_run_keeps_what_it_is_told(tracker, tmp_path):
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
    assert not tracker.is_broken
    assert run.info.run_name == "a run"
    assert run.info.status == "FINISHED"
    assert run.data.params["training.lr"] == "0.001"
    assert run.data.params["data.fingerprint"] == "abc"
    assert [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, "loss")] == [(0, 0.7), (1, 0.4)]
    assert "slide_auc" not in run.data.metrics
    assert run.data.tags["distmil.version"] == "1"
    assert (tmp_path / "artifacts" / tracker.run_id / "artifacts" / "report" / "roc.txt").read_text() == "0.9"
    assert client.get_experiment(run.info.experiment_id).name == "an experiment"


def test_every_key_is_recorded_but_no_path(tracker):
    config = build_config(
        {
            "cohort": {"manifest": "/home/jane/m.csv", "classes": [f"class number {i}" for i in range(60)]},
            "storage": {"root": "/home/jane/store"},
            "prediction": {"model": "/home/jane/model"},
            "encoder": {"name": "resnet18", "weights": "/home/jane/weights.pt"},
            "tracking": {"uri": "sqlite:////home/jane/x.db"},
        }
    )
    tracker.log_params(config)
    params = run_of(tracker).data.params
    private = {"cohort.manifest", "storage.root", "prediction.model", "tracking.uri"}
    assert set(params) == set(config.flat()) - private
    assert params["encoder.weights"] == "weights.pt"
    assert not any("jane" in value for value in params.values())
    assert not tracker.is_broken


def test_a_resumed_run_goes_on_in_the_same_run(tracker, uri, tmp_path):
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
    assert not again.is_broken
    run = run_of(again)
    assert run.info.status == "FINISHED"
    assert (run.data.params["training.num_workers"], run.data.params["more"]) == ("1", "new")
    history = MlflowClient(tracking_uri=uri).get_metric_history(again.run_id, "loss")
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
    tracker.log_artifact(tmp_path / "nothing")
    tracker.set_tags({"a": "b"})
    tracker.finish("FINISHED")


@pytest.mark.parametrize("uri", ["sqlite:////proc/none/mlflow.db", "nonsense://host", "http://127.0.0.1:9"])
def test_a_broken_record_is_one_warning_and_stops_nothing(tmp_path, caplog, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(uri, "an experiment")
    call_everything(tracker, tmp_path)
    assert tracker.is_broken
    assert tracker.run_id is None
    warnings = [record for record in caplog.records if record.name.startswith("distmil")]
    assert [record.levelname for record in warnings] == ["WARNING"]
    assert "the run goes on without its record" in warnings[0].getMessage()


def test_a_record_that_breaks_on_the_way_is_one_warning(tracker, tmp_path, caplog):
    tracker.log_metrics({"loss": 0.5}, step=0)
    Path(tracker.uri.removeprefix("sqlite:///")).write_bytes(b"no database")
    call_everything(tracker, tmp_path)
    assert tracker.is_broken
    assert sum("without its record" in record.getMessage() for record in caplog.records) == 1


def test_without_a_record_nothing_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr(Tracker, "_client", property(lambda _: pytest.fail("MLflow was called")))
    tracker = Tracker(None, "an experiment")
    call_everything(tracker, tmp_path)
    assert (tracker.run_id, tracker.is_broken) == (None, False)


def test_a_tracker_travels_and_logs_into_the_same_run(tracker):
    pickle.loads(pickle.dumps(tracker)).log_metrics({"loss": 0.25}, step=3)
    assert run_of(tracker).data.metrics["loss"] == 0.25


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


@pytest.mark.slow  # a new database: several seconds of migrations
def test_a_folder_that_is_not_there_yet_is_made(tmp_path):
    # a store on s3 keeps its record under ~/.distmil, which a fresh machine does not have
    uri = f"sqlite:///{tmp_path / 'fresh home' / '.distmil' / 'mlflow.db'}"
    tracker = Tracker(uri, "an experiment")
    tracker.start("a run", artifacts=str(tmp_path))
    assert tracker.run_id
