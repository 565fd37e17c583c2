"""The job that writes finished predictions for other programs, a slide at a time, all slides in parallel."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pyarrow import csv

from distmil.cohort import Cohort, Slide
from distmil.config.root import Config
from distmil.config.shown import Format
from distmil.defects import attempt
from distmil.inference.bundle import Bundle, load_bundle, with_bundle
from distmil.pipeline.cluster import map_slides
from distmil.pipeline.export.choice import choose_run, choose_slides, place_of
from distmil.pipeline.export.slide import Place, SlideFiles, Source, settings_of
from distmil.pipeline.export.source import check_target, make_source, threshold_of
from distmil.pipeline.job import Job, bundle_place, check_bad_fraction, open_cohort, status_counts
from distmil.storage.records import Record
from distmil.storage.store import Store

CHECKED_AT_ONCE = 16
TABLE = "slides.csv"
_Item = tuple[Source, tuple[Format, ...]]
"""A slide, and the formats that are left to write."""


def run(job: Job) -> dict[str, Any]:
    """Write what is missing of the exported files of predicted slides."""
    bundle = load_bundle(bundle_place(job), job.store)
    inner = replace(job, config=with_bundle(job.config, bundle))
    cohort = open_cohort(inner, needs_labels=False, needs_splits=False)
    check_target(inner.config, bundle)
    name = choose_run(job, bundle)
    chosen = choose_slides(job, cohort, name)
    place, threshold = place_of(job, name), threshold_of(inner.config, bundle)
    said = "export.threshold" if job.config.export.threshold is not None else "the bundle's patch threshold"
    where = place.store.path(place.folder)
    job.console.note(
        f"exporting {len(chosen)} {job.outcomes.noun}s of the predictions {name} to {where}; regions from probability "
        f"{threshold:.4g} ({said})"
    )
    task = Task(inner, bundle, cohort, name, place)
    records = _export(task, chosen)
    if num_old := task.discard_others({slide.slide_id for slide, _ in chosen}):
        job.console.note(
            f"{num_old} {job.outcomes.noun}s had been exported there with other settings: their files are deleted"
        )
    table = _write_table(place, records)
    check_bad_fraction(job, records)
    return {
        "run": name,
        "export": place.store.path(place.folder),
        "formats": _formats(job.config),
        "threshold": threshold,
        "num_regions": sum(record.info.get("num_regions") or 0 for record in records.values()),
        "table": table,
        "slides": status_counts(records),
    }


def _formats(config: Config) -> list[Format]:
    return list(dict.fromkeys(config.export.formats))


@dataclass(frozen=True)
class Task:
    """What a job exports, and where to."""

    job: Job
    """With the bundle's settings."""
    bundle: Bundle
    cohort: Cohort
    run: str
    """Name of the predictions."""
    place: Place

    @property
    def formats(self) -> list[Format]:
        """List the wanted formats."""
        return _formats(self.job.config)

    @property
    def threshold(self) -> float:
        """Return the probability from which a patch belongs to a region."""
        return threshold_of(self.job.config, self.bundle)

    def find(self, slide: Slide, scores: Record) -> tuple[_Item, Record]:
        """Find what is left to write of a slide, and make its record of what is there.

        Raises:
            SlideError: If its predictions are of another bundle, or its file or tiling has changed since.
            StorageError: If the store does not answer.
        """
        source = make_source(self.job, self.bundle, self.cohort, slide, scores, with_pictures="png" in self.formats)
        files = SlideFiles(source, self.job.config, self.job.store, self.run, self.place)
        done = {kind: files.finished(kind) for kind in self.formats}
        left = tuple(kind for kind, record in done.items() if record is None)
        return (source, left), merged(scores, [record for record in done.values() if record])

    def discard_others(self, chosen: set[str]) -> int:
        """Delete the files of slides outside this job that were made with other settings; return how many slides."""
        gone = set()
        for kind in self.formats:
            now = settings_of(self.job.config, kind, bundle=self.bundle.digest, threshold=self.threshold)
            for file in self.place.store.names(f"{self.place.folder}/{self.place.records(kind)}"):
                slide_id = file.removesuffix(".json")
                record = self.place.committed(slide_id, kind).read() if slide_id not in chosen else None
                if record is not None and record.key["settings"] != now:
                    self.place.discard(slide_id, kind)
                    gone.add(slide_id)
        return len(gone)


def _export(task: Task, chosen: Sequence[tuple[Slide, Record]]) -> dict[str, Record]:
    """Write what is missing, and return the record of every slide: ``ok`` with its regions, or why it failed."""

    def look(item: tuple[Slide, Record]) -> tuple[_Item, Record] | Record:
        slide = item[0]
        return attempt(lambda: task.find(*item), slide_id=slide.slide_id, hidden=(slide.path, slide.annotation_path))

    with ThreadPoolExecutor(CHECKED_AT_ONCE) as pool:
        looked = list(pool.map(look, chosen))
    records = {found.name: found for found in looked if isinstance(found, Record)}
    for slide_id in records:  # nothing of earlier predictions stays for a slide that fails
        _discard(task.place, slide_id, task.formats)
    found = [item for item in looked if not isinstance(item, Record)]
    records |= {record.name: record for (_, left), record in found if not left}
    todo = [item for item, _ in found if item[1]]
    job, noun = task.job, task.job.outcomes.noun
    if len(todo) < len(found):
        job.console.note(f"{len(found) - len(todo)} {noun}s are exported already")
    with job.console.progress("export", len(todo), f"{noun}s") as advance:
        arguments: dict[str, Any] = {"config": job.config, "store": job.store, "run": task.run, "place": task.place}
        for (source, _), record in map_slides(todo, _Exporter, **arguments):
            advance()
            records[source.slide.slide_id] = record
    return {slide.slide_id: records[slide.slide_id] for slide, _ in chosen}


def merged(scores: Record, made: Sequence[Record]) -> Record:
    """Make a slide's record for the job's end: its patches, regions and doubts."""
    regions = next((record.info for record in made if "num_regions" in record.info), {})
    doubts = [text for record in made for text in record.info["doubts"]]
    info = {name: regions.get(name) for name in ("num_regions", "area_mm2")}
    return Record(scores.name, {}, info={"num_patches": scores.info["num_patches"], **info, "doubts": doubts})


class _Exporter:
    """Writes one slide after the other; one that cannot be written is its status."""

    def __init__(self, *, config: Config, store: Store, run: str, place: Place) -> None:
        self._config, self._store, self._run, self._place = config, store, run, place

    def __call__(self, item: _Item) -> Record:
        """Write what is left of a slide, and return its record."""
        source, left = item
        slide = source.slide
        made = attempt(
            lambda: self._make(source, left), slide_id=slide.slide_id, hidden=(slide.path, slide.annotation_path)
        )
        if not made.ok:
            _discard(self._place, slide.slide_id, _formats(self._config))
        return made

    def _make(self, source: Source, left: Sequence[Format]) -> Record:
        files = SlideFiles(source, self._config, self._store, self._run, self._place)
        made = {kind: files.make(kind) for kind in left}
        done = [made.get(kind) or files.finished(kind) for kind in _formats(self._config)]
        return merged(source.scores, [record for record in done if record])


def _discard(place: Place, slide_id: str, formats: Sequence[Format]) -> None:
    for kind in formats:
        if place.committed(slide_id, kind).read() is not None:
            place.discard(slide_id, kind)


def _write_table(place: Place, records: dict[str, Record]) -> str:
    """Write every slide of the job with its patches, regions and status, and return the file."""
    rows = [
        {"slide_id": slide_id, "status": record.status, "reason": record.error or "",
         **{name: record.info.get(name) for name in ("num_patches", "num_regions", "area_mm2")}}
        for slide_id, record in records.items()
    ]  # fmt: skip
    fields = [("slide_id", pa.string()), ("status", pa.string()), ("num_patches", pa.int64())]
    fields += [("num_regions", pa.int64()), ("area_mm2", pa.float64()), ("reason", pa.string())]
    sink = pa.BufferOutputStream()
    csv.write_csv(pa.Table.from_pylist(rows, schema=pa.schema(fields)), sink)
    place.store.write(f"{place.folder}/{TABLE}", sink.getvalue())
    return place.store.path(f"{place.folder}/{TABLE}")
