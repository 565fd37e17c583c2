"""The course of a search, without Ray: what is compared at its end, and what a failure costs."""

import signal
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import pytest

from distmil.bags.bag import BagEntry
from distmil.cohort import Cohort, Slide
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec
from distmil.errors import ConfigError, StorageError, TrainingError
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import Prepared
from distmil.pipeline.training.claim import Claim
from distmil.pipeline.tuning import job as tune
from distmil.pipeline.tuning.plan import SearchPlan
from distmil.processes.interruption import Interrupted
from distmil.search.space import read_space
from distmil.search.trial import Trial
from distmil.storage.store import Store
from distmil.tracking.tracker import Tracker
from tests.support.bags import make_bags

SPEC = EncoderSpec(name="texture", digest="", dimension=12, weights_file=None)
SETTINGS = {"default": {"losses.bag": 1.0}, "best": {"losses.bag": 2.0}, "best without bag": {"losses.bag": 0.0}}


def repeat(monkeypatch: pytest.MonkeyPatch, root: str, fails: str) -> tune.Repeats:
    config = build_config({"search": {"repeats": 2}})
    plan = SearchPlan("s", root, config, None, "slide_auc", False, [], [], 0, "claim")  # type: ignore[arg-type]

    def train(_plan: Any, records: Any, **_: Any) -> None:
        for number, trial in enumerate(iter(records.queue.next, None)):
            record = Trial(dict(trial.values), trial.seed, True, number, claim=trial.claim)
            if trial.values == SETTINGS[fails]:
                record.status, record.error = "failed", "no loss is left"
            else:
                record.status, record.score, record.rows = "finished", 0.8, [{"val_slide_auc": 0.8}]
            plan.store.write_json(plan.record_file(trial.key), asdict(record))

    monkeypatch.setattr(tune, "run_trials", train)
    return tune._repeat(Job(config, Store(root)), plan, SETTINGS, None)  # type: ignore[arg-type]


def test_a_failed_ablation_costs_its_row_alone(monkeypatch, tmp_path):
    found = repeat(monkeypatch, str(tmp_path), fails="best without bag")
    assert set(found.spreads) == {"default", "best"}
    assert "no loss is left" in found.failed["best without bag"]


def test_the_default_must_not_fail(monkeypatch, tmp_path):
    with pytest.raises(TrainingError, match="no loss is left"):
        repeat(monkeypatch, str(tmp_path), fails="default")


def split(folds: int, *, val: bool = True) -> Any:
    splits = ["train"] * 8 + (["val"] * 2 if val else []) + ["test"] * 2
    slides = [Slide(f"s{i}", "x.svs", label=i % 2, split=name) for i, name in enumerate(splits)]
    entries = [BagEntry(s.slide_id, s.label, s.split, False, "", (), None) for s in slides if s.slide_id != "s0"]
    config = build_config({"search": {"folds": folds}})
    return tune._split(config.search, slides, Prepared(entries, {}, {}, {}), config)


def test_folds_leave_val_and_test_unseen():
    folds, held_out = split(folds=3)
    assert held_out == ["s8", "s9", "s10", "s11"]
    assert len(folds) == 3
    assert sorted(i for _, validation in folds for i in validation) == [
        f"s{i}" for i in range(1, 8)
    ]  # s0 is not usable
    assert all(not {*learning, *validation} & set(held_out) for learning, validation in folds)


def test_without_folds_val_judges_and_test_is_unseen():
    assert split(folds=0) == ([([f"s{i}" for i in range(1, 8)], ["s8", "s9"])], ["s10", "s11"])
    with pytest.raises(ConfigError, match="no val slide to compare trials on"):
        split(folds=0, val=False)


def test_val_slides_of_one_class_are_refused_at_the_start():
    slides = [Slide(f"s{i}", "x.svs", label=1, split="val") for i in range(3)]
    search = build_config({"search": {"metric": "slide_auc"}}).search
    with pytest.raises(ConfigError, match=r"val has slides of one kind only \(3 of class 1\)"):
        tune._check_val(search, Cohort(slides, ["negative", "positive"]))


def test_a_search_that_cannot_be_judged_takes_no_name(monkeypatch, tmp_path):
    bags = {bag.slide_id: bag for bag in make_bags(8)}
    entries = [
        BagEntry(i, bag.label, "val" if i in ("slide-01", "slide-03") else "train", False, "", (), None)
        for i, bag in bags.items()
    ]
    monkeypatch.setattr(tune, "open_encoder", lambda *_: SPEC)
    monkeypatch.setattr(tune, "prepare", lambda *_, **__: Prepared(entries, {}, {}, {}))
    monkeypatch.setattr(tune, "open_all_bags", lambda *_, **__: list(bags.values()))
    job = Job(build_config({"search": {"metric": "slide_auc", "run": "s"}}), Store(str(tmp_path)))
    with pytest.raises(ConfigError, match="val has slides of one kind only"):
        tune._run(job, Cohort([], ["negative", "positive"]), {}, tune.SearchRecord(job, Tracker(None, "x")))
    assert not job.store.exists("checkpoints/s")


@pytest.mark.parametrize("is_wanted", [True, False])
def test_the_machine_is_watched_while_trials_run_if_that_is_wanted(monkeypatch, tmp_path, is_wanted):
    watched: list[Any] = []

    @contextmanager
    def watch(tracker, *, is_wanted):
        watched.append(is_wanted)
        yield
        watched.append("over")

    monkeypatch.setattr(tune, "system_metrics", watch)
    monkeypatch.setattr(tune, "_search", lambda *_: watched.append("searched") or [])
    job = Job(build_config({"tracking": {"system_metrics": is_wanted}}), Store(str(tmp_path)))
    plan = SearchPlan("s", str(tmp_path), Config(), None, "slide_auc", False, [], [], 0)  # type: ignore[arg-type]
    record = tune.SearchRecord(job, Tracker(None, "x"))
    with pytest.raises(TrainingError, match="no trial has a slide_auc after its last epoch"):
        tune._outcome(job, plan, {}, [], record)
    assert watched[:2] == [is_wanted, "searched"]


def test_an_interrupted_search_is_recorded_as_killed(monkeypatch, tmp_path):
    def interrupt(*_: Any) -> None:
        raise Interrupted(signal.SIGTERM)

    ended: list[str] = []
    monkeypatch.setattr(tune, "open_cohort", lambda *_, **__: Cohort([], ["negative", "positive"]))
    monkeypatch.setattr(tune, "_run", interrupt)
    monkeypatch.setattr(tune.SearchRecord, "finish", lambda _record, status: ended.append(status))
    with pytest.raises(Interrupted):
        tune.run(Job(build_config({"tracking": {"uri": "none"}}), Store(str(tmp_path))))
    assert ended == ["KILLED"]


def test_a_space_with_fewer_settings_than_trials_is_said_and_gone_through(monkeypatch, tmp_path, capsys):
    config = build_config({"search": {"space": {"bags.top_k": [1, 8]}, "trials": 24}})
    job = Job(config, Store(str(tmp_path)))
    plan = SearchPlan("s", str(tmp_path), config, None, "slide_auc", False, [], [], 0)  # type: ignore[arg-type]
    monkeypatch.setattr(tune, "concurrency", lambda *_: 2)
    monkeypatch.setattr(tune, "run_trials", lambda _plan, records, **_: starts.extend(iter(records.queue.next, None)))
    starts: list[Any] = []
    record = tune.SearchRecord(job, Tracker(None, "x"))
    record.open(plan_with_encoder(plan), {}, Cohort([], ["a", "b"]))
    tune._search(job, plan, read_space(config), record)
    assert [trial.values["bags.top_k"] for trial in starts] == [8, 1]  # the default first
    assert "the space has 2 settings, fewer than search.trials = 24: all are tried" in capsys.readouterr().err


def plan_with_encoder(plan: SearchPlan) -> SearchPlan:
    return replace(plan, spec=SPEC)


def test_other_settings_under_an_old_name_are_refused_before_a_slide_is_tiled(monkeypatch, tmp_path):
    job = Job(build_config({"search": {"run": "s"}}), Store(str(tmp_path)))
    cohort = Cohort([], ["negative", "positive"])
    more = tune.identity(job.config.search, [(["a"], ["b"])], [])
    prepared = Prepared([], {}, {}, {})
    Claim(job, SPEC, cohort, "s", "tune", more).take(prepared)
    monkeypatch.setattr(tune, "open_encoder", lambda *_: SPEC)
    monkeypatch.setattr(tune, "prepare", lambda *_, **__: pytest.fail("slides were tiled"))
    other = replace(job, config=build_config({"search": {"run": "s", "folds": 3}, "training": {"lr": 0.5}}))
    record = tune.SearchRecord(other, Tracker(None, "x"))
    with pytest.raises(ConfigError, match=r"training.lr: 0.001 then, 0.5 now\n  search.folds: 0 then, 3 now"):
        tune._run(other, cohort, {}, record)
    job.store.delete("checkpoints/s/run.json")
    job.store.write("searches/s/trials/a.json", b"{}")
    with pytest.raises(StorageError, match="is gone, but results of run s are there"):
        tune._run(other, cohort, {}, record)
