"""The slides of a job in MLflow: a name without its folder, a digest, and counts that add up."""

import random
from collections import Counter

import pytest

from distmil.cohort import Cohort, Slide
from distmil.config.data import CohortConfig
from distmil.recording.data import data_of, profile_of
from tests.support.scale import cases

CLASSES = ["normal", "tumour"]


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        ("/home/jane/lung 2026.csv", "lung 2026"),
        ("s3://bucket/jane/lung.v2.parquet", "lung.v2"),
        (r"C:\jane\lung.tsv", "lung"),
        ("lung.CSV", "lung"),
        ("/home/jane", "slides"),
        ("/slides/jane.svs", "slides"),
        (None, "synthetic-5"),
    ],
)
def test_data_has_the_name_of_a_table_and_never_of_a_folder_or_a_slide(manifest, name):
    config = CohortConfig.model_construct(manifest=manifest, synthetic=5)
    assert data_of(Cohort([], CLASSES), config).name == name


def test_two_cohorts_of_one_name_differ_by_their_digest():
    config = CohortConfig.model_construct(manifest="m.csv", synthetic=0)
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
