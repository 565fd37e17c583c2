"""The same words and numbers on the terminal, in the files, and in a notebook."""

import csv
import io
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console as RichConsole

import distmil
from distmil.cohort import Cohort, Slide
from distmil.config.loading import build_config
from distmil.console import Console
from distmil.errors import ConfigError
from distmil.evaluation.intervals import intervals_of
from distmil.evaluation.metrics import at_threshold, summarise
from distmil.evaluation.predictions import Evaluation
from distmil.evaluation.slide_results import from_csv, slide_results, to_csv
from distmil.evaluation.words import counts_to_look_at, metric_tables
from distmil.inference.scoring import READ_OUTS
from distmil.inference.tables import delete_derived, write_slide_table
from distmil.pipeline.job import Job
from distmil.pipeline.results import MAX_SHOWN, show_metrics, write_evaluations, write_report, write_results
from distmil.reporting.run_charts import Course
from distmil.storage.records import Record
from distmil.storage.store import Store
from tests.evaluation.test_intervals import some_rows
from tests.inference.test_mlflow_model import make_bundle
from tests.reporting.test_run_report import a_png
from tests.support.bags import small_config
from tests.support.scale import cases

CLASSES = ["normal", "tumour"]
ALL_AUC = [f"slide_auc_{name}" for name in READ_OUTS]


def a_job(tmp_path):
    stream = io.StringIO()
    console = Console(RichConsole(file=stream, soft_wrap=True))
    return Job(build_config({"tracking": {"uri": "none"}}), Store(str(tmp_path)), console), stream


def a_cohort(rng, count, *, labelled=True):
    slides, rows = [], {}
    for i in range(count):
        label = int(rng.integers(2)) if labelled else None
        slides.append(Slide(f"s{i:03d}", f"/d/{i}.svs", label=label, split="val", patient_id=f"p{i}"))
        probability = float(rng.random())
        rows[f"s{i:03d}"] = {
            "slide_id": f"s{i:03d}", "probability": probability, "bag": probability, "max": 0.9, "topk_mean": 0.8,
            "regions": 0.7,
            "predicted": CLASSES[probability >= 0.5], "label": None, "num_patches": i + 1,
        }  # fmt: skip
    return Cohort(slides, CLASSES), rows


def write(job, cohort, rows):
    return write_results(job, "predictions/run", rows, cohort.slides, cohort, threshold=0.5)


def test_a_notebook_shows_what_the_terminal_showed(tmp_path):
    rng = np.random.default_rng(0)
    job, stream = a_job(tmp_path)
    scores = some_rows(rng, 12)
    options = {"slide_score": "bag", "threshold": 0.5}
    found = Evaluation(
        summarise(scores, **options) | at_threshold(scores, **options),
        intervals_of(scores, [f"p{i}" for i in range(12)], **options, draws=50),
        {"slides": 12, "positive_slides": 5, "patients": 12, "patches": 300, "positive_patches": 70},
    )
    cohort, rows = a_cohort(rng, 12)
    job.outcomes.add({"s011": Record("s011", {}, status="no_tissue", error="no tissue was found")})
    job.outcomes.doubt("s003", ["pen ink was taken out"])
    del rows["s011"]
    show_metrics(job, "val", found)
    write(job, cohort, rows)
    job.store.write_json("predictions/run/metrics.json", {"val": found.metrics, "test": {}})
    job.store.write_json("predictions/run/intervals.json", {"val": found.counts | found.intervals, "test": {}})
    opened = distmil.open_results("run", root=tmp_path)
    assert f"{opened!r}\n" == stream.getvalue()
    assert "95 % intervals by patient" in repr(opened)
    assert "pen ink was taken out" in repr(opened)
    table = opened.to_pandas()
    assert list(table["slide_id"]) == [result.slide_id for result in opened.slides]
    assert table["status"].iloc[-1] == "no_tissue"
    metrics = opened.metrics()
    assert metrics.loc["slide_auc", "value"] == found.metrics["slide_auc"]
    assert (metrics.loc["slide_auc", "low"], metrics.loc["slide_auc", "high"]) == found.intervals["slide_auc"]
    with pytest.raises(ConfigError, match="split = 'train': run has metrics of val"):
        opened.metrics("train")


def test_many_slides_are_shown_in_part(tmp_path):
    job, stream = a_job(tmp_path)
    cohort, rows = a_cohort(np.random.default_rng(1), MAX_SHOWN + 7, labelled=False)
    assert counts_to_look_at(write(job, cohort, rows)) == {"wrong": 0, "in_doubt": 0}
    place = tmp_path / "predictions/run/slides.csv"
    text = stream.getvalue()
    assert text.splitlines()[0] == f"{MAX_SHOWN + 7} slides (threshold 0.50):"
    assert "... and 7 more in slides.csv" in text
    shown = [line.split()[0] for line in text.splitlines()[2:-1]]
    assert job.outcomes.shown == set(shown)
    ordered = sorted(rows, key=lambda name: -rows[name]["probability"])
    assert shown == ordered[:MAX_SHOWN]
    assert [result.slide_id for result in from_csv(place.read_bytes())] == ordered


def test_wrong_and_doubtful_slides_are_counted_once(tmp_path):
    job, stream = a_job(tmp_path)
    cohort, rows = a_cohort(np.random.default_rng(5), 30)
    job.outcomes.doubt("s003", ["dark"])
    job.outcomes.doubt("s004", ["dark"])
    wrong = {s.slide_id for s in cohort.slides if CLASSES[s.label] != rows[s.slide_id]["predicted"]}
    doubtful = {"s003", "s004"} - wrong
    found = counts_to_look_at(write(job, cohort, rows))
    assert found == {"wrong": len(wrong), "in_doubt": len(doubtful)}
    assert stream.getvalue().startswith(
        f"{len(wrong)} of 30 slides are predicted wrong" + f", {len(doubtful)} in doubt" * bool(doubtful)
    )


def test_an_interval_without_spread_is_still_an_interval():
    counts = {"slides": 4, "positive_slides": 2, "patients": 4, "patches": 0}
    found = Evaluation({"slide_auc": 1.0} | dict.fromkeys(ALL_AUC), {"slide_auc": (1.0, 1.0)}, counts)
    assert metric_tables("val", found, "slide")[0].rows[0] == ("AUC", "1.00", "1.00 to 1.00")


def test_csv_is_read_back_as_it_was(tmp_path):
    rng = np.random.default_rng(2)
    letters = [*"ab =+-@\"',;\n\tß", "0", "NA"]
    for _ in range(cases(50, full=1000)):
        cohort, rows = a_cohort(rng, int(rng.integers(1, 6)))
        slides = [
            Slide(**{**asdict(slide), "site": "".join(rng.choice(letters, rng.integers(0, 6))), "patient_id": "-3"})
            for slide in cohort.slides
        ]
        if rng.random() < 0.5:
            rows.popitem()
        results = slide_results(slides, rows, classes=CLASSES, threshold=0.5, statuses={}, doubts={})
        assert from_csv(to_csv(results)) == results


def test_results_that_are_not_there_are_named(tmp_path):
    job, _ = a_job(tmp_path)
    write(job, *a_cohort(np.random.default_rng(3), 2))
    with pytest.raises(ConfigError, match=r"name = 'other': there is no .*predictions/other/slides\.csv"):
        distmil.open_results("other", root=tmp_path)


def test_long_tables_are_files_that_the_terminal_names(tmp_path):
    job, stream = a_job(tmp_path)
    rows = [{"score": "fused", "false_positives_per_slide": 0.25, "sensitivity": 0.5, "low": None, "high": 0.75}]
    site = [{"by": "site", "group": "=HYPERLINK()", "value": 0.5}]
    found = {
        "test": Evaluation({"slide_auc": 0.5}, {"slide_auc": (0.25, 0.75)}, {"slides": 4}, {"froc.csv": rows}),
        "val": Evaluation({"slide_auc": None}, {}, {"slides": 2}, {"froc.csv": rows, "groups.csv": site}),
    }
    folder = tmp_path / "predictions/run"
    write_evaluations(job, "predictions/run", found)
    read = list(csv.DictReader((folder / "froc.csv").read_text("utf-8-sig").splitlines()))
    assert [(row["split"], row["sensitivity"], row["low"]) for row in read] == [("test", "0.5", ""), ("val", "0.5", "")]
    assert "'=HYPERLINK()" in (folder / "groups.csv").read_text("utf-8-sig")
    assert f"more of the metrics: froc.csv, groups.csv in {folder}" in stream.getvalue()
    assert job.store.read_json("predictions/run/metrics.json") == {
        "test": {"slide_auc": 0.5},
        "val": {"slide_auc": None},
    }
    intervals = job.store.read_json("predictions/run/intervals.json")
    assert intervals == {"test": {"slides": 4, "slide_auc": [0.25, 0.75]}, "val": {"slides": 2}}
    write_evaluations(job, "predictions/run", {"val": Evaluation({}, {}, {}, {"froc.csv": rows})})
    assert not (folder / "groups.csv").exists()  # of another evaluation
    delete_derived(job.store, "run")
    assert list(folder.iterdir()) == []


def a_bundle(**values):
    made = make_bundle()
    classes = {"cohort": {"classes": CLASSES}}
    last = {"val_threshold_bag": 0.37}
    return replace(made, config=small_config(**classes), metrics={"epoch": 3, "last": last, **values})


def test_a_report_lies_beside_its_predictions_and_goes_with_another_table(tmp_path):
    rng = np.random.default_rng(4)
    job, stream = a_job(tmp_path)
    scores = some_rows(rng, 12)
    options = {"slide_score": "bag", "threshold": 0.5}
    found = Evaluation(
        summarise(scores, **options) | at_threshold(scores, **options),
        {},
        {"slides": 12, "patients": 12, "positive_slides": 6},
    )
    cohort, rows = a_cohort(rng, 12)
    results = write(job, cohort, rows)
    folder = tmp_path / "predictions/run"

    def made(bundle):
        values = {"results": results, "found": {"val": found}, "courses": {"": Course([{"loss": 0.5}], 0)}}
        return write_report(job, "predictions/run", bundle, cohort, **values)

    place = made(a_bundle(threshold_aim="specificity=0.9"))
    assert place == str(folder / "report.html")
    assert f"report: {place}" in stream.getvalue()
    page = (folder / "report.html").read_text()
    assert f'<data value="{found.metrics["slide_auc"]}">' in page
    assert "chosen on validation, epoch 4, by specificity of at least 0.9" in page
    assert cohort.fingerprint in page
    assert "data:image" not in page
    write_slide_table(job.store, "run", list(rows.values()), CLASSES)
    assert not (folder / "report.html").exists()
    job.store.write("predictions/run/maps/s001_fused.png", a_png())
    made(a_bundle())
    assert (folder / "report.html").read_text().count("data:image") == 1
    first = (folder / "report.html").read_bytes()
    write_slide_table(job.store, "run", list(rows.values()), CLASSES)  # the same table
    assert (folder / "report.html").read_bytes() == first
    other = {**rows["s003"], "predicted": "tumour", "probability": 0.91}
    write_slide_table(job.store, "run", list((rows | {"s003": other}).values()), CLASSES)
    assert not (folder / "report.html").exists()
