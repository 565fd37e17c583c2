"""A job: its configuration, store and console, the slides it reads, and how many of them may be dropped."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from distmil.cohort import Cohort, Slide, read_cohort
from distmil.config.root import Config
from distmil.console import Console
from distmil.demo.cohort import make_cohort
from distmil.encoders.registry import EncoderSpec, prepare_encoder
from distmil.errors import BadInput, ConfigError, TooManyBadSlides
from distmil.outcomes import Outcomes
from distmil.storage.records import Record
from distmil.storage.store import Store

if TYPE_CHECKING:  # torch takes seconds to import, and not every job needs it
    from torch import Tensor


@dataclass
class Job:
    """What every stage needs: the configuration, the store, and the console."""

    config: Config
    store: Store
    console: Console = field(default_factory=Console)
    outcomes: Outcomes = field(default_factory=Outcomes)
    """How the slides ended, shown at the job's end; copies of a job share it."""


@dataclass
class Tiled:
    """The outcome of tiling a cohort."""

    records: dict[str, Record] = field(default_factory=dict)
    """Of every slide, by its id."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Work on each slide that was not done before."""
    wall_s: float = 0.0


def open_cohort(job: Job, *, needs_labels: bool, needs_splits: bool) -> Cohort:
    """Read the manifest, making the synthetic cohort first where one is asked for."""
    config = job.config.cohort
    if config.manifest is None and config.synthetic == 0:
        raise ConfigError(
            "cohort.manifest: set it to a CSV or Parquet file (or cohort.synthetic to a number of slides)"
        )
    manifest = config.manifest or _synthetic(job, config.synthetic)
    cohort = read_cohort(config, manifest=manifest, needs_labels=needs_labels, needs_splits=needs_splits)
    partial = sum(
        1 for slide in cohort.slides if slide.annotation_path and not slide.annotation_complete and slide.label
    )
    if partial:
        job.console.note(
            f"{partial} annotated slides are not marked annotation_complete: what is not outlined there is unknown"
        )
    return cohort


def open_encoder(job: Job, *, state: "Mapping[str, Tensor] | None" = None) -> EncoderSpec:
    """Prepare the encoder's weights, and warn where they are random.

    Args:
        job: Its configuration names the encoder.
        state: Weights out of a bundle.

    Raises:
        ConfigError: If the file or the weights name does not exist.
        EncoderError: If the weights cannot be had or do not fit.
    """
    encoder = job.config.encoder
    if encoder.weights_name == "random":
        job.console.note(
            f"WARNING: {encoder.name} has RANDOM weights (encoder.weights=random): its embeddings, and all that is "
            "made of them, mean next to nothing. Leave encoder.weights out for its published weights"
        )
    return prepare_encoder(encoder, job.store, state=state)


def held_out_slides(job: Job, cohort: Cohort) -> list[Slide]:
    """Return the slides of ``prediction.split``, by default all outside train."""
    split = job.config.prediction.split
    return cohort.of_split(split) if split else cohort.of_split("val", "test")


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
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    allowed = job.config.tiling.max_bad_fraction
    if num_bad > allowed * len(records) or num_bad == len(records):
        job.outcomes.check_defects()
        raise TooManyBadSlides(
            f"{num_bad} of {len(records)} slides cannot be used ({statuses}), more than tiling.max_bad_fraction = "
            f"{allowed} allows; mend them, take them out of the manifest, or raise it"
        )
    kinds = job.outcomes.dropped_by_kind()
    job.console.note(f"{num_bad} of {len(records)} slides are dropped: {statuses}{kinds}; the job's end says why")
