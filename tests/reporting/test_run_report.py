"""The report's numbers are those of the evaluation, equal values make equal bytes, and nothing private is in it."""

import dataclasses
import math
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.config.root import PRIVATE_KEYS
from distmil.evaluation.calibration import calibration_of
from distmil.evaluation.intervals import Bootstrap, intervals_of
from distmil.evaluation.metrics import at_threshold, summarise
from distmil.evaluation.predictions import Evaluation
from distmil.evaluation.slide_results import RIGHT, WRONG, SlideResult
from distmil.inference.scoring import READ_OUTS
from distmil.reporting.run_charts import Course, epoch_charts
from distmil.reporting.run_report import (
    RunReport,
    Thresholds,
    confusion,
    settings_of,
    supervision_table,
    threshold_table,
)
from distmil.visualization.heatmap import Frame, Panel, encode_png, render
from tests.evaluation.test_intervals import some_rows
from tests.support.scale import cases

CLASSES = ["normal", "tumour"]
THRESHOLDS = Thresholds(dict.fromkeys(READ_OUTS, 0.5), 0.4, {}, {"last": {}, "epoch": 1})
PRIVATE = ("jane", "/home")


def a_png():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (300, 480, 3), np.uint8)
    return encode_png(render([Panel(Image.fromarray(pixels))], Frame("jane.svs: fused", "jane")))


def a_report(seed=0, *, num=40, classes=CLASSES, splits=("test", "val"), **fields):
    """Make a report of random slides, whose metrics are worked out as the job does."""
    rng = np.random.default_rng(seed)
    rows = some_rows(rng, num, classes=len(classes))
    slides, results, split_of = [], [], []
    for i, row in enumerate(rows):
        split, value = splits[i % len(splits)], float(row.read_outs[0])
        predicted = classes[1 + int(row.bag_C[1:].argmax())] if value >= 0.5 else classes[0]
        label, split_of = classes[row.label], [*split_of, split]
        slides.append(Slide(f"s{i:02}", f"/home/jane/{i}.svs", row.label, f"jane{i // 2}", split, site="jane's clinic",
                            annotation_path="/home/jane/a.xml"))  # fmt: skip
        results.append(SlideResult(
            f"s{i:02}", "ok", RIGHT if predicted == label else WRONG, label, predicted, value, 0.5, split,
            f"jane{i // 2}", "jane's clinic", reason="jane's pen", slide_path=f"/home/jane/{i}.svs",
        ))  # fmt: skip
    found = {}
    for split in splits:
        own = [i for i, name in enumerate(split_of) if name == split]
        found[split] = an_evaluation([rows[i] for i in own], [slides[i].patient_id for i in own])
    results.append(SlideResult("s99", "no_tissue", split="val", reason="/home/jane"))
    values = {
        "job": "evaluate", "bundle": "a-run", "slides": slides, "classes": classes, "data": ("cohort", "0123abcd"),
        "config": build_config({"cohort": {"manifest": "/home/jane/lung.csv"}, "storage": {"root": "/home/jane"}}),
        "thresholds": THRESHOLDS, "results": results, "evaluations": found, "picture": lambda _: a_png(),
    }  # fmt: skip
    return RunReport(**(values | fields))


def an_evaluation(rows, patients):
    options = {"slide_score": READ_OUTS[0], "threshold": 0.5}
    bins = calibration_of(
        [row.label > 0 for row in rows], [row.read_outs[0] for row in rows], Bootstrap.of(patients, draws=40)
    ).rows
    site = {"by": "site", "group": "jane's clinic", "metric": "auc", "value": 0.5, "low": None, "high": None}
    froc = [
        {"score": name, "false_positives_per_slide": at, "sensitivity": 0.5, "low": 0.2, "high": 0.75}
        for name in ("attention", "fused")
        for at in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, "mean")
    ]
    return Evaluation(
        summarise(rows, **options) | at_threshold(rows, **options),
        intervals_of(rows, patients, **options, draws=40),
        {
            "slides": len(rows),
            "positive_slides": 5,
            "patients": len(set(patients)),
            "patches": 30,
            "positive_patches": 7,
        },
        {
            "reliability.csv": [{"probability": "as it is", **row} for row in bins],
            "froc.csv": froc,
            "groups.csv": [site],
        },
    )


def test_the_numbers_are_those_of_the_evaluation():
    for seed in range(cases(5, full=100)):
        report = a_report(seed)
        page = report.to_html().decode()
        for split, found in report.evaluations.items():
            section = page.partition(f'id="split-{split}"')[2].partition("</section>")[0]
            shown = [float(value) for value in re.findall(r'<data value="([^"]+)">', section)]
            names = ("auc", "ap", "sensitivity", "specificity", "balanced_accuracy")
            assert shown == [found.metrics[f"slide_{name}"] for name in names]
            low, high = found.intervals["slide_auc"]
            assert f"AUC {found.metrics['slide_auc']:.2f} ({low:.2f} to {high:.2f})" in section
            counts = [int(count) for count in re.findall(r'<td style="--share:[\d.]+"[^>]*>(\d+)</td>', section)]
            judged = [one for one in report.results if one.verdict and one.split == split]
            expected = Counter((one.label, one.predicted) for one in judged)
            assert counts == [expected[label, predicted] for label in CLASSES for predicted in CLASSES]


def test_a_report_is_one_file_without_anything_private_and_the_same_when_made_again():
    report = a_report()
    page = report.to_html()
    assert page == a_report().to_html()
    text = page.decode()
    assert [word for word in PRIVATE if word in text] == []
    assert "<script" not in text
    assert [link for link in re.findall(r'(?:src|href)="([^"]+)"', text) if not link.startswith("data:image/")] == []
    assert "url(" not in text
    assert "http:" not in text
    assert "https:" not in text
    assert 1 <= text.count("data:image/jpeg") <= 12
    assert len(page) < 12 * 60_000 + 200_000
    assert all(title in text for title in ("ROC of slides", "Precision and recall", "Calibration", "Lesion FROC"))


def test_names_are_text_and_not_markup():
    classes = ["<b>normal</b>", '"><script>alert(1)</script>']
    text = a_report(classes=classes, bundle="a<i>run").to_html().decode()
    assert "<script" not in text
    assert "<b>normal" not in text
    assert "a<i>run" not in text
    assert "&lt;b&gt;normal&lt;/b&gt;" in text


def test_without_maps_slides_are_named_without_pictures():
    text = a_report(picture=lambda _: None).to_html().decode()
    assert "data:image" not in text
    assert "Most uncertain" in text


@pytest.mark.parametrize("evaluations", [{}, {"val": Evaluation()}])
def test_what_is_not_known_is_left_out(evaluations):
    unknown = [SlideResult("s1", "ok", predicted="tumour", probability=0.7, threshold=0.5, split="val")]
    text = a_report(results=unknown if evaluations else [], evaluations=evaluations).to_html().decode()
    assert not any(word in text for word in ("ROC of slides", "Confusion", "Most uncertain"))
    assert "Thresholds" in text
    assert ("no metrics on val" in text) == bool(evaluations)
    assert ("no held-out slides were predicted" in text) != bool(evaluations)


def test_more_classes_have_a_confusion_of_all():
    classes = ["normal", "a", "b"]
    report = a_report(3, classes=classes)
    judged = [one for one in report.results if one.verdict]
    rows = confusion(judged, classes)
    assert [label for label, _ in rows] == classes
    for label, cells in rows:
        total = sum(one.label == label for one in judged)
        assert sum(cell.slides for cell in cells) == total
        assert math.isclose(sum(cell.share for cell in cells), bool(total))
        assert [cell.is_right for cell in cells] == [name == label for name in classes]
    assert report.to_html().decode().count("predicted b</th>") == 2


def a_course(rng, epochs, *, chosen):
    rows = [
        {"loss": float(rng.random()), "loss_bag": float(rng.random()), "val_slide_auc": None if epoch == 1 else 0.5}
        for epoch in range(epochs)
    ]
    return Course(rows, chosen)


@pytest.mark.parametrize("folds", [1, 5])
def test_each_training_has_its_line_and_its_dot(folds):
    rng = np.random.default_rng(0)
    courses = {f"fold {i + 1}" * (folds > 1): a_course(rng, 4 + i, chosen=3) for i in range(folds)}
    charts = {chart.title: chart for chart in epoch_charts(courses)}
    assert set(charts) == {"Loss", "Parts of the training loss", "Validation"}
    for chart in charts.values():
        looks = Counter(mark.look for mark in chart.marks)
        assert looks == {"line s0": folds, "dot s0": folds}
    assert all(mark.path.count("M") == 2 for mark in charts["Validation"].marks if mark.look == "line s0")
    last = charts["Loss"].plane.x.high
    assert last >= 3 + folds
    text = a_report(job="train", courses=courses).to_html().decode()
    assert "the epoch whose weights were kept" in text
    assert text.count("fold 5") == (6 if folds == 5 else 0)


def test_thresholds_say_what_they_serve_and_where_they_came_from():
    chosen = {
        "last": {"val_threshold_bag": 0.37, "val_threshold_max": None, "val_threshold_patch": 0.8},
        "epoch": 4,
        "threshold_aim": "sensitivity=0.95",
    }
    table = threshold_table(Thresholds({"bag": 0.37, "max": 0.5, "topk_mean": 0.5}, 0.8, {"bag": 1.25}, chosen))
    assert table.rows == [
        ("slides, bag", "0.37", "chosen on validation, epoch 5, by sensitivity of at least 0.95", "1.25"),
        ("slides, max", "0.5", "the default: validation has one class only, or no threshold better than chance", ""),
        ("slides, topk_mean", "0.5", "not recorded", ""),
        ("patches", "0.8", "chosen on validation, epoch 5, by Youden's J", ""),
    ]
    early = threshold_table(Thresholds({"bag": 0.37}, 0.5, {}, {"last": {"val_threshold_bag": 0.37}}))
    assert early.rows[0][2] == "chosen on validation, aim not recorded"
    assert threshold_table(Thresholds({"bag": 0.5}, 0.5, {}, {})).rows[0][2] == "the default: nothing was validated"


def test_supervision_counts_each_slide_once():
    rng = np.random.default_rng(0)
    for _ in range(cases(50, full=1000)):
        slides = [
            Slide(f"s{i}", "", None if rng.random() < 0.2 else int(rng.integers(2)), f"p{rng.integers(5)}",
                  str(rng.choice(["train", "val"])), annotation_path="a" if rng.random() < 0.5 else None,
                  annotation_complete=bool(rng.random() < 0.5), is_pseudo=bool(rng.random() < 0.1))
            for i in range(int(rng.integers(1, 30)))
        ]  # fmt: skip
        table = supervision_table(slides, "slide")
        for split, count, patients, *kinds in table.rows:
            own = [slide for slide in slides if slide.split == split]
            labelled = [slide for slide in own if slide.label is not None]
            real = [slide for slide in labelled if not slide.is_pseudo]
            outlined = [slide.annotation_complete for slide in real if slide.label and slide.annotation_path]
            expected = [
                sum(slide.label == 0 for slide in real), sum(outlined), len(outlined) - sum(outlined),
                sum(slide.label == 1 and not slide.annotation_path for slide in real), len(labelled) - len(real),
                len(own) - len(labelled),
            ]  # fmt: skip
            assert (int(count), int(patients)) == (len(own), len({slide.patient_id for slide in own}))
            assert [int(kind) for kind in kinds] == expected


def test_settings_are_those_that_differ_and_none_is_a_path():
    values = {key: "/home/jane/x" for key in PRIVATE_KEYS if key.startswith(("cohort", "prediction", "features"))}
    sections = {}
    for dotted, value in values.items():
        section, _, key = dotted.partition(".")
        sections.setdefault(section, {})[key] = value
    sections["tiling"] = {"patch_px": 96}
    config = build_config(sections)
    names = sorted(type(config).model_fields)
    changed, others = settings_of(config, names)
    assert changed["tiling.patch_px"] == "96"
    assert not {*changed, *others} & set(PRIVATE_KEYS)
    assert not any("jane" in value for value in (*changed.values(), *others.values()))
    assert changed.keys() | others.keys() == config.shareable().keys()
    assert (
        settings_of(config, ["tiling"])[1].keys()
        == {k for k in config.shareable() if k.startswith("tiling.")} - {"tiling.patch_px"} - changed.keys()
    )


def test_another_threshold_is_another_page():
    report = a_report()
    other = dataclasses.replace(report, thresholds=THRESHOLDS._replace(patch=0.41))
    assert report.to_html() != other.to_html()
