"""What a job says at its end: doubts, then what was dropped, grouped; and a defect ends it whatever is allowed."""

import io

import pytest
from rich.console import Console as RichConsole

from distmil.config.root import Config
from distmil.console import Console
from distmil.defects import DEFECT
from distmil.errors import DefectError, Reason, TooManyBadSlides
from distmil.outcomes import Outcomes
from distmil.pipeline.job import Job, check_bad_fraction
from distmil.storage.records import Record


def said(outcomes):
    out = io.StringIO()
    outcomes.show(Console(RichConsole(file=out, highlight=False, soft_wrap=True)))
    return out.getvalue()


def ok(slide_id, *doubts):
    return Record(slide_id, {}, info={"doubts": list(doubts)})


def bad(slide_id, status="failed", error="why", **info):
    return Record(slide_id, {}, status=status, error=error, info=info)


def by_id(*records):
    return {record.name: record for record in records}


def test_a_job_without_anything_to_say_says_nothing():
    outcomes = Outcomes()
    outcomes.add(by_id(ok("s1"), ok("s2")))
    assert said(outcomes) == ""
    outcomes.check_defects()


def test_doubts_come_first_and_what_was_dropped_comes_last():
    outcomes = Outcomes()
    outcomes.add(by_id(*(ok(f"s{i}", f"pen ink on {i}% of it") for i in range(12)), ok("t1", "dark", "pen ink on 7%")))
    outcomes.add(by_id(bad("b1", "no_tissue", "the most is 3%"), bad("b2", "no_tissue", "the most is 4%"), bad("b3")))
    lines = [" ".join(line.split()) for line in said(outcomes).splitlines()]
    assert lines == [
        "doubts about 13 of 16 slides:",
        "slides which doubt",
        "12 s0, s1, s2, s3, s4, ... pen ink on 0 to 11% of it",
        "1 t1 dark",
        "1 t1 pen ink on 7%",
        "3 of 16 slides were dropped:",
        "slides which why",
        "1 x failed b3 why",
        "2 x no_tissue b1, b2 the most is 3 to 4%",
    ]


def test_a_doubt_that_stands_beside_the_scores_is_not_said_again():
    outcomes = Outcomes()
    outcomes.add(by_id(ok("s1", "dark"), ok("s2", "dark"), ok("s3"), bad("b1")))
    outcomes.shown |= {"s1"}
    lines = [" ".join(line.split()) for line in said(outcomes).splitlines()]
    assert lines[:3] == ["doubts about 1 of the other 3 slides:", "slides which doubt", "1 s2 dark"]
    outcomes.shown |= {"s2"}
    assert "doubt" not in said(outcomes)


def test_slides_that_the_error_names_are_not_listed_twice():
    out = io.StringIO()
    outcomes = Outcomes()
    outcomes.add(by_id(ok("s1", "dark"), bad("b1")))
    outcomes.show(Console(RichConsole(file=out, soft_wrap=True)), with_dropped=False)
    assert "dark" in out.getvalue()
    assert "b1" not in out.getvalue()


def test_what_is_said_stays_short_for_thousands_of_slides():
    outcomes = Outcomes()
    letters = [f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}" for i in range(600)]
    outcomes.add(by_id(*(ok(f"s{i}", f"doubt {words}") for i, words in enumerate(letters))))
    outcomes.add(by_id(*(bad(f"b{i}", error=f"b{i}: {words}") for i, words in enumerate(letters))))
    assert len(said(outcomes).splitlines()) < 100
    assert "1200 slides" in said(outcomes)


def test_a_slide_counts_once_by_its_latest_status():
    outcomes = Outcomes()
    outcomes.add(by_id(ok("s1", "dark"), bad("s2")))
    outcomes.add(by_id(bad("s1", "bad_annotation", "no group"), ok("s2")))
    assert outcomes.dropped == {"s1": ("bad_annotation", "no group")}
    outcomes.add(by_id(ok("s1", "dark")))
    assert outcomes.dropped == {}
    assert outcomes.doubts == {"s1": ["dark"], "s2": []}


def test_what_was_dropped_is_counted_by_split_and_class():
    outcomes = Outcomes(
        kinds={"a": "train positive", "b": "train positive", "c": "val negative", "d": "train negative"}
    )
    outcomes.add(by_id(bad("a"), ok("b"), bad("c"), ok("d")))
    assert "2 of 4 slides were dropped (1 of 2 train positive, 1 of 1 val negative):" in said(outcomes)


def test_plain_images_are_called_images():
    outcomes = Outcomes(noun="image")
    outcomes.add(by_id(ok("a", "dark"), bad("b"), bad("c", **{DEFECT: "x"})))
    assert "doubts about 1 of 3 images:" in said(outcomes)
    assert "2 of 3 images were dropped:" in said(outcomes)
    with pytest.raises(DefectError, match="on 1 image;"):
        outcomes.check_defects()


def test_the_resolution_of_used_slides_is_the_guess_for_the_others():
    outcomes = Outcomes()
    reason = Reason("no um-per-pixel in the file", "tiling.default_mpp").to_json()
    outcomes.add(by_id(*(bad(f"b{i}", "no_mpp", reason=reason) for i in range(3)), Record("s", {}, info={"mpp": 0.23})))
    assert "no um-per-pixel in the file; set tiling.default_mpp=0.23, as the other slides have it" in said(outcomes)


@pytest.fixture
def job(store):
    config = Config()
    return Job(config, store, Console(RichConsole(file=io.StringIO(), soft_wrap=True)))


@pytest.mark.parametrize(("num_bad", "is_refused"), [(0, False), (1, False), (2, True), (10, True)])
def test_a_tenth_of_the_slides_may_be_dropped(job, num_bad, is_refused):
    records = by_id(*(bad(f"b{i}", "no_mpp") if i < num_bad else ok(f"s{i}") for i in range(10)))
    if is_refused:
        message = (
            rf"{num_bad} of 10 slides cannot be used \({num_bad} no_mpp\), more than tiling.max_bad_fraction = 0.1"
        )
        with pytest.raises(TooManyBadSlides, match=message):
            check_bad_fraction(job, records)
    else:
        check_bad_fraction(job, records)
    assert len(job.outcomes.dropped) == num_bad  # said at the job's end, whichever way it ends
    assert ("1 of 10 slides are dropped: 1 no_mpp" in job.console.rich.file.getvalue()) is (num_bad == 1)


def test_the_refusal_names_each_reason_once_with_the_setting_that_fits(job):
    reason = Reason("finest 0.972 um/px", "tiling.mpp", 0.972, "least").to_json()
    records = by_id(*(bad(f"b{i}", "too_coarse", error=f"long sentence {i}", reason=reason) for i in range(72)))
    with pytest.raises(TooManyBadSlides) as caught:
        check_bad_fraction(job, records)
    assert str(caught.value).endswith(
        "\n  72 x too_coarse (b0, b1, b10, b11, b12, ...): finest 0.972 um/px; set tiling.mpp=0.972"
    )


def test_a_defect_fails_the_job_whatever_is_allowed(job):
    text = "ValueError: max() arg is an empty sequence (slides/reader.py:135 in overview_level)"
    records = by_id(*(ok(f"s{i}") for i in range(98)), bad("d1", **{DEFECT: text}), bad("d2", **{DEFECT: text}))
    check_bad_fraction(job, records)
    with pytest.raises(DefectError, match=r"on 2 slides; the others are done") as caught:
        job.outcomes.check_defects()
    assert f"2 slides (d1, d2): {text}" in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_defect_is_named_where_too_many_slides_are_bad_too(job):
    with pytest.raises(DefectError, match="ValueError: x"):
        check_bad_fraction(job, by_id(bad("d1", **{DEFECT: "ValueError: x"})))
