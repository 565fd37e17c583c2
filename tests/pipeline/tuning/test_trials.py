"""What runs in a trial's process, and what its group is told and asked for, without Ray's."""

from typing import Any

import pytest
import torch

from distmil.config.loading import build_config
from distmil.pipeline.training import group
from distmil.pipeline.tuning import scheduler, trials
from distmil.pipeline.tuning.trials import (
    TASK,
    WORKER_CORES,
    Sweep,
    clear_trial,
    group_report,
    train_group,
    trial_device,
)
from distmil.search.space import Task
from distmil.storage.store import Store
from distmil.training.checkpoints import checkpoint_folder
from distmil.training.engine import History

ROWS: list[dict[str, float | None]] = [{"val_slide_auc": value, "val_slide_loss": 0.5} for value in (0.6, 0.9, 0.7)]


@pytest.mark.parametrize(
    ("is_gpu", "is_there", "device"), [(True, True, "cuda:0"), (True, False, "cpu"), (False, True, "cpu")]
)
def test_a_trial_takes_the_gpu_that_it_was_given(monkeypatch, is_gpu, is_there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    assert trial_device(is_gpu=is_gpu) == torch.device(device)


@pytest.mark.parametrize(("patience", "told"), [(0, [0.6, 0.9, 0.7]), (2, [0.6, 0.9, 0.9])])
def test_a_group_tells_the_row_of_the_network_that_it_keeps(patience, told):
    config = build_config({"training": {"patience": patience, "epochs": 3}})
    found = [group_report(ROWS, epoch, config, "slide_auc") for epoch in range(3)]
    assert [report["score"] for report in found] == told == [report["row"]["val_slide_auc"] for report in found]
    assert [report["epoch"] for report in found] == [1, 2, 3]
    assert [report["is_last"] for report in found] == [False, False, True]


def test_groups_ask_for_the_cores_that_trials_at_once_are_counted_by(monkeypatch):
    config = build_config({"training": {"num_workers": 2, "use_gpu": False}})
    monkeypatch.setattr(group.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr(group, "is_autoscaling", lambda: False)
    monkeypatch.setattr(scheduler, "start_ray", lambda: None)
    monkeypatch.setattr(scheduler, "cluster_resources", lambda: {"CPU": 8.0})
    assert group._resources(config, is_gpu=False) == {"CPU": 4.0}  # a training of its own takes the node
    each = group._resources(config, is_gpu=False, cores=WORKER_CORES)["CPU"]
    assert scheduler.concurrency(config, {"memory": 1}) == 8 / (2 * each) == 4


@pytest.mark.parametrize("num_workers", [1, 2])
def test_nothing_is_left_of_a_trial_that_is_over_but_its_record(tmp_path, num_workers):
    values: dict[str, Any] = {"training": {"num_workers": num_workers}}
    sweep = Sweep("s", str(tmp_path), values, None, "slide_auc", False, [], [], 0)  # type: ignore[arg-type]
    store, task, other = Store(str(tmp_path)), Task({"bags.top_k": 8}, 0), Task({"bags.top_k": 2}, 0)
    left = [sweep.record_file(task), f"checkpoints/{sweep.checkpoint(other)}/fold-0/latest.json"]
    gone = [f"checkpoints/{sweep.checkpoint(task)}/fold-0/latest.json"]
    if num_workers > 1:
        left.append(f"ray-train/{sweep.group(other)}/checkpoint_1/x")
        gone += [f"{checkpoint_folder(sweep.group(task))}/cohort.json", f"ray-train/{sweep.group(task)}/checkpoint_1/x"]
    for name in (*left, *gone):
        store.write(name, b"x")
    clear_trial(sweep, task)
    clear_trial(sweep, task)  # again does no harm
    assert all(store.exists(name) for name in left)
    assert not any(store.exists(name) for name in gone)


class Fitted:
    """A group that trains the epochs that are missing, and tells of them."""

    def __init__(self, store, name, callback):
        self.store, self.name, self.callback = store, name, callback
        self.return_value: dict[str, Any] = {}

    def fit(self):
        return self


@pytest.mark.parametrize("committed", [0, 2, 3])
def test_a_group_that_goes_on_tells_its_rows_from_the_first(monkeypatch, tmp_path, committed):
    config = build_config({"training": {"num_workers": 2, "epochs": 3}})
    sweep = Sweep("s", str(tmp_path), config.model_dump(), None, "slide_auc", False, [], ["x"], 0)  # type: ignore[arg-type]
    store, task = sweep.store, Task({"bags.top_k": 8}, 0, is_repeat=True)
    store.write_json("checkpoints/s/cohort.json", [])
    told: list[dict[str, Any]] = []
    histories = iter([History(ROWS[:committed]), History(ROWS)])

    def make(_store, _config, name, _spec, callbacks, *, lease, cores):
        assert lease.run == name
        assert committed < 3
        for epoch in range(committed, 3):
            callbacks[0].after_report(None, [{**ROWS[epoch], "epoch": epoch, "epoch_s": 1.0}], None)
        return Fitted(store, name, callbacks)

    monkeypatch.setattr(trials.tune, "report", told.append)
    monkeypatch.setattr(trials.TuneReportCallback, "__init__", lambda _: None)  # it wants a session of Tune
    monkeypatch.setattr(
        trials.TuneReportCallback, "after_report", lambda _self, _context, rows, _: told.append(rows[0])
    )
    monkeypatch.setattr(trials, "make_trainer", make)
    monkeypatch.setattr(trials, "read_history", lambda *_: next(histories))
    monkeypatch.setattr(trials, "_bags", lambda *_: {"x": None})
    monkeypatch.setattr(trials, "judge_run", lambda *_, **__: {"slide_auc": 0.55})
    train_group({TASK: task}, sweep)
    assert [(found["epoch"], found["score"]) for found in told] == [(1, 0.6), (2, 0.9), (3, 0.7), (3, 0.7)]
    assert told[-1]["row"] == {**ROWS[2], "held_out_slide_auc": 0.55}
    assert told[-1]["is_last"]
