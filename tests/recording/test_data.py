"""The slides of a job in MLflow: a name without its folder, a digest, and counts that add up."""

import random
from collections import Counter

import pytest

from distmil.cohort import Cohort, Slide
from distmil.config.loading import build_config
from distmil.recording.data import data_of, profile_of
from tests.support.scale import cases

CLASSES = ["normal", "tumour"]


def config_of(**sections):
    return build_config(sections)


@pytest.mark.parametrize("manifest", ["/home/jane/jane.csv", "lung.parquet", "/home/jane", "/slides/jane.svs"])
def test_data_is_not_named_after_a_file(manifest):
    assert data_of(Cohort([], CLASSES), config_of(cohort={"manifest": manifest})).name == "cohort"
    named = config_of(cohort={"manifest": manifest}, tracking={"dataset": "lung-2026"})
    assert data_of(Cohort([], CLASSES), named).name == "lung-2026"


def test_a_synthetic_cohort_says_so():
    assert data_of(Cohort([], CLASSES), config_of(cohort={"synthetic": 5})).name == "synthetic-5"


def test_two_cohorts_of_one_name_differ_by_their_digest():
    config = config_of(cohort={"manifest": "m.csv"})
    one, two = (data_of(Cohort([Slide("s", "/s", label=label)], CLASSES), config) for label in (0, 1))
    assert one.name == two.name
    assert one.digest != two.digest
    assert len(one.digest) <= 36


@pytest.mark.parametrize("seed", range(cases(20, full=500)))
def test_counts_are_those_of_the_slides(seed):
    generator = random.Random(seed)
    slides = [
        Slide(
            f"s{i}",
            "/x",
            label=generator.choice((None, 0, 1)),
            split=generator.choice((None, "train", "val")),
            patient_id=f"p{generator.randrange(5)}",
            annotation_path=generator.choice((None, "/a")),
        )
        for i in range(generator.randrange(30))
    ]
    found = profile_of(slides, CLASSES)
    counted = Counter()
    for split, labels in found["splits"].items():
        for label, number in labels.items():
            counted[split, label] = number
    names = {None: "no label", 0: "normal", 1: "tumour"}
    assert counted == Counter((slide.split or "all", names[slide.label]) for slide in slides)
    assert found["num_rows"] == len(slides)
    assert found["patients"] == len({slide.patient_id for slide in slides})
    assert found["annotated"] == sum(slide.annotation_path == "/a" for slide in slides)
