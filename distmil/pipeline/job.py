"""A job: its configuration, store and console, the slides it reads, and how many of them may be dropped."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distmil.cohort import Cohort, Slide, read_cohort
from distmil.config.loading import build_config, per_job_keys
from distmil.config.root import Config
from distmil.console import Console
from distmil.demo.cohort import make_cohort
from distmil.encoders.engines.runtime import check_installed
from distmil.encoders.registry import EncoderSpec, prepare_encoder
from distmil.errors import BadInput, ConfigError, DistmilError, TooManyBadSlides
from distmil.features.spec import features_spec
from distmil.inference.bundle_place import find_bundle, is_run
from distmil.outcomes import Outcomes
from distmil.preflight.checks import check_job, needs_of
from distmil.storage.records import Record
from distmil.storage.roots import resolve_root
from distmil.storage.store import Store

if TYPE_CHECKING:  # torch takes seconds to import, and not every job needs it
    from torch import Tensor

WITH_BUNDLE = {"evaluate", "predict", "export", "view"}
"""Jobs that need a bundle."""


@dataclass
class Job:
    """What every stage needs: the configuration, the store, and the console."""

    config: Config
    store: Store
    console: Console = field(default_factory=Console)
    outcomes: Outcomes = field(default_factory=Outcomes)
    """How the slides ended, shown at the job's end; copies of a job share it."""
    opened: list["Opened"] = field(default_factory=list)
    """The manifest as it was read and checked already; copies of a job share it."""


@dataclass(frozen=True)
class Opened:
    """A manifest that was read, and what it was read with."""

    asked: dict[str, Any]
    cohort: Cohort


@dataclass
class Tiled:
    """The outcome of tiling a cohort."""

    records: dict[str, Record] = field(default_factory=dict)
    """Of every slide, by its id."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Work on each slide that was not done before."""
    wall_s: float = 0.0


def check_input(job: Job, name: str) -> None:
    """Read the manifest of a job by the job's name, to refuse a wrong one before torch, Ray and MLflow are imported.

    Raises:
        ConfigError: If the job has no manifest, or no bundle where it needs one.
        BundleError: If there is no such bundle.
        ManifestError: If the manifest cannot be used.
    """
    needs_bundle = name in WITH_BUNDLE
    if needs_bundle:
        bundle_place(job)  # that one is named at all
    _check_manifest(job, name)
    if needs_bundle:
        find_bundle(bundle_place(job), job.store, key="prediction.model")


def _check_manifest(job: Job, name: str) -> None:
    """Read the manifest of a job, its labels as the bundle's classes where there is one. Raises: ManifestError."""
    config = job.config.cohort
    if config.manifest is None and config.synthetic:
        return
    needs = needs_of(name, job.config)
    if name not in WITH_BUNDLE or "classes" in config.model_fields_set:
        open_cohort(job, **needs)
        return
    classes = _bundle_classes(job)
    if classes is not None:
        known = replace(job, config=_with_classes(job.config, classes))
        open_cohort(known, **needs)
    elif config.manifest is not None:
        needs["needs_splits"] = False
        needs_slides = job.config.features.folder is None
        read_cohort(config, manifest=config.manifest, are_classes_known=False, needs_slides=needs_slides, **needs)


def check_ahead(job: Job, name: str) -> None:
    """Check within seconds what would stop a job by the job's name after hours, and note what it will lack.

    Raises:
        BadInput: If the job cannot succeed.
        StorageError: If the store does not answer.
    """
    read = [opened.cohort for opened in job.opened]
    if name in {"export", "view"}:  # nothing is made that takes hours
        return
    config = _with_bundle_tiling(job) if name in WITH_BUNDLE else job.config
    if read and config is not None:
        for note in check_job(config, job.store, read[-1], job=name):
            job.console.note(note)


def _with_bundle_tiling(job: Job) -> Config | None:
    """Lay a bundle's tiling and encoder over the configuration; None where that fails, which its loading explains."""
    found = _bundle_json(job, "config.json")
    if not isinstance(found, dict):
        return None
    own = per_job_keys()
    try:
        theirs, merged = found["config"], job.config.model_dump()
        for section in ("cohort", "tiling", "encoder", "features"):
            values = theirs.get(section, {})  # bundles of earlier versions have no features
            merged[section] |= {key: value for key, value in values.items() if f"{section}.{key}" not in own}
        return build_config(merged)
    except (KeyError, TypeError, AttributeError, DistmilError):
        return None


def _with_classes(config: Config, classes: list[str]) -> Config:
    return config.model_copy(update={"cohort": config.cohort.model_copy(update={"classes": classes})})


def bundle_place(job: Job) -> str:
    """Return the bundle's folder, absolute, or its run's name. Raises: ConfigError if neither is set."""
    place = job.config.prediction.model
    if place is None:
        raise ConfigError("prediction.model: set it to a bundle's folder, or to the name of a run")
    if "://" in place:
        return resolve_root(place, key="prediction.model")
    folder = Path(place).expanduser()
    return str(folder.resolve()) if folder.is_dir() and not is_run(place, job.store) else place


def _bundle_classes(job: Job) -> list[str] | None:
    """Read a bundle's classes without its network; None where that fails, which loading the bundle explains."""
    found = _bundle_json(job, "labels.json")
    classes = found.get("classes") if isinstance(found, dict) else None
    return classes if isinstance(classes, list) and all(isinstance(text, str) for text in classes) else None


def _bundle_json(job: Job, name: str) -> Any:
    """Read a JSON file of the job's bundle; None where that fails."""
    try:
        return find_bundle(bundle_place(job), job.store, key="prediction.model").read_json(name)
    except (DistmilError, OSError, ValueError):
        return None


def open_cohort(job: Job, *, needs_labels: bool, needs_splits: bool) -> Cohort:
    """Read the manifest unless that was done already, making the synthetic cohort first where one is asked for."""
    config = job.config.cohort
    if config.manifest is None and config.synthetic == 0:
        raise ConfigError(
            "cohort.manifest: set it to a CSV or Parquet file (or cohort.synthetic to a number of slides)"
        )
    needs_slides = job.config.features.folder is None
    asked = {
        "config": config.model_dump(), "needs_labels": needs_labels, "needs_splits": needs_splits,
        "needs_slides": needs_slides,
    }  # fmt: skip
    for opened in job.opened:
        if opened.asked == asked:
            return opened.cohort
    manifest = config.manifest or _synthetic(job, config.synthetic)
    cohort = read_cohort(
        config, manifest=manifest, needs_labels=needs_labels, needs_splits=needs_splits, needs_slides=needs_slides
    )
    job.outcomes.noun = cohort.noun
    job.opened.append(Opened(asked, cohort))
    partial = sum(
        1 for slide in cohort.slides if slide.annotation_path and not slide.annotation_complete and slide.label
    )
    if partial:
        job.console.note(
            f"{partial} annotated {cohort.noun}s are not marked annotation_complete: what is not outlined there is "
            "unknown"
        )
    return cohort


def open_encoder(job: Job, *, state: "Mapping[str, Tensor] | None" = None) -> EncoderSpec:
    """Prepare the encoder's weights, and warn where they are random.

    Args:
        job: Its configuration names the encoder.
        state: Weights out of a bundle.

    Raises:
        ConfigError: If the file or the weights name does not exist.
        EncoderError: If the weights cannot be had or do not fit, or the engine is not installed.
    """
    encoder = job.config.encoder
    if job.config.tiling.strategy == "features":
        return features_spec(job.config.features)
    check_installed(engine=encoder.engine, precision=encoder.precision)
    if "random" in encoder.each_weights.values():
        job.console.note(
            f"WARNING: {encoder.name} has RANDOM weights (encoder.weights=random): its embeddings, and all that is "
            "made of them, mean next to nothing. Leave encoder.weights out for its published weights"
        )
    return prepare_encoder(encoder, job.store, state=state)


def check_any(slides: list[Slide], split: str | None) -> list[Slide]:
    """Return the slides. Raises: BadInput if there are none."""
    if not slides:
        raise BadInput(f"the manifest has no slide in {split}")
    return slides


def _synthetic(job: Job, num_slides: int) -> Path:
    if not job.store.is_local:
        raise ConfigError("cohort.synthetic: a synthetic cohort needs a local or shared storage.root")
    folder = Path(job.store.path(f"synthetic/{num_slides}"))
    if not (folder / "manifest.csv").exists():
        job.console.note(f"making {num_slides} synthetic slides in {folder}")
    with job.console.progress("make", num_slides, "slides") as advance:
        return make_cohort(folder, num_slides=num_slides, progress=advance)


def status_counts(records: Mapping[str, Record]) -> dict[str, int]:
    """Return how many slides ended in each status."""
    return dict(Counter(record.status for record in records.values()))


def check_bad_fraction(job: Job, records: Mapping[str, Record]) -> None:
    """Add the slides to the job's outcomes, and refuse too many that cannot be used.

    Raises:
        TooManyBadSlides: If more are dropped than ``tiling.max_bad_fraction`` allows, or everything.
        DefectError: If an unexpected exception cost some of them then.
    """
    job.outcomes.add(records)
    counts = status_counts(records)
    num_bad = sum(counts.values()) - counts.pop("ok", 0)
    if not num_bad:
        return
    noun = job.outcomes.noun
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    allowed = job.config.tiling.max_bad_fraction
    if num_bad > allowed * len(records) or num_bad == len(records):
        job.outcomes.check_defects()
        raise TooManyBadSlides(
            f"{num_bad} of {len(records)} {noun}s cannot be used ({statuses}), more than tiling.max_bad_fraction = "
            f"{allowed} allows; mend them, take them out of the manifest, or raise it:\n{job.outcomes.dropped_text()}"
        )
    kinds = job.outcomes.dropped_by_kind()
    job.console.note(f"{num_bad} of {len(records)} {noun}s are dropped: {statuses}{kinds}; the job's end says why")
