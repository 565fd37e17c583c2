"""The page in headless Chromium, served by the viewer and as plain files by an ordinary file server."""

import functools
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from distmil.pipeline.view import job as view_job
from distmil.pipeline.view.shelf import open_shelf
from tests.support.chromium import CHROMIUM, Page
from tests.support.predicted import Predicted, make_predicted
from tests.support.viewed import job_of, served

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
READY = (
    "view.viewer.world.getItemAt(0)?.getFullyLoaded() && view.overlay.map && view.overlay.lines.length"
    " && location.hash.includes('zoom=')"
)
CENTRE = (
    "(() => { const centre = view.viewer.viewport.getCenter(true);"
    " const { x, y } = view.viewer.world.getItemAt(0).viewportToImageCoordinates(centre); return [x, y] })()"
)


@dataclass
class Shown:
    page: Page
    address: str
    predicted: Predicted


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    return make_predicted(tmp_path_factory.mktemp("predicted"))


@pytest.fixture(scope="module", params=["served", "plain files"])
def shown(request: pytest.FixtureRequest, predicted: Predicted, tmp_path_factory) -> Iterator[Shown]:
    with Page(tmp_path_factory.mktemp("profile")) as page:
        if request.param == "served":
            shelf = open_shelf(job_of(predicted))
            with served(_scored_apart(shelf.library())) as address:
                yield Shown(page, address, predicted)
            return
        folder = tmp_path_factory.mktemp("plain") / "out"
        view_job.run(job_of(predicted, export=str(folder)))
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Shown(page, f"http://127.0.0.1:{server.server_port}", predicted)
        server.shutdown()
        thread.join()
        server.server_close()


def _scored_apart(library):
    """Give the slides different scores, which the store of the tests does not."""
    changed = {"s2": 0.9, "s3": 0.6}
    return replace(library, listed=[replace(one, probability=changed.get(one.slide_id, 0.7)) for one in library.listed])


@pytest.fixture
def page(shown: Shown) -> Page:
    shown.page.open("about:blank")
    shown.page.open(f"{shown.address}/")
    shown.page.wait(READY)
    return shown.page


def pixels(page: Page) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)


def slide_area(page: Page) -> np.ndarray:
    """Take a picture of the middle of the slide, settled."""
    page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return pixels(page)[200:600, 300:800].astype(int)


def enter(page: Page, name: str, value: float | str) -> None:
    """Set a control, as a person does."""
    page.run(
        f"(() => {{ const control = document.getElementById('{name}'); control.value = {value!r};"
        " control.dispatchEvent(new Event('input')) })()"
    )


def test_sliders_and_colours_answer_without_a_request(page: Page) -> None:
    page.requests.clear()
    pictures = [slide_area(page)]
    for change in (("opacity", 1), ("from", 0.5), ("opacity", 0.2)):
        enter(page, *change)
        pictures.append(slide_area(page))
    enter(page, "colours", "viridis")
    pictures.append(slide_area(page))
    for before, after in itertools.pairwise(pictures):
        assert np.abs(before - after).max() > 20
    assert page.requests == []
    assert page.errors == []


def test_a_map_shows_the_tables_values_in_the_colours_of_the_other_maps(page: Page, shown: Shown) -> None:
    enter(page, "opacity", 1)
    page.press("r")
    row = shown.predicted.table("s1").to_pylist()[7]
    name = page.run("view.state.slide")
    assert name in {"s1", "s2", "s3"}
    page.run("document.querySelector('[data-slide=s1]').click()")
    page.wait(f"document.getElementById('name').textContent === 's1' && view.overlay.map && {CENTRE}[0] === 350")
    for score, key in (("fused", "1"), ("probability", "2"), ("attention", "3")):
        page.press(key)
        page.wait(f"document.getElementById('shown').textContent.includes('value of {score}')")
        x, y = page.run(
            f"(() => {{ const p = view.overlay.place(), b = document.getElementById('zoom').getBoundingClientRect();"
            f" return [b.left + p.x + p.scale * {row['x'] + 32}, b.top + p.y + p.scale * {row['y'] + 32}] }})()"
        )
        slide_area(page)
        table = page.run("fetch('run.json').then((answer) => answer.json()).then((run) => run.colours.jet)")
        found = pixels(page)[round(y), round(x)][::-1]
        assert found.tolist() == table[round(row[score] * 255)]


def test_a_top_patch_is_jumped_to_and_the_link_leads_back(page: Page, shown: Shown) -> None:
    page.run("document.querySelectorAll('#top button')[3].click()")
    name = page.run("view.state.slide")
    rows = sorted(shown.predicted.table(name).to_pylist(), key=lambda row: -row["fused"])
    expected = [rows[3]["x"] + 32, rows[3]["y"] + 32]
    np.testing.assert_allclose(page.wait(CENTRE), expected, atol=0.6)
    page.press("2")
    enter(page, "from", 0.25)
    link = page.run("document.getElementById('link').href")
    page.open("about:blank")
    page.open(link)
    page.wait(READY)
    np.testing.assert_allclose(page.wait(CENTRE), expected, atol=0.6)
    state = page.run("[view.state.map, view.state.from, view.state.slide]")
    assert state == ["probability", 0.25, name]


def test_every_layer_is_shown_and_hidden(page: Page) -> None:
    page.press("r")
    bare = slide_area(page)
    page.press("r")
    with_regions = slide_area(page)
    assert np.abs(with_regions - bare).max() > 20
    seen = []
    for key, name in enumerate(("none", "fused", "probability", "attention", "agreement")):
        page.press(str(key))
        words = "No map is shown" if name == "none" else f"value of {name}"
        page.wait(f"document.getElementById('shown').textContent.includes({words!r})")
        seen.append(slide_area(page))
    for one, other in itertools.combinations(seen, 2):
        assert np.abs(one - other).max() > 20
    page.requests.clear()
    page.press("1")
    np.testing.assert_array_equal(slide_area(page), seen[1])
    assert page.requests == []  # it was shown before
    assert page.errors == []


def test_the_slide_is_zoomed_by_keys_buttons_and_wheel(page: Page) -> None:
    zoom = "view.viewer.viewport.getZoom()"
    whole = page.run(zoom)
    page.press("+")
    assert page.run(zoom) == pytest.approx(1.5 * whole)
    page.run("document.getElementById('in').click()")
    assert page.run(zoom) == pytest.approx(2.25 * whole)
    page.press("-")
    assert page.run(zoom) == pytest.approx(1.5 * whole)
    page.call("Input.dispatchMouseEvent", type="mouseWheel", x=600, y=400, deltaX=0, deltaY=-120)
    page.wait(f"{zoom} > {1.51 * whole}")
    page.press("h")
    page.wait(f"Math.abs({zoom} - {whole}) < 1e-6")
    page.press("?")
    assert page.run("document.getElementById('keys').open")


def test_nothing_is_drawn_where_nothing_can_be_saved(page: Page) -> None:
    page.wait("view.panel.drawing")
    for key in "ofea":
        page.press(key)
        assert page.run("view.panel.pencil.mode") == "look"
    assert page.run("document.getElementById('draw').hidden")


def test_the_list_is_searched_and_sorted(page: Page) -> None:
    ids = "[...document.querySelectorAll('#slides button')].map((one) => one.dataset.slide)"
    enter(page, "sort", "name")
    assert page.run(ids) == ["s1", "s2", "s3"]
    enter(page, "sort", "score")
    slides = page.run("fetch('slides.json').then((answer) => answer.json())")
    assert page.run(ids) == [one["slide_id"] for one in sorted(slides, key=lambda one: -one["probability"])]
    enter(page, "search", "S2")
    assert page.run(ids) == ["s2"]


def test_a_malformed_link_shows_the_page(shown: Shown) -> None:
    shown.page.open("about:blank")
    shown.page.open(f"{shown.address}/#slide=../../x&x=NaN&zoom=-4&map=%3Cscript%3E&opacity=9")
    assert "There is no slide ../../x" in shown.page.wait("document.getElementById('problem').textContent")
    assert shown.page.run("[view.state.map, view.state.opacity]") == ["fused", 1]


def test_it_fits_a_phone(page: Page) -> None:
    page.resize((390, 844))
    try:
        assert json.loads(page.run("JSON.stringify([document.documentElement.scrollWidth, innerWidth])")) == [390, 390]
        assert page.run("document.getElementById('zoom').clientHeight") > 400
    finally:
        page.resize((1280, 800))
