"""Calibration by hand, against a plain loop, and a temperature against what it must bring back."""

import numpy as np
import pytest

from distmil.evaluation.calibration import (
    MIN_SLIDES,
    calibration_of,
    choose_temperatures,
    fit_temperature,
)
from distmil.evaluation.intervals import Bootstrap
from distmil.inference.scoring import READ_OUTS
from distmil.inference.thresholds import calibrated, logit
from tests.evaluation.test_intervals import some_rows
from tests.support.scale import cases


def drawn(patients, draws=50):
    return Bootstrap.of(patients, draws=draws)


def test_a_hand_made_case():
    # 0.2 and 0.25 lie in one bin: mean 0.225, none abnormal; 0.9 and 1.0 in the last: mean 0.95, half abnormal
    found = calibration_of([False, False, True, False], [0.2, 0.25, 0.9, 1.0], drawn(list("abcd")))
    assert found.error == pytest.approx(0.5 * 0.225 + 0.5 * 0.45)
    assert found.brier == pytest.approx((0.04 + 0.0625 + 0.01 + 1) / 4)
    assert [(row["from"], row["slides"], row["share_abnormal"]) for row in found.rows] == [(0.2, 2, 0.0), (0.9, 2, 0.5)]
    assert [row["mean_probability"] for row in found.rows] == pytest.approx([0.225, 0.95])


def plain_error(is_positive, probability):
    error = 0.0
    for i in range(10):
        inside = [min(int(value * 10), 9) == i for value in probability]
        if any(inside):
            error += np.mean(inside) * abs(probability[inside].mean() - is_positive[inside].mean())
    return error


def test_the_error_and_its_interval_are_those_of_copied_patients():
    rng = np.random.default_rng(0)
    for _ in range(cases(20, full=500)):
        num = int(rng.integers(3, 30))
        probability, is_positive = rng.random(num).round(2), rng.random(num) < 0.5
        patients = [f"p{i}" for i in rng.integers(0, max(2, num // 2), num)]
        if len(set(patients)) < 2:
            continue
        bootstrap = drawn(patients)
        found = calibration_of(is_positive, probability, bootstrap)
        assert found.error == pytest.approx(plain_error(is_positive, probability))
        times = bootstrap.weight_PD[bootstrap.patient_S].astype(int)
        errors = [plain_error(np.repeat(is_positive, n), np.repeat(probability, n)) for n in times.T]
        assert found.error_interval == pytest.approx(tuple(np.percentile(errors, [2.5, 97.5])))


def test_perfect_and_worst_probabilities():
    found = calibration_of([True, False], [1.0, 0.0], drawn(list("ab")))
    assert (found.error, found.brier) == (0, 0)
    found = calibration_of([True, False], [0.0, 1.0], drawn(list("ab")))
    assert (found.error, found.brier) == (1, 1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_probabilities_too_sure_is_found(temperature):
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 2, 40_000)
    is_positive = rng.random(40_000) < 1 / (1 + np.exp(-truth))
    stated = 1 / (1 + np.exp(-truth * temperature))
    assert fit_temperature(is_positive, stated) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_has_the_least_cross_entropy():
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(cases(100, full=3000)):
        num = int(rng.integers(MIN_SLIDES, 60))
        probability, is_positive = rng.random(num), rng.random(num) < 0.5
        probability = np.clip(probability + 0.2 * is_positive, 0, 1)
        temperature = fit_temperature(is_positive, probability)
        if temperature is None:
            continue
        found += 1

        def entropy(value, probability=probability, is_positive=is_positive):
            scaled = np.array([calibrated(one, value) for one in np.clip(probability, 1e-15, 1 - 1e-15)])
            return -np.log(np.where(is_positive, scaled, 1 - scaled)).mean()

        best = entropy(temperature)
        assert all(best <= entropy(temperature * factor) + 1e-9 for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2))
    assert found > 50


@pytest.mark.parametrize(
    ("is_positive", "probability"),
    [
        ([True, False, True, False], [0.9, 0.2, 0.4, 0.6]),  # too few
        ([True] * 20, np.linspace(0.1, 0.9, 20)),  # one class
        ([True, False] * 10, [0.8, 0.3] * 10),  # told apart without a mistake: any temperature near 0 would be better
        ([True, False] * 10, [0.3, 0.8] * 10),  # the wrong way round: the higher the better
        ([True, False] * 10, [0.7, np.nan] * 10),  # a read-out that a bundle lacks
    ],
)
def test_slides_that_say_nothing_of_the_temperature_give_none(is_positive, probability):
    assert fit_temperature(is_positive, probability) is None


def test_every_read_out_has_a_temperature_of_its_own():
    rows = some_rows(np.random.default_rng(3), 80)
    found = choose_temperatures(rows)
    assert set(found) == {f"temperature_{name}" for name in READ_OUTS}
    for i, name in enumerate(READ_OUTS):
        expected = fit_temperature([row.label > 0 for row in rows], [row.read_outs[i] for row in rows])
        assert found[f"temperature_{name}"] == expected
    assert choose_temperatures([]) == {}


def test_calibration_keeps_the_order_the_half_and_the_ends():
    rng = np.random.default_rng(4)
    for temperature in (0.3, 1.0, 5.0):
        value = np.sort(rng.random(50))
        scaled = [calibrated(one, temperature) for one in value]
        assert (np.diff(scaled) > 0).all()
        assert logit(scaled) * temperature == pytest.approx(logit(value), abs=1e-6)
        assert [calibrated(one, temperature) for one in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
