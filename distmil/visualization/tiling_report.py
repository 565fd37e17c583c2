"""The report on tiling: the outcome of every slide, as JSON-ready values."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distmil.storage.schemas import STATUSES

MAX_CARDS = 2000
"""Slides that the page shows one by one; what stands out first, then an even sample of the others."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SlideSummary:
    """The outcome of tiling for one slide."""

    slide_id: str
    status: str
    """One of ``distmil.storage.schemas.STATUSES``."""
    error: str | None = None
    reason: Mapping[str, Any] | None = None
    """Of a slide that is not used: ``distmil.errors.Reason`` as JSON, where there is one."""
    num_patches: int = 0
    width_px: int | None = None
    height_px: int | None = None
    mpp: float | None = None
    reader: str | None = None
    reused: int = 0
    """Patches that were passed through without encoding them again."""
    blank: int = 0
    """Patches that touch tiles which the file lacks, taken as white."""
    tissue_share: float | None = None
    """Of the slide's area, 0 to 1."""
    doubts: Sequence[str] = ()
    """Why a person should look."""
    seconds: float | None = None
    """Work spent in this run; None if the slide was done before."""
    labels: Mapping[str, int] | None = None
    """Patches that are positive, negative and unknown, where there is an annotation or a label."""
    note: str | None = None
    """Something else to know, e.g. that the annotation could not be read."""
    picture: str | None = None
    """File name relative to the page; None if there is none."""


def summarise(
    slides: Sequence[SlideSummary],
    *,
    run: str,
    settings: Mapping[str, object],
    wall_s: float,
    version: str,
    noun: str = "slide",
) -> dict[str, Any]:
    """Return the report as JSON-ready values: totals, and slides by id. A number that is not finite becomes None.

    Args:
        slides: All slides of the cohort, in any order.
        run: Name of the run.
        settings: The settings of the run, in the order to show.
        wall_s: How long the run took.
        version: Of distmil.
        noun: What a slide is called: "image" in a cohort of plain images.

    Raises:
        ValueError: If a status is none of ``distmil.storage.schemas.STATUSES``.
    """
    for slide in slides:
        if slide.status not in STATUSES:
            raise ValueError(f"{slide.slide_id}: status {slide.status!r} is none of {', '.join(STATUSES)}")
    summary = {
        "run": run,
        "version": version,
        "noun": noun,
        "settings": settings,
        "totals": _totals(slides, wall_s=wall_s),
        "slides": [vars(slide) for slide in sorted(slides, key=lambda slide: slide.slide_id)],
    }
    return {name: _plain(value) for name, value in summary.items()}


def _totals(slides: Sequence[SlideSummary], *, wall_s: float) -> dict[str, Any]:
    """Add the slides up; a rate or distribution of no values is None."""
    count = Counter(slide.status for slide in slides)
    tiled = [slide for slide in slides if slide.status == "ok"]
    now = [slide for slide in tiled if slide.seconds is not None]
    num_now = sum(slide.num_patches for slide in now)
    shares = [slide.tissue_share for slide in slides if slide.tissue_share is not None]
    labels: Counter[str] = Counter()
    for slide in slides:
        labels.update(slide.labels or {})
    return {
        "slides": len(slides),
        "statuses": {status: count[status] for status in STATUSES},
        "patches": sum(slide.num_patches for slide in tiled),
        "slides_of_this_run": len(now),
        "patches_of_this_run": num_now,
        "wall_s": wall_s,
        "work_s": math.fsum(slide.seconds or 0.0 for slide in slides),
        "patches_per_s": num_now / wall_s if num_now and wall_s > 0 else None,
        "patches_per_slide": _distribution([slide.num_patches for slide in tiled]),
        "tissue_share": _distribution([share for share in shares if math.isfinite(share)]),
        "doubtful": sum(bool(slide.doubts) for slide in slides),
        "reused": sum(slide.reused for slide in slides),
        "blank": sum(slide.blank for slide in slides),
        "labels": dict(labels) if labels else None,
    }


def _distribution(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    middle, mean = statistics.median(values), statistics.fmean(values)
    return {"min": min(values), "median": middle, "mean": mean, "max": max(values)}


def _plain(value: object) -> Any:
    """Convert a value to JSON's types: other types become text, NaN and infinity become None."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)


def has_card(slide: Row) -> bool:
    """Tell whether a slide has more to show than why it is not used, which stands in the list of skipped ones."""
    return bool(slide["status"] == "ok" or slide["picture"] or slide["doubts"] or slide["note"])


def choose_cards(slides: Mapping[int, Row]) -> list[int]:
    """Choose the slides that get a card: the doubtful, the noted, then the others; see ``has_card``."""

    def rank(slide: Row) -> int:
        return 0 if slide["doubts"] else 1 if slide["note"] else 2

    groups: list[list[int]] = [[], [], []]
    for i, slide in slides.items():
        if has_card(slide):
            groups[rank(slide)].append(i)
    shown: list[int] = []
    for group in groups:
        num = min(len(group), MAX_CARDS - len(shown))
        shown += [group[k * len(group) // num] for k in range(num)]
    return shown
