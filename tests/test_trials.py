"""What runs in a trial's process, and what its group is told and asked for, without Ray's."""

from typing import Any

import pytest
import torch

from distmil.checkpoints import checkpoint_folder
from distmil.configfile import build_config
from distmil.search import Task
from distmil.stages import fit, sweeping
from distmil.stages.trials import WORKER_CORES, Sweep, clear_trial, group_report, trial_device
from distmil.storage import Store

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
    monkeypatch.setattr(fit.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr(fit, "is_autoscaling", lambda: False)
    monkeypatch.setattr(sweeping, "start_ray", lambda: None)
    monkeypatch.setattr(sweeping, "cluster_resources", lambda: {"CPU": 8.0})
    assert fit._resources(config, is_gpu=False) == {"CPU": 4.0}  # a training of its own takes the node
    each = fit._resources(config, is_gpu=False, cores=WORKER_CORES)["CPU"]
    assert sweeping.concurrency(config, {"memory": 1}) == 8 / (2 * each) == 4


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
