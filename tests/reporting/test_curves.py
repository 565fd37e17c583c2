"""Curves enclose the areas that are stated, and bands are those of copied patients."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from distmil.evaluation.intervals import Bootstrap
from distmil.reporting import curves
from distmil.reporting.curves import MOST_POINTS, PLACES, precision_recall, roc
from tests.support.scale import cases


def some_slides(rng, *, digits=1):
    """Draw slides of both classes with tied scores."""
    num = int(rng.integers(4, 40))
    truth = rng.random(num) < rng.uniform(0.2, 0.8)
    truth[:2] = True, False
    score = np.round(np.clip(0.3 * truth + 0.7 * rng.random(num), 0, 1), digits)
    return truth, score, [f"p{i}" for i in rng.integers(0, max(2, num // 2), num)]


def test_the_area_under_each_curve_is_the_metric():
    rng = np.random.default_rng(0)
    for _ in range(cases(100, full=3000)):
        truth, score, patients = some_slides(rng)
        bootstrap = Bootstrap.of(patients, draws=3)
        curve = roc(truth, score, bootstrap)
        assert np.trapezoid(curve.y_T, curve.x_T) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
        assert (curve.x_T[0], curve.y_T[0], curve.x_T[-1], curve.y_T[-1]) == (0, 0, 1, 1)
        curve = precision_recall(truth, score, bootstrap)
        steps = np.diff(curve.x_T) * curve.y_T[1:]  # level between the corners, so that either end would do
        assert steps.sum() == pytest.approx(average_precision_score(truth, score), abs=1e-12)
        assert (np.diff(curve.x_T) * np.diff(curve.y_T) == 0).all()
        assert (curve.x_T[-2] < 1, curve.x_T[-1]) == (True, 1)


def plain_bands(truth, score, patients, weight_PD):
    """Copy the slides of each drawn patient, and take scikit-learn's curves."""
    names = sorted(set(patients))
    index = np.array([names.index(name) for name in patients])
    rising, stepped = [], []
    for weight_P in weight_PD.T:
        copied = np.repeat(np.arange(len(truth)), weight_P[index].astype(int))
        if len(set(truth[copied])) == 2:
            x, y, _ = roc_curve(truth[copied], score[copied], drop_intermediate=False)
            rising.append([max(y[np.isclose(x, at)], default=np.interp(at, x, y)) for at in PLACES])
        if truth[copied].any():
            precision, recall, _ = precision_recall_curve(truth[copied], score[copied])
            precision, recall = precision[:-1], recall[:-1]  # without the point that no threshold makes
            lowest = min(recall[recall > 0])
            stepped.append([precision[np.flatnonzero(recall >= max(at, lowest) - 1e-9)[-1]] for at in PLACES])
    return [np.percentile(drawn, [2.5, 97.5], axis=0) for drawn in (rising, stepped)]


def test_bands_are_those_of_the_plain_bootstrap_of_the_same_draws():
    rng = np.random.default_rng(1)
    for _ in range(cases(10, full=300)):
        truth, score, patients = some_slides(rng)
        if len(set(patients)) < 2:
            continue
        bootstrap = Bootstrap.of(patients, draws=25)
        expected = plain_bands(truth, score, patients, bootstrap.weight_PD)
        for trace, bounds in zip((roc, precision_recall), expected, strict=True):
            curve = trace(truth, score, bootstrap)
            np.testing.assert_allclose([curve.low_G, curve.high_G], bounds, atol=1e-9)


@pytest.mark.parametrize(("truth", "score"), [([True, True], [0.1, 0.2]), ([True, False], [np.nan, 0.2])])
@pytest.mark.parametrize("trace", [roc, precision_recall])
def test_what_is_not_defined_has_no_curve(trace, truth, score):
    assert trace(truth, score, Bootstrap.of(["a", "b"], draws=5)) is None


@pytest.mark.parametrize("trace", [roc, precision_recall])
def test_one_patient_leaves_no_band(trace):
    curve = trace([True, False, True], [0.9, 0.2, 0.1], Bootstrap.of(["a"] * 3, draws=5))
    assert curve.low_G is None
    assert curve.high_G is None
    assert len(curve.x_T) > 2


def test_a_curve_of_very_many_slides_is_thinned_and_keeps_its_ends(monkeypatch):
    rng = np.random.default_rng(2)
    truth = rng.random(20_000) < 0.5
    score = 0.1 * truth + rng.random(20_000)
    curve = roc(truth, score, Bootstrap.of(["a", "b"] * 10_000, draws=2))
    assert len(curve.x_T) <= MOST_POINTS
    with monkeypatch.context() as patch:
        patch.setattr(curves, "MAX_BINS", 10**6)
        whole = roc(truth, score, Bootstrap.of(["a", "b"] * 10_000, draws=2))
    np.testing.assert_allclose([curve.low_G, curve.high_G], [whole.low_G, whole.high_G], atol=2e-3)
    assert (curve.x_T[0], curve.y_T[-1]) == (0, 1)
    assert np.trapezoid(curve.y_T, curve.x_T) == pytest.approx(roc_auc_score(truth, score), abs=1e-3)
