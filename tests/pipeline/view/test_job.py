"""The viewer on a store with finished predictions: what it answers, what it refuses, and its plain files."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path

import cv2
import numpy as np
import pytest

from distmil.errors import ConfigError
from distmil.exporting.scores import scored_patches
from distmil.pipeline.view import job as view_job
from distmil.pipeline.view.shelf import open_shelf
from distmil.viewing.server import bind
from tests.support.predicted import RUN, SIZES, Predicted, make_predicted
from tests.support.viewed import job_of, served


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    return make_predicted(tmp_path_factory.mktemp("predicted"))


@pytest.fixture(scope="module")
def address(predicted: Predicted) -> Iterator[str]:
    with served(open_shelf(job_of(predicted)).library()) as found:
        yield found


def get(address: str, path: str, *, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(f"{address}/{path}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), _lower(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), _lower(error.headers)


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_everything_of_a_slide_is_answered(predicted: Predicted, address: str) -> None:
    run = json.loads(get(address, "run.json")[1])
    assert run["name"] == RUN
    assert run["threshold"] == 0.6
    slides = json.loads(get(address, "slides.json")[1])
    assert {slide["slide_id"] for slide in slides} == set(SIZES)
    for name, size in SIZES.items():
        found = json.loads(get(address, f"slide-{name}/slide.json")[1])
        assert (found["width"], found["height"]) == size
        scores = scored_patches(predicted.table(name), abnormal="b").scores
        fused = sorted(scores["fused"].tolist(), reverse=True)
        assert [one["fused"] for one in found["top"]] == [round(value, 4) for value in fused[:24]]
        for score in run["scores"]:
            picture = cv2.imdecode(
                np.frombuffer(get(address, f"slide-{name}/maps/{score}.png")[1], np.uint8), cv2.IMREAD_UNCHANGED
            )
            values = picture[..., 0][picture[..., 3] > 0]
            assert sorted(values) == sorted(np.rint(scores[score] * 255).astype(int))
        status, tile, headers = get(address, f"slide-{name}/tiles/0/0_0.jpg")
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        assert max(cv2.imdecode(np.frombuffer(tile, np.uint8), 1).shape) <= 256
        regions = json.loads(get(address, f"slide-{name}/regions.geojson")[1])
        assert regions["features"]
        assert json.loads(get(address, f"slide-{name}/outlines.geojson")[1])["features"] == []
        assert get(address, f"slide-{name}/top/0.jpg")[0] == 200


def test_the_page_comes_from_the_package(address: str) -> None:
    for name in ("", "viewer.js", "openseadragon.min.js", "openseadragon.LICENSE.txt"):
        status, data, headers = get(address, name)
        assert status == 200
        assert data
        assert "default-src 'self'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "../pyproject.toml", "%2e%2e/%2e%2e/etc/passwd", "..%2fserver.py", "page/../server.py", "slide-../slide.json",
        "slide-s9/slide.json", "slide-s1/tiles/99/0_0.jpg", "slide-s1/tiles/0/999999_0.jpg",
        "slide-s1/tiles/0/99999999999999999999_0.jpg", "slide-s1/tiles/0/-1_0.jpg", "slide-s1/tiles/0/0_0.png",
        "slide-s1/maps/nothing.png", "slide-s1/top/24.jpg", "slide-s1/label.jpg", "slide-s1/macro.jpg",
        "slide-s1", "slides.json/", "docs", "openapi.json", "slide-s1%00/slide.json",
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_without_a_word_of_it(path: str, address: str, predicted: Predicted) -> None:
    status, data, _ = get(address, path)
    assert status == 404
    assert data == b"there is no such file\n"


def test_no_path_and_no_patient_leaves(predicted: Predicted, address: str) -> None:
    root = str(predicted.manifest.parent).encode()
    for path in ("run.json", "slides.json", "slide-s1/slide.json", "slide-s1/regions.geojson"):
        data = get(address, path)[1]
        assert root not in data
        assert b"patient" not in data


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(method: str, address: str) -> None:
    status, data, headers = get(address, "slides.json", method=method, Origin="http://elsewhere.example")
    assert (status, data) == (405, b"this viewer shows, and takes outlines; nothing else can be written\n")
    assert "access-control-allow-origin" not in headers


def test_a_page_under_another_name_reads_nothing(address: str) -> None:
    status, data, _ = get(address, "slides.json", Host="elsewhere.example")
    assert (status, data) == (403, b"this viewer answers to localhost only\n")
    assert get(address, "slides.json", Host="localhost:1")[0] == 200


def test_a_slide_that_is_gone_is_said_without_its_name(tmp_path: Path) -> None:
    predicted = make_predicted(tmp_path)
    library = open_shelf(job_of(predicted)).library()
    Path(predicted.slides["s2"].path).unlink()
    with served(library) as address:
        status, data, _ = get(address, "slide-s2/slide.json")
    assert status == 422
    assert b"s2.tif" not in data
    assert str(tmp_path).encode() not in data


def test_plain_files_are_what_the_server_answers(predicted: Predicted, address: str, tmp_path: Path) -> None:
    answer = view_job.run(job_of(predicted, export=str(tmp_path / "out"), export_px=256))
    folder = Path(answer["view"])
    assert answer["slides"] == {"ok": 3}
    assert json.loads((folder / "run.json").read_text())["max_px"] == 256
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"run.json"}
    assert {"index.html", "openseadragon.LICENSE.txt", "slide-s1/top/0.jpg", "slide-s3/maps/fused.png"} < written
    for name in written:
        status, data, _ = get(address, name)
        assert (status, data) == (200, (folder / name).read_bytes()), name
    # s1 is 700 px wide: its level of 350 px is larger than 256
    assert sorted(path for path in written if path.startswith("slide-s1/tiles")) == ["slide-s1/tiles/0/0_0.jpg"]


def test_a_folder_of_other_files_is_left_alone(predicted: Predicted, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files; name an empty or a new one"):
        view_job.run(job_of(predicted, export=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_port_that_is_taken(predicted: Predicted) -> None:
    taken = bind("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"view.port = {port}: 127.0.0.1 cannot be listened at .*set another"):
        view_job.run(job_of(predicted, port=port))
    taken.close()


def test_patients_are_shown_on_request(predicted: Predicted) -> None:
    shelf = open_shelf(job_of(predicted, show=["patient_id"]))
    named = {name: (replace(slide, patient_id=f"P-{name}"), record) for name, (slide, record) in shelf.chosen.items()}
    shown = [slide.extra for slide in replace(shelf, chosen=named).library().listed]
    assert shown == [{"patient_id": f"P-{name}"} for name in SIZES]
