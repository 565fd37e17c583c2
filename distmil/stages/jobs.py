"""The jobs as a whole: each takes a Job and returns the values of its JSON line."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from distmil import __version__
from distmil.checkpoints import Bundle, bundle_folder, load_bundle, with_bundle
from distmil.cohort import Cohort, Slide, read_cohort
from distmil.config import per_job_keys
from distmil.demo import make_cohort
from distmil.embedding import embeddings_folder
from distmil.encoders import prepare_encoder
from distmil.errors import BadInput, ConfigError
from distmil.prediction import judge_predictions
from distmil.shards import patches_folder
from distmil.stages.embed import embed
from distmil.stages.predict import Predictions, judge_slides
from distmil.stages.runtime import Job, check_bad_fraction
from distmil.stages.tile import tile
from distmil.stages.train import Trained, train
from distmil.storage import Record
from distmil.tracking import Tracker, resolve_uri

logger = logging.getLogger(__name__)

MAPS_TRACKED = 8
Answer = dict[str, Any]


def run_tile(job: Job) -> Answer:
    """Slides to patch shards."""
    cohort = _cohort(job, needs_labels=False, needs_splits=False)
    records = tile(job, cohort.slides)
    check_bad_fraction(job, records)
    folder = patches_folder(job.config.tiling)
    return {
        "patches": job.store.path(folder),
        "slides_table": job.store.path(f"{folder}/slides.parquet"),
        "num_patches": sum(record.rows for record in records.values()),
        "slides": _statuses(records.values()),
    }


def run_embed(job: Job) -> Answer:
    """Patch shards to embeddings; tiles what is missing first."""
    cohort = _cohort(job, needs_labels=False, needs_splits=False)
    spec = prepare_encoder(job.config.encoder, job.store)
    patches = tile(job, cohort.slides)
    records = patches | embed(job, patches, spec)
    check_bad_fraction(job, records)
    return {
        "patches": job.store.path(patches_folder(job.config.tiling)),
        "embeddings": job.store.path(embeddings_folder(job.config, spec)),
        "dimension": spec.dimension,
        "num_patches": sum(record.rows for record in records.values()),
        "slides": _statuses(records.values()),
    }


def run_train(job: Job) -> Answer:
    """Train, save the bundle, predict and evaluate outside train, and keep the record."""
    cohort = _cohort(job, needs_labels=True, needs_splits=True)
    tracker = Tracker(resolve_uri(job.config.tracking.uri, job.store.root), job.config.tracking.experiment)
    status = "FAILED"
    try:
        trained = train(job, cohort, tracker)
        place = bundle_folder(trained.run)
        slides = (
            cohort.of_split(job.config.prediction.split)
            if job.config.prediction.split
            else cohort.of_split("val", "test")
        )
        run = job.config.prediction.run or trained.run
        metrics: dict[str, Any] = {}
        predictions = None
        if slides:
            inner = replace(job, config=with_bundle(job.config, trained.bundle, per_job=per_job_keys()))
            predictions = judge_slides(
                inner, cohort, slides, trained.bundle, place=trained.run, run=run, with_labels=True
            )
            metrics = _metrics(inner, predictions, slides, cohort)
        job.store.write_json(f"{place}/metrics.json", {**trained.bundle.metrics, **metrics})
        _track(job, tracker, trained, predictions, metrics)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    answer = {
        "run": trained.run,
        "bundle": job.store.path(place),
        "epochs": len(trained.history.rows),
        "metrics": metrics,
        "tracking": {"uri": tracker.uri, "experiment": tracker.experiment, "run_id": tracker.run_id},
    }
    return answer | (_prediction_paths(job, predictions) if predictions else {})


def run_predict(job: Job) -> Answer:
    """Patch and slide scores and maps for any manifest, labelled or not."""
    inner, bundle, run = _with_bundle(job)
    split = job.config.prediction.split
    cohort = _cohort(inner, needs_labels=False, needs_splits=split is not None)
    slides = cohort.of_split(split) if split else cohort.slides
    predictions = judge_slides(
        inner, cohort, _some(slides, split), bundle, place=_place(job), run=run, with_labels=False
    )
    return {"run": run, **_prediction_paths(job, predictions)}


def run_evaluate(job: Job) -> Answer:
    """Slide and patch metrics of a bundle on a split."""
    inner, bundle, run = _with_bundle(job)
    split = job.config.prediction.split
    cohort = _cohort(inner, needs_labels=True, needs_splits=True)
    slides = _some(_held_out(job, cohort), split or "val or test")
    predictions = judge_slides(inner, cohort, slides, bundle, place=_place(job), run=run, with_labels=True)
    metrics = _metrics(inner, predictions, slides, cohort)
    name = f"{predictions.folder}/metrics.json"
    job.store.write_json(name, metrics)
    return {"run": run, "metrics": metrics, "metrics_file": job.store.path(name), **_prediction_paths(job, predictions)}


# --- parts -------------------------------------------------------------------------------------------------------


def _cohort(job: Job, *, needs_labels: bool, needs_splits: bool) -> Cohort:
    """Read the manifest, making the synthetic cohort first where one is asked for."""
    config = job.config.cohort
    manifest: str | Path | None = config.manifest
    if (manifest is None) == (config.synthetic == 0):
        raise ConfigError(
            "cohort.manifest: set it to a CSV or Parquet file (or cohort.synthetic to a number of slides)"
        )
    if manifest is None:
        manifest = _synthetic(job, config.synthetic)
    cohort = read_cohort(config, manifest=manifest, needs_labels=needs_labels, needs_splits=needs_splits)
    partial = sum(
        1 for slide in cohort.slides if slide.annotation_path and not slide.annotation_complete and slide.label
    )
    if partial:
        job.console.note(
            f"{partial} annotated slides are not marked annotation_complete: what is not outlined there is unknown"
        )
    return cohort


def _synthetic(job: Job, num_slides: int) -> Path:
    if not job.store.is_local:
        raise ConfigError("cohort.synthetic: a synthetic cohort needs a local or shared storage.root")
    folder = Path(job.store.path(f"synthetic/{num_slides}"))
    if not (folder / "manifest.csv").exists():
        job.console.note(f"making {num_slides} synthetic slides in {folder}")
    with job.console.progress("make", num_slides, "slides") as advance:
        return make_cohort(folder, num_slides=num_slides, progress=lambda _done, _total: advance())


def _with_bundle(job: Job) -> tuple[Job, Bundle, str]:
    """Return the job with the bundle's settings, the bundle, and the output's name."""
    bundle = load_bundle(_place(job), job.store)
    config = with_bundle(job.config, bundle, per_job=per_job_keys())
    return replace(job, config=config), bundle, job.config.prediction.run or bundle.run


def _place(job: Job) -> str:
    place = job.config.prediction.model
    if place is None:
        raise ConfigError("prediction.model: set it to a bundle's folder, or to the name of a run")
    return place if "://" in place or not Path(place).expanduser().is_dir() else str(Path(place).expanduser().resolve())


def _held_out(job: Job, cohort: Cohort) -> list[Slide]:
    """Return the slides of ``prediction.split``, by default all outside train."""
    split = job.config.prediction.split
    return cohort.of_split(split) if split else cohort.of_split("val", "test")


def _some(slides: Sequence[Slide], split: str | None) -> Sequence[Slide]:
    if not slides:
        raise BadInput(f"the manifest has no slide in {split}")
    return slides


def _metrics(job: Job, predictions: Predictions, slides: Sequence[Slide], cohort: Cohort) -> dict[str, Any]:
    """Return metrics by split."""
    split_of = {slide.slide_id: slide.split or "all" for slide in slides}
    found: dict[str, Any] = {}
    for split in sorted(set(split_of.values())):
        entries = [entry for entry in predictions.prepared.entries if split_of[entry.slide_id] == split]
        found[split] = judge_predictions(
            job.store,
            predictions.run,
            predictions.rows,
            entries,
            classes=cohort.classes,
            slide_score=job.config.prediction.slide_score,
        )
        rows = [(name, "not defined" if value is None else f"{value:.4f}") for name, value in found[split].items()]
        job.console.table(f"metrics on {split} ({len(entries)} slides)", ("metric", "value"), rows)
    return found


def _prediction_paths(job: Job, predictions: Predictions) -> Answer:
    path = job.store.path(predictions.folder)
    maps = {"maps": f"{path}/maps"} if job.config.prediction.maps else {}
    return {"predictions": path, **maps, "slides": predictions.prepared.statuses}


def _statuses(records: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        assert isinstance(record, Record)
        counts[record.status] = counts.get(record.status, 0) + 1
    return counts


def _track(
    job: Job, tracker: Tracker, trained: Trained, predictions: Predictions | None, metrics: dict[str, Any]
) -> None:
    """Record final metrics, the bundle, the configuration and some maps."""
    step = len(trained.history.rows) - 1
    for split, values in metrics.items():
        tracker.log_metrics({f"final_{split}_{name}": value for name, value in values.items()}, step=step)
    tracker.set_tags({"distmil.version": __version__, "distmil.bundle_digest": trained.bundle.digest})
    with tempfile.TemporaryDirectory(prefix="distmil-") as folder:
        root = Path(folder)
        (root / "config.yaml").write_text(yaml.safe_dump(_shareable(job), sort_keys=False), encoding="utf-8")
        tracker.log_artifact(root / "config.yaml")
        copies = {"bundle": bundle_folder(trained.run)}
        if predictions is not None and job.config.prediction.maps:
            copies["maps"] = f"{predictions.folder}/maps"
        shown = set(list(predictions.rows)[:MAPS_TRACKED]) if predictions else set()
        for kind, source in copies.items():
            (root / kind).mkdir()
            for name in job.store.names(source):
                if kind == "bundle" or name.rpartition("_")[0] in shown:
                    (root / kind / name).write_bytes(job.store.read(f"{source}/{name}"))
            tracker.log_artifact(root / kind, kind)


def _shareable(job: Job) -> dict[str, Any]:
    """Return the configuration without paths."""
    values = job.config.model_dump()
    for section, key in (("cohort", "manifest"), ("storage", "root"), ("prediction", "model"), ("tracking", "uri")):
        values[section][key] = None
    if values["encoder"]["weights"] != "none":
        values["encoder"]["weights"] = Path(values["encoder"]["weights"]).name
    return values
