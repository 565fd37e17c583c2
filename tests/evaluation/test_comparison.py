"""Runs against each other: DeLong by all pairs, differences by copied patients, and what is refused."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from distmil.errors import BadInput
from distmil.evaluation.comparison import compare, delong
from distmil.evaluation.intervals import Bootstrap
from distmil.evaluation.slide_results import RIGHT, WRONG, SlideResult
from tests.evaluation.test_intervals import middle
from tests.support.scale import cases


def some_results(rng, num, *, threshold=0.5, digits=2, truth=None):
    results = []
    for i in range(num):
        is_positive = bool(rng.random() < 0.5) if truth is None else truth[i]
        probability = float(np.round(np.clip(0.3 * is_positive + 0.7 * rng.random(), 0, 1), digits))
        label, predicted = ("positive" if value else "negative" for value in (is_positive, probability >= threshold))
        results.append(SlideResult(
            f"s{i}", "ok", RIGHT if label == predicted else WRONG, label, predicted, probability, threshold,
            patient_id=f"p{i // 2}",
        ))  # fmt: skip
    return results


def a_pair(rng, num):
    first = some_results(rng, num)
    truth = [result.label == "positive" for result in first]
    return first, some_results(rng, num, threshold=0.6, truth=truth), np.array(truth)


def plain_delong(truth, first, other):
    """The variance of the difference from the kernel of every pair, written out."""
    kernel = np.stack([
        [[(p > n) + 0.5 * (p == n) for n in score[~truth]] for p in score[truth]] for score in (first, other)
    ])  # fmt: skip
    difference = kernel[1] - kernel[0]
    area = difference.mean()
    num_positive, num_negative = difference.shape
    by_positive = ((difference.mean(axis=1) - area) ** 2).sum() / (num_positive - 1) / num_positive
    by_negative = ((difference.mean(axis=0) - area) ** 2).sum() / (num_negative - 1) / num_negative
    variance = by_positive + by_negative
    return 2 * norm.sf(abs(area) / np.sqrt(variance)) if variance > 1e-15 else None


def test_delong_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(cases(100, full=3000)):
        num = int(rng.integers(6, 40))
        truth = rng.random(num) < 0.4
        first, other = rng.random(num).round(1) + 0.2 * truth, rng.random(num).round(1)
        if min(truth.sum(), (~truth).sum()) < 2:
            assert delong(truth, first, other) is None
            continue
        expected = plain_delong(truth, first, other)
        if expected is not None:
            assert delong(truth, first, other) == pytest.approx(expected, rel=1e-9, abs=1e-12)
            compared += 1
    assert compared > 50


def test_delong_is_seldom_below_five_percent_where_nothing_differs():
    rng = np.random.default_rng(1)
    values = []
    for _ in range(400):
        truth = np.arange(80) < 40
        common = truth + rng.normal(0, 1, 80)
        values.append(delong(truth, common + rng.normal(0, 1, 80), common + rng.normal(0, 1, 80)))
    assert 0.02 < np.mean(np.array(values) < 0.05) < 0.09


def test_equal_rankings_do_not_differ():
    truth, score = np.arange(9) < 4, np.linspace(0, 1, 9)
    assert delong(truth, score, score**2) == 1


def plain_metrics(truth, results, times):
    score = np.repeat([result.probability for result in results], times)
    called = np.repeat([result.probability >= result.threshold for result in results], times)
    truth = np.repeat(truth, times)
    has_both = truth.any() and not truth.all()
    sensitivity = called[truth].mean() if truth.any() else np.nan
    specificity = (~called)[~truth].mean() if not truth.all() else np.nan
    return {
        "auc": roc_auc_score(truth, score) if has_both else np.nan,
        "ap": average_precision_score(truth, score) if truth.any() else np.nan,
        "accuracy": np.mean(called == truth),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "brier": np.mean((score - truth) ** 2),
    }


def test_differences_are_paired_and_those_of_copied_patients():
    rng = np.random.default_rng(2)
    for _ in range(cases(10, full=200)):
        first, other, truth = a_pair(rng, 20)
        (found,) = compare({"a": first, "b": other}, normal="negative", draws=30)
        once = np.ones(20, int)
        values = [plain_metrics(truth, results, once) for results in (first, other)]
        bootstrap = Bootstrap.of([result.patient_id for result in first], draws=30)
        drawn = [
            [plain_metrics(truth, results, times) for results in (first, other)]
            for times in bootstrap.weight_PD[bootstrap.patient_S].astype(int).T
        ]
        for row in found.rows:
            name = row["metric"]
            assert (row["first"], row["other"]) == pytest.approx([value[name] for value in values])
            assert row["difference"] == pytest.approx(values[1][name] - values[0][name])
            expected = middle([pair[1][name] - pair[0][name] for pair in drawn])
            assert (row["low"], row["high"]) == pytest.approx(expected), name
            assert (row["p"] is None) == (name != "auc")


def test_slides_that_changed_their_prediction_are_listed_those_now_wrong_first():
    first, other, _ = a_pair(np.random.default_rng(3), 30)
    (found,) = compare({"a": first, "b": other}, normal="negative", draws=5)
    changed = {one.slide_id for one, two in zip(first, other, strict=True) if one.predicted != two.predicted}
    assert {row["slide_id"] for row in found.changed} == changed
    assert len(found.changed) == len(changed) > 3
    verdicts = [row["now"] for row in found.changed]
    assert verdicts == sorted(verdicts, reverse=True)
    assert set(verdicts) == {RIGHT, WRONG}


def test_every_run_is_compared_with_the_first():
    first, other, _ = a_pair(np.random.default_rng(4), 20)
    found = compare({"a": first, "b": other, "c": first}, normal="negative", draws=5)
    assert [(one.first, one.other) for one in found] == [("a", "b"), ("a", "c")]
    assert all(row["difference"] == 0 for row in found[1].rows)
    assert found[1].changed == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda some: some[1:], "s0 has a label and a prediction in a, and not in b"),
        (lambda some: some[:8], r"s\d+, .* and 7 more has a label"),
        (lambda some: [dataclasses.replace(some[0], label="other"), *some[1:]], "the label of s0 differs"),
        (lambda some: [dataclasses.replace(some[0], patient_id="x"), *some[1:]], "the patient of s0 differs"),
        (lambda some: [dataclasses.replace(some[0], verdict=""), *some[1:]], "s0 has a label and a prediction in a"),
    ],
)
def test_runs_on_different_slides_are_refused_with_the_reason(change, reason):
    first = some_results(np.random.default_rng(5), 20)
    with pytest.raises(BadInput, match=f"a and b cannot be compared: .*{reason}"):
        compare({"a": first, "b": change(first)}, normal="negative")
    with pytest.raises(BadInput, match="b and a cannot be compared"):
        compare({"b": change(first), "a": first}, normal="negative")


def test_runs_without_labels_are_refused():
    unlabelled = [dataclasses.replace(result, verdict="") for result in some_results(np.random.default_rng(6), 4)]
    with pytest.raises(BadInput, match="neither has a slide with a label and a prediction"):
        compare({"a": unlabelled, "b": unlabelled}, normal="negative")
