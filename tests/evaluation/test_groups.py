"""Operating points, sites and classes against plain loops over the slides."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from distmil.evaluation.groups import called_classes, group_rows
from distmil.evaluation.intervals import Bootstrap, intervals_of
from distmil.evaluation.metrics import SPECIFICITIES, at_threshold, sensitivity_at, sensitivity_name
from distmil.inference.scoring import READ_OUTS
from tests.evaluation.test_intervals import middle, some_rows
from tests.support.scale import cases


def plain_sensitivity_at(is_positive, score, specificity):
    if is_positive.all() or not is_positive.any():
        return None
    cuts = [*score, np.inf]
    kept = [cut for cut in cuts if np.mean(score[~is_positive] < cut) >= specificity - 1e-12]
    return max(np.mean(score[is_positive] >= cut) for cut in kept)


def test_sensitivity_at_a_specificity_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(0)
    for _ in range(cases(200, full=5000)):
        num = int(rng.integers(1, 40))
        score, is_positive = rng.random(num).round(1), rng.random(num) < 0.4
        for specificity in (0.0, 0.5, 0.9, 0.95, 1.0):
            expected = plain_sensitivity_at(is_positive, score, specificity)
            assert sensitivity_at(is_positive, score, specificity=specificity) == expected


def test_rounding_does_not_ask_for_one_slide_more():
    assert 0.55 * 100 > 55  # in floating point
    score, is_positive = np.array([*range(100), 54.5]), np.arange(101) == 100
    assert sensitivity_at(is_positive, score, specificity=0.55) == 1
    whole = Bootstrap(np.arange(101), np.ones((101, 2)))
    assert whole.sensitivity_at(np.arange(101), is_positive, score, specificity=0.55) == (1, 1)


def test_intervals_of_operating_points_are_those_of_copied_patients():
    rng = np.random.default_rng(1)
    for _ in range(cases(10, full=200)):
        rows = some_rows(rng, 24)
        patients = [f"p{i}" for i in rng.integers(0, 12, 24)]
        found = intervals_of(rows, patients, slide_score="bag", threshold=0.5, draws=40)
        bootstrap = Bootstrap.of(patients, draws=40)
        score, is_positive = np.array([row.read_outs[0] for row in rows]), np.array([row.label > 0 for row in rows])
        drawn = {name: [] for name in (*map(sensitivity_name, SPECIFICITIES), "slide_balanced_accuracy")}
        for n in bootstrap.weight_PD[bootstrap.patient_S].astype(int).T:
            truth, value = np.repeat(is_positive, n), np.repeat(score, n)
            for share in SPECIFICITIES:
                got = plain_sensitivity_at(truth, value, share)
                drawn[sensitivity_name(share)].append(np.nan if got is None else got)
            has_both = truth.any() and not truth.all()
            got = balanced_accuracy_score(truth, value >= 0.5) if has_both else np.nan
            drawn["slide_balanced_accuracy"].append(got)
        for name, values in drawn.items():
            assert found[name] == pytest.approx(middle(values)), name


def test_balanced_accuracy_needs_both_classes():
    rows = [row for row in some_rows(np.random.default_rng(2), 30) if row.label]
    found = at_threshold(rows, slide_score="max", threshold=0.5)
    assert found["slide_balanced_accuracy"] is None
    assert found["slide_specificity"] is None
    assert found[sensitivity_name(0.9)] is None


def as_table(rows):
    return {(row["by"], row["group"], row["metric"]): row for row in rows}


def test_each_site_has_the_metrics_of_its_slides_alone():
    rng = np.random.default_rng(3)
    rows = some_rows(rng, 60)
    sites = [(None, "Ghent", "Utrecht")[i % 3] for i in range(60)]
    patients = [f"p{i // 2}" for i in range(60)]
    options = {"slide_score": "max", "threshold": 0.4}
    found = as_table(group_rows(rows, patients, sites, classes=("negative", "positive"), **options, draws=30))
    assert {group for by, group, _ in found} == {"Ghent", "Utrecht"}
    for site in ("Ghent", "Utrecht"):
        some = [row for row, name in zip(rows, sites, strict=True) if name == site]
        theirs = [patient for patient, name in zip(patients, sites, strict=True) if name == site]
        expected = at_threshold(some, **options)
        bounds = intervals_of(some, theirs, **options, draws=30)
        for name in ("sensitivity", "specificity", "balanced_accuracy"):
            assert found["site", site, name]["value"] == pytest.approx(expected[f"slide_{name}"])
        for name in ("auc", "ap", "accuracy", "sensitivity", "specificity", "balanced_accuracy"):
            row = found["site", site, name]
            assert (row["low"], row["high"]) == pytest.approx(bounds[f"slide_{name}"])
        assert row["slides"] == 20
        assert row["positive_slides"] == sum(one.label > 0 for one in some)
        assert row["patients"] == len(set(theirs))


def test_each_class_is_compared_with_the_others():
    rng = np.random.default_rng(4)
    rows = some_rows(rng, 50, classes=3)
    classes = ("normal", "adenoma", "carcinoma")
    options = {"slide_score": "max", "threshold": 0.4}
    found = as_table(group_rows(rows, [f"p{i}" for i in range(50)], [None] * 50, classes=classes, **options, draws=20))
    at = READ_OUTS.index("max")
    called = [1 + row.bag_C[1:].argmax() if row.read_outs[at] >= 0.4 else 0 for row in rows]
    assert called_classes(rows, **options).tolist() == called
    for index, name in enumerate(classes):
        truth = np.array([row.label == index for row in rows])
        is_called = np.array(called) == index
        assert found["class", name, "auc"]["value"] == pytest.approx(
            roc_auc_score(truth, [row.bag_C[index] for row in rows])
        )
        assert found["class", name, "sensitivity"]["value"] == pytest.approx(is_called[truth].mean())
        assert found["class", name, "specificity"]["value"] == pytest.approx((~is_called)[~truth].mean())
        assert found["class", name, "accuracy"]["value"] == pytest.approx((is_called == truth).mean())


def test_two_classes_without_sites_have_no_parts():
    rows = some_rows(np.random.default_rng(5), 5)
    assert group_rows(rows, list("abcde"), [None] * 5, classes=("a", "b"), slide_score="bag", threshold=0.5) == []
