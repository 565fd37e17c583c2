"""Outlines to label tables in parallel. Light: no torch, no slide reader."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.defects import attempt
from distmil.errors import StorageError
from distmil.labels.tables import SlideLabeller
from distmil.pipeline.cluster import Row, stream
from distmil.pipeline.job import Job
from distmil.pipeline.tile_report import say_unknown_groups
from distmil.storage.store import Record, Store


def label(job: Job, slides: Sequence[Slide], patches: Mapping[str, Record]) -> dict[str, Record]:
    """Make the label table of every tiled slide that is not done, and return the record of each by slide id."""
    labellers = {
        slide.slide_id: SlideLabeller(slide, job.config, job.store, patches[slide.slide_id])
        for slide in slides
        if patches[slide.slide_id].ok and slide.label is not None
    }
    records = {i: record for i, labeller in labellers.items() if (record := labeller.finished())}
    todo = [labeller for i, labeller in labellers.items() if i not in records]
    unknown: set[str] = set()
    if todo:
        job.console.note(f"labelling {len(todo)} slides ({len(records)} are done)")
        with job.console.progress("label", len(todo), "slides") as advance:
            for row in stream([_label_item(labeller) for labeller in todo], _label):
                advance()
                if row["fatal"]:
                    raise StorageError(row["fatal"])
                records[row["slide_id"]] = Record.from_json(json.loads(row["record"]))
                unknown.update(json.loads(row["unknown"]))
    say_unknown_groups(job, unknown)
    _report_labels(job, records)
    return records


def _label_item(labeller: SlideLabeller) -> Row:
    values = {
        "slide": asdict(labeller.slide),
        "config": labeller.config.model_dump(),
        "root": labeller.store.root,
        "patches": labeller.patches.to_json(),
    }
    return {"labeller": json.dumps(values)}


def _label(row: Row) -> Row:
    """Label one slide; an annotation that cannot be used is its status."""
    values = json.loads(row["labeller"])
    slide = Slide(**values["slide"])
    patches = Record.from_json(values["patches"])
    labeller = SlideLabeller(slide, build_config(values["config"]), Store(values["root"]), patches)
    answer = {"slide_id": slide.slide_id, "record": "", "fatal": "", "unknown": "[]"}
    unknown: list[str] = []
    try:
        made, failure = attempt(
            lambda: labeller.label(unknown.extend), slide_id=slide.slide_id, hidden=(slide.annotation_path, slide.path)
        )
    except StorageError as error:
        return answer | {"fatal": str(error)}
    record = made or failure
    return answer | {"record": json.dumps(record and record.to_json()), "unknown": json.dumps(unknown)}


def _report_labels(job: Job, records: Mapping[str, Record]) -> None:
    """Say how many outlines were repaired, and which targets no patch holds; doubts are said at the job's end."""
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
