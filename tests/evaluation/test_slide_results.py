"""The table of slides for people: what is first, what it says, and that no program misreads it."""

import csv
import io
import shutil
import subprocess
import zipfile

import numpy as np
import pandas as pd
import pytest

from distmil.cohort import Slide
from distmil.evaluation.slide_results import slide_results, to_csv
from tests.support.scale import cases

CLASSES = ["normal", "tumour"]


def row_of(slide_id, probability, *, threshold=0.5):
    predicted = CLASSES[probability >= threshold]
    return {
        "slide_id": slide_id, "probability": probability, "bag": probability, "max": 0.9, "topk_mean": 0.8,
        "regions": 0.7,
        "predicted": predicted, "label": None, "num_patches": 12,
    }  # fmt: skip


def results_of(slides, rows, *, statuses=None, doubts=None, threshold=0.5):
    return slide_results(
        slides, rows, classes=CLASSES, threshold=threshold, statuses=statuses or {}, doubts=doubts or {}
    )


def test_wrong_slides_come_first_then_doubtful_ones_and_dropped_ones_last():
    labels = {"sure mistake": 0, "mistake": 1, "near": 1, "far": 1, "right": 0, "higher": 1, "dropped": 1, "unread": 0}
    slides = [Slide(name, f"/slides/{name}.svs", label=label) for name, label in labels.items()]
    probability = {"sure mistake": 0.99, "mistake": 0.45, "near": 0.55, "far": 0.9, "right": 0.1, "higher": 0.95}
    rows = {name: row_of(name, value) for name, value in probability.items()}
    doubts = {"near": ["pen ink"], "far": ["pen ink", "blurred"], "mistake": ["pen ink"]}
    statuses = {"dropped": ("no_tissue", "no tissue was found"), "near": ("ok", "")}
    found = results_of(slides[::-1], rows, statuses=statuses, doubts=doubts)
    assert [result.slide_id for result in found] == [
        "sure mistake", "mistake", "near", "far", "higher", "right", "unread", "dropped",
    ]  # fmt: skip
    by_id = {result.slide_id: result for result in found}
    assert by_id["sure mistake"].verdict == by_id["mistake"].verdict == "wrong"
    assert {by_id[name].verdict for name in ("near", "far", "right", "higher")} == {"right"}
    assert by_id["far"].reason == "pen ink; blurred"
    assert (by_id["dropped"].status, by_id["dropped"].reason) == ("no_tissue", "no tissue was found")
    assert (by_id["dropped"].probability, by_id["dropped"].verdict) == (None, "")
    assert by_id["unread"].status == "not predicted"


def test_slides_without_a_label_come_by_falling_probability_and_have_no_verdict():
    slides = [Slide(f"s{i}", "/x.svs") for i in range(4)] + [Slide("pseudo", "/x.svs", label=0, is_pseudo=True)]
    rows = {slide.slide_id: row_of(slide.slide_id, value) for slide, value in zip(slides, (0.1, 0.9, 0.5, 0.3, 0.8), strict=True)}  # fmt: skip  # noqa: E501
    found = results_of(slides, rows)
    assert [result.slide_id for result in found] == ["s1", "pseudo", "s2", "s3", "s0"]
    assert {result.verdict for result in found} == {""}


def test_pandas_reads_back_what_was_written():
    generator = np.random.default_rng(0)
    letters = [*list("abc01 ,;\"'\n\t=+-@äß"), "0", "1e5", "NA"]
    for _ in range(cases(20, full=500)):
        slides, rows = [], {}
        for i in range(int(generator.integers(1, 12))):
            patient, site = ("".join(generator.choice(letters, generator.integers(0, 9))) for _ in range(2))
            slides.append(
                Slide(
                    f"{i:04d}", f"/data/{patient}.svs", label=int(generator.integers(2)), patient_id=patient, site=site
                )
            )
            if generator.random() < 0.8:
                rows[f"{i:04d}"] = row_of(f"{i:04d}", float(generator.random()))
        found = results_of(slides, rows)
        table = pd.read_csv(io.BytesIO(to_csv(found)), dtype=str, keep_default_na=False)
        assert list(table["slide_id"]) == [result.slide_id for result in found]  # leading zeros and all
        for result, (_, read) in zip(found, table.iterrows(), strict=True):
            for name in ("patient_id", "site", "slide_path", "label", "predicted", "verdict"):
                text = getattr(result, name)
                assert read[name] == (
                    f"'{text}" if text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r")) else text
                )
            assert read["probability"] == ("" if result.probability is None else str(result.probability))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x","y")'])
def test_no_cell_is_a_formula(text):
    (line,) = list(csv.DictReader(io.StringIO(to_csv(results_of([Slide("s", text, patient_id=text)], {})).decode("utf-8-sig"), newline="")))  # fmt: skip  # noqa: E501
    assert line["patient_id"] == line["slide_path"] == f"'{text}"


def test_more_than_two_classes_have_a_column_each():
    row = row_of("a", 0.7) | {"probability_normal": 0.3, "probability_low": 0.2, "probability_high": 0.5}
    found = slide_results(
        [Slide("a", "/a.svs", label=2), Slide("b", "/b.svs")], {"a": row | {"predicted": "high"}},
        classes=["normal", "low", "high"], threshold=0.5, statuses={}, doubts={},
    )  # fmt: skip
    table = pd.read_csv(io.BytesIO(to_csv(found)))
    assert list(table.columns[-3:]) == ["probability_normal", "probability_low", "probability_high"]
    assert table["probability_high"][0] == 0.5
    assert np.isnan(table["probability_high"][1])
    assert found[0].verdict == "right"


@pytest.mark.skipif(shutil.which("ssconvert") is None, reason="there is no spreadsheet program")
def test_a_spreadsheet_runs_nothing_and_does_not_complain(tmp_path):
    slides = [
        Slide("0007", "/d/=1+1.svs", label=1, patient_id='=HYPERLINK("http://x")', site='Köln; "Süd"\nHaus 2'),
        Slide("1E5", "/d/b.svs", label=0, patient_id="@SUM(A1)", site="+1-2"),
        Slide("c", "/d/c.svs", patient_id="-3", site="\t=2"),
    ]
    rows = {slide.slide_id: row_of(slide.slide_id, 0.5 + 0.1 * i) for i, slide in enumerate(slides[:2])}
    source, book = tmp_path / "slides.csv", tmp_path / "slides.xlsx"
    source.write_bytes(to_csv(results_of(slides, rows)))
    done = subprocess.run(["ssconvert", source, book], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    with zipfile.ZipFile(book) as archive:
        sheets = [archive.read(name).decode() for name in archive.namelist() if name.startswith("xl/worksheets/")]
    assert sheets
    assert not any("<f>" in sheet or "<f " in sheet for sheet in sheets)
