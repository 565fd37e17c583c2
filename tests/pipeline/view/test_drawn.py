"""Outlines sent to the viewer's server: saved as versions, read back by the project's own reader, refused in words."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely

from distmil.annotations.reader import read_annotation
from distmil.cohort import read_cohort
from distmil.config.data import CohortConfig
from distmil.pipeline.view.shelf import open_shelf
from tests.support.predicted import SIZES, Predicted, make_predicted
from tests.support.viewed import job_of, served

BOX = [[40, 30], [240, 30], [240, 130], [40, 130], [40, 30]]
HOLE = [[80, 60], [120, 60], [120, 90], [80, 60]]


@dataclass
class Open:
    address: str
    folder: Path

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []

    def send(self, outlines: Any, *, slide: str = "s1", over: int = 0, **headers: str | None) -> tuple[int, Any]:
        data = outlines if isinstance(outlines, bytes) else json.dumps(outlines).encode()
        given = {
            "Origin": self.address, "Content-Type": "application/geo+json", "If-Match": f'"{over}"',
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }  # fmt: skip
        kept = {name: value for name, value in given.items() if value is not None}
        path = f"{self.address}/slide-{slide}/outlines.geojson"
        request = urllib.request.Request(path, data, method="PUT", headers=kept)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def read(self, slide: str = "s1") -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.address}/slide-{slide}/outlines.geojson", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    return make_predicted(tmp_path_factory.mktemp("predicted"))


@pytest.fixture
def opened(predicted: Predicted, tmp_path: Path) -> Iterator[Open]:
    with drawn_on(predicted, tmp_path / "drawn") as found:
        yield found


@contextmanager
def drawn_on(predicted: Predicted, folder: Path | None = None, *, is_open: bool = True) -> Iterator[Open]:
    """Serve with outlines in a folder; None: beside the manifest."""
    job = job_of(predicted, drawn=None if folder is None else str(folder))
    with served(open_shelf(job, is_open=is_open).library()) as address:
        yield Open(address, folder or predicted.manifest.parent / "manifest_drawn")


def collection(*rings: Any, name: str = "tumour", is_complete: bool = False) -> dict[str, Any]:
    feature = {"type": "Feature", "properties": {"name": name}, "geometry": {"type": "Polygon", "coordinates": rings}}
    features = [feature] if rings else []
    return {"type": "FeatureCollection", "distmil": {"complete": is_complete}, "features": features}


def test_what_is_saved_is_what_the_next_training_reads(opened: Open) -> None:
    assert opened.read()["distmil"] == {"version": 0, "complete": False, "refusal": ""}
    status, said = opened.send(collection(BOX, HOLE, is_complete=True))
    assert (status, said) == (200, {"version": 1, "manifest": "drawn/manifest_drawn.csv", "doubts": []})
    found = opened.read()
    assert found["distmil"] == {"version": 1, "complete": True, "refusal": ""}
    shown = shapely.from_geojson(json.dumps(found["features"][0]["geometry"]))
    assert shown.equals(shapely.Polygon(BOX, [HOLE]))
    cohort = read_cohort(
        CohortConfig(classes=["normal", "tumour"]), manifest=opened.folder / "manifest_drawn.csv", needs_labels=True,
        needs_splits=False,
    )  # fmt: skip
    slides = {slide.slide_id: slide for slide in cohort.slides}
    assert set(slides) == set(SIZES)
    assert slides["s1"].annotation_complete
    read = read_annotation(Path(str(slides["s1"].annotation_path)), slide_size=SIZES["s1"])
    assert read.regions["tumour"].equals(shapely.Polygon(BOX, [HOLE]))
    assert slides["s2"].annotation_path is None


def test_of_two_tabs_the_second_is_refused_and_nothing_is_lost(opened: Open) -> None:
    assert opened.send(collection(BOX))[0] == 200
    before = opened.read()
    status, words = opened.send(collection(HOLE))
    assert status == 412
    assert words.startswith("s1: its outlines were saved elsewhere meanwhile")
    assert opened.read() == before
    assert opened.files() == ["manifest_drawn.csv", "s1_v1.geojson"]
    assert opened.send(collection(HOLE), over=1)[0] == 200
    assert opened.read()["distmil"]["version"] == 2


def test_of_many_at_once_one_is_saved(opened: Open) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(opened.send(collection(BOX))[0])) for _ in range(8)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, *[412] * 7]
    assert opened.files() == ["manifest_drawn.csv", "s1_v1.geojson"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": None}, 403),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Host": "elsewhere.example", "Origin": "http://elsewhere.example"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"If_Match": None}, 428),
        ({"If_Match": "*"}, 428),
        ({"If_Match": '"-1"'}, 428),
        ({"If_Match": '"99999999999999999999"'}, 428),
        ({"If_Match": '"7"'}, 412),
    ],
)
def test_what_the_page_does_not_send_is_refused(headers: dict[str, str | None], status: int, opened: Open) -> None:
    assert opened.send(collection(BOX), **headers)[0] == status
    assert opened.files() == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"[" * 1_000_000, 422),
        (b"x" * (16 * 2**20 + 1), 413),
        (b"", 422),
        (collection([[0, 0], [1, 1]]), 422),
        (collection(BOX, name="Mrs. Smith"), 422),
        (collection([[i, i * i % 97] for i in range(300_001)]), 422),
        (collection([[i % 2 * 1000 + i / 7, i % 3 * 500] for i in range(40_000)]), 422),
    ],
    ids=["deep", "long", "empty", "no area", "unknown class", "many points", "many crossings"],
)
def test_what_is_no_drawing_is_refused_and_not_written(sent: Any, status: int, opened: Open) -> None:
    found, words = opened.send(sent)
    assert found == status
    assert "Traceback" not in words
    assert str(opened.folder.parent) not in words
    assert opened.files() == []


@pytest.mark.parametrize("slide", ["s9", "..", "../s1", "%2e%2e%2fs1", "s1%00", "s1_v1"])
def test_other_places_are_not_written(slide: str, opened: Open, predicted: Predicted) -> None:
    places = (opened.folder.parent, predicted.manifest.parent)
    before = [sorted(place.rglob("*")) for place in places]
    assert opened.send(collection(BOX), slide=slide)[0] in {404, 400}
    assert [sorted(place.rglob("*")) for place in places] == before


def test_a_viewer_that_is_not_open_takes_nothing(predicted: Predicted, tmp_path: Path) -> None:
    with drawn_on(predicted, tmp_path / "drawn", is_open=False) as opened:
        assert opened.send(collection(BOX))[0] == 404
        assert opened.files() == []


def test_a_folder_that_cannot_be_written_is_said(opened: Open) -> None:
    opened.folder.write_text("a file")
    status, words = opened.send(collection(BOX))
    assert status == 422
    assert "cannot be" in words
    assert str(opened.folder) not in words


def test_a_slide_of_the_normal_class_is_doubted(tmp_path: Path) -> None:
    predicted = make_predicted(tmp_path)
    text = predicted.manifest.read_text()
    predicted.manifest.write_text(text.replace("s1.tif,tumour", "s1.tif,normal"))
    with drawn_on(predicted) as opened:
        status, said = opened.send(collection(BOX))
    assert status == 200
    assert "labels this slide normal, and training refuses tumour on it" in said["doubts"][0]


def test_a_drawing_starts_from_the_manifests_annotation_and_never_changes_its_file(tmp_path: Path) -> None:
    predicted = make_predicted(tmp_path)
    own = predicted.manifest.parent / "own.xml"
    points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(BOX))
    own.write_text(
        '<ASAP_Annotations><Annotations><Annotation Name="Mrs. Smith" Type="Polygon" PartOfGroup="Tumor">'
        f"<Coordinates>{points}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    before = own.read_bytes()
    lines = predicted.manifest.read_text().splitlines()
    text = [
        f"{lines[0]},annotation_path,annotation_complete",
        f"{lines[1]},own.xml,true",
        *(f"{line},," for line in lines[2:]),
    ]
    predicted.manifest.write_text("\n".join(text) + "\n")
    with drawn_on(predicted) as opened:
        found = opened.read()
        assert found["distmil"] == {"version": 0, "complete": True, "refusal": ""}
        assert [feature["properties"]["name"] for feature in found["features"]] == ["tumour"]
        sent = {**found, "features": [*found["features"], *collection(HOLE)["features"]]}
        assert opened.send(sent)[0] == 200
        assert b"Smith" not in (opened.folder / "s1_v1.geojson").read_bytes()
    assert own.read_bytes() == before


def test_a_mask_is_not_drawn_on(tmp_path: Path) -> None:
    predicted = make_predicted(tmp_path)
    cv2.imwrite(str(predicted.manifest.parent / "mask.png"), np.ones((42, 70), np.uint8))
    lines = predicted.manifest.read_text().splitlines()
    text = [f"{lines[0]},annotation_path", f"{lines[1]},mask.png", *(f"{line}," for line in lines[2:])]
    predicted.manifest.write_text("\n".join(text) + "\n")
    with drawn_on(predicted) as opened:
        assert "mask image" in opened.read()["distmil"]["refusal"]
        status, words = opened.send(collection(BOX))
        assert (status, "mask image" in words, opened.files()) == (422, True, [])
