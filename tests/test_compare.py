"""``distmil compare``: what the terminal shows, the files and the JSON line say alike, and what is refused."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest

from distmil.api.comparison import main, normal_class
from distmil.errors import ConfigError
from distmil.evaluation.comparison import compare, judged_results
from distmil.evaluation.slide_results import to_csv
from distmil.reporting.charts import RING
from distmil.reporting.comparison_page import ComparisonPage, slide_link
from distmil.storage.store import Store
from tests.evaluation.test_comparison import a_pair


@pytest.fixture
def runs(tmp_path):
    first, other, _ = a_pair(np.random.default_rng(0), 30)
    first, other = (
        [dataclasses.replace(one, split="val" if i < 20 else "test") for i, one in enumerate(some)]
        for some in (first, other)
    )
    for name, results in (("a", first), ("b", other), ("short", other[1:])):
        Store(str(tmp_path)).write(f"predictions/{name}/slides.csv", to_csv(results))
    return {"a": first, "b": other}


def ran(tmp_path, capsys, *words):
    code = main(None, [*words, f"storage.root={tmp_path}"])
    done = capsys.readouterr()
    return code, done.out, done.err


def rows_of(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))


def test_the_json_line_and_the_files_say_what_the_comparison_found(tmp_path, capsys, runs):
    code, out, shown = ran(tmp_path, capsys, "a", "b")
    assert code == 0
    answer = json.loads(out.splitlines()[-1])
    (expected,) = compare(runs, normal="negative")
    (found,) = answer["comparisons"]
    assert found["rows"] == [pytest.approx(row) for row in expected.rows]
    assert answer["slides"] == 30
    differences, changed = (
        rows_of(tmp_path / "comparisons/a--b" / name) for name in ("differences.csv", "changed.csv")
    )
    assert [(row["run"], row["against"], row["metric"]) for row in differences] == [
        ("b", "a", row["metric"]) for row in expected.rows
    ]
    assert [float(row["difference"]) for row in differences] == [row["difference"] for row in expected.rows]
    assert [row["slide_id"] for row in changed] == [row["slide_id"] for row in expected.changed]
    assert "b against a on 30 slides of 15 patients" in shown
    assert f"{len(changed)} slides are predicted otherwise by b" in shown


def test_the_page_shows_the_difference_and_links_changed_slides_into_the_viewer(tmp_path, capsys, runs):
    code, out, shown = ran(tmp_path, capsys, "a", "b", "--viewer", "https://here.test:1/run#slide=x")
    assert code == 0
    place = tmp_path / "comparisons/a--b/comparison.html"
    assert json.loads(out.splitlines()[-1])["page"] == str(place)
    assert f"page: {place}" in shown
    page = place.read_text()
    (expected,) = compare(runs, normal="negative")
    for row in expected.changed:
        link = f'href="https://here.test:1/run#slide={row["slide_id"]}"'
        assert page.count(link) == 2, row  # in the scatter and in the table
    assert page.count("#slide=") == 2 * len(expected.changed)
    difference = next(row["difference"] for row in expected.rows if row["metric"] == "auc")
    assert f"<td>{difference:+.3f}</td>" in page
    assert "30 slides of 15 patients" in page
    assert not re.search(
        r"p\d+\b", re.sub(r"<style>.*?</style>", "", page, flags=re.S).replace("<p", "").replace("/p", "")
    )
    assert "<script" not in page
    first = place.read_bytes()
    assert ran(tmp_path, capsys, "a", "b", "--viewer", "https://here.test:1/run")[0] == 0
    assert place.read_bytes() == first
    assert ran(tmp_path, capsys, "a", "b", "view.port=9000")[0] == 0
    assert "http://127.0.0.1:9000/#slide=" in place.read_text()


def test_every_slide_is_in_the_scatter_with_its_label(tmp_path, runs):
    (one,) = compare(runs, normal="negative")
    judged = {name: judged_results(results) for name, results in runs.items()}
    chart = ComparisonPage("", [one], judged, "negative", "http://v/")._scatter(one)
    dots = {mark.look: mark.path.count("M") for mark in chart.marks if mark.look.startswith("dot")}
    positive = sum(result.label == "positive" for result in runs["a"])
    assert dots == {"dot s0": 30 - positive, "dot s1": positive}
    assert [key.text for key in chart.keys[:2]] == ["labelled negative", "labelled positive"]
    thresholds = [mark for mark in chart.marks if mark.look == "line s4"]
    assert [mark.title for mark in thresholds] == ["threshold of a", "threshold of b"]
    rings = [mark for mark in chart.marks if mark.look == "ring"]
    assert [mark.link for mark in rings] == [slide_link("http://v/", row["slide_id"]) for row in one.changed]
    at = chart.plane.place(one.changed[0]["probability_first"], one.changed[0]["probability_other"])[0]
    assert rings[0].path.startswith(f"M{round(at[0] - RING, 1):g},{round(at[1], 1):g}")


def test_a_split_alone_is_compared(tmp_path, capsys, runs):
    code, out, _ = ran(tmp_path, capsys, "a", "b", "--split", "val")
    assert (code, json.loads(out.splitlines()[-1])["slides"]) == (0, 20)
    code, _, shown = ran(tmp_path, capsys, "a", "b", "--split", "train")
    assert (code, "--split train: a has no slide of it" in shown) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "short"], "a and short cannot be compared: s0 has a label and a prediction in a, and not in short"),
        (["a", "missing"], "there is no "),
        (["a"], "compare needs at least two different runs, got a"),
        (["a", "b", "--viewer", "javascript:alert(1)"], "--viewer javascript:alert(1): expected an address such as"),
        (["a", "a"], "compare needs at least two different runs, got a, a"),
    ],
)
def test_what_cannot_be_compared_exits_2(tmp_path, capsys, runs, words, message):
    code, out, shown = ran(tmp_path, capsys, *words)
    assert (code, out) == (2, "")
    assert message in shown
    assert not (tmp_path / "comparisons").exists()


def test_the_normal_class_is_what_slides_below_the_threshold_are_predicted_as(runs):
    assert normal_class(runs, ["x", "y"]) == "negative"
    above = {"a": [one for one in runs["a"] if one.predicted == "positive"]}
    assert normal_class(above, ["negative", "positive"]) == "negative"
    with pytest.raises(ConfigError, match=r"set cohort\.classes"):
        normal_class(above, ["x", "y"])
