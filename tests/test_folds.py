"""Folds: no patient on both sides, both classes on both, every slide judged once."""

import pytest

from distmil.cohort import Slide
from distmil.errors import ConfigError
from distmil.folds import patient_folds


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
    assert sorted(i for _, judging in folds for i in judging) == sorted(patient_of)
    for learning, judging in folds:
        assert sorted(learning + judging) == sorted(patient_of)
        assert not {patient_of[i] for i in learning} & {patient_of[i] for i in judging}
        assert {label_of[i] for i in judging} == {label_of[i] for i in learning} == {0, 1}


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
