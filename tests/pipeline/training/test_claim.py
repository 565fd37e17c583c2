"""What a name stands for: settings and data, the slides of each fold with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distmil.cohort import Cohort, Slide
from distmil.config.loading import build_config
from distmil.encoders.registry import EncoderSpec
from distmil.errors import ConfigError, StorageError, TrainingError
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import Prepared
from distmil.pipeline.training.claim import (
    Claim,
    _is_complete,
    _lost_validation,
    _short_bags,
    _supervision,
    read_record_id,
    write_record_id,
)
from distmil.pipeline.training.workers import check_finished
from distmil.pipeline.tuning.job import identity
from distmil.storage.records import Record
from distmil.storage.store import Store
from distmil.training.engine import History
from distmil.training.run_files import run_file
from tests.support.bags import make_bag

SPEC = EncoderSpec(name="texture", digest="", dimension=12, weights_file=None)
FOLDS = [(["a", "b"], ["c", "d"]), (["c", "d"], ["a", "b"])]


def claim(store: Store, folds: Any, held_out: list[str], **labels: Any) -> str:
    job = Job(build_config({"search": {"run": "s", "folds": 2}, "labels": labels}), store)
    more = identity(job.config.search, folds, held_out)
    cohort, prepared = Cohort([], ["negative", "positive"]), Prepared([], {}, {}, {})
    return Claim(job, SPEC, cohort, "s", "tune", more).take(prepared)


def test_a_search_on_other_folds_needs_another_name(tmp_path):
    store = Store(str(tmp_path))
    assert claim(store, FOLDS, ["e"]) == claim(store, FOLDS, ["e"]) == "s"
    for folds, held_out in ((FOLDS[::-1], ["e"]), (FOLDS, ["e", "f"])):
        with pytest.raises(ConfigError, match="slides of the folds") as caught:
            claim(store, folds, held_out)
        assert f"delete {store.path('checkpoints/s')} and {store.path('searches/s')}" in str(caught.value)


def test_a_training_with_another_setting_needs_another_name(tmp_path):
    cohort, prepared = Cohort([], ["negative", "positive"]), Prepared([], {}, {}, {})

    def claim_with(**training: float) -> str:
        job = Job(build_config({"training": training}), Store(str(tmp_path)))
        return Claim(job, SPEC, cohort, "small", "train").take(prepared)

    assert claim_with() == claim_with(lr=0.001) == "small"
    with pytest.raises(ConfigError, match=r"training\.run = 'small' was started with something else") as caught:
        claim_with(lr=0.5)
    assert "training.lr: 0.001 then, 0.5 now" in str(caught.value)
    assert caught.value.exit_code == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def swap(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.35", 1))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, swap, empty])
def test_a_damaged_claim_is_no_reason_to_go_on_with_other_settings(tmp_path, damage):
    store = Store(str(tmp_path))
    claim(store, FOLDS, ["e"])
    damage(Path(store.path(run_file("s", "run"))))
    with pytest.raises(StorageError, match=r"run\.json is damaged; restore it, choose another name, or delete"):
        claim(store, FOLDS, ["e"])


@pytest.mark.parametrize("left", ["checkpoints/s/latest.json", "searches/s/trials/a.json"])
def test_a_claim_that_is_gone_beside_results_is_told(tmp_path, left):
    store = Store(str(tmp_path))
    claim(store, FOLDS, ["e"])
    store.delete(run_file("s", "run"))
    assert claim(store, FOLDS, ["e"]) == "s"  # nothing was made yet
    store.delete(run_file("s", "run"))
    store.write(left, b"{}")
    with pytest.raises(StorageError, match="is gone, but results of run s are there"):
        claim(store, FOLDS, ["e"])


def test_a_claim_of_an_earlier_version_is_read(tmp_path):
    store = Store(str(tmp_path))
    claim(store, FOLDS, ["e"])
    name = run_file("s", "run")
    store.write_json(name, store.read_checked(name, owner="s"))
    assert claim(store, FOLDS, ["e"]) == "s"
    with pytest.raises(ConfigError, match="slides of the folds"):
        claim(store, FOLDS[::-1], ["e"])


def test_a_damaged_note_of_the_mlflow_run_costs_only_its_continuity(tmp_path, capsys):
    job = Job(build_config({}), Store(str(tmp_path)))
    assert read_record_id(job, "r") is None
    write_record_id(job.store, "r", "abc")
    assert read_record_id(job, "r") == "abc"
    cut(Path(job.store.path(run_file("r", "mlflow"))))
    assert read_record_id(job, "r") is None
    assert "mlflow.json is damaged: MLflow gets a new run for r" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("rows", [None, 0, 11])
def test_nothing_is_made_of_a_history_that_is_not_finished(rows):
    config = build_config({"training": {"epochs": 12}})
    history = None if rows is None else History([{"loss": 1.0}] * rows)
    with pytest.raises(TrainingError, match=f"ended after {rows or 0} of 12 epochs"):
        check_finished(history, config, "r")
    whole = History([{"loss": 1.0}] * 12)
    assert check_finished(whole, config, "r") is whole


def test_patience_with_annotations_is_no_other_run_but_another_origin_is(tmp_path):
    store = Store(str(tmp_path))
    for labels in ({}, {"timeout_s": 900}, {"on_bad_annotation": "label_only"}):
        assert claim(store, FOLDS, ["e"], **labels) == "s"
    with pytest.raises(ConfigError, match=r"labels.origin: 'auto' then, 'bounds' now"):
        claim(store, FOLDS, ["e"], origin="bounds")


BORDER = np.array([1, 0, 0, -1])


@pytest.mark.parametrize(
    ("label", "label_N", "is_complete", "kind"),
    [
        (0, BORDER, False, "negative"),
        (1, BORDER, True, "annotated"),  # the unknown patch lies at the border of a target
        (1, BORDER, False, "part annotated"),
        (1, np.array([1, 0]), False, "annotated"),
        (1, np.array([-1, -1]), True, "label only"),
    ],
)
def test_a_slide_is_annotated_where_its_outline_is_complete(label, label_N, is_complete, kind):
    assert _supervision(label, label_N, is_complete=is_complete) == kind


@pytest.mark.parametrize(
    ("key", "info", "is_complete"),
    [
        ({"annotation": "c0ffee", "annotation_complete": True}, {}, True),
        ({"annotation": "c0ffee", "annotation_complete": False}, {}, False),
        ({"annotation": None, "annotation_complete": True}, {}, False),
        ({"annotation": "c0ffee", "annotation_complete": True}, {"unusable": "it is no XML"}, False),
        ({}, {}, False),
    ],
)
def test_only_an_annotation_that_can_be_used_is_complete(key, info, is_complete):
    assert _is_complete(Record("s", key, info=info)) is is_complete


def test_bags_with_fewer_top_patches_are_counted():
    bags = [make_bag(i, size=size) for i, size in enumerate((20, 41, 80, 200))]  # a tenth: 2, 5, 8, 20
    (note,) = _short_bags(bags, build_config({}), "image")
    assert note.startswith("bags.top_k = 8 is cut to 2 to 5 on 2 of 4 train images: K is at most bags.top_k_share =")
    assert _short_bags(bags, build_config({"bags": {"top_k": 2}}), "image") == []
    assert _short_bags(bags, build_config({"bags": {"top_k_share": 1}}), "image") == []
    assert _short_bags(bags, build_config({"model": {"name": "mean"}}), "image") == []


def test_a_training_that_lost_its_validation_slides_is_noted():
    train, val = make_bag(1), replace(make_bag(2), split="val")
    asked = Cohort([Slide("a", "a.png", 1, split="train"), Slide("b", "b.png", 0, split="val")], ["no", "yes"])
    assert _lost_validation([train, val], asked) == []
    for bags in ([train], [train, replace(val, label=None)], [train, replace(val, split="test")]):
        (note,) = _lost_validation(bags, asked)
        assert note.startswith("none of the 1 val images can be used: no validation metrics, no best epoch")
    never = Cohort([asked.slides[0], replace(asked.slides[1], label=None)], ["no", "yes"])
    assert _lost_validation([train], never) == []  # noted before the work began
