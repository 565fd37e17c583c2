"""The record of a search on a real MLflow: children of every trial, closed and whole, whenever MLflow answers."""

import shutil

import pytest
from mlflow import MlflowClient

from distmil.cohort import Cohort
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec
from distmil.pipeline.job import Job
from distmil.pipeline.tuning.plan import SearchPlan, read_trial, write_trial
from distmil.pipeline.tuning.record import SearchRecord
from distmil.search.comparison import Spread
from distmil.search.space import Domain
from distmil.search.trial import Trial
from distmil.storage.store import Store
from distmil.tracking import server, tracker
from distmil.tracking.tracker import Tracker
from tests.search.test_report import make_outcome

SPEC = EncoderSpec(name="resnet18", digest="digest-of-weights", dimension=12, weights_file=None)
SPACE = {"bags.top_k": Domain("choice", (1, 2, 4))}


@pytest.fixture(autouse=True)
def no_outage():
    """What this process learned of MLflow in another test is forgotten."""
    server.outage_of.cache_clear()


class Search:
    """A search's record, with a switch for MLflow."""

    def __init__(self, root, monkeypatch):
        self.store = Store(str(root))
        self.uri = f"sqlite:///{root / 'mlflow.db'}"
        self.plan = SearchPlan("s", self.store.root, Config(), SPEC, "slide_auc", False, [], [], 0)
        self.is_up, self.tries, self._connect = True, 0, tracker.connect
        monkeypatch.setattr(tracker, "connect", self.connect)
        self.records = [Trial({"bags.top_k": k}, 0, False, i) for i, k in enumerate((1, 2, 4))]

    def connect(self, uri):
        self.tries += 1
        if not self.is_up:
            raise ConnectionError("nobody there")
        return self._connect(uri)

    def open(self):
        kept = SearchRecord(
            Job(build_config({"tracking": {"uri": self.uri}}), self.store), Tracker(self.uri, "an experiment")
        )
        kept.open(self.plan, SPACE, Cohort([], ["negative", "positive"]))
        return kept

    def write(self, record):
        write_trial(self.plan, record)

    def tell(self, kept, record, rows=3):
        for epoch in range(rows):
            record.rows.append({"val_slide_auc": 0.5 + epoch / 10, "val_slide_ap": None})
            kept.row(record)

    def end(self, kept, record, status="finished"):
        record.status, record.score = status, 0.7
        self.write(record)
        kept.end(record)

    def children(self, parent):
        client = MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name("an experiment").experiment_id
        runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
        return {run.data.params["bags.top_k"]: run for run in runs}

    def check(self, parent, statuses=("FINISHED",) * 3):
        """All trials have one run each, closed, with every epoch, and their records know it."""
        runs = self.children(parent)
        assert {key: run.info.status for key, run in runs.items()} == dict(zip("124", statuses, strict=True))
        client = MlflowClient(tracking_uri=self.uri)
        for record in self.records:
            run = runs[str(record.values["bags.top_k"])]
            assert read_trial(self.plan, record).mlflow == run.info.run_id
            history = client.get_metric_history(run.info.run_id, "val/slide_auc")
            assert sorted({point.step for point in history}) == [0, 1, 2]


@pytest.fixture
def search(empty_database, tmp_path, monkeypatch):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Search(tmp_path, monkeypatch)


def test_parent_and_children_name_code_data_and_encoder(search):
    kept = search.open()
    for record in search.records:
        kept.start(record)
        search.tell(kept, record)
        search.end(kept, record)
    kept.finish("FINISHED")
    search.check(kept.parent.run_id)
    parent = MlflowClient(tracking_uri=search.uri).get_run(kept.parent.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["space.bags.top_k"] == "choice [1, 2, 4]"
    for run in (parent, *search.children(kept.parent.run_id).values()):
        assert run.data.params["encoder.digest"] == "digest-of-weights"
        assert run.data.params["data.fingerprint"]
        assert run.data.tags["distmil.source_digest"]
        assert run.data.tags["distmil.version"]
        (found,) = run.inputs.dataset_inputs
        assert (found.dataset.name, found.dataset.digest) == ("synthetic-0", run.data.params["data.fingerprint"])
    assert parent.data.tags["mlflow.note.content"].startswith("**Search** `s` by slide_auc")


def test_trials_that_end_during_an_outage_are_recorded_at_the_end(search):
    kept = search.open()
    first, second, third = search.records
    for record in (first, second):
        kept.start(record)
        search.tell(kept, record, rows=1)
    search.is_up = False
    kept.start(third)
    search.tell(kept, third)
    tries = search.tries
    for record in (first, second):
        search.tell(kept, record, rows=2)
    for record in search.records:
        search.end(kept, record)
    assert search.tries == tries  # a silent server is not asked by each of them
    search.is_up = True
    kept.finish("FINISHED")
    search.check(kept.parent.run_id)


def test_children_open_later_where_the_parent_could_not_be_opened(search, monkeypatch):
    search.is_up = False
    kept = search.open()
    for record in search.records[:2]:
        kept.start(record)
        search.tell(kept, record)
    search.end(kept, search.records[0])
    search.is_up = True
    monkeypatch.setattr(server.outage_of(search.uri), "retry_at_s", 0.0)
    search.end(kept, search.records[1])
    assert len(search.children(kept.parent.run_id)) == 2
    kept.start(search.records[2])
    search.tell(kept, search.records[2])
    search.end(kept, search.records[2])
    kept.finish("FINISHED")
    search.check(kept.parent.run_id)
    assert search.store.read_checked("checkpoints/s/mlflow.json", owner="s") == kept.parent.run_id


def test_the_next_call_completes_what_an_outage_left(search, caplog):
    kept = search.open()
    kept.start(search.records[0])
    search.tell(kept, search.records[0])
    search.end(kept, search.records[0])
    kept.start(search.records[1])
    search.tell(kept, search.records[1], rows=1)
    search.is_up = False
    search.tell(kept, search.records[1], rows=2)
    search.end(kept, search.records[1])
    kept.start(search.records[2])
    search.tell(kept, search.records[2])
    search.end(kept, search.records[2])
    kept.finish("FINISHED")
    assert "MLflow lacks the end of 2 trials; the same command records it" in caplog.text
    search.is_up = True
    server.outage_of.cache_clear()
    again = search.open()
    assert again.parent.run_id == kept.parent.run_id
    search.records = [read_trial(search.plan, record) for record in search.records]
    for record in search.records:
        again.end(record)
    again.finish("FINISHED")
    search.check(kept.parent.run_id)


def test_trials_that_were_running_or_failed_are_closed_as_such(search):
    kept = search.open()
    for record, status in zip(search.records, ("finished", "failed", ""), strict=True):
        kept.start(record)
        search.tell(kept, record)
        search.write(record)
        if status:
            search.end(kept, record, status)
    kept.finish("KILLED")
    search.check(kept.parent.run_id, ("FINISHED", "FAILED", "KILLED"))
    again = search.open()  # a driver that was killed leaves runs open
    again.start(search.records[2])
    killed = search.open()
    killed.finish("FINISHED")
    search.check(kept.parent.run_id, ("FINISHED", "FAILED", "KILLED"))
    late = search.open()
    search.end(late, search.records[2])
    late.finish("FINISHED")
    search.check(kept.parent.run_id, ("FINISHED", "FAILED", "FINISHED"))


def test_without_a_record_nothing_waits(tmp_path):
    kept = SearchRecord(Job(build_config({}), Store(str(tmp_path))), Tracker(None, "x"))
    record = Trial({"bags.top_k": 1}, 0, False, 0, status="finished", score=0.5)
    kept.open(
        SearchPlan("s", str(tmp_path), Config(), SPEC, "slide_auc", False, [], [], 0), SPACE, Cohort([], ["a", "b"])
    )
    kept.start(record)
    kept.end(record)
    kept.finish("FINISHED")
    assert record.mlflow is None
    assert not kept.children


def test_the_outcome_is_a_section_of_its_own_and_the_verdict_is_described(search):
    kept = search.open()
    outcome = make_outcome((0.80, 0.81, 0.82), (0.70, 0.72, 0.71), held_out={"best": Spread((0.5, 0.7))})
    search.store.write("searches/s/report.md", b"# Report")
    kept.record(outcome, "searches/s")
    kept.finish("FINISHED")
    run = MlflowClient(tracking_uri=search.uri).get_run(kept.parent.run_id)
    assert {name.partition("/")[0] for name in run.data.metrics} == {"search"}
    assert run.data.metrics["search/best_score"] == 0.6
    assert run.data.metrics["search/best_mean"] == pytest.approx(0.81)
    assert run.data.metrics["search/held_out_best_mean"] == pytest.approx(0.6)
    assert f"Verdict: {outcome.verdict}" in run.data.tags["mlflow.note.content"]
