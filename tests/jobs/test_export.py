"""The job `export` on the demo cohort's predictions: on Ray, killed and resumed."""

from pathlib import Path

import pytest

import distmil
from distmil.annotations.reader import read_annotation
from distmil.storage.store import Store
from tests.support.jobs import kill_job_when, open_to_others, run_here
from tests.support.trained import RUN, make_house

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]
SLIDES = 6
GIVEN = (f"cohort.synthetic={SLIDES}", f"prediction.model={RUN}", "prediction.run=p")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a bundle, and its predictions of the whole cohort."""
    house = make_house(tmp_path_factory.mktemp("home"), num_slides=SLIDES)
    train = distmil.open_bags(house.store.root, run=RUN, split="train")
    distmil.fit(train, val=distmil.open_bags(house.store.root, run=RUN, split="val")).save(
        house.store.path(f"models/{RUN}")
    )
    done = run_here(Path(house.store.root), "predict", *GIVEN, "prediction.maps=false", "tracking.uri=none")
    assert done.code == 0, done.err
    assert "take it to QuPath, ASAP or a spreadsheet: " in done.err
    return Path(house.store.root)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_export_goes_on_and_ends_in_the_same_files(home: Path, tmp_path: Path) -> None:
    folder = home / "predictions/p/export"
    kill_job_when(home, lambda: any((folder / "records").rglob("*.json")), "export", *GIVEN)
    store = Store(str(home))
    kept = {}
    for path in (folder / "records").rglob("*.json"):
        record = store.read_record(str(path.relative_to(home)))
        assert record is not None
        assert all(store.is_intact("predictions/p/export", part) for part in record.parts)
        kept |= {part.name: (folder / part.name).stat().st_mtime_ns for part in record.parts}
    assert 0 < len(list((folder / "records").rglob("*.json"))) < SLIDES * 5
    done = run_here(home, "export", *GIVEN, actors=2)
    assert done.code == 0, done.err
    assert (done.answer["slides"], done.answer["export"]) == ({"ok": SLIDES}, str(folder))
    assert f"exporting {SLIDES} slides of the predictions p to {folder}" in done.err
    assert f"next: in QuPath, with the slide open: File > Import objects from file, of {folder}/geojson" in done.err
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    whole = run_here(home, "export", *GIVEN, f"export.out={tmp_path}")
    assert whole.code == 0, whole.err
    assert contents(tmp_path / "p") == contents(folder)
    assert open_to_others(folder) == []
    files = sorted((folder / "geojson").glob("*_regions.geojson"))
    regions = [read_annotation(path, slide_size=(1, 1)).regions for path in files]
    assert any("positive" in found for found in regions)
    assert len(regions) == SLIDES


def test_wrong_input_ends_with_2_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (["export.slides=[demo-009]"], "export.slides: demo-009: not in the manifest, which has 6 slides"),
        (["export.formats=[qupath]"], "expected a list of png | tiff | ome | geojson | csv | parquet"),
        (["export.target=lesion"], "export.target = 'lesion': expected a class of the bundle"),
        (["export.threshold=2"], "export.threshold = 2"),
        (["--dry-run"], "--dry-run estimates work of hours"),
    ):
        done = run_here(home, "export", *GIVEN, f"export.out={tmp_path}/out", *arguments)
        assert (done.code, said in done.err) == (2, True), done.err
    assert list(tmp_path.iterdir()) == []
