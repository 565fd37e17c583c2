"""The report on tiling: a page, its numbers as JSON, and each slide's picture with grid and labels drawn in."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import distmil
from distmil.cohort import Slide
from distmil.cohort.columns import setting
from distmil.cohort.kinds import is_plain_image
from distmil.config.root import Config, fingerprint
from distmil.defects import REASON, attempt
from distmil.errors import SlideError
from distmil.labels.slide_outlines import SlideOutlines, annotation_version
from distmil.labels.tables import SlideLabeller, bad_annotations
from distmil.pipeline.cluster import map_slides
from distmil.pipeline.job import Job, Tiled
from distmil.storage.records import Part, Record
from distmil.storage.store import Store
from distmil.tiling.overview import decode_overview
from distmil.tiling.shards import grid_of, patches_folder
from distmil.visualization.slide_maps import rings_of
from distmil.visualization.slide_picture import draw_slide
from distmil.visualization.tiling_page import to_html
from distmil.visualization.tiling_report import SlideSummary, choose_cards, summarise

SETTINGS = ("strategy", "patch_px", "stride_px", "mpp", "min_tissue", "encode", "reduce", "store", "chunk_patches")
_FORMAT_VERSION = 3
_GROUPS_NAMED = 20

Drawn = tuple[dict[str, Any], Sequence[str]]
"""Notes on a picture, and the names of unknown groups."""


def write_report(job: Job, slides: Sequence[Slide], tiled: Tiled) -> tuple[str, dict[str, str]]:
    """Write ``summary.html`` and ``summary.json`` of these slides.

    Returns:
        Their folder, and why annotations cannot be used, by slide id.
    """
    config, store = job.config, job.store
    run = f"tiling-{fingerprint({'slides': sorted(tiled.records), 'patches': patches_folder(config.tiling)}, length=8)}"
    folder = f"reports/{run}"
    rows = {i: asdict(_summary(tiled, slide, config)) for i, slide in enumerate(slides)}
    shown = [slides[i] for i in choose_cards(rows) if tiled.records[slides[i].slide_id].ok]
    about, num_drawn = _illustrate(job, folder, shown, tiled.records)
    unusable = {i: found["unusable"] for i, found in about.items() if "unusable" in found}
    if not tiled.seconds and not num_drawn and store.exists(f"{folder}/summary.html"):
        return folder, unusable  # the page of the run that did the work says more
    summaries = [replace(_summary(tiled, slide, config), **_shown(about.get(slide.slide_id, {}))) for slide in slides]
    settings = {f"tiling.{name}": getattr(config.tiling, name) for name in SETTINGS}
    summary = summarise(
        summaries,
        run=run,
        settings=settings,
        wall_s=tiled.wall_s,
        version=distmil.__version__,
        noun=job.outcomes.noun,
    )
    store.write_json(f"{folder}/summary.json", summary)
    store.write(f"{folder}/summary.html", to_html(summary).encode())
    return folder, unusable


def _shown(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the notes on a picture as fields of a slide's summary."""
    note = {"note": f"its annotation cannot be used: {about['unusable']}"} if "unusable" in about else {}
    return {name: value for name, value in about.items() if name != "unusable"} | note


def _shows_tissue(config: Config, slide: Slide) -> bool:
    """Tell whether a slide's tissue is worth showing: in a plain image only where patches are chosen by it."""
    return config.tiling.strategy == "foreground" or not is_plain_image(slide.path)


def say_unusable(job: Job, errors: Mapping[str, str]) -> None:
    """Say which annotations cannot be used, and what becomes of their slides; see ``labels.on_bad_annotation``.

    Raises:
        BadAnnotations: If it is ``fail``.
    """
    if not errors:
        return
    noun = job.outcomes.noun
    if job.config.labels.on_bad_annotation == "fail":
        raise bad_annotations(errors, noun=noun)
    for slide_id, error in errors.items():
        job.outcomes.doubt(slide_id, [f"its annotation cannot be used: {error}"])
    fate = {
        "skip": f"train leaves these {noun}s out; labels.on_bad_annotation=label_only keeps their labels",
        "label_only": f"train uses these {noun}s by their labels alone (labels.on_bad_annotation=label_only)",
    }[job.config.labels.on_bad_annotation]
    job.console.note(f"annotations of {len(errors)} {noun}s cannot be used, the job's end says why: {fate}")


def say_unknown_groups(job: Job, names: Collection[str]) -> None:
    """Name the groups without a meaning on the console, and nowhere else: they may name people."""
    if names:
        shown = ", ".join(map(repr, sorted(names)[:_GROUPS_NAMED])) + ", ..." * (len(names) > _GROUPS_NAMED)
        example = setting("labels.groups", dict.fromkeys(sorted(names)[:_GROUPS_NAMED], "..."))
        classes = ", ".join(job.config.cohort.classes)
        job.console.note(
            f"annotations: groups {shown} are not in labels.groups; patches that they touch are unknown. Say which "
            f"class each is ({classes}, exclude, ignore or nothing): {example} (the names are said once, when the "
            "annotation is read, and never stored)"
        )


def _illustrate(
    job: Job, folder: str, slides: Sequence[Slide], records: Mapping[str, Record]
) -> tuple[dict[str, dict[str, Any]], int]:
    """Draw the missing pictures; return the notes on each picture by slide id, and the number of pictures drawn."""
    there = set(job.store.names(f"{folder}/slides"))
    about, items = {}, []
    unknown: set[str] = set()
    for slide in slides:
        record = records[slide.slide_id]
        name = _name(job.config, slide, record)
        if f"{name}.json" in there:
            about[slide.slide_id] = job.store.read_checked(f"{folder}/slides/{name}.json", owner=name)
        else:
            items.append((slide, record, name))
    with job.console.progress("report", len(items), f"{job.outcomes.noun}s") as advance:
        for (slide, _, _), drawn in map_slides(items, _Illustrator, config=job.config, store=job.store, folder=folder):
            advance()
            if isinstance(drawn, Record):
                about[slide.slide_id] = {"note": f"it cannot be drawn: {drawn.error}"}
                job.outcomes.note_failure(drawn, "it cannot be drawn")
            else:
                about[slide.slide_id], names = drawn
                unknown.update(names)
    say_unknown_groups(job, unknown)
    return about, len(items)


def _summary(tiled: Tiled, slide: Slide, config: Config) -> SlideSummary:
    """Summarise a slide's record."""
    slide_id = slide.slide_id
    record = tiled.records[slide_id]
    names = ("width_px", "height_px", "mpp", "reader", "tissue_share")
    info: dict[str, Any] = {name: record.info.get(name) for name in names}
    if not _shows_tissue(config, slide):
        info["tissue_share"] = None
    return SlideSummary(
        slide_id=slide_id,
        status=record.status,
        error=record.error,
        reason=record.info.get(REASON),
        num_patches=record.rows,
        reused=record.info.get("reused", 0),
        blank=record.info.get("blank", 0),
        doubts=record.info.get("doubts", ()),
        seconds=tiled.seconds.get(slide_id),
        **info,
    )


def _name(config: Config, slide: Slide, record: Record) -> str:
    """Name a slide's picture by everything that it shows."""
    values = {
        "patches": record.digest,
        "annotation": annotation_version(slide),
        "slide": [slide.label, slide.annotation_complete],
        "labels": config.labels.identity(),
        "classes": config.cohort.classes,
        "format_version": _FORMAT_VERSION,
    }
    if not _shows_tissue(config, slide):
        values["tissue"] = False
    return f"{slide.slide_id}-{fingerprint(values, length=8)}"


class _Illustrator:
    """Draws one slide after the other, and notes what is drawn."""

    def __init__(self, config: Config, store: Store, folder: str) -> None:
        self._config, self._store, self._folder = config, store, folder

    def __call__(self, item: tuple[Slide, Record, str]) -> Drawn | Record:
        """Draw one slide, or return its record if that fails."""
        slide, record, name = item
        return attempt(
            lambda: self._draw(slide, record, name),
            slide_id=slide.slide_id,
            hidden=(slide.path, slide.annotation_path),
        )

    def _draw(self, slide: Slide, record: Record, name: str) -> Drawn:
        """Draw a slide."""
        store, patches = self._store, f"{patches_folder(self._config.tiling)}/{slide.slide_id}"
        picture, mask = decode_overview(*(store.read_part(patches, Part(**part)) for part in record.info["pictures"]))
        grid = grid_of(store, self._config.tiling, record)
        label_N, outlines, about, unknown = self._labels(slide, record)
        image = draw_slide(
            picture,
            scale=record.info["picture_scale"],
            mask=mask & _shows_tissue(self._config, slide),
            x=grid["x"].to_numpy(),
            y=grid["y"].to_numpy(),
            extent_px=record.info["extent_px"],
            label_N=label_N,
            outlines=outlines,
        )
        about["picture"] = f"slides/{name}.jpg"
        store.write(f"{self._folder}/{about['picture']}", image)
        store.write_checked(f"{self._folder}/slides/{name}.json", about, owner=name)
        return about, unknown

    def _labels(
        self, slide: Slide, record: Record
    ) -> tuple[NDArray[np.int8] | None, list[NDArray[np.float64]], dict[str, Any], Sequence[str]]:
        """Return the patches' labels, the annotation's outlines, notes on them, and names of unknown groups."""
        is_given = slide.label is not None
        labelled = slide if is_given else replace(slide, label=1)  # what is outlined without a label is worth seeing
        try:
            found = SlideOutlines(slide, self._config, self._store, record).read()
        except (SlideError, OSError) as error:
            reason = (error.strerror or type(error).__name__) if isinstance(error, OSError) else error
            return None, [], {"unusable": str(reason).removeprefix(f"{slide.slide_id}: ")}, ()
        if found is None:
            return None, [], {}, ()
        outlines = rings_of(found.annotation)
        try:
            label_N = SlideLabeller(labelled, self._config, self._store, record).labels(found).labels.label
        except SlideError as error:
            return None, outlines, {"unusable": str(error).removeprefix(f"{slide.slide_id}: ")}, found.unknown
        counts = {"positive": label_N > 0, "negative": label_N == 0, "unknown": label_N < 0}
        return label_N, outlines, {"labels": {name: int(found.sum()) for name, found in counts.items()}}, found.unknown
