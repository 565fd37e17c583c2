"""Folds: no patient on both sides, both classes on both, every slide judged once."""

from dataclasses import replace

import numpy as np
import pytest

from distmil.cohort import Slide
from distmil.errors import ConfigError
from distmil.search.folds import check_labels, check_metric, patient_folds
from tests.support.bags import make_bag, make_bags


def cohort(patients: int, *, slides_each: int = 2, positive_every: int = 2) -> list[Slide]:
    return [
        Slide(f"s{p:02d}-{i}", "x.svs", label=int(p % positive_every == 0), patient_id=f"p{p}")
        for p in range(patients)
        for i in range(slides_each)
    ]


@pytest.mark.parametrize("seed", range(10))
def test_patients_stay_together_and_every_slide_is_judged_once(seed: int) -> None:
    slides = cohort(24, positive_every=3)
    folds = patient_folds(slides, count=4, seed=seed)
    patient_of = {slide.slide_id: slide.patient_id for slide in slides}
    label_of = {slide.slide_id: slide.label for slide in slides}
    assert sorted(i for _, validation in folds for i in validation) == sorted(patient_of)
    for learning, validation in folds:
        assert sorted(learning + validation) == sorted(patient_of)
        assert not {patient_of[i] for i in learning} & {patient_of[i] for i in validation}
        assert {label_of[i] for i in validation} == {label_of[i] for i in learning} == {0, 1}


def test_folds_follow_the_seed() -> None:
    slides = cohort(24)
    assert patient_folds(slides, count=3, seed=1) == patient_folds(slides, count=3, seed=1)
    assert patient_folds(slides, count=3, seed=1) != patient_folds(slides, count=3, seed=2)


def test_slides_without_a_patient_are_patients_of_their_own() -> None:
    slides = [Slide(f"s{i}", "x.svs", label=i % 2) for i in range(8)]
    assert len(patient_folds(slides, count=4, seed=0)) == 4


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"search\.folds = 5: the rarest class has 3 patients"):
        patient_folds(cohort(9, positive_every=3), count=5, seed=0)


@pytest.mark.parametrize(
    ("labels", "metric", "is_refused"),
    [
        ([0, 0], "slide_auc", True),
        ([1, 2], "slide_ap", True),
        ([1, 2], "loss", False),
        ([1, 1], "loss", True),
        ([0, 2], "slide_auc", False),
        ([1, 1], "patch_ap_probability", False),
    ],
)
def test_slides_of_one_class_judge_nothing(labels: list[int], metric: str, is_refused: bool) -> None:
    if not is_refused:
        check_labels(labels, metric, where="val")
        return
    with pytest.raises(ConfigError, match=rf"search\.metric = '{metric}': val has slides of one kind only"):
        check_labels(labels, metric, where="val")


def test_the_fold_that_cannot_judge_is_named() -> None:
    good = make_bags(4)
    check_metric([good, good], "slide_auc")
    check_metric([good, good], "patch_ap_probability")
    with pytest.raises(ConfigError, match=r"fold 2 of 2 has slides of one kind only \(2 of class 1\)"):
        check_metric([good, [make_bag(1), make_bag(3)]], "slide_auc")
    pseudo = [make_bag(1), replace(make_bag(2), is_pseudo=True)]
    with pytest.raises(ConfigError, match="val has slides of one kind only"):
        check_metric([pseudo], "slide_auc")


@pytest.mark.parametrize(("kind", "value"), [("positive", 0), ("negative", 1)])
def test_patch_labels_of_one_kind_judge_nothing(kind: str, value: int) -> None:
    bags = [replace(bag, label_N=np.full_like(bag.label_N, value)) for bag in make_bags(4)]
    with pytest.raises(ConfigError, match=f"fold 1 of 2 has no {kind} patch label"):
        check_metric([bags, make_bags(4)], "patch_ap_probability")
