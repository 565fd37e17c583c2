import json
import math
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from distmil.errors import Reason
from distmil.storage.schemas import STATUSES
from distmil.visualization import tiling_page, tiling_report
from distmil.visualization.tiling_page import to_html
from distmil.visualization.tiling_report import SlideSummary, summarise

VOID = {"meta", "img", "br"}
HOSTILE = """<script>alert("1")</script>&amp;'><b onclick=x>"""
COHORT = [
    SlideSummary(
        "b",
        "ok",
        num_patches=300,
        width_px=4000,
        height_px=3000,
        mpp=0.25,
        reader="rawtiles",
        reused=300,
        blank=2,
        tissue_share=0.5,
        seconds=2.0,
        labels={"positive": 10, "negative": 200, "unknown": 90},
        picture="thumbnails/b.jpg",
    ),
    SlideSummary("a", "ok", num_patches=100, reader="openslide", tissue_share=0.1, doubts=["mostly pen", "no edge"]),
    SlideSummary("d", "no_tissue", error="no patch holds 5% of tissue", tissue_share=0.0, picture="thumbnails/d.jpg"),
    SlideSummary("c", "unreadable", error="cut off at byte 7", seconds=1.0),
    SlideSummary("e", "ok", num_patches=20, tissue_share=0.3, seconds=1.5, note="annotation: not XML"),
]


class Page(HTMLParser):
    """Reads a page, fails where a tag is not closed, and keeps its tags and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def summary_of(slides, **changes):
    values = {"run": "trial 7", "settings": {"tiling.mpp": 0.5}, "wall_s": 4.0, "version": "0.1.0"} | changes
    summary = summarise(slides, **values)
    json.dumps(summary, allow_nan=False)
    return summary


def page_of(slides, **changes):
    return Page(to_html(summary_of(slides, **changes)))


def test_totals_add_up():
    totals = summary_of(COHORT)["totals"]
    assert totals["slides"] == 5
    assert {status: num for status, num in totals["statuses"].items() if num} == {
        "ok": 3,
        "no_tissue": 1,
        "unreadable": 1,
    }
    assert list(totals["statuses"]) == list(STATUSES)
    assert totals["patches"] == 420
    assert totals["patches_per_slide"] == {"min": 20, "median": 100, "mean": 140, "max": 300}
    assert totals["tissue_share"] == {"min": 0.0, "median": 0.2, "mean": 0.225, "max": 0.5}
    assert (totals["doubtful"], totals["reused"], totals["blank"]) == (1, 300, 2)
    assert totals["labels"] == {"positive": 10, "negative": 200, "unknown": 90}


def test_speed_counts_what_was_made_in_this_run_only():
    totals = summary_of(COHORT)["totals"]
    assert (totals["slides_of_this_run"], totals["patches_of_this_run"]) == (2, 320)
    assert totals["patches_per_s"] == 80
    assert totals["work_s"] == 4.5
    done_before = summary_of([replace(slide, seconds=None) for slide in COHORT])["totals"]
    assert (done_before["patches"], done_before["patches_of_this_run"], done_before["patches_per_s"]) == (420, 0, None)
    assert summary_of(COHORT, wall_s=0.0)["totals"]["patches_per_s"] is None


def test_neither_the_order_of_slides_nor_a_detour_by_json_changes_the_page():
    summary = summary_of(COHORT)
    assert [slide["slide_id"] for slide in summary["slides"]] == list("abcde")
    assert summary_of(COHORT[::-1]) == summary
    assert to_html(json.loads(json.dumps(summary))) == to_html(summary) == to_html(summary_of(COHORT[::-1]))


def test_json_holds_no_nan_and_no_foreign_types():
    odd = SlideSummary(
        "a",
        "ok",
        num_patches=np.int64(7),
        mpp=math.nan,
        tissue_share=np.float32("nan"),
        seconds=math.inf,
        labels={"positive": np.int32(7)},
        doubts=("x",),
    )
    settings = {"path": Path("somewhere"), "deep": {"list": (1, math.inf, None)}, "on": np.bool_(True)}
    summary = summary_of([odd], settings=settings, wall_s=math.nan)
    assert summary["settings"] == {"path": "somewhere", "deep": {"list": [1, None, None]}, "on": True}
    slide = summary["slides"][0]
    assert (slide["mpp"], slide["tissue_share"], slide["seconds"], slide["labels"]) == (
        None,
        None,
        None,
        {"positive": 7},
    )
    assert summary["totals"]["tissue_share"] is None
    assert Page(to_html(summary)).words.count("nan") == 0


def test_a_status_that_is_none_is_refused():
    with pytest.raises(ValueError, match="a: status 'fine' is none of ok, no_tissue"):
        summary_of([SlideSummary("a", "fine")])


@pytest.mark.parametrize(
    ("slides", "words"),
    [
        ([], "There are no slides."),
        ([SlideSummary("a", "ok", num_patches=5)], "Nothing stands out."),
        ([SlideSummary(name, "missing", error="not there") for name in "abc"], "Skipped: 3"),
        ([SlideSummary("a", "ok", num_patches=0, seconds=0.0, tissue_share=0.0)], "Slides tiled 1 of 1"),
    ],
)
def test_edges_of_a_cohort_make_a_page(slides, words):
    summary = summary_of(slides, wall_s=0.0)
    page = Page(to_html(summary))
    assert words in page.words
    assert len(page.all("article")) == sum(slide.status == "ok" for slide in slides)
    if not any(slide.num_patches for slide in slides):
        assert summary["totals"]["patches_per_s"] is None


def test_hostile_texts_stay_texts():
    slide = SlideSummary(
        HOSTILE,
        "failed",
        error=HOSTILE,
        reader=HOSTILE,
        doubts=[HOSTILE],
        labels={HOSTILE: 1},
        note=HOSTILE,
        picture=HOSTILE,
    )
    page = page_of([slide], run=HOSTILE, version=HOSTILE, settings={HOSTILE: [HOSTILE], "b": HOSTILE})
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b onclick", "link", "iframe"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert sum(text.count(HOSTILE) for text in page.text) >= 14
    assert page.all("img")[0]["alt"].startswith(HOSTILE)


@pytest.mark.parametrize("picture", ["javascript:alert(1)", "//evil.example/x.jpg", "https://evil.example", "/etc/x"])
def test_a_picture_is_always_a_path_beside_the_page(picture):
    page = page_of([SlideSummary("a", "ok", picture=picture)])
    for address in (page.all("img")[0]["src"], page.all("a")[0]["href"]):
        assert address.startswith("./")
        assert ":" not in address


def test_names_that_are_no_unicode_can_be_written():
    error = b"caf\xe9.svs: gone".decode("utf-8", "surrogateescape")
    summary = summary_of([SlideSummary("a", "missing", error=error, picture=error)])
    assert "caf?.svs: gone" in to_html(summary).encode().decode()


def test_the_page_needs_nothing_from_elsewhere():
    text = to_html(summary_of(COHORT))
    page = Page(text)
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert not page.all("script")
    assert not page.all("link")
    assert [image["src"] for image in page.all("img")] == ["./thumbnails/b.jpg", "./thumbnails/d.jpg"]
    assert {image["loading"] for image in page.all("img")} == {"lazy"}
    assert "prefers-color-scheme: dark" in text


def test_what_stands_out_comes_first_and_links_to_its_card():
    page = page_of(COHORT)
    look, rest = page.words.split("Slides tissue", 1)[0].split("Look at these")[1], page.words.split("annotation", 1)[1]
    for part in ("In doubt: 1 1 x mostly pen a 1 x no edge a", "With a note: 1 1 x annotation: not XML e"):
        assert part in look
    skipped = "Skipped: 2 1 x no_tissue: no patch holds 5% of tissue d 1 x unreadable: cut off at byte 7 c"
    assert skipped in look
    assert rest
    links = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#")]
    cards = [card["id"] for card in page.all("article")]
    assert links == ["slide-0", "slide-0", "slide-4", "slide-3"]
    # doubtful, noted, then tiled or with a picture; not the one with nothing to see
    assert cards == ["slide-0", "slide-4", "slide-1", "slide-3"]


def test_slides_skipped_for_one_reason_are_one_line_with_the_setting_that_fits():
    slides = [
        SlideSummary(
            f"s{i:02}",
            "too_coarse",
            error=f"sentence {i}",
            reason=Reason("finest 0.972 um/px", "tiling.mpp", 0.972, "least").to_json(),
        )
        for i in range(72)
    ]
    summary = summary_of([*slides, SlideSummary("old", "too_coarse", error="raise tiling.mpp")])
    page = Page(to_html(json.loads(json.dumps(summary))))
    assert "72 x too_coarse: finest 0.972 um/px; set tiling.mpp=0.972 s00, s01" in page.words
    assert page.words.count("finest") == 1
    assert "1 x too_coarse: raise tiling.mpp old" in page.words
    assert "sentence" not in page.words


def test_a_missing_resolution_is_guessed_from_the_tiled_slides():
    reason = Reason("no um-per-pixel in the file", "tiling.default_mpp").to_json()
    slides = [SlideSummary(name, "no_mpp", error="sentence", reason=reason) for name in "ab"]
    assert "set tiling.default_mpp=0.25, as the other" in page_of([*slides, SlideSummary("c", "ok", mpp=0.25)]).words


def test_plain_images_are_called_images():
    slides = [SlideSummary("a", "ok", num_patches=5, seconds=1.0), SlideSummary("b", "missing", error="x")]
    words = page_of(slides, noun="image").words
    assert "Images tiled 1 of 2" in words
    assert "1 image" in words
    assert "slide" not in words.replace("slides table", "")
    assert "tissue" not in words


def test_a_card_says_what_is_known_and_nothing_else():
    page = page_of(COHORT[:1])
    card = page.words.split("annotation", 1)[1]
    for words in (
        "4,000 x 3,000 px",
        "0.25 µm/px",
        "10 positive, 200 negative, 90 unknown",
        "150 patches/s",
        "tissue 50.0%",
    ):
        assert words in card
    bare = page_of([SlideSummary("z", "ok", num_patches=1)]).words.split("annotation", 1)[1]
    assert bare.split() == ["no", "picture", "z", "patches", "1"]


def test_cards_are_capped_with_the_doubtful_first_and_an_even_sample_after_them(monkeypatch):
    monkeypatch.setattr(tiling_report, "MAX_CARDS", 10)
    monkeypatch.setattr(tiling_page, "MAX_ROWS", 4)
    slides = [SlideSummary(f"s{i:03}", "ok", num_patches=i) for i in range(93)]
    slides += [SlideSummary(f"t{i:03}", "ok", doubts=["faint"]) for i in range(3)]
    slides += [SlideSummary(f"u{i:03}", "failed", error="x") for i in range(6)]
    slides[0] = replace(slides[0], note="annotation: not XML")
    page = page_of(slides)
    numbers = [int(card["id"].removeprefix("slide-")) for card in page.all("article")]
    assert numbers[:4] == [93, 94, 95, 0]
    assert len(numbers) == 10
    assert np.ptp(np.diff(numbers[4:])) <= 1
    assert numbers[-1] > 75
    assert "10 of 102 slides" in page.words
    assert "Skipped: 6 6 x failed: x u000, u001, u002, u003, ... (the JSON holds all)" in page.words
    links = {link["href"][1:] for link in page.all("a")}
    assert links <= {card["id"] for card in page.all("article")}


def test_a_page_of_many_slides_stays_small_and_quick():
    slides = [
        replace(COHORT[i % 5], slide_id=f"slide {i:06}", num_patches=i % 5000 * (i % 5 in {0, 1, 4}))
        for i in range(20_000)
    ]
    start = time.process_time()
    text = to_html(summary_of(slides))
    assert time.process_time() - start < 10  # about 1 s; the limit is for busy machines
    assert len(text) < 4e6
    assert text.count("<article") == tiling_report.MAX_CARDS


@pytest.mark.parametrize("patches", [[0], [1, 1, 3], [9, 10, 11, 24], [5] * 999 + [100_000], list(range(0, 50_000, 7))])
def test_the_histogram_holds_every_tiled_slide_and_shows_a_single_one(patches):
    slides = [SlideSummary(f"{i:05}", "ok", num_patches=num) for i, num in enumerate(patches)]
    text = to_html(summary_of([*slides, SlideSummary("skipped", "failed")]))
    bars = re.findall(r"<title>([\d,]+) to ([\d,]+) patches: ([\d,]+) slides?</title>", text)
    counted = [[int(number.replace(",", "")) for number in bar] for bar in bars]
    for low, high, num in counted:
        assert sum(low <= patch <= high for patch in patches) == num
    assert sum(num for _, _, num in counted) == len(patches)
    rects = Page(text).all("rect")
    assert len(rects) <= 24
    assert all(float(rect["height"]) >= 2 for rect in rects)
    assert all(0 <= float(rect["x"]) <= float(rect["x"]) + float(rect["width"]) <= 480 for rect in rects)
