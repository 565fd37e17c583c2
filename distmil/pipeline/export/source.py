"""What is known of a predicted slide before it is exported or shown; needs no Ray."""

from dataclasses import replace

from distmil.cohort import Cohort, Slide
from distmil.config.root import Config
from distmil.errors import ConfigError, SlideError
from distmil.inference.bundle import Bundle
from distmil.inference.predictor import reading_of
from distmil.labels.slide_outlines import annotation_version
from distmil.pipeline.export.slide import Source
from distmil.pipeline.job import Job
from distmil.storage.records import Record
from distmil.storage.store import Committed
from distmil.tiling.shards import patches_folder
from distmil.tiling.tiler import SlideTiler


def threshold_of(config: Config, bundle: Bundle) -> float:
    """Return the probability from which a patch belongs to a region."""
    return bundle.patch_threshold if config.export.threshold is None else config.export.threshold


def check_target(config: Config, bundle: Bundle) -> None:
    """Refuse a class that the bundle does not have. Raises: ConfigError."""
    target = config.export.target
    if target is not None and target not in bundle.classes[1:]:
        raise ConfigError(
            f"export.target = {target!r}: expected a class of the bundle {bundle.run} that is not normal: "
            f"{', '.join(bundle.classes[1:])}"
        )


def make_source(
    job: Job, bundle: Bundle, cohort: Cohort, slide: Slide, scores: Record, *, with_pictures: bool
) -> Source:
    """Gather what is exported of a slide.

    Args:
        job: With the bundle's settings.
        bundle: It made the predictions.
        cohort: Has the slide.
        slide: The slide.
        scores: Record of its predictions.
        with_pictures: Pictures are made, which show its outlines.

    Raises:
        SlideError: If its predictions are of another bundle, or its file or tiling has changed since.
        StorageError: If the store does not answer.
    """
    if scores.key.get("bundle") != bundle.digest:
        raise SlideError(f"its predictions are not of the bundle {bundle.run} as it is now; run predict again")
    label = None if slide.label is None else cohort.classes[slide.label]
    reading = reading_of(bundle, scores.info, slide_score=scores.key["slide_score"], label=label)
    reading = replace(reading, patch_threshold=threshold_of(job.config, bundle))
    annotation = annotation_version(slide) if with_pictures else None
    return Source(slide, _tiled(job, slide), scores, reading, annotation)


def _tiled(job: Job, slide: Slide) -> Record:
    """Read the record of a slide's tiling. Raises: SlideError if it is not true of the slide any more."""
    tiling = job.config.tiling
    if tiling.strategy == "features":
        record = Committed(job.store, f"{patches_folder(tiling)}/{slide.slide_id}", slide.slide_id).read()
    else:
        tiler = SlideTiler(slide, tiling, job.store)
        record = tiler.finished() or tiler.revived()
    if record is None or not record.ok:
        raise SlideError(
            f"the {job.outcomes.noun}'s file, resolution or tissue is another one than was predicted, or its tiling is "
            "gone; run predict again"
        )
    return record
