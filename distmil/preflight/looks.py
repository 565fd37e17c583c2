"""A look at some slides and annotations of a job before it begins, within seconds, in child processes as the job's."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.labels.slide_outlines import groups_of
from distmil.labels.tables import SlideLabeller
from distmil.preflight.timing import answers_within, spread
from distmil.processes.child import Child, ChildCrashed, ChildTimedOut
from distmil.storage.records import Record
from distmil.storage.store import Store
from distmil.tiling.tiler import SlideTiler

MOST_LOOKS = 20
"""Slides that are looked at, and as many annotated ones."""
MOST_TRIALS = 4
"""Slides that a few patches are cut of, to know how many bytes a job will write."""
TRIAL_PATCHES = 16
LIMIT_S = 8.0
MOST_CHILDREN = 4


@dataclass(frozen=True)
class Look:
    """What is known of a slide before the job."""

    slide: Slide
    status: str = "ok"
    error: str | None = None
    mpp: float | None = None
    """um per level-0 pixel by the manifest, the file or the default."""
    is_done: bool = False
    """It is tiled already."""
    num_patches: int | None = None
    """Of the whole slide, where it was planned or tiled."""
    num_bytes: float = 0.0
    """Of one stored patch."""
    plan_s: float = 0.0
    """Work of planning the slide."""
    patch_s: float = 0.0
    """Work of cutting one patch."""
    annotation_s: float | None = None
    """Work of reading its annotation; None where nobody looked."""
    annotation_error: str | None = None


@dataclass(frozen=True)
class Task:
    """A slide to look at, and how closely."""

    slide: Slide
    num_cut: int = 0
    file: str | None = None
    """File for the patches that are cut."""
    with_annotation: bool = False


def look_at(
    tasks: Sequence[Task], config: Config, store: Store, *, limit_s: float = LIMIT_S, at_once: int = MOST_CHILDREN
) -> list[Look]:
    """Look at slides in child processes, and return what was seen in time, in no fixed order.

    Raises:
        StorageError: If the store does not answer.
    """
    at_once = max(1, min(at_once, os.cpu_count() or 1))
    with tempfile.TemporaryDirectory(prefix="distmil-", ignore_cleanup_errors=True) as folder:
        found = answers_within(limit_s, tasks, lambda: _Looker(config, store, folder), at_once=at_once)
    return [look for look in found.values() if look is not None]


def choose_tasks(slides: Sequence[Slide], *, with_annotations: bool) -> list[Task]:
    """Choose the slides to look at: some spread over the manifest, and some of those with an annotation, mixed."""
    annotated = [slide for slide in slides if with_annotations and slide.annotation_path and slide.label is not None]
    chosen = {slide.slide_id: slide for slide in (*spread(slides, MOST_LOOKS), *spread(annotated, MOST_LOOKS))}
    wanted = {slide.slide_id for slide in spread(annotated, MOST_LOOKS)}
    tasks = [Task(slide, with_annotation=slide.slide_id in wanted) for slide in chosen.values()]
    order = np.random.default_rng(0).permutation(len(tasks))
    trials = [Task(slide, num_cut=TRIAL_PATCHES) for slide in spread(slides, MOST_TRIALS)]
    return [tasks[i] for i in order] + trials


class _Looker:
    """Looks at one slide after the other, in children of its own."""

    def __init__(self, config: Config, store: Store, folder: str) -> None:
        self._config, self._store, self._folder = config, store, folder
        self._slides = Child("distmil.preflight.worker:look", is_silent=True)
        self._annotations = Child("distmil.preflight.worker:read", is_silent=True)

    def close(self) -> None:
        """End the children."""
        self._slides.close()
        self._annotations.close()

    def __call__(self, task: Task, *, limit_s: float) -> Look | None:
        """Look at a slide; None where the time was not enough."""
        slide, tiling = task.slide, self._config.tiling
        record = SlideTiler(slide, tiling, self._store).finished()
        if record is not None:
            look, size, bounds = _done(slide, record), *_place(record)
        else:
            try:
                answer = self._slides.call((slide, tiling, task.num_cut, task.file), timeout_s=limit_s)
            except ChildTimedOut:
                return None
            except ChildCrashed as error:
                return Look(slide, "unreadable", f"the slide crashed its reader ({error})")
            look, size, bounds = _seen(slide, answer), answer.get("size"), answer.get("bounds")
        if not task.with_annotation or size is None or look.status != "ok" or self._is_labelled(slide, record):
            return look
        return self._with_annotation(look, size, bounds, limit_s=limit_s)

    def _is_labelled(self, slide: Slide, record: Record | None) -> bool:
        return record is not None and SlideLabeller(slide, self._config, self._store, record).finished() is not None

    def _with_annotation(self, look: Look, size: Any, bounds: Any, *, limit_s: float) -> Look:
        """Read the slide's annotation as labelling will, but for the place of its (0, 0)."""
        request = {
            "path": look.slide.annotation_path,
            "slide_path": look.slide.path,
            "slide_id": look.slide.slide_id,
            "mpp": look.mpp,
            "size": size,
            "bounds": bounds,
            "origin": self._config.labels.origin,
            "outline_scale": self._config.labels.scale,
            "affine": self._config.labels.affine,
            "tissue": None,
            "scale": None,
            "known": sorted(groups_of(self._config)),
            "out": str(Path(self._folder) / f"{look.slide.slide_id}.arrow"),
        }
        limit_s = min(limit_s, self._config.labels.timeout_s)
        try:
            answer = self._annotations.call(request, timeout_s=limit_s)
        except ChildTimedOut:
            return look
        except ChildCrashed as error:
            answer = {"error": f"the annotation crashed its reader ({error})"}
        return replace(look, annotation_s=answer.get("seconds", 0.0), annotation_error=answer.get("error"))


def _done(slide: Slide, record: Record) -> Look:
    rows = record.rows or 1
    return Look(
        slide, record.status, record.error, record.info.get("mpp"), is_done=True, num_patches=record.rows,
        num_bytes=sum(part.size_bytes for part in record.parts) / rows,
    )  # fmt: skip


def _place(record: Record) -> tuple[Any, Any]:
    """Return the size and the bounds of a tiled slide."""
    info = record.info
    return ([info["width_px"], info["height_px"]] if record.ok else None), info.get("bounds")


def _seen(slide: Slide, answer: dict[str, Any]) -> Look:
    num_cut = answer.get("num_cut") or 1
    return Look(
        slide, answer["status"], answer.get("error"), answer.get("mpp"), num_patches=answer.get("num_patches"),
        num_bytes=answer.get("num_bytes", 0) / num_cut, plan_s=answer.get("plan_s", 0.0),
        patch_s=answer.get("cut_s", 0.0) / num_cut,
    )  # fmt: skip
