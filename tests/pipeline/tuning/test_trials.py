"""The training in a trial's process, and its reports and those of its workers, without Ray's processes."""

from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from distmil.config.loading import build_config
from distmil.errors import StorageError, TrainingError
from distmil.pipeline.training import workers
from distmil.pipeline.tuning import trials, tune_adapter
from distmil.pipeline.tuning.plan import SearchPlan, clear_trial
from distmil.pipeline.tuning.trials import WORKER_CORES, TrialTraining, in_words, is_lost, trial_device, workers_report
from distmil.pipeline.tuning.tune_adapter import TRIAL, train_workers
from distmil.search.trial import Trial
from distmil.storage.store import Store
from distmil.training.engine import History
from distmil.training.run_files import checkpoint_folder

ROWS: list[dict[str, float | None]] = [{"val_slide_auc": value, "val_slide_loss": 0.5} for value in (0.6, 0.9, 0.7)]


@pytest.mark.parametrize(
    ("is_gpu", "is_there", "device"), [(True, True, "cuda:0"), (True, False, "cpu"), (False, True, "cpu")]
)
def test_a_trial_takes_the_gpu_that_it_was_given(monkeypatch, is_gpu, is_there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    assert trial_device(is_gpu=is_gpu) == torch.device(device)


@pytest.mark.parametrize(("patience", "told"), [(0, [0.6, 0.9, 0.7]), (2, [0.6, 0.9, 0.9])])
def test_workers_tell_the_row_of_the_network_that_they_keep(patience, told):
    config = build_config({"training": {"patience": patience, "epochs": 3}})
    found = [workers_report(ROWS, epoch, config, "slide_auc") for epoch in range(3)]
    assert [report["score"] for report in found] == told == [report["row"]["val_slide_auc"] for report in found]
    assert [report["epoch"] for report in found] == [1, 2, 3]
    assert [report["is_last"] for report in found] == [False, False, True]


def test_workers_ask_for_the_cores_that_trials_at_once_are_counted_by(monkeypatch):
    config = build_config({"training": {"num_workers": 2, "use_gpu": False}})
    monkeypatch.setattr(workers.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr(workers, "is_autoscaling", lambda: False)
    monkeypatch.setattr(tune_adapter, "start_ray", lambda: None)
    monkeypatch.setattr(tune_adapter, "cluster_resources", lambda: {"CPU": 8.0})
    assert workers._resources(config, is_gpu=False) == {"CPU": 4.0}  # a training of its own takes the node
    each = workers._resources(config, is_gpu=False, cores=WORKER_CORES)["CPU"]
    assert tune_adapter.concurrency(config, {"memory": 1}) == 8 / (2 * each) == 4


@pytest.mark.parametrize("num_workers", [1, 2])
def test_nothing_is_left_of_a_trial_that_is_over_but_its_record(tmp_path, num_workers):
    config = build_config({"training": {"num_workers": num_workers}})
    plan = SearchPlan("s", str(tmp_path), config, None, "slide_auc", False, [], [], 0)  # type: ignore[arg-type]
    store, trial, other = Store(str(tmp_path)), Trial({"bags.top_k": 8}, 0), Trial({"bags.top_k": 2}, 0)
    left = [plan.record_file(trial.key), f"checkpoints/{plan.checkpoint(other)}/fold-0/latest.json"]
    gone = [f"checkpoints/{plan.checkpoint(trial)}/fold-0/latest.json"]
    if num_workers > 1:
        left.append(f"ray-train/{plan.inner_run(other)}/checkpoint_1/x")
        gone += [
            f"{checkpoint_folder(plan.inner_run(trial))}/cohort.json",
            f"ray-train/{plan.inner_run(trial)}/checkpoint_1/x",
        ]
    for name in (*left, *gone):
        store.write(name, b"x")
    clear_trial(plan, trial)
    clear_trial(plan, trial)  # again does no harm
    assert all(store.exists(name) for name in left)
    assert not any(store.exists(name) for name in gone)


class Fitted:
    """Workers that train the epochs that are missing, and tell of them."""

    def __init__(self, store, name, callback):
        self.store, self.name, self.callback = store, name, callback
        self.return_value: dict[str, Any] = {}

    def fit(self):
        return self


@pytest.mark.parametrize("committed", [0, 2, 3])
def test_workers_that_go_on_tell_their_rows_from_the_first(monkeypatch, tmp_path, committed):
    config = build_config({"training": {"num_workers": 2, "epochs": 3}})
    plan = SearchPlan("s", str(tmp_path), config, None, "slide_auc", False, [], ["x"], 0)  # type: ignore[arg-type]
    store, trial = plan.store, Trial({"bags.top_k": 8}, 0, is_repeat=True)
    store.write_json("checkpoints/s/cohort.json", [])
    told: list[dict[str, Any]] = []
    histories = iter([History(ROWS[:committed]), History(ROWS)])

    def make(_store, _config, name, _spec, callbacks, *, lease, cores):
        assert lease.run == name
        assert committed < 3
        for epoch in range(committed, 3):
            callbacks[0].after_report(None, [{**ROWS[epoch], "epoch": epoch, "epoch_s": 1.0}], None)
        return Fitted(store, name, callbacks)

    monkeypatch.setattr(tune_adapter.tune, "report", told.append)
    monkeypatch.setattr(tune_adapter.TuneReportCallback, "__init__", lambda _: None)  # it wants a session of Tune
    monkeypatch.setattr(
        tune_adapter.TuneReportCallback, "after_report", lambda _self, _context, rows, _: told.append(rows[0])
    )
    monkeypatch.setattr(trials, "make_trainer", make)
    monkeypatch.setattr(trials, "read_history", lambda *_: next(histories))
    monkeypatch.setattr(trials, "_bags", lambda *_: {"x": None})
    monkeypatch.setattr(trials, "evaluate_run", lambda *_, **__: {"slide_auc": 0.55})
    train_workers({TRIAL: trial}, plan)
    assert [(found["epoch"], found["score"]) for found in told] == [(1, 0.6), (2, 0.9), (3, 0.7), (3, 0.7)]
    assert told[-1]["row"] == {**ROWS[2], "held_out_slide_auc": 0.55}
    assert told[-1]["is_last"]


class Failing:
    """A trial that trains an epoch and fails in the next."""

    def __init__(self, failure):
        self.failure = failure

    def row(self, epoch):
        if epoch:
            raise self.failure
        return ROWS[0]

    def is_finished(self, epoch):
        return False


@pytest.mark.parametrize(
    ("failure", "words", "raises"),
    [
        (TrainingError("no loss is left"), "no loss is left", False),
        (StorageError("the disk is full"), "the disk is full", True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory", True),
    ],
)
def test_a_failure_is_reported_and_ends_the_process_that_may_have_suffered(
    monkeypatch, tmp_path, failure, words, raises
):
    plan = SearchPlan("s", str(tmp_path), build_config({}), None, "slide_auc", False, [], [], 0)  # type: ignore[arg-type]
    monkeypatch.setattr(trials, "search_bags", lambda _: {})
    monkeypatch.setattr(TrialTraining, "_training", Failing(failure))
    process = tune_adapter.TrialProcess.__new__(tune_adapter.TrialProcess)
    process.setup({TRIAL: Trial({"bags.top_k": 8}, 0)}, plan)
    first, second = process.step(), process.step()
    assert (first["score"], first["error"], first["done"]) == (0.6, None, False)
    assert (second["error"], second["is_lost"], second["done"]) == (
        words,
        isinstance(failure, StorageError),
        not raises,
    )
    if raises:
        with pytest.raises(type(failure)):
            process.step()
    process.reset_config({TRIAL: Trial({"bags.top_k": 2}, 0)})
    assert process.step()["score"] == 0.6


@pytest.mark.parametrize(("failure", "raises"), [(TrainingError("no"), False), (RuntimeError("a defect"), True)])
def test_a_failure_of_workers_is_reported_before_it_is_raised(monkeypatch, failure, raises):
    told: list[dict[str, Any]] = []

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(tune_adapter.tune, "report", told.append)
    monkeypatch.setattr(tune_adapter, "fit_workers", fail)
    if raises:
        with pytest.raises(RuntimeError):
            train_workers({TRIAL: Trial({}, 0)}, None)  # type: ignore[arg-type]
    else:
        train_workers({TRIAL: Trial({}, 0)}, None)  # type: ignore[arg-type]
    assert [(found["error"], found["is_lost"]) for found in told] == [(in_words(failure), False)]


def task_error(cause):
    return RayTaskError("step", "Traceback", cause)


@pytest.mark.parametrize(
    ("failure", "lost"),
    [
        (None, True),
        (ActorDiedError(), True),
        (task_error(ActorDiedError()), True),
        (task_error(StorageError("the server does not answer")), True),
        (task_error(StorageError("so it is")).as_instanceof_cause(), True),
        (task_error(RuntimeError("CUDA out of memory")), False),
        (task_error(RayError("Ray's word for what cannot be pickled")), False),
        (RuntimeError("an error that cannot be read"), False),
    ],
)
def test_lost_is_what_may_go_on_elsewhere(failure, lost):
    assert is_lost(failure) == lost


def test_a_failure_is_told_by_its_last_line_in_short():
    assert in_words(RuntimeError("Traceback\n  somewhere\nCUDA out of memory")) == "CUDA out of memory"
    assert len(in_words(RuntimeError("the actor died, maybe because " * 40))) <= 300
