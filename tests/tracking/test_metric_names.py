"""Names of metrics in MLflow: one section for training, for validation and for each other group."""

import random
import shutil

import pytest
from mlflow import MlflowClient

from distmil.models.losses import LOSSES
from distmil.tracking.metric_names import metric_name
from distmil.tracking.tracker import Tracker
from tests.support.scale import cases


@pytest.mark.parametrize(
    ("name", "group", "expected"),
    [
        ("loss", None, "train/loss"),
        ("loss_patch", None, "train/loss_patch"),
        ("epoch_s", None, "train/epoch_s"),
        ("val_slide_auc", None, "val/slide_auc"),
        ("val_threshold_bag", None, "val/threshold_bag"),
        ("held_out_slide_ap", None, "held_out/slide_ap"),
        ("value", None, "train/value"),
        ("slide_auc", "final/val", "final/val/slide_auc"),
        ("bag", "threshold", "threshold/bag"),
        ("held_out_best_mean", "search", "search/held_out_best_mean"),
        ("system/disk", None, "system/disk"),
    ],
)
def test_names_are_grouped(name, group, expected):
    assert metric_name(name, group) == expected


@pytest.mark.parametrize("seed", range(cases(30, full=1000)))
def test_different_metrics_of_a_row_stay_different(seed):
    generator = random.Random(seed)
    words = ["val", "held", "out", "train", "loss", "slide", "auc", *LOSSES]
    row = {"_".join(generator.choices(words, k=generator.randint(1, 4))) for _ in range(40)}
    assert len({metric_name(name) for name in row}) == len(row)


def test_a_run_that_began_under_other_names_keeps_them_and_is_completed(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "an experiment")
    tracker.start("a run", artifacts=str(tmp_path))
    client = MlflowClient(tracker.uri)
    for step in range(2):  # as an earlier distmil recorded it
        client.log_metric(tracker.run_id, "loss", 0.9 - step / 10, step=step)
        client.log_metric(tracker.run_id, "val_slide_auc", 0.5, step=step)
    tracker.log_metrics({"loss": 0.7, "val_slide_auc": 0.6}, step=2)
    rows = [{"loss": 0.9 - step / 10, "val_slide_auc": 0.5} for step in range(3)]
    assert (tracker.sync(rows), tracker.sync(rows)) == (2, 0)
    for name, steps in (("loss", [0, 1]), ("train/loss", [0, 1, 2]), ("val/slide_auc", [0, 1, 2])):
        history = client.get_metric_history(tracker.run_id, name)
        assert sorted(point.step for point in history) == steps
