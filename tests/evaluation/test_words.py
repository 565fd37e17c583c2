"""What the terminal shows of an evaluation: every metric by its name, and no more than a screen."""

import numpy as np

from distmil.evaluation.metrics import PATCH_SCORES
from distmil.evaluation.predictions import Evaluation, Rules, _measured
from distmil.evaluation.words import metric_tables
from tests.evaluation.test_intervals import some_rows

WHERE = {
    **{f"lesion_froc_{name}": 0.5 for name in PATCH_SCORES},
    **{f"pointing_{name}": None for name in PATCH_SCORES},
}
COUNTS = {"lesions": 7, "isolated_cells": 2, "lesion_slides": 12, "pointing_slides": 0}


def shown(evaluation):
    return {table.title: {row[0]: row[1:] for row in table.rows} for table in metric_tables("val", evaluation, "slide")}


def measured(temperature=None):
    rules = Rules(
        classes=("a", "b"), slide_score="max", threshold=0.4, temperature=temperature, patch_threshold=0.3, draws=20
    )
    rows = some_rows(np.random.default_rng(0), 30)
    return _measured(rows, [f"p{i}" for i in range(30)], rules)


def test_operating_points_and_calibration_are_shown_with_intervals():
    evaluation = measured(temperature=2.0)
    slides, patches = shown(evaluation).values()
    for name in ("balanced accuracy", "sensitivity at specificity 0.9", "calibration error", "Brier score, calibrated"):
        value, interval = slides[name]
        assert 0 <= float(value) <= 1
        assert " to " in interval
    assert set(patches) == set(PATCH_SCORES)
    (title,) = [title for title in shown(evaluation) if "patches" in title]
    assert f"at the patch threshold Dice {evaluation.metrics['patch_dice']:.2f} (" in title
    assert {row["probability"] for row in evaluation.details["reliability.csv"]} == {"as it is", "calibrated"}


def test_without_a_temperature_nothing_is_called_calibrated():
    assert not [name for name in measured().metrics if "calibrated" in name]


def test_where_targets_are_is_a_table_of_its_own():
    plain = measured()
    evaluation = Evaluation(plain.metrics | WHERE, plain.intervals, plain.counts | COUNTS)
    title, rows = list(shown(evaluation).items())[-1]
    assert title.startswith("7 lesions, and 2 of isolated cells that do not count on 12 slides whose targets are all")
    assert rows == dict.fromkeys(PATCH_SCORES, ("0.50", "", "not defined", ""))
    assert sum(len(table.rows) + 2 for table in metric_tables("val", evaluation, "slide")) <= 30
    assert len(metric_tables("val", plain, "slide")) == 2
