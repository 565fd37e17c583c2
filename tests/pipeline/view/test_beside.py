"""Two runs side by side: what the server answers, what an export holds, and the two panes of the page."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distmil.errors import ConfigError
from distmil.inference.question import claim_question, make_question
from distmil.inference.tables import predictions_folder
from distmil.pipeline.view import job as view_job
from distmil.pipeline.view.shelf import open_shelf
from distmil.storage.schemas import to_parquet
from distmil.storage.store import Committed
from tests.support.chromium import CHROMIUM, Page
from tests.support.predicted import RUN, Predicted, make_predicted
from tests.support.viewed import job_of, served

OTHER = "other"


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    """Predict two of the three slides again, with all scores turned round."""
    found = make_predicted(tmp_path_factory.mktemp("predicted"))
    folder, slides = predictions_folder(OTHER), list(found.slides.values())
    claim_question(found.store, OTHER, make_question(found.bundle.digest, slides[:2]))
    for slide in slides[:2]:
        table = turned(found.table(slide.slide_id))
        part = found.store.write_part(folder, f"patches/{slide.slide_id}.parquet", to_parquet(table), rows=len(table))
        key = {"bundle": found.bundle.digest, "parts": ["x"], "slide_score": "bag", "format_version": 3}
        info = {"slide_id": slide.slide_id, "probability": 0.2, "predicted": "normal", "num_patches": len(table)}
        committed = Committed(found.store, folder, slide.slide_id, f"records/{slide.slide_id}.json")
        committed.commit(key, parts=[part], info=info)
    return found


def turned(table: pa.Table) -> pa.Table:
    for name in ("attention", "probability", "topk_probability", "fused"):
        values = pa.array(1 - table[name].to_numpy(), pa.float32())
        table = table.set_column(table.column_names.index(name), table.schema.field(name), values)
    return table


@pytest.fixture(scope="module")
def address(predicted: Predicted) -> Iterator[str]:
    with served(open_shelf(job_of(predicted, run=RUN, beside_run=OTHER)).library()) as found:
        yield found


def test_both_runs_are_answered(predicted: Predicted) -> None:
    library = open_shelf(job_of(predicted, run=RUN, beside_run=OTHER)).library()

    def read(address: str):
        answer = library.answer(address)
        return answer and json.loads(answer.data)

    assert (read("run.json")["beside"], read("beside/run.json")["beside"]) == (OTHER, None)
    assert read("beside/run.json")["name"] == OTHER
    assert {slide["slide_id"] for slide in read("beside/slides.json")} == {"s1", "s2"}
    assert read("beside/slide-s3/slide.json") is None
    assert library.answer("beside/beside/run.json") is None
    for name in ("s1", "s2"):
        one, other = read(f"slide-{name}/slide.json"), read(f"beside/slide-{name}/slide.json")
        least = min(predicted.table(name)["fused"].to_pylist())
        assert other["top"][0]["fused"] == round(1 - least, 4) != one["top"][0]["fused"]
    assert open_shelf(job_of(predicted, run=RUN)).library().answer("beside/run.json") is None


def test_an_export_holds_both(predicted: Predicted, tmp_path: Path) -> None:
    view_job.run(job_of(predicted, run=RUN, beside_run=OTHER, export=str(tmp_path / "out"), export_px=256))
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert {"beside/run.json", "beside/slides.json", "beside/slide-s1/maps/fused.png"} < files
    assert not [name for name in files if name.startswith(("beside/slide-s3", "beside/slide-s1/tiles"))]


def test_other_predictions_that_are_not_there_are_said_under_their_key(predicted: Predicted) -> None:
    with pytest.raises(ConfigError, match=r"view\.beside_run = 'nothing': there is no "):
        open_shelf(job_of(predicted, run=RUN, beside_run="nothing"))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_two_panes_show_one_place(address: str, tmp_path: Path) -> None:
    place = "(view.{}.place() ?? []).map((value) => Math.round(value * 100) / 100)"
    with Page(tmp_path) as page:
        page.open(f"{address}/#slide=s1")
        page.wait("view.overlay.map && location.hash.includes('zoom=') && !view.state.beside")
        page.press("c")
        page.wait("view.beside.overlay.map && view.beside.place()")
        page.run("view.pane.goTo([200, 150, 2])")
        page.wait(f"String({place.format('beside')}) === '200,150,2'")
        x, y = page.run(
            "(({ left, top }) => [left, top])(document.getElementById('beside-zoom').getBoundingClientRect())"
        )
        page.drag((x + 100, y + 300), (x + 140, y + 310), (x + 180, y + 320))  # by half: 40 px to the right, 10 down
        near = "{}.every((value, i) => Math.abs(value - [160, 140, 2][i]) < 0.5)"
        page.wait(" && ".join(near.format(place.format(name)) for name in ("pane", "beside")))
        page.wait("location.hash.includes('x=160.0&y=140.0&zoom=2.000')")
        values = "[view.pane, view.beside].map((one) => [...one.maps.fused].filter((value) => value >= 0))"
        one, other = page.run(values)
        np.testing.assert_allclose(np.add(one, other), 255, atol=1)
        assert "other: 0.20, predicted normal; wrong" in page.run("document.getElementById('beside-words').textContent")
        link = page.run("document.getElementById('link').href")
        page.open("about:blank")
        page.open(link)
        page.wait(f"view.state.beside && view.beside.overlay.map && {near.format(place.format('beside'))}")
        page.wait(near.format(place.format("pane")))
        page.run("document.querySelector('[data-slide=s3]').click()")
        page.wait("document.getElementById('beside-words').textContent === 'other: no prediction of s3'")
        assert page.errors == []
