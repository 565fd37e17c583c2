"""Outlines in headless Chromium, with the mouse: drawn, changed, accepted, saved, read again, and trained on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from distmil.annotations.reader import read_annotation
from distmil.pipeline.view.shelf import open_shelf
from tests.support.chromium import CHROMIUM, Page
from tests.support.predicted import SIZES, Predicted, make_predicted
from tests.support.viewed import job_of, served

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
READY = "view.viewer.world.getItemAt(0)?.getFullyLoaded() && view.panel.drawing && location.hash.includes('zoom=')"


@dataclass
class Sheet:
    """A page that draws on slide s1."""

    page: Page
    folder: Path
    address: str

    def open(self) -> None:
        self.page.open("about:blank")
        self.page.open(f"{self.address}/#slide=s1")
        self.page.wait(READY)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Find a level-0 place on the screen."""
        found = self.page.run(
            "(() => { const p = view.overlay.place(), b = document.getElementById('zoom').getBoundingClientRect();"
            f" return [b.left + p.x + p.scale * {x}, b.top + p.y + p.scale * {y}] }})()"
        )
        return found[0], found[1]

    def outlines(self) -> list[shapely.Polygon]:
        rings = self.page.run("view.panel.drawing.outlines.map((one) => one.rings)")
        return [shapely.Polygon(shell, holes) for shell, *holes in rings]

    def saved(self, version: int) -> Any:
        """Save by the button, and read the file as training does."""
        self.page.run("document.getElementById('save').click()")
        self.page.wait(f"document.getElementById('saved').textContent.startsWith('Saved, version {version}')")
        return read_annotation(self.folder / f"s1_v{version}.geojson", slide_size=SIZES["s1"]).regions


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    return make_predicted(tmp_path_factory.mktemp("predicted"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def sheet(browser: Page, predicted: Predicted, tmp_path: Path) -> Iterator[Sheet]:
    shelf = open_shelf(job_of(predicted, drawn=str(tmp_path / "drawn")), is_open=True)
    with served(shelf.library()) as address:
        found = Sheet(browser, tmp_path / "drawn", address)
        browser.errors.clear()
        found.open()
        yield found
        browser.run("view.panel.drafts.clear()")  # else the browser asks whether to leave
        browser.open("about:blank")
        assert browser.errors == []


def near(found: shapely.Polygon, corners: list[tuple[float, float]]) -> bool:
    """Compare with corners that were clicked: a pixel of the screen is about a pixel of the slide."""
    wanted = shapely.Polygon(corners)
    return bool(found.symmetric_difference(wanted).area < 0.05 * wanted.area)


def test_an_outline_is_drawn_by_its_corners_changed_undone_and_saved(sheet: Sheet) -> None:
    page = sheet.page
    corners = [(100, 80), (300, 90), (280, 260), (120, 240)]
    page.press("o")
    for corner in corners:
        page.click(sheet.at(*corner))
    page.click(sheet.at(*corners[0]))  # closes it
    assert len(sheet.outlines()) == 1
    assert near(sheet.outlines()[0], corners)
    page.press("e")
    page.click(sheet.at(200, 150))
    page.drag(sheet.at(*corners[2]), sheet.at(350, 300), sheet.at(400, 340))
    changed = [*corners[:2], (400, 340), corners[3]]
    assert near(sheet.outlines()[0], changed)
    # the dot between two corners is a corner to be
    page.drag(sheet.at(200, 85), sheet.at(200, 40), sheet.at(200, 20))
    with_fifth = [corners[0], (200, 20), *changed[1:]]
    assert near(sheet.outlines()[0], with_fifth)
    page.click(sheet.at(200, 20), count=2)
    assert near(sheet.outlines()[0], changed)
    page.run("document.getElementById('undo').click()")
    assert near(sheet.outlines()[0], with_fifth)
    assert sheet.saved(1)["tumour"].equals(sheet.outlines()[0].normalize())
    sheet.open()
    assert near(sheet.outlines()[0], with_fifth)


def test_an_outline_is_drawn_freehand_and_deleted(sheet: Sheet) -> None:
    page = sheet.page
    page.run("document.getElementById('class').value = 'exclude'")
    page.press("f")
    angle = np.linspace(0, 1.9 * np.pi, 60)
    circle = [(300 + 120 * float(np.cos(one)), 200 + 120 * float(np.sin(one))) for one in angle]
    page.drag(*(sheet.at(*place) for place in circle))
    assert near(sheet.outlines()[0], circle)
    assert len(sheet.outlines()[0].exterior.coords) < 50  # what lies on the line is left out
    assert set(sheet.saved(1)) == {"exclude"}
    page.press("e")
    page.click(sheet.at(300, 200))
    page.press("Delete")
    assert sheet.outlines() == []
    assert sheet.saved(2) == {}
    assert sorted(path.name for path in sheet.folder.iterdir()) == [
        "manifest_drawn.csv",
        "s1_v1.geojson",
        "s1_v2.geojson",
    ]


def test_predicted_regions_are_accepted(sheet: Sheet) -> None:
    page = sheet.page
    regions = page.run("view.pane.outlines.regions.map((one) => one.rings)")
    polygons = [shapely.Polygon(shell, holes) for shell, *holes in regions]
    x, y = shapely.get_coordinates(polygons[0].representative_point())[0]
    page.press("a")
    page.click(sheet.at(float(x), float(y)))
    assert [one.equals(polygons[0]) for one in sheet.outlines()] == [True]
    page.click(sheet.at(float(x), float(y)))  # it is there already
    assert len(sheet.outlines()) == 1
    page.run("document.getElementById('accept-all').click()")
    assert len(sheet.outlines()) == len(polygons)
    assert sheet.saved(1)["tumour"].equals(shapely.union_all(polygons))


def test_looking_draws_nothing(sheet: Sheet) -> None:
    sheet.page.drag(sheet.at(100, 100), sheet.at(300, 100), sheet.at(300, 300))
    sheet.page.click(sheet.at(200, 200), count=2)
    assert sheet.outlines() == []
    assert sheet.page.run("document.getElementById('save').disabled")
    assert not sheet.folder.exists()


def test_of_two_tabs_neither_loses_an_outline(sheet: Sheet) -> None:
    page = sheet.page
    page.press("o")
    for corner in ((100, 80), (300, 90), (280, 260)):
        page.click(sheet.at(*corner))
    page.press("Enter")
    other = {
        "properties": {"name": "exclude"},
        "geometry": {"type": "Polygon", "coordinates": [[[5, 5], [50, 5], [50, 40], [5, 5]]]},
    }
    sent = json.dumps({"distmil": {"complete": True}, "features": [other]})
    status = page.run(  # as another tab does
        "fetch('slide-s1/outlines.geojson', { method: 'PUT', headers: { 'Content-Type': 'application/geo+json',"
        f" 'If-Match': '\"0\"' }}, body: {sent!r} }}).then((answer) => answer.status)"
    )
    assert status == 200
    page.run("document.getElementById('save').click()")
    page.wait(
        "document.getElementById('saved').textContent.startsWith('Not saved: s1: its outlines were saved elsewhere')"
    )
    assert len(sheet.outlines()) == 1
    page.errors.clear()  # the browser reports the refusal
    page.run("document.getElementById('merge').click()")
    page.wait("view.panel.drawing.outlines.length === 2")
    assert page.run("view.panel.drawing.complete")
    assert set(sheet.saved(2)) == {"tumour", "exclude"}


def test_unsaved_outlines_wait_while_another_slide_is_shown(sheet: Sheet) -> None:
    page = sheet.page
    page.press("o")
    for corner in ((100, 80), (300, 90), (280, 260)):
        page.click(sheet.at(*corner))
    page.press("Enter")
    page.run("document.querySelector('[data-slide=s2]').click()")
    page.wait("view.panel.slideId === 's2' && view.panel.drawing && view.panel.drawing.outlines.length === 0")
    page.run("document.querySelector('[data-slide=s1]').click()")
    page.wait("view.panel.slideId === 's1' && view.panel.drawing?.outlines.length === 1")
    assert page.run("document.getElementById('saved').textContent") == "Not saved yet."
