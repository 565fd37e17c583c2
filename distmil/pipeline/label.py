"""Outlines to label tables in parallel. Light: no torch, no slide reader."""

from collections.abc import Mapping, Sequence

from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.defects import attempt
from distmil.errors import AnnotationError
from distmil.labels.tables import SlideLabeller, bad_annotations
from distmil.pipeline.cluster import map_slides
from distmil.pipeline.job import Job
from distmil.pipeline.tile_report import say_unknown_groups
from distmil.storage.records import Record
from distmil.storage.store import Store


def label(job: Job, slides: Sequence[Slide], patches: Mapping[str, Record]) -> dict[str, Record]:
    """Make the label table of every tiled slide that is not done, and return the record of each by slide id.

    Raises:
        BadAnnotations: If annotations cannot be used and ``labels.on_bad_annotation`` is ``fail``.
        StorageError: If the store cannot be written.
    """
    labellers = {
        slide.slide_id: SlideLabeller(slide, job.config, job.store, patches[slide.slide_id])
        for slide in slides
        if patches[slide.slide_id].ok and slide.label is not None
    }
    records = {i: record for i, labeller in labellers.items() if (record := labeller.finished())}
    todo = [labeller for i, labeller in labellers.items() if i not in records]
    unknown: set[str] = set()
    if todo:
        noun = job.outcomes.noun
        job.console.note(f"labelling {len(todo)} {noun}s ({len(records)} are done)")
        with job.console.progress("label", len(todo), f"{noun}s") as advance:
            items = [(labeller.slide, labeller.patches) for labeller in todo]
            for (slide, _), (record, names) in map_slides(items, _Labeller, config=job.config, store=job.store):
                advance()
                records[slide.slide_id] = record
                unknown.update(names)
    say_unknown_groups(job, unknown)
    bad = {i: record.error or "" for i, record in records.items() if record.status == AnnotationError.status}
    if bad and job.config.labels.on_bad_annotation == "fail":
        raise bad_annotations(bad, noun=job.outcomes.noun)
    _report_labels(job, records)
    return records


class _Labeller:
    """Labels one slide after the other; an annotation that cannot be used is the slide's status."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config, self._store = config, store

    def __call__(self, item: tuple[Slide, Record]) -> tuple[Record, list[str]]:
        """Label one slide, and name the groups without a meaning."""
        slide, patches = item
        labeller = SlideLabeller(slide, self._config, self._store, patches)
        unknown: list[str] = []
        record = attempt(
            lambda: labeller.label(unknown.extend), slide_id=slide.slide_id, hidden=(slide.annotation_path, slide.path)
        )
        return record, unknown


def _report_labels(job: Job, records: Mapping[str, Record]) -> None:
    """Note the number of repaired outlines, and the slides whose target no patch holds."""
    infos = {i: record.info for i, record in records.items() if record.ok}
    repaired = sum(info["repaired"] for info in infos.values())
    if repaired:
        job.console.note(f"annotations: {repaired} invalid outlines were repaired")
    missed = sorted(i for i, info in infos.items() if info["is_target_missed"])
    if missed:
        job.console.note(
            f"annotations: no patch holds any target of {', '.join(missed[:10])}{' ...' if len(missed) > 10 else ''}; "
            "look at tiling.min_tissue, or at the outlines' scale"
        )
