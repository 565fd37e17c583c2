"""A real MLflow server over HTTP: the whole record, a server that goes and comes back, and one that stays away."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from distmil.config.root import Config
from distmil.inference.mlflow_model import save_model
from distmil.tracking import server as places
from distmil.tracking.models import log_model
from distmil.tracking.tracker import Tracker
from tests.inference.test_mlflow_model import expected, make_bundle, make_embeddings
from tests.support.jobs import run_here
from tests.support.ports import free_port
from tests.support.trained import make_house

pytestmark = pytest.mark.slow

START_S = 120


@dataclass
class Server:
    """An MLflow server of its own, on a port of its own, that can be stopped and started again."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}",
            "--artifacts-destination", str(self.folder / "served"),
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # ten processes that nobody asks
            )  # fmt: skip
        deadline_s = time.monotonic() + START_S
        while not self._is_up():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline_s, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        """End the server and the processes that it started, which are a group of their own."""
        if self.process is None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def _is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"), free_port())
    yield found
    found.stop()


@pytest.fixture
def up(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, running, and known to run."""
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    places.outage_of.cache_clear()
    if server.process is None:
        server.start()
    return server


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("distmil")]


def losses(server: Server, run_id: str | None) -> list[tuple[int, float]]:
    history = MlflowClient(server.uri).get_metric_history(str(run_id), "train/loss")
    return sorted((metric.step, metric.value) for metric in history)


def test_the_whole_record_goes_over_http(
    up: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bundle, embedding_NE = make_bundle(classes=4), make_embeddings(50)
    tracker = Tracker(up.uri, "over http")
    tracker.start("a run", artifacts=str(tmp_path / "unused"), tags={"mlflow.parentRunId": "0" * 32})
    tracker.log_params(Config())
    tracker.log_metrics({"loss": 0.7}, step=0)
    tracker.log_metrics({"loss": float("nan"), "slide_auc": None}, step=1)
    (tmp_path / "report.txt").write_text("0.9")
    tracker.log_artifact(tmp_path / "report.txt", "report")
    save_model(tmp_path / "model", bundle)
    for _ in range(2):
        log_model(tracker, tmp_path / "model", digest="one", step=1, registered="lesions", alias="champion")
    tracker.finish("FINISHED")
    assert (said(caplog), capfd.readouterr().out) == ([], "")
    client = MlflowClient(up.uri)
    run = client.get_run(str(tracker.run_id))
    assert (run.info.status, run.data.params["training.lr"]) == ("FINISHED", "0.001")
    assert run.data.tags["mlflow.parentRunId"] == "0" * 32
    assert Path(client.download_artifacts(run.info.run_id, "report/report.txt", str(tmp_path))).read_text() == "0.9"
    assert not (tmp_path / "unused").exists()
    assert len(run.outputs.model_outputs) == 1
    version = client.get_model_version_by_alias("lesions", "champion")
    assert (int(version.version), version.run_id) == (1, run.info.run_id)
    mlflow.set_tracking_uri(up.uri)
    try:
        model = mlflow.pyfunc.load_model("models:/lesions@champion")
    finally:
        mlflow.set_tracking_uri(None)
    scores_NS = model.predict(embedding_NE.astype(np.float32))
    np.testing.assert_allclose(scores_NS, expected(bundle, embedding_NE), rtol=0, atol=1e-5)


def test_a_server_that_comes_back_gets_what_it_missed(
    up: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(places, "RETRY_S", 1.0)
    tracker = Tracker(up.uri, "over http")
    tracker.start("a run", artifacts=str(tmp_path))
    tracker.log_metrics({"loss": 0.0}, step=0)
    up.stop()
    slowest_s = 0.0
    for step in range(1, 5):
        started_s = time.monotonic()
        tracker.log_metrics({"loss": step / 10}, step=step)
        slowest_s = max(slowest_s, time.monotonic() - started_s)
    assert slowest_s < 5
    assert len(said(caplog)) == 1
    assert "MLflow does not answer" in said(caplog)[0]
    up.start()
    time.sleep(1.0)
    tracker.log_metrics({"loss": 0.5}, step=5)
    assert losses(up, tracker.run_id) == [(step, step / 10) for step in range(6)]
    assert re.fullmatch(r"MLflow did not answer from [\d:]+ to [\d:]+; the record goes on", said(caplog)[1])
    tracker.finish("FINISHED")
    assert len(said(caplog)) == 2


def test_without_the_server_the_work_goes_on_and_says_so(
    up: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(up.uri, "over http")
    tracker.start("a run", artifacts=str(tmp_path))
    up.stop()
    started_s = time.monotonic()
    for step in range(100):
        tracker.log_metrics({"loss": step / 10, "slide_auc": 0.5}, step=step)
    tracker.log_artifact(tmp_path, "bundle")
    tracker.finish("FINISHED")
    assert time.monotonic() - started_s < 10
    assert len(said(caplog)) == 2
    assert said(caplog)[1].endswith(": missing in the record: metrics, the end of the run, bundle")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings("ignore")  # Ray warns of its own settings
def test_a_training_outlives_its_server_and_its_command_completes_the_record(up: Server, tmp_path: Path) -> None:
    make_house(tmp_path, num_slides=4)
    arguments = [
        "train", "cohort.synthetic=4", "training.epochs=4", "bags.slides_per_step=2", "model.feature_dim=16",
        "training.run=small", "prediction.split=test", f"tracking.uri={up.uri}", "tracking.registered_model=small",
    ]  # fmt: skip
    checkpoint = tmp_path / "checkpoints" / "small" / "latest.json"

    def stop_in_training() -> None:
        deadline_s = time.monotonic() + START_S
        while not checkpoint.exists() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        up.stop()

    stopping = threading.Thread(target=stop_in_training)
    stopping.start()
    done = run_here(tmp_path, *arguments)
    stopping.join()
    assert done.code == 0, done.err
    run_id = done.answer["tracking"]["run_id"]
    assert "MLflow does not answer" in done.err
    assert re.search(r"MLflow did not answer from .*: missing in the record: .*the model", done.err)
    up.start()
    places.outage_of.cache_clear()  # as in a process of its own
    assert len(losses(up, run_id)) < 4
    again = run_here(tmp_path, *arguments)
    assert again.code == 0, again.err
    assert "run small is trained already" in again.err
    assert "MLflow lacked the metrics of" in again.err
    assert again.answer["tracking"]["run_id"] == run_id
    assert [step for step, _ in losses(up, run_id)] == [0, 1, 2, 3]
    run = MlflowClient(up.uri).get_run(run_id)
    assert (run.info.status, len(run.outputs.model_outputs)) == ("FINISHED", 1)
    assert int(MlflowClient(up.uri).get_model_version_by_alias("small", "latest").version) == 1
