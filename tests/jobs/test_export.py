"""Predictions of the demo cohort: those of the door for Python, and the job `export`, cut off and resumed."""

import shutil
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest

import distmil
from distmil.annotations.reader import read_annotation
from distmil.bags.bag import BagEntry, open_source
from distmil.inference.mlflow_model import save_model, score_names
from distmil.inference.scoring import NETWORK_READ_OUTS
from distmil.storage.store import Store
from tests.support.jobs import kill_job_when, open_to_others, run_here, run_job
from tests.support.scale import IS_FULL
from tests.support.trained import RUN, House, make_house

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]
SLIDES = 6
UNDONE = ("demo-001", "demo-003", "demo-004")
GIVEN = (f"cohort.synthetic={SLIDES}", f"prediction.model={RUN}", "prediction.run=p")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A store with a bundle."""
    house = make_house(tmp_path_factory.mktemp("home"), num_slides=SLIDES)
    train = distmil.open_bags(house.store.root, run=RUN, split="train")
    distmil.fit(train, val=distmil.open_bags(house.store.root, run=RUN, split="val")).save(
        house.store.path(f"models/{RUN}")
    )
    return house


@pytest.fixture(scope="module")
def home(house: House, local_ray: None) -> Path:
    """The store with the job's predictions of the whole cohort."""
    done = run_here(Path(house.store.root), "predict", *GIVEN, "prediction.maps=false", "tracking.uri=none")
    assert done.code == 0, done.err
    assert "take it to QuPath, ASAP or a spreadsheet: " in done.err
    return Path(house.store.root)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_door_the_job_and_the_mlflow_model_agree(house: House, home: Path, tmp_path: Path) -> None:
    """The job's scores are equal to the last bit; the MLflow model pools in another order, so to 1e-5."""
    predictions = home / "predictions/p"
    rows = {row["slide_id"]: row for row in pq.read_table(predictions / "slides.parquet").to_pylist()}
    bundle = distmil.load_bundle(RUN, root=house.store.root)
    for slide in house.cohort.slides:
        found = distmil.predict_slide(bundle, slide.path, device="cpu")
        assert rows[slide.slide_id] == {**rows[slide.slide_id], **found.row, "label": rows[slide.slide_id]["label"]}
        assert pq.read_table(predictions / f"patches/{slide.slide_id}.parquet").equals(found.patches)
    save_model(tmp_path / "mlflow", bundle)
    model = mlflow.pyfunc.load_model(str(tmp_path / "mlflow"))
    entries = house.store.read_checked(f"checkpoints/{RUN}/cohort.json", owner=RUN)
    entry = next(entry for entry in map(BagEntry.from_json, entries) if entry.slide_id == found.slide_id)
    embedding_NE = open_source(house.store, entry)[0].take(slice(None)).astype(np.float32)
    scores = dict(zip(score_names(bundle.classes), np.asarray(model.predict(embedding_NE)).T, strict=True))
    for name in ("attention", "probability", "topk_probability", "fused"):
        np.testing.assert_allclose(scores[name], found.patches[name].to_numpy(), rtol=1e-5, atol=1e-6)
    for name in NETWORK_READ_OUTS:
        np.testing.assert_allclose(scores[name][0], getattr(found, name), rtol=1e-5)


def cut_off(home: Path, whole: Path) -> Path:
    """Leave the export as one that was killed in the middle: three slides of the six, in make test-all by a kill."""
    folder = home / "predictions/p/export"
    if IS_FULL:
        kill_job_when(home, lambda: any((folder / "records").rglob("*.json")), "export", *GIVEN)
        return folder
    shutil.copytree(whole, folder, copy_function=shutil.copy2)
    for path in list(folder.rglob("*")):
        if path.name.startswith(UNDONE):
            path.unlink()
    return folder


def test_an_export_that_is_cut_off_goes_on_and_ends_in_the_same_files(home: Path, tmp_path: Path) -> None:
    whole = run_here(home, "export", *GIVEN, f"export.out={tmp_path}")
    assert whole.code == 0, whole.err
    folder = cut_off(home, tmp_path / "p")
    store = Store(str(home))
    kept = {}
    for path in (folder / "records").rglob("*.json"):
        record = store.read_record(str(path.relative_to(home)))
        assert record is not None
        assert all(store.is_intact("predictions/p/export", part) for part in record.parts)
        kept |= {part.name: (folder / part.name).stat().st_mtime_ns for part in record.parts}
    assert 0 < len(list((folder / "records").rglob("*.json"))) < SLIDES * 5
    done = (run_job if IS_FULL else run_here)(home, "export", *GIVEN)
    assert done.code == 0, done.err
    assert (done.answer["slides"], done.answer["export"]) == ({"ok": SLIDES}, str(folder))
    assert f"exporting {SLIDES} slides of the predictions p to {folder}" in done.err
    assert f"next: in QuPath, with the slide open: File > Import objects from file, of {folder}/geojson" in done.err
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
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
