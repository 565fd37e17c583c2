"""Intervals against a plain bootstrap: the drawn patients' slides copied out, and scikit-learn's metrics of them."""

import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from distmil.evaluation.intervals import MAX_BINS, Bootstrap, intervals_of
from distmil.evaluation.metrics import PATCH_SCORES, LabelledScores
from distmil.inference.scoring import READ_OUTS
from tests.support.scale import cases


def some_rows(rng, num_slides, *, patches=40, classes=2, digits=2):
    rows = []
    for _ in range(num_slides):
        label = int(rng.integers(classes))
        bag_C = rng.dirichlet(np.ones(classes))
        read_outs = tuple(np.round(np.clip(0.3 * (label > 0) + 0.7 * rng.random(len(READ_OUTS)), 0, 1), digits))
        num = int(rng.integers(0, patches)) if rng.random() < 0.7 else 0
        is_target = rng.random(num) < 0.3
        scores = tuple(
            np.round(np.clip(0.2 * is_target + 0.8 * rng.random(num), 0, 1), digits).astype(np.float32)
            for _ in PATCH_SCORES
        )
        rows.append(LabelledScores(label, bag_C, read_outs, is_target, scores))
    return rows


def middle(values):
    found = [value for value in values if np.isfinite(value)]
    return tuple(np.percentile(found, [2.5, 97.5])) if found else None


def plain(rows, patients, weight_PD, *, slide_score, threshold):
    """Work out every draw by itself."""
    names = sorted(set(patients))
    kept = {}
    for weight_P in weight_PD.T:
        times = dict(zip(names, weight_P.astype(int), strict=True))
        drawn = [row for row, patient in zip(rows, patients, strict=True) for _ in range(times[patient])]
        label = np.array([row.label for row in drawn])
        counts = np.array([row.read_outs[READ_OUTS.index(slide_score)] for row in drawn])
        is_called, is_positive = counts >= threshold, label > 0
        values = {
            "slide_accuracy": np.mean(is_called == is_positive),
            "slide_sensitivity": np.mean(is_called[is_positive]) if is_positive.any() else np.nan,
            "slide_specificity": np.mean(~is_called[~is_positive]) if (~is_positive).any() else np.nan,
        }
        rankings = {"slide": (is_positive, counts)}
        for i, name in enumerate(PATCH_SCORES):
            is_target = np.concatenate([row.is_target_N for row in drawn])
            rankings[f"patch_{name}"] = (is_target, np.concatenate([row.scores_N[i] for row in drawn]))
        for name, (truth, score) in rankings.items():
            kind, _, rest = name.partition("_")
            end = f"_{rest}" if rest else ""
            has_both = 0 < truth.sum() < len(truth)
            values[f"{kind}_auc{end}"] = roc_auc_score(truth, score) if has_both else np.nan
            values[f"{kind}_ap{end}"] = average_precision_score(truth, score) if truth.any() else np.nan
        for name, value in values.items():
            kept.setdefault(name, []).append(value)
    return {name: middle(values) for name, values in kept.items()}


def test_intervals_are_those_of_the_plain_bootstrap_of_the_same_draws():
    rng = np.random.default_rng(0)
    for _ in range(cases(6, full=300)):
        num_slides = int(rng.integers(4, 25))
        rows = some_rows(rng, num_slides)
        patients = [f"p{i}" for i in rng.integers(0, max(2, num_slides * 2 // 3), num_slides)]
        if len(set(patients)) < 2:
            continue
        threshold = float(rng.random())
        found = intervals_of(rows, patients, slide_score="max", threshold=threshold, draws=40)
        weight_PD = Bootstrap.of(patients, draws=40).weight_PD
        for name, interval in plain(rows, patients, weight_PD, slide_score="max", threshold=threshold).items():
            assert found[name] == (None if interval is None else pytest.approx(interval, abs=1e-9)), name


def test_intervals_agree_with_independent_draws():
    rng = np.random.default_rng(1)
    rows = some_rows(rng, 60, digits=6)
    patients = [f"p{i // 2}" for i in range(60)]
    found = intervals_of(rows, patients, slide_score="bag", threshold=0.5, draws=4000)
    draws = rng.integers(0, 30, (400, 30))
    weight_PD = np.stack([np.bincount(draw, minlength=30) for draw in draws], axis=1).astype(float)
    names = sorted(set(patients))
    order = [names.index(f"p{i}") for i in range(30)]
    expected = plain(rows, patients, weight_PD[np.argsort(order)], slide_score="bag", threshold=0.5)
    for name, interval in expected.items():
        width = interval[1] - interval[0]
        assert found[name] == pytest.approx(interval, abs=0.25 * width + 0.005), name


def test_all_slides_of_a_patient_are_drawn_together():
    """With each slide ten times under one patient, the interval is as wide as of one each, not narrower."""
    rng = np.random.default_rng(2)
    rows = some_rows(rng, 20)
    patients = [f"p{i}" for i in range(20)]
    once = intervals_of(rows, patients, slide_score="bag", threshold=0.5)
    copies = [(row, patient) for row, patient in zip(rows, patients, strict=True) for _ in range(10)]
    often = intervals_of(*map(list, zip(*copies, strict=True)), slide_score="bag", threshold=0.5)
    assert often["slide_auc"] == pytest.approx(once["slide_auc"], abs=1e-9)
    assert often["slide_accuracy"] == pytest.approx(once["slide_accuracy"], abs=1e-9)


def test_many_distinct_scores_are_ranked_into_bins_within_a_thousandth():
    rng = np.random.default_rng(3)
    num = 20 * MAX_BINS
    is_positive = rng.random(num) < 0.02
    score = rng.beta(1, 30, num) + 0.02 * is_positive * rng.random(num)
    bootstrap = Bootstrap.of([f"p{i}" for i in range(50)], draws=3)
    bootstrap.weight_PD[:] = 1  # every draw is the whole
    area, average = bootstrap.ranking(np.arange(num) % 50, is_positive, score)
    assert area[0] == area[1] == pytest.approx(roc_auc_score(is_positive, score), abs=1e-3)
    assert average[0] == pytest.approx(average_precision_score(is_positive, score), abs=2e-3)


@pytest.mark.parametrize(("num", "patients"), [(1, ["a"]), (3, ["a", "a", "a"])])
def test_one_patient_leaves_nothing_to_draw(num, patients):
    found = intervals_of(some_rows(np.random.default_rng(4), num), patients, slide_score="bag", threshold=0.5)
    assert set(found.values()) == {None}


def test_no_slides_have_no_intervals():
    assert intervals_of([], [], slide_score="bag", threshold=0.5) == {}


def test_a_cohort_of_a_million_patches_takes_seconds():
    rng = np.random.default_rng(5)
    rows = some_rows(rng, 300, patches=10_000, digits=7)
    start = time.process_time()
    found = intervals_of(rows, [f"p{i}" for i in range(300)], slide_score="bag", threshold=0.5)
    assert time.process_time() - start < 30  # about 3 s; the limit is for busy machines
    assert all(found.values())
