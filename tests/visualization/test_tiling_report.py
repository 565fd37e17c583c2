import io
import json
import math
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distmil.storage.schemas import STATUSES
from distmil.visualization import tiling_page, tiling_report
from distmil.visualization.slide_picture import MAX_EDGE_PX, MIN_BOX_PX, draw_slide
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
    assert len(page.all("article")) == len(slides)
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
    for part in ("In doubt: 1 a ok mostly pen no edge", "With a note: 1 e ok annotation: not XML"):
        assert part in look
    assert "Skipped: 2 d no_tissue no patch holds 5% of tissue c unreadable cut off at byte 7" in look
    assert rest
    links = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#")]
    cards = [card["id"] for card in page.all("article")]
    assert links == ["slide-0", "slide-4", "slide-3", "slide-2"]
    # doubtful, noted, then tiled or with a picture, and last the one with nothing to see
    assert cards == ["slide-0", "slide-4", "slide-1", "slide-3", "slide-2"]


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
    assert "Skipped: 6 The first 4 of them; the JSON holds all." in page.words
    assert page.words.count("failed x") == 4
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


# Pictures: a wide grey slide of 2000 by 1200 level-0 px; its overview has 10 level-0 px to a pixel, and the picture
# is drawn at 4 times that, 800 by 480, so 0.4 picture px to a level-0 px


def decode(content):
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


def draw(x=(), y=(), *, shape=(120, 200), scale=10.0, extent_px=200, mask=None, label=None, grey=200, **values):
    return decode(
        draw_slide(
            np.full((*shape, 3), grey, np.uint8),
            scale=scale,
            mask=np.zeros(shape, np.bool_) if mask is None else mask,
            x=np.asarray(x, np.int32),
            y=np.asarray(y, np.int32),
            extent_px=extent_px,
            label_N=None if label is None else np.asarray(label, np.int8),
            **values,
        )
    )


def box_of(is_changed):
    rows, columns = np.nonzero(is_changed)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def changed(picture, *, grey=200, by=60):
    """Return where something is drawn; JPEG blurs lines into their 8 by 8 px blocks, by less than that."""
    return np.abs(picture - grey).max(axis=2) > by


def redness(colour):
    return colour[..., 0] - colour[..., 1:].mean(axis=-1)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (400, 200), (1800, 1000), (500, 700)])
def test_a_patch_is_drawn_where_it_was_cut_on_a_wide_slide(x, y):
    left, top, right, bottom = box_of(changed(draw([x], [y])))
    expected = 0.4 * np.array([x, y, x + 200, y + 200])
    assert np.abs(np.array([left, top, right, bottom]) - expected).max() <= 1


def test_a_shifted_patch_moves_by_its_shift():
    before, after = (box_of(changed(draw([x], [400]))) for x in (400, 450))
    assert np.subtract(after, before).tolist() == [20, 0, 20, 0]


def test_another_scale_or_extent_is_seen():
    widths = [box_of(changed(draw([400], [400], extent_px=edge)))[2] - 160 for edge in (100, 200, 400)]
    assert np.abs(np.subtract(widths, [40, 80, 160])).max() <= 2
    # the same patch on a slide of twice the size
    assert np.abs(np.subtract(box_of(changed(draw([400], [400], scale=20.0))), [80, 80, 120, 120])).max() <= 2


def test_the_grid_leaves_the_inside_of_patches_untouched():
    picture = draw([400, 600], [200, 200])
    assert not changed(picture)[84:156, 164:236].any()
    assert not changed(picture)[84:156, 244:316].any()
    assert changed(picture)[90:150, 239:242].any(axis=1).all()


def test_a_patch_that_ends_on_the_far_rim_has_all_its_sides():
    is_drawn = changed(draw([1800], [1000]))
    assert is_drawn[410:, -1].all()
    assert is_drawn[-1, 730:].all()


def test_positive_patches_are_redder_negative_ones_bluer_and_unknown_ones_untouched():
    picture = draw([200, 600, 1000], [200, 200, 600], label=[1, 0, -1])
    positive, negative, unknown = picture[120, 120], picture[120, 280], picture[280, 440]
    assert redness(positive) > 40
    assert negative[2] - negative[0] > 15
    assert np.abs(unknown - 200).max() < 8


def test_negative_patches_are_tinted_beside_positive_ones_only():
    without = draw([200, 600], [200, 200], label=[0, -1])
    assert np.array_equal(without, draw([200, 600], [200, 200]))


@pytest.mark.parametrize("extent_px", [2, 10, 14])
def test_small_patches_become_one_tinted_area_with_their_labels(extent_px):
    assert extent_px * 0.4 < MIN_BOX_PX
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(400, 1200, extent_px), np.arange(200, 600, extent_px)))
    picture = draw(x, y, extent_px=extent_px)
    expected = 0.4 * np.array([400, 200, x.max() + extent_px, y.max() + extent_px])
    assert np.abs(np.subtract(box_of(changed(picture)), expected)).max() <= 1
    inside = picture[90:230, 170:470]
    assert inside.reshape(-1, 3).std(axis=0).max() < 3
    assert (inside[..., 2] - inside[..., 0] > 20).all()
    labelled = draw(x, y, extent_px=extent_px, label=np.where(x < 800, 1, -1))
    assert (redness(labelled[90:230, 170:310]) > 40).all()
    assert (redness(labelled[90:230, 330:470]) < 0).all()


def test_the_tissue_outline_runs_along_the_edge_of_the_mask():
    mask = np.zeros((120, 200), np.bool_)
    mask[30:80, 50:160] = True
    mask[50:60, 100:120] = False  # a hole
    picture = draw(mask=mask)
    green = picture[..., 1] - picture[..., 0] > 60
    assert box_of(green) == (200, 120, 640, 320)
    assert green[120:122, 200:640].all()
    assert green[120:320, 638:640].all()
    assert box_of(green[180:260, 380:500]) == (18, 18, 102, 62)  # hole at 20..100, 20..60 here, its line in the tissue
    assert not green[126:194, 206:390].any()


def test_tissue_that_reaches_the_rim_is_outlined_there_too():
    picture = draw(mask=np.ones((120, 200), np.bool_))
    green = picture[..., 1] - picture[..., 0] > 60
    assert green[[0, -1]].all()
    assert green[:, [0, -1]].all()
    assert not green[6:-6, 6:-6].any()


@pytest.mark.parametrize("grey", [20, 200, 250])
def test_outlines_show_on_any_colour_where_they_were_drawn(grey):
    ring = np.array([[400.0, 300.0], [1600.0, 300.0], [1600.0, 900.0], [400.0, 900.0]])  # open: its left is the closing
    picture = draw(outlines=[ring], grey=grey)
    for x, y in ((400, 120), (640, 240), (400, 360), (160, 240)):
        around = picture[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3)
        assert (around[:, 0] - around[:, 2]).max() > 150  # yellow
        assert around.max(axis=1).min() < 60  # black
    is_touched = changed(picture, grey=grey)
    assert np.abs(np.subtract(box_of(is_touched), [160, 120, 640, 360])).max() <= 5
    assert not is_touched[130:350, 170:630].any()
    assert not changed(draw(outlines=[ring[:0]])).any()


def test_outlines_and_patches_off_the_slide_do_no_harm():
    ring = np.array([[-(2.0**31), 300], [2.0**31, 300], [2.0**31, 2.0**31], [-(2.0**31), 2.0**31]])
    picture = draw(outlines=[ring])
    assert changed(picture)[118:123].all(axis=1).any()
    assert not changed(picture)[:110].any()
    far = draw([-100, 1900, 5000, -(2**31), 2**31 - 1], [-100, 1100, 5000, -(2**31), 2**31 - 1])
    assert changed(far)[:41, 38:42].any(axis=1).all()
    assert changed(far)[442:, 758:763].any(axis=1).all()
    assert not changed(far)[60:420].any()


@pytest.mark.parametrize(
    "shape", [(12, 16), (16, 12), (1, 3), (120, 200), (699, 701), (1400, 30), (2000, 3000), (3, 4000)]
)
def test_pictures_have_a_readable_size_and_the_slide_s_shape(shape):
    picture = draw([0], [0], shape=shape, scale=200.0, extent_px=224)
    height, width = picture.shape[:2]
    assert 700 <= max(height, width) <= MAX_EDGE_PX
    assert abs(height - shape[0] * width / shape[1]) <= 1 or height == 1
    if max(shape) <= MAX_EDGE_PX:
        assert height % shape[0] == width % shape[1] == 0


def test_a_tiny_slide_at_a_coarse_scale_is_drawn_right():
    # 16 by 12 px of 200 level-0 px each, drawn 44 times larger: 0.22 picture px to a level-0 px
    picture = draw([224 * 3], [224 * 2], shape=(12, 16), scale=200.0, extent_px=224, label=[1])
    assert picture.shape == (528, 704, 3)
    expected = 0.22 * 224 * np.array([3, 2, 4, 3])
    assert np.abs(np.subtract(box_of(changed(picture)), expected)).max() <= 2
    assert redness(picture[round(0.22 * 224 * 2.5), round(0.22 * 224 * 3.5)]) > 40


def test_a_large_overview_is_reduced_with_all_that_is_drawn_on_it():
    mask = np.zeros((2100, 2800), np.bool_)
    mask[1400:2000, 400:800] = True
    picture = draw([20_000], [2000], shape=(2100, 2800), extent_px=2000, mask=mask)
    assert picture.shape == (1050, 1400, 3)
    green = picture[..., 1] - picture[..., 0] > 60
    assert np.abs(np.subtract(box_of(green[:, :900]), [200, 700, 400, 1000])).max() <= 1
    assert np.abs(np.subtract(box_of(changed(picture[:600])), [1000, 100, 1100, 200])).max() <= 2


def test_the_same_slide_gives_the_same_bytes_and_its_arrays_stay_as_they_are():
    overview = np.random.default_rng(0).integers(0, 255, (720, 900, 3), np.uint8)
    mask, x, ring = overview[..., 0] > 99, np.array([90], np.int32), np.array([[1.0, 2], [300, 4], [5, 600]])
    kept = overview.copy(), mask.copy(), x.copy(), ring.copy()
    first, second = (
        draw_slide(overview, scale=1, mask=mask, x=x, y=x, extent_px=90, outlines=[ring]) for _ in range(2)
    )
    assert first == second
    for before, after in zip(kept, (overview, mask, x, ring), strict=True):
        assert np.array_equal(before, after)


def test_hundreds_of_thousands_of_patches_are_drawn_in_a_moment():
    n = 400_000
    x, y = np.arange(n) % 700 * 128, np.arange(n) // 700 * 128
    start = time.process_time()
    draw(x, y, shape=(1100, 1400), scale=64.0, extent_px=128, label=x // 5000 % 3 - 1)
    assert time.process_time() - start < 5  # about 0.4 s; the limit is for busy machines


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit a mask"):
        draw(mask=np.zeros((200, 120), np.bool_))
    with pytest.raises(ValueError, match="one length"):
        draw([0, 1], [0])
    with pytest.raises(ValueError, match="one length"):
        draw([0], [0], label=[1, 1])
    with pytest.raises(ValueError, match="must be positive"):
        draw([0], [0], extent_px=0)
    with pytest.raises(ValueError, match="must be positive"):
        draw(scale=math.nan)
