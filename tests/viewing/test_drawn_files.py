import csv
import threading
from pathlib import Path

import pytest

from distmil.cohort import read_cohort
from distmil.cohort.annotated import Drawn, annotated_manifest
from distmil.config.data import CohortConfig
from distmil.errors import ConfigError
from distmil.storage.local_files import write_new
from distmil.viewing.drawn_files import DrawnFiles, StaleDrawing, drawn_folder

FILE = b'{"type":"FeatureCollection","distmil":{"corner":[0,0],"complete":%s,"outlines":%d},"features":[\n%s\n]}\n'
TRIANGLE = b'{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[0,0],[5,0],[5,3],[0,0]]]},"properties":{}}'


def drawn(*, is_complete: bool = False, count: int = 1) -> bytes:
    return FILE % (str(is_complete).lower().encode(), count, b",\n".join([TRIANGLE] * count))


@pytest.fixture
def files(tmp_path: Path) -> DrawnFiles:
    (tmp_path / "own.geojson").write_bytes(drawn())
    for name in ("a.tif", "b_v2.tif", "c.tif"):
        (tmp_path / name).write_bytes(b"x")
    manifest = tmp_path / "slides.csv"
    manifest.write_text(
        "Case;slide_id;slide_path;label;annotation_path\nP1;a;a.tif;1;own.geojson\nP2;b_v2;b_v2.tif;0;\nP3;c;c.tif;1;nan\n"
    )
    cohort = CohortConfig(columns={"patient_id": "Case"})
    return DrawnFiles(drawn_folder(manifest), manifest, cohort)


def rows(files: DrawnFiles) -> dict[str, dict[str, str]]:
    with files.drawn_manifest.open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def test_the_manifest_of_drawn_outlines_is_read_like_the_first_one(files: DrawnFiles) -> None:
    own = files.manifest.parent / "own.geojson"
    before = {path: path.read_bytes() for path in files.manifest.parent.iterdir() if path.is_file()}
    files.save("b_v2", 1, drawn(is_complete=True))
    files.save("a", 1, drawn(count=2))
    files.save("a", 2, drawn(count=0, is_complete=True))
    first, second = (
        read_cohort(files.cohort, manifest=path, needs_labels=True, needs_splits=False)
        for path in (files.manifest, files.drawn_manifest)
    )
    assert first.slides[0].annotation_path == str(own)
    by_id = {slide.slide_id: slide for slide in second.slides}
    assert [(s.slide_id, s.patient_id, s.label) for s in second.slides] == [
        ("a", "P1", 1),
        ("b_v2", "P2", 0),
        ("c", "P3", 1),
    ]
    assert [s.path for s in second.slides] == [s.path for s in first.slides]
    # without an outline there is no annotation any more, and none that could be complete
    assert by_id["a"].annotation_path is None
    assert (by_id["b_v2"].annotation_path, by_id["b_v2"].annotation_complete) == (str(files.path("b_v2", 1)), True)
    assert by_id["c"].annotation_path is None
    assert {path: path.read_bytes() for path in before} == before
    assert files.path("a", 1).read_bytes() == drawn(count=2)  # every version stays


def test_only_the_newest_version_is_drawn_over(files: DrawnFiles) -> None:
    files.save("a", 1, drawn())
    for version in (1, 3):
        with pytest.raises(StaleDrawing, match="a: its outlines were saved elsewhere meanwhile"):
            files.save("a", version, drawn(count=2))
    assert files.newest() == {"a": 1}
    assert files.path("a", 1).read_bytes() == drawn()


def test_of_all_who_save_one_version_one_does(files: DrawnFiles) -> None:
    """Each thread has a folder object of its own, as processes do: no lock is shared."""
    ended: list[str] = []

    def save(number: int) -> None:
        own = DrawnFiles(files.folder, files.manifest, files.cohort)
        try:
            own.save("a", 1, drawn(count=number))
            own.save(f"x{number}", 1, drawn())
            ended.append("saved")
        except StaleDrawing:
            own.save(f"x{number}", 1, drawn())
            ended.append("stale")

    threads = [threading.Thread(target=save, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["saved", *["stale"] * 7]
    assert len(files.newest()) == 9
    assert rows(files)["a"]["annotation_path"] == str(files.path("a", 1))
    assert not [path for path in files.folder.iterdir() if path.name.startswith(".")]


def test_a_manifest_of_drawn_outlines_is_drawn_on_in_its_folder(files: DrawnFiles) -> None:
    files.save("a", 1, drawn())
    again = DrawnFiles(drawn_folder(files.drawn_manifest), files.drawn_manifest, files.cohort)
    assert (again.folder, again.drawn_manifest) == (files.folder, files.drawn_manifest)
    again.save("a", 2, drawn())
    again.save("c", 1, drawn())
    assert rows(files)["a"]["annotation_path"] == str(files.path("a", 2))
    assert rows(files)["c"]["annotation_path"] == str(files.path("c", 1))


def test_a_users_manifest_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "my_drawn"
    folder.mkdir()
    manifest = folder / "my_drawn.csv"
    manifest.write_text("slide_id,slide_path\na,a.tif\n")
    files = DrawnFiles(drawn_folder(manifest), manifest, CohortConfig())
    with pytest.raises(ConfigError, match=r"my_drawn.csv: it has the name .*set view.drawn"):
        files.save("a", 1, drawn())
    assert [path.name for path in folder.iterdir()] == ["my_drawn.csv"]


def test_a_file_that_another_program_wrote_again_is_incomplete(files: DrawnFiles) -> None:
    files.save("a", 1, drawn(is_complete=True))
    assert files.drawn("a", 1) == Drawn(str(files.path("a", 1)), is_complete=True)
    for content in (b"", b"{", b"[1]\n", b'{"type":"FeatureCollection","features":[\n' + TRIANGLE + b"]}"):
        files.path("a", 1).write_bytes(content)
        assert files.drawn("a", 1) == Drawn(str(files.path("a", 1)), is_complete=False)


def test_a_folder_of_slides_becomes_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "s.tif").write_bytes(b"II*\0")
    found = annotated_manifest(CohortConfig(), tmp_path / "slides", {"s": Drawn("/x/s_v1.geojson", is_complete=True)})
    slide = tmp_path / "slides" / "s.tif"
    assert found.decode().splitlines() == [
        "slide_id,slide_path,annotation_path,annotation_complete",
        f"s,{slide},/x/s_v1.geojson,true",
    ]


@pytest.mark.parametrize("column", ["annotation_path", "annotation_complete"])
def test_columns_that_are_switched_off_leave_no_place(column: str, files: DrawnFiles) -> None:
    with pytest.raises(ConfigError, match=rf"cohort.columns: {column} = null"):
        annotated_manifest(CohortConfig(columns={column: None}), files.manifest, {})


def test_a_name_that_is_taken_is_not_written(tmp_path: Path) -> None:
    target = tmp_path / "b"
    write_new(target, b"1")
    with pytest.raises(FileExistsError):
        write_new(target, b"2")
    assert target.read_bytes() == b"1"
    assert [path.name for path in target.parent.iterdir()] == ["b"]
