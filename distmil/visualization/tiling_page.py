"""The report on tiling as one page for a person, with the slides' pictures beside it.

``tiling_page.html.j2`` is the page. Here its numbers become text.
"""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from distmil.errors import Reason
from distmil.reasons import Dropped, causes_of, grouped
from distmil.storage.schemas import STATUSES
from distmil.visualization.slide_picture import COLOURS
from distmil.visualization.tiling_report import Row, choose_cards, has_card

MAX_ROWS = 500
"""Slides that are named for each finding, and findings of each list."""
_MAX_BARS = 24
_TEMPLATE = "tiling_page.html.j2"

Figure = tuple[str, str, str, str]
"""Name, value, remark and tone of a large number."""
Finding = tuple[str, str, list[int]]
"""How many slides, what is found on them, and which they are."""


def to_html(summary: Mapping[str, Any]) -> str:
    """Render a summary as one page that needs nothing but the slides' pictures beside it.

    Args:
        summary: The result of ``summarise``, also after a detour by JSON.
    """
    slides: Sequence[Row] = summary["slides"]
    shown = choose_cards(dict(enumerate(slides)))
    page = _template().render(
        summary,
        figures=list(_figures(summary["totals"], summary["noun"])),
        to_look_at=_to_look_at(slides),
        shown=shown,
        is_sample=len(shown) < sum(map(has_card, slides)),
        histogram=_histogram(
            [slide["num_patches"] for slide in slides if slide["status"] == "ok"], noun=summary["noun"]
        ),
        max_rows=MAX_ROWS,
        colours=COLOURS,
    )
    return page.encode("utf-8", "replace").decode()  # not every file name is Unicode


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("distmil.visualization", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": "{:,}".format,
        "percent": "{:.1%}".format,
        "json": json.dumps,
        "quoted": functools.partial(quote, errors="replace"),
        "reasons": _reasons,
        "facts": _facts,
    }
    return environment.get_template(_TEMPLATE)


def _figures(totals: Row, noun: str) -> Iterator[Figure]:
    """Yield the totals, without those that are empty."""
    num_slides, num_ok, num_now = totals["slides"], totals["statuses"]["ok"], totals["patches_of_this_run"]
    patches, share, labels = totals["patches_per_slide"], totals["tissue_share"], totals["labels"]
    now = f"{num_now:,} made in this run, on {_count(totals['slides_of_this_run'], noun)}"
    yield f"{noun.title()}s tiled", f"{num_ok:,}", f"of {num_slides:,}", ""
    yield "Skipped", f"{num_slides - num_ok:,}", f"{noun}s without patches", "bad" * (num_ok < num_slides)
    yield "In doubt", f"{totals['doubtful']:,}", f"{noun}s to look at", "warn" * (totals["doubtful"] > 0)
    yield "Patches", f"{totals['patches']:,}", now, ""
    if patches:
        remark = f"median; {patches['min']:,} to {patches['max']:,}, mean {patches['mean']:,.0f}"
        yield f"Patches per {noun}", f"{patches['median']:,.0f}", remark, ""
    if share:
        yield "Tissue", f"{share['median']:.1%}", f"median; {share['min']:.1%} to {share['max']:.1%}", ""
    if labels:
        yield "Positive patches", f"{labels.get('positive', 0):,}", _labels(labels), ""
    yield "Time", _duration(totals["wall_s"]), f"{_duration(totals['work_s'])} of work on {noun}s", ""
    if totals["patches_per_s"]:
        yield "Speed", _rate(totals["patches_per_s"]), "in this run", ""
    if totals["reused"]:
        yield "Reused", f"{totals['reused']:,}", "patches taken without encoding again", ""
    if totals["blank"]:
        yield "Blank", f"{totals['blank']:,}", "patches that touch tiles absent from the files", ""


def _to_look_at(slides: Sequence[Row]) -> list[tuple[str, int, list[Finding]]]:
    """List what a person should know first: a title, the number of slides, and every finding once with its slides."""
    place = {slide["slide_id"]: i for i, slide in enumerate(slides)}

    def findings(groups: Iterable[tuple[str, str, Sequence[str]]]) -> list[Finding]:
        return [(title, text, [place[slide_id] for slide_id in ids]) for title, text, ids in groups]

    def told(texts: Sequence[tuple[str, str]]) -> list[Finding]:
        return findings((f"{len(ids)} x", text, ids) for text, ids in grouped(texts))

    doubts = [(slide["slide_id"], text) for slide in slides for text in slide["doubts"]]
    notes = [(slide["slide_id"], slide["note"]) for slide in slides if slide["note"]]
    bad = [slide for slide in slides if slide["status"] != "ok"]
    dropped = (
        Dropped(slide["slide_id"], slide["status"], slide["error"] or "", Reason.from_json(slide["reason"]))
        for slide in bad
    )
    causes = causes_of(
        dropped, known_mpp=[slide["mpp"] for slide in slides if slide["status"] == "ok" and slide["mpp"]]
    )
    causes.sort(key=lambda cause: STATUSES.index(cause.status))
    return [
        ("In doubt", sum(bool(slide["doubts"]) for slide in slides), told(doubts)),
        ("With a note", len(notes), told(notes)),
        ("Skipped", len(bad), findings((f"{cause.title}:", cause.text, cause.slides) for cause in causes)),
    ]


def _histogram(patches: Sequence[int], *, noun: str) -> dict[str, Any] | None:
    """Lay out the bars of the number of slides over the number of patches; None where no slide was tiled."""
    if not patches:
        return None
    round_steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    step = next(step for step in round_steps if step * _MAX_BARS > max(patches))
    count = Counter(num // step for num in patches)
    num_bars, tallest = max(patches) // step + 1, max(count.values())
    width, bars = 480 / num_bars, []
    for i, num in sorted(count.items()):
        high = max(2.0, 120 * num / tallest)  # a single slide far off must still be seen
        box = {"x": i * width, "y": 130 - high, "width": max(width - 2, 1), "height": high}
        title = f"{i * step:,} to {(i + 1) * step - 1:,} patches: {_count(num, noun)}"
        bars.append({"title": title} | {name: f"{value:.1f}" for name, value in box.items()})
    return {"bars": bars, "step": step, "end": num_bars * step, "tallest": _count(tallest, noun)}


def _facts(slide: Row) -> dict[str, str | None]:
    """Return what is known of a slide, as text by its name on the card."""
    size, seconds, num_patches = (slide["width_px"], slide["height_px"]), slide["seconds"], slide["num_patches"]
    return {
        "size": f"{size[0]:,} x {size[1]:,} px" if all(size) else None,
        "resolution": f"{slide['mpp']:.4g} \N{MICRO SIGN}m/px" if slide["mpp"] else None,
        "patches": f"{num_patches:,}" if num_patches else None,
        "tissue": None if slide["tissue_share"] is None else f"{slide['tissue_share']:.1%}",
        "labels": _labels(slide["labels"]) if slide["labels"] else None,
        "reader": slide["reader"],
        "speed": _rate(num_patches / seconds) if num_patches and seconds else None,
        "reused": f"{slide['reused']:,}" if slide["reused"] else None,
        "touch absent tiles": f"{slide['blank']:,}" if slide["blank"] else None,
    }


def _reasons(slide: Row) -> list[str]:
    """List what a person should know of a slide."""
    return [reason for reason in (slide["error"], *slide["doubts"], slide["note"]) if reason]


def _labels(labels: Row) -> str:
    return ", ".join(f"{num:,} {name}" for name, num in labels.items())


def _rate(patches_per_s: float) -> str:
    return (f"{patches_per_s:,.0f}" if patches_per_s >= 10 else f"{patches_per_s:.2g}") + " patches/s"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    return f"{hours:,} h {minutes % 60:02} min" if hours else f"{minutes} min {round(seconds) % 60:02} s"


def _count(num: int, noun: str) -> str:
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"
