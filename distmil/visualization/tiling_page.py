"""The report on tiling as one page for a person, with the slides' pictures beside it."""

import html
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from distmil.storage.schemas import STATUSES
from distmil.visualization.slide_picture import GRID, NEGATIVE, OUTLINE, POSITIVE, TISSUE
from distmil.visualization.tiling_report import Row, choose_cards

MAX_ROWS = 500
"""Rows of each list of slides to look at."""
_MAX_BARS = 24


def to_html(summary: Mapping[str, Any]) -> str:
    """Return a summary as one page that needs nothing but the slides' pictures beside it.

    Args:
        summary: What ``summarise`` returned, or the same read back from JSON.
    """
    slides = dict(enumerate(summary["slides"]))
    shown = choose_cards(slides)
    run, totals = _text(summary["run"]), summary["totals"]
    parts = [
        f"<header><p>Tiling report</p><h1>{run}</h1><p>distmil {_text(summary['version'])}</p></header>",
        _figures(totals),
        _look_at_these(slides, shown),
        f'<div class="columns">{_statuses(totals)}{_histogram(slides.values())}{_settings(summary["settings"])}</div>',
        _legend(len(slides), len(shown)),
        f'<div class="slides">{"".join(_card(slides[i], anchor=f"slide-{i}") for i in shown)}</div>',
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{run}: tiling</title><style>{_STYLE}</style>"
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _figures(totals: Row) -> str:
    """Return the totals as large numbers; those that there are none of are left out."""
    num_slides, num_ok, num_now = totals["slides"], totals["statuses"]["ok"], totals["patches_of_this_run"]
    patches, share, labels = totals["patches_per_slide"], totals["tissue_share"], totals["labels"]
    now = f"{num_now:,} made in this run, on {_count(totals['slides_of_this_run'], 'slide')}"
    text = _figure("Slides tiled", f"{num_ok:,}", f"of {num_slides:,}")
    text += _figure("Skipped", f"{num_slides - num_ok:,}", "slides without patches", tone="bad" * (num_ok < num_slides))
    text += _figure("In doubt", f"{totals['doubtful']:,}", "slides to look at", tone="warn" * (totals["doubtful"] > 0))
    text += _figure("Patches", f"{totals['patches']:,}", now)
    if patches:
        remark = f"median; {patches['min']:,} to {patches['max']:,}, mean {patches['mean']:,.0f}"
        text += _figure("Patches per slide", f"{patches['median']:,.0f}", remark)
    if share:
        text += _figure("Tissue", f"{share['median']:.1%}", f"median; {share['min']:.1%} to {share['max']:.1%}")
    if labels:
        text += _figure("Positive patches", f"{labels.get('positive', 0):,}", _labels(labels))
    text += _figure("Time", _duration(totals["wall_s"]), f"{_duration(totals['work_s'])} of work on slides")
    if totals["patches_per_s"]:
        text += _figure("Speed", _rate(totals["patches_per_s"]), "in this run")
    if totals["reused"]:
        text += _figure("Reused", f"{totals['reused']:,}", "patches taken without encoding again")
    if totals["blank"]:
        text += _figure("Blank", f"{totals['blank']:,}", "patches that touch tiles absent from the files")
    return f'<div class="figures">{text}</div>'


def _figure(name: str, value: str, remark: str, *, tone: str = "") -> str:
    return f'<div class="figure {tone}"><h3>{name}</h3><b>{value}</b><p>{remark}</p></div>'


def _look_at_these(slides: Mapping[int, Row], shown: Iterable[int]) -> str:
    """Return the lists of slides that a person should see first, linked to their cards."""
    links = set(shown)

    def row(i: int) -> str:
        name, why = _text(slides[i]["slide_id"]), "<br>".join(_reasons(slides[i]))
        link = f'<a href="#slide-{i}">{name}</a>' if i in links else name
        return f'<tr><td class="id">{link}</td><td>{_pill(slides[i]["status"])}</td><td>{why}</td></tr>'

    doubtful = [i for i in slides if slides[i]["doubts"]]
    noted = [i for i in slides if slides[i]["note"] and not slides[i]["doubts"]]
    skipped = [i for i in slides if slides[i]["status"] != "ok"]
    skipped.sort(key=lambda i: STATUSES.index(slides[i]["status"]))
    text = ""
    for title, group in (("In doubt", doubtful), ("With a note", noted), ("Skipped", skipped)):
        if group:
            more = f"<p>The first {MAX_ROWS:,} of them; the JSON holds all.</p>" if len(group) > MAX_ROWS else ""
            rows = "".join(row(i) for i in group[:MAX_ROWS])
            text += f'<h3>{title}: {len(group):,}</h3>{more}<div class="scroll"><table>{rows}</table></div>'
    nothing = "Nothing stands out." if slides else "There are no slides."
    return f'<section class="look"><h2>Look at these</h2>{text or f"<p>{nothing}</p>"}</section>'


def _statuses(totals: Row) -> str:
    rows = "".join(
        f"<tr><td>{_pill(status)}</td><td>{num:,}</td><td>{num / totals['slides']:.1%}</td></tr>"
        for status, num in totals["statuses"].items()
        if num
    )
    return f"<section><h2>Status</h2><table>{rows}</table></section>"


def _histogram(slides: Iterable[Row]) -> str:
    """Return how many slides have how many patches, as bars; nothing where no slide was tiled."""
    patches = [slide["num_patches"] for slide in slides if slide["status"] == "ok"]
    if not patches:
        return ""
    round_steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    step = next(step for step in round_steps if step * _MAX_BARS > max(patches))
    count = Counter(num // step for num in patches)
    num_bars, tallest = max(patches) // step + 1, max(count.values())
    width, bars = 480 / num_bars, ""
    for i, num in sorted(count.items()):
        high = max(2.0, 120 * num / tallest)  # a single slide far off must still be seen
        title = f"{i * step:,} to {(i + 1) * step - 1:,} patches: {_count(num, 'slide')}"
        box = f'x="{i * width:.1f}" y="{130 - high:.1f}" width="{max(width - 2, 1):.1f}" height="{high:.1f}"'
        bars += f"<rect {box}><title>{title}</title></rect>"
    axis = f'<path d="M0 130.5H480"/><text y="147">0</text><text x="480" y="147">{num_bars * step:,}</text>'
    svg = f'<svg viewBox="0 0 480 152" role="img" aria-label="Patches per slide">{bars}{axis}</svg>'
    remark = f"<p>Patches per slide, {step:,} to a bar; the tallest bar holds {_count(tallest, 'slide')}.</p>"
    return f"<section><h2>Patches per slide</h2>{svg}{remark}</section>"


def _settings(settings: Row) -> str:
    values = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in settings.items()]
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in values)
    return f"<section><h2>Settings</h2><dl>{rows}</dl></section>" if rows else ""


def _legend(num_slides: int, num_shown: int) -> str:
    """Return what the colours mean, and how many of the slides are shown."""
    marks = (
        (f"border:2px solid rgb{TISSUE}", "tissue"),
        (f"border:1px solid rgb{GRID};background:rgb{(*GRID, 0.2)}", "patches"),
        (f"background:rgb{POSITIVE}", "positive patches"),
        (f"background:rgb{NEGATIVE}", "negative patches, where a slide has positive ones"),
        (f"border:3px solid rgb{OUTLINE};outline:1px solid #000", "annotation"),
    )
    swatches = "".join(f'<span><i style="{style}"></i>{name}</span>' for style, name in marks)
    how = "what stands out first, then an even sample of the others; the JSON holds all"
    remark = f"<p>{num_shown:,} of {num_slides:,} slides: {how}.</p>" if num_shown < num_slides else ""
    return f'<h2>Slides</h2>{remark}<p class="legend">{swatches}</p>'


def _card(slide: Row, *, anchor: str) -> str:
    name, picture = _text(slide["slide_id"]), '<div class="shot">no picture</div>'
    if slide["picture"]:
        address = "./" + quote(slide["picture"], errors="replace")  # a path, never a scheme or a host
        image = f'<img src="{address}" loading="lazy" alt="{name} with its patches">'
        picture = f'<a class="shot" href="{address}">{image}</a>'
    size, labels = (slide["width_px"], slide["height_px"]), slide["labels"]
    facts = {
        "size": f"{size[0]:,} x {size[1]:,} px" if all(size) else None,
        "resolution": f"{slide['mpp']:.4g} \N{MICRO SIGN}m/px" if slide["mpp"] else None,
        "patches": f"{slide['num_patches']:,}" if slide["num_patches"] else None,
        "tissue": None if slide["tissue_share"] is None else f"{slide['tissue_share']:.1%}",
        "labels": _labels(labels) if labels else None,
        "reader": _text(slide["reader"]) if slide["reader"] else None,
        "speed": _rate(slide["num_patches"] / slide["seconds"]) if slide["num_patches"] and slide["seconds"] else None,
        "reused": f"{slide['reused']:,}" if slide["reused"] else None,
        "touch absent tiles": f"{slide['blank']:,}" if slide["blank"] else None,
    }
    rows = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items() if value)
    reasons = "".join(f"<li>{reason}</li>" for reason in _reasons(slide))
    pills = "" if slide["status"] == "ok" else _pill(slide["status"])
    pills += ' <span class="pill warn">in doubt</span>' if slide["doubts"] else ""
    why = f"<ul>{reasons}</ul>" if reasons else ""
    return f'<article id="{anchor}">{picture}<h3 class="id">{name} {pills}</h3>{why}<dl>{rows}</dl></article>\n'


def _reasons(slide: Row) -> list[str]:
    """Return what there is to say on a slide, ready for HTML."""
    return [_text(reason) for reason in (slide["error"], *slide["doubts"], slide["note"]) if reason]


def _pill(status: str) -> str:
    return f'<span class="pill {"good" if status == "ok" else "bad"}">{_text(status)}</span>'


def _labels(labels: Row) -> str:
    return ", ".join(f"{num:,} {_text(name)}" for name, num in labels.items())


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


def _text(value: object) -> str:
    """Return text that means nothing in HTML and that UTF-8 can hold, which not every file name can."""
    return html.escape(str(value)).encode("utf-8", "replace").decode()


_STYLE = """
:root { color-scheme: light dark; --paper: #f5f6f8; --box: #fff; --ink: #1b2430; --soft: #5d6b7c; --line: #dfe4ea;
  --accent: #2f6fd0; --good: #1a7f45; --bad: #c0352b; --warn: #a15c00 }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --box: #1b212a; --ink: #e4e9f0; --soft: #96a3b3;
  --line: #303944; --accent: #6fa5f7; --good: #55c585; --bad: #f2776c; --warn: #e8a848 } }
* { box-sizing: border-box; margin: 0 }
body { margin: 0 auto; max-width: 1500px; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere }
body > * { margin-bottom: 1.25rem }
h1 { font-size: 1.9rem } h2 { font-size: 1.15rem; margin-bottom: .6rem } h3 { font-size: .95rem }
a { color: var(--accent) } p, dt { color: var(--soft) }
section, article, .figure { background: var(--box); border: 1px solid var(--line); border-radius: 10px; padding: 1rem }
.figures, .columns, .slides { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)) }
.columns, .slides { grid-template-columns: repeat(auto-fit, minmax(min(330px, 100%), 1fr)) }
.slides { grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)) }
.figure h3 { color: var(--soft); font-weight: 500 } .figure b { font-size: 1.6rem; line-height: 1.3 }
.figure p, .legend, article dl, article ul, table { font-size: .87rem }
.warn b, .pill.warn, article ul { color: var(--warn) } .bad b, .pill.bad { color: var(--bad) }
.pill.good { color: var(--good) }
.pill { padding: 0 .5em; border: 1px solid; border-radius: 1em; font-size: .78rem; white-space: nowrap }
.look { border-left: 4px solid var(--accent) } .look h3 { margin-top: .8rem }
.scroll { max-height: 26rem; overflow: auto }
table { border-collapse: collapse; width: 100% }
td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; min-width: 7rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem } dd { font-variant-numeric: tabular-nums }
svg { width: 100% } rect { fill: var(--accent) } path { stroke: var(--line) }
text { fill: var(--soft); font-size: 13px } text + text { text-anchor: end }
.legend span { display: inline-flex; align-items: center; margin-right: 1.2rem }
.legend i { width: 1.1em; height: 1.1em; margin-right: .45em; border-radius: 2px }
article { padding: 0 0 .9rem; overflow: hidden; content-visibility: auto; contain-intrinsic-size: auto 470px }
article > :not(.shot) { padding: .4rem .9rem 0 } article > ul { list-style-position: inside }
article:target { outline: 3px solid var(--accent) }
.shot { display: grid; place-items: center; height: 300px; background: #fff; color: #777 }
.shot img { width: 100%; height: 300px; object-fit: contain }
"""
