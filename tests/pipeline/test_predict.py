"""What becomes of slides that have no scores: they are left out, counted and named, and the others stay."""

import contextlib
from dataclasses import replace

import pytest

from distmil.bags.bag import BagEntry
from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.errors import BundleError, ConfigError, ManifestError, TooManyBadSlides
from distmil.inference.bundle import save_bundle
from distmil.inference.predictor import Finished, SlidePredictor
from distmil.pipeline import predict
from distmil.pipeline.job import Job, bundle_place, check_input, open_cohort
from distmil.pipeline.predict import _without_failed, open_bundle, predict_slides
from distmil.pipeline.prepare import Prepared
from distmil.storage.records import Record
from tests.inference.test_bundle import make_old
from tests.inference.test_mlflow_model import make_bundle

INFO = {"shift": None, "num_patches": 5}


def prepared(count):
    ids = [f"s{i}" for i in range(count)]
    entries = [BagEntry(i, None, None, False, "", (), None) for i in ids]
    return Prepared(entries, {i: Record(i, {}) for i in ids}, {}, {"ok": count, "unreadable": 2})


def records(count, *failed):
    return {
        f"s{i}": Record(f"s{i}", {}, *(("failed", "the slide's scores are not finite") if i in failed else ()))
        for i in range(count)
    }


def test_a_slide_without_scores_is_left_out_and_counted(store):
    job = Job(build_config({"tiling": {"max_bad_fraction": 0.5}}), store)
    left = _without_failed(job, prepared(4), records(4, 1))
    assert [entry.slide_id for entry in left.entries] == ["s0", "s2", "s3"]
    assert left.statuses == {"ok": 3, "unreadable": 2, "failed": 1}
    assert _without_failed(job, prepared(4), records(4)).statuses == {"ok": 4, "unreadable": 2}


def test_too_many_slides_without_scores_end_the_job(store):
    job = Job(build_config({"tiling": {"max_bad_fraction": 0.5}}), store)
    with pytest.raises(TooManyBadSlides):
        _without_failed(job, prepared(4), records(4, 0, 1, 2))


def test_a_bundle_whose_network_does_not_fit_its_encoder_is_refused_before_any_work(store):
    with pytest.raises(BundleError, match="takes embeddings of width 12, its encoder gives"):
        predict_slides(Job(Config(), store), None, [], make_bundle(), place="", run="r", with_labels=False)


@pytest.mark.parametrize("is_old", [True, False])
def test_a_bundle_of_an_earlier_version_is_said(store, capsys, is_old):
    save_bundle(store, make_bundle())
    if is_old:
        make_old(store, make_bundle(), run="a-run")
    job = Job(build_config({"prediction": {"model": "a-run"}}), store)
    inner, bundle = open_bundle(job)
    assert inner.config.cohort.classes == bundle.classes == ["normal", "tumour"]
    assert ("a-run is of an earlier distmil: no checksum protects its settings" in capsys.readouterr().err) == is_old
    assert bundle_place(job) == "a-run"


def test_a_bundle_without_the_temperature_that_is_asked_for_is_refused(store):
    save_bundle(store, replace(make_bundle(), temperatures={"max": 2.0}))
    asked = {"model": "a-run", "calibrated": True}
    with pytest.raises(
        ConfigError, match=r"a-run has no temperature of bag \(it has max\).*leave prediction.calibrated out"
    ):
        open_bundle(Job(build_config({"prediction": asked}), store))
    open_bundle(Job(build_config({"prediction": {**asked, "slide_score": "max"}}), store))


def test_a_report_goes_before_a_map_that_it_shows_is_made_again(store, monkeypatch):
    """Such as with other outlines: the slides' table may stay as it is."""

    def end(*_arguments, **_options):
        assert not store.exists("predictions/r/report.html")
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "map_slides", end)
    monkeypatch.setattr(predict, "wants_gpu", lambda _config: False)
    monkeypatch.setattr(SlidePredictor, "find", lambda self: Finished(Record("s0", {}, info=INFO), self.maps_there))
    job = Job(build_config({"prediction": {"maps": True}}), store)
    slides = [Slide("s0", "")]
    for maps in (Record("s0", {}, info={"doubts": []}), None):
        monkeypatch.setattr(SlidePredictor, "maps_there", maps, raising=False)
        store.write("predictions/r/report.html", b"a page")
        with contextlib.nullcontext() if maps else pytest.raises(KeyboardInterrupt):
            predict._predict_all(job, prepared(1), slides, make_bundle(), place="", run="r")
        assert store.exists("predictions/r/report.html") == (maps is not None)


def labelled(folder, label):
    """Write a manifest of one slide with this label, and return the keys of a job on it."""
    (folder / "a.png").touch()
    (folder / "m.csv").write_text(f"slide_id,slide_path,label\na,a.png,{label}\n")
    return {"cohort": {"manifest": str(folder / "m.csv")}, "prediction": {"model": "a-run", "split": "train"}}


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_the_manifest_is_checked_against_the_bundles_classes_and_read_once(store, tmp_path, name):
    save_bundle(store, make_bundle())
    job = Job(build_config(labelled(tmp_path, "tumour")), store)
    check_input(job, name)
    (tmp_path / "m.csv").unlink()
    inner, _ = open_bundle(job)
    cohort = open_cohort(inner, needs_labels=name == "evaluate", needs_splits=True)
    assert [slide.label for slide in cohort.slides] == [1]
    with pytest.raises(ManifestError, match="label 'positive': not a class; expected normal, tumour"):
        check_input(Job(build_config(labelled(tmp_path, "positive")), store), name)


def test_without_a_bundle_all_but_the_labels_is_checked(store, tmp_path):
    values = labelled(tmp_path, "whatever")
    with pytest.raises(BundleError, match=r"prediction\.model = 'a-run': there is no such folder, nor a run of that"):
        check_input(Job(build_config(values), store), "evaluate")
    (tmp_path / "a.png").unlink()
    with pytest.raises(ManifestError, match="there is no such file"):
        check_input(Job(build_config(values), store), "evaluate")


def test_a_manifest_that_is_read_with_other_needs_is_read_again(store, tmp_path):
    job = Job(build_config(labelled(tmp_path, "")), store)
    check_input(job, "tile")
    with pytest.raises(ManifestError, match="label is empty"):
        open_cohort(job, needs_labels=True, needs_splits=True)
