"""The course of a search, without Ray: what is compared at its end, and what a failure costs."""

from typing import Any

import pytest

from distmil.agenda import Agenda
from distmil.configfile import build_config
from distmil.errors import TrainingError
from distmil.search import TrialRecord
from distmil.stages import tune
from distmil.stages.runtime import Job
from distmil.stages.trials import Sweep
from distmil.storage import Store

SETTINGS = {"default": {"losses.bag": 1.0}, "best": {"losses.bag": 2.0}, "best without bag": {"losses.bag": 0.0}}


class NoBook:
    def trial_book(self, agenda: Agenda) -> Agenda:
        """Keep nothing."""
        return agenda


def repeat(monkeypatch: pytest.MonkeyPatch, root: str, fails: str) -> tune.Repeats:
    config = build_config({"search": {"repeats": 2}})
    sweep = Sweep("s", root, config.model_dump(), None, "slide_auc", False, [], [], 0, "claim")  # type: ignore[arg-type]

    def train(_sweep: Any, _config: Any, agenda: Any, **_: Any) -> None:
        for number, task in enumerate(iter(agenda.next, None)):
            record = TrialRecord(dict(task.values), task.seed, True, number, claim=task.claim)
            if task.values == SETTINGS[fails]:
                record.status, record.error = "failed", "no loss is left"
            else:
                record.status, record.score, record.rows = "finished", 0.8, [{"val_slide_auc": 0.8}]
            sweep.store.write_json(sweep.record_file(task), record.to_json())

    monkeypatch.setattr(tune, "run_agenda", train)
    return tune._repeat(Job(config, Store(root)), sweep, SETTINGS, NoBook())  # type: ignore[arg-type]


def test_a_failed_ablation_costs_its_row_alone(monkeypatch, tmp_path):
    found = repeat(monkeypatch, str(tmp_path), fails="best without bag")
    assert set(found.spreads) == {"default", "best"}
    assert "no loss is left" in found.failed["best without bag"]


def test_the_default_must_not_fail(monkeypatch, tmp_path):
    with pytest.raises(TrainingError, match="no loss is left"):
        repeat(monkeypatch, str(tmp_path), fails="default")
