"""The dry run of an import: which features would come in, which slides are refused and why, and how much disk it takes.

Every file is opened, and its coordinates are checked as the import checks them; the features' values are not read.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distmil.cohort import Slide
from distmil.defects import attempt, failure_record
from distmil.errors import SlideError
from distmil.features.finding import FeatureFolder, open_folder
from distmil.features.importer import Planned, SlideImporter
from distmil.pipeline.job import Job, check_bad_fraction, open_cohort, status_counts
from distmil.preflight.disk import free_bytes, in_bytes
from distmil.storage.records import Record

COLUMNS = ("features", "done", "to do", "amount", "written")
AT_ONCE = 8
"""Slides that are looked at together: a shared disk answers late."""


def run(job: Job) -> dict[str, Any]:
    """Look at the features of every slide, show what an import would do, and return it for the JSON line.

    Raises:
        ConfigError: If the folder cannot be used.
        TooManyBadSlides: If the import would end so.
    """
    slides = open_cohort(job, needs_labels=False, needs_splits=False).slides
    folder, noun = open_folder(job.config.features), f"{job.outcomes.noun}s"
    found: dict[str, Planned | Record] = {}
    with job.console.progress("look", len(slides), noun) as advance, ThreadPoolExecutor(AT_ONCE) as pool:
        for slide, look in zip(slides, pool.map(lambda slide: _look(job, folder, slide), slides), strict=True):
            found[slide.slide_id] = look
            advance()
    planned = {slide_id: look for slide_id, look in found.items() if isinstance(look, Planned)}
    num_bytes = sum(look.num_bytes for look in planned.values())
    _show(job, planned, noun=noun, num_bytes=num_bytes)
    records = {slide_id: _record(slide_id, look) for slide_id, look in found.items()}
    check_bad_fraction(job, records)
    job.outcomes.show(job.console)
    job.outcomes.check_defects()
    return {
        "dry_run": True,
        "layouts": sorted({look.layout for look in planned.values()}),
        "num_patches": sum(look.num_patches for look in planned.values()),
        "bytes": num_bytes,
        "done": sum(look.is_done for look in planned.values()),
        "slides": status_counts(records),
    }


def _look(job: Job, folder: FeatureFolder, slide: Slide) -> Planned | Record:
    """Look at the features of one slide; features that cannot be used are the slide's status."""
    try:
        file = folder.find(slide)
    except SlideError as error:
        return failure_record(slide.slide_id, error)
    importer = SlideImporter(slide, file, job.config, job.store)
    return attempt(importer.plan, slide_id=slide.slide_id, hidden=(slide.path, str(file.path)))


def _record(slide_id: str, look: Planned | Record) -> Record:
    """Return a slide's outcome as the import would record it."""
    return look if isinstance(look, Record) else Record(slide_id, {}, info={"mpp": look.mpp, "doubts": look.doubts})


def _show(job: Job, planned: Mapping[str, Planned], *, noun: str, num_bytes: int) -> None:
    """Show a row for each layout, and the disk."""
    rows = []
    for layout in sorted({look.layout for look in planned.values()}):
        own = [look for look in planned.values() if look.layout == layout]
        todo = [look for look in own if not look.is_done]
        patches, written = (sum(getattr(look, name) for look in todo) for name in ("num_patches", "num_bytes"))
        counts = f"{len(own) - len(todo)} {noun}", f"{len(todo)} {noun}", f"{patches:,} patches"
        rows.append((layout, *counts, in_bytes(written)))
    job.console.table("dry run of import_features: nothing is written", COLUMNS, rows)
    features, mpp = job.config.features, job.config.tiling.mpp
    at = f" at {mpp:g} um/px" if mpp else ""
    free = free_bytes(job.store.root)
    room = "" if free is None else f", {in_bytes(free)} are free"
    job.console.note(f"features of {features.encoder}, {features.dimension} wide{at}: {in_bytes(num_bytes)}{room}")
