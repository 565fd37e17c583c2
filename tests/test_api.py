"""The door for Python, as a user of a notebook walks through it."""

import json
import math
import os
import pydoc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import distmil
from distmil.annotations.reader import read_annotation
from distmil.bags.bag import BagEntry, open_source
from distmil.config.loading import build_config
from distmil.errors import BundleError, ConfigError, MissingSlide, NoResolution, SlideError, TrainingError
from distmil.inference.scoring import READ_OUTS, score_bag
from distmil.models.regions import Places
from distmil.storage.store import Store
from distmil.visualization.heatmap import encode_png
from distmil.visualization.slide_maps import MAPS, SHEET, draw_maps
from tests.support.trained import RUN, House, make_house

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return make_house(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def run(house: House) -> distmil.FittedRun:
    train = distmil.open_bags(house.store.root, run=RUN, split="train")
    return distmil.fit(train, val=distmil.open_bags(house.store.root, run=RUN, split="val"))


@pytest.fixture(scope="module")
def bundle(house: House, run: distmil.FittedRun) -> distmil.Bundle:
    """Saved under the store's models, and loaded by its name."""
    run.save(house.store.path(f"models/{RUN}"))
    return distmil.load_bundle(RUN, root=house.store.root)


@pytest.fixture(scope="module")
def found(house: House, bundle: distmil.Bundle) -> distmil.SlidePrediction:
    return distmil.predict_slide(bundle, house.cohort.slides[1].path)


# --- slides and manifests


def test_a_slide_opens_with_its_size_resolution_and_picture(house: House) -> None:
    slide = house.cohort.slides[1]
    with distmil.open_slide(slide.path) as image:
        width, height = image.size
        assert width != height
        assert image.mpp == pytest.approx(0.5)
        picture = image.thumbnail(200)
        assert max(picture.size) <= 200
        assert picture.width / picture.height == pytest.approx(width / height, rel=0.02)
        assert image.read(0, 0, width=30, height=20).shape == (20, 30, 3)
        assert f"{width} x {height} px, 0.5 um per pixel" in repr(image)
        for wrong in ({"level": 9}, {"level": -1}, {"width": 0}):
            with pytest.raises(ConfigError):
                image.read(0, 0, **{"width": 5, "height": 5, **wrong})
        with pytest.raises(ConfigError, match="px = 0"):
            image.thumbnail(0)


def test_a_plain_image_opens_too(tmp_path: Path) -> None:
    Image.new("RGB", (70, 40), "white").save(tmp_path / "plain.png")
    with distmil.open_slide(tmp_path / "plain.png") as image:
        assert (image.size, image.mpp, image.vendor) == ((70, 40), None, "png")
        assert image.thumbnail(35).size == (35, 20)


def test_a_manifest_is_read_as_the_jobs_read_it(house: House) -> None:
    cohort = distmil.read_manifest(Path(house.store.path("synthetic/6/manifest.csv")))
    assert [slide.slide_id for slide in cohort.slides] == [slide.slide_id for slide in house.cohort.slides]
    with pytest.raises(ConfigError, match=r"cohort\.classes"):
        distmil.read_manifest("manifest.csv", classes=["one"])


def test_a_manifest_of_other_names_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "m.csv").write_text("slide_id,slide_path,MSI,Patient\na,a.png,1,p\n")
    (slide,) = distmil.read_manifest(
        tmp_path / "m.csv", columns={"label": "MSI", "patient_id": None}, class_names={1: "negative"}
    ).slides
    assert (slide.label, slide.patient_id) == (0, "a")
    assert [slide.slide_id for slide in distmil.read_manifest(tmp_path).slides] == ["a"]


# --- prediction


def test_one_slide_has_the_scores_of_its_committed_embeddings(
    house: House, bundle: distmil.Bundle, found: distmil.SlidePrediction
) -> None:
    """What the job scores lies in shards; nothing differs, not even the last bit."""
    entry = next(bag for bag in _entries(house) if bag.slide_id == found.slide_id)
    source, places = open_source(house.store, entry)
    bags = bundle.config.bags
    scores = score_bag(
        bundle.heads,
        source,
        lambda patches: torch.tensor(patches).float(),
        top_k=bags.top_k,
        top_k_share=bags.top_k_share,
    )
    for name in ("x", "y", "extent_px"):
        assert found.patches[name].equals(places[name])
    for name, values in (("attention", scores.attention_N), ("fused", scores.fused_N)):
        np.testing.assert_array_equal(found.patches[name].to_numpy(), values)
    scores = scores.with_regions(Places.of(places), bundle.evidence)
    assert math.isfinite(scores.regions)
    assert [found.row[name] for name in READ_OUTS] == [getattr(scores, name) for name in READ_OUTS]
    assert [found.bag, found.max, found.topk_mean] == [scores.bag, scores.max, scores.topk_mean]


def _entries(house: House) -> list[BagEntry]:
    return [BagEntry.from_json(v) for v in house.store.read_checked(f"checkpoints/{RUN}/cohort.json", owner=RUN)]


def test_a_prediction_tells_the_slide_apart(
    house: House, bundle: distmil.Bundle, found: distmil.SlidePrediction
) -> None:
    path = house.cohort.slides[0].path
    negative = distmil.predict_slide(bundle, path)
    assert negative.probability < found.probability
    table = found.patches.to_pandas().nlargest(5, "fused")
    assert list(table.columns[:8]) == [
        "slide_id", "x", "y", "extent_px", "attention", "probability", "topk_probability", "fused",
    ]  # fmt: skip
    other = distmil.predict_slide(bundle, path, slide_score="max", slide_id="case.1")
    assert (other.probability, other.slide_id) == (negative.max, "case.1")
    assert repr(found) == f"SlidePrediction({found.slide_id}: {found.predicted}, bag {found.bag:.3f}, " + (
        f"{found.patches.num_rows} patches)"
    )


def test_maps_are_those_of_the_job(house: House, found: distmil.SlidePrediction, tmp_path: Path) -> None:
    slide = house.cohort.slides[1]
    with distmil.open_slide(slide.path) as image:
        size = image.size
        mpp = image.mpp
    drawn = draw_maps(
        slide, found.patches, found.reading, outlines=lambda: None, size=size, mpp=mpp, max_px=1024, reader="auto"
    )
    found.save(tmp_path / "new" / "folder")
    for name in (*MAPS, SHEET):
        assert encode_png(found.map(name)) == drawn.images[name]
        assert (tmp_path / "new" / "folder" / f"{found.slide_id}_{name}.png").read_bytes() == drawn.images[name]
    assert pq.read_table(tmp_path / "new" / "folder" / f"{found.slide_id}.parquet").equals(found.patches)
    row = json.loads((tmp_path / "new" / "folder" / f"{found.slide_id}.json").read_text())
    assert row["bag"] == found.bag
    assert found.map("fused", max_px=300).size != found.map("fused").size
    with pytest.raises(ConfigError, match="'heat': expected attention, probability, fused, sheet"):
        found.map("heat")
    with pytest.raises(ConfigError, match="colours = 'hot': expected jet or viridis"):
        found.map(colours="hot")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_px = 0"):
        found.map(max_px=0)


def test_what_cannot_be_predicted_is_said_in_a_sentence(bundle: distmil.Bundle, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 460, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "plain.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingSlide, match=r"there is no slide 'gone\.svs'; give the path"):
        distmil.predict_slide(bundle, "gone.svs")
    with pytest.raises(MissingSlide, match="there is no slide"):
        distmil.open_slide("gone.svs")
    with pytest.raises(NoResolution, match="no um-per-pixel in the file; give mpp="):
        distmil.predict_slide(bundle, tmp_path / "plain.png")
    with pytest.raises(SlideError, match="cannot be read as one slide"):
        distmil.predict_slide(bundle, tmp_path / "empty")
    for wrong in (
        {"mpp": -1},
        {"slide_score": "mean"},
        {"slide_id": "a/b"},
        {"tissue_path": "gone"},
        {"device": "tpux"},
    ):
        (key,) = wrong
        with pytest.raises(ConfigError, match=key):
            distmil.predict_slide(bundle, tmp_path / "plain.png", **wrong)
    with pytest.raises(ConfigError, match="bundle = 'models/demo': expected an opened bundle"):
        distmil.predict_slide("models/demo", tmp_path / "plain.png")  # type: ignore[arg-type]


def test_a_prediction_leaves_for_other_programs(
    house: House, bundle: distmil.Bundle, found: distmil.SlidePrediction, tmp_path: Path
) -> None:
    with distmil.open_slide(house.cohort.slides[1].path) as image:
        size, mpp = image.size, image.mpp
    assert (found.size, found.bounds) == (size, None)
    is_abnormal = np.array(found.patches["predicted"].to_pylist()) != "negative"
    regions = found.regions()
    assert sum(region.num_patches for region in regions) == is_abnormal.sum() > 0
    assert len(found.regions(threshold=0.0)) >= 1
    assert found.regions(min_area_mm2=100) == []
    for name in ("r.geojson", "r.geojson.gz"):
        assert found.to_geojson(tmp_path / "new" / name) == tmp_path / "new" / name
        read = read_annotation(tmp_path / "new" / name, slide_size=size)
        assert read.regions["positive"].area == pytest.approx(sum(region.polygon.area for region in regions))
    path = found.to_geojson(tmp_path / "p.geojson", with_patches=True)
    assert len(json.loads(path.read_text())["features"]) == found.patches.num_rows
    with distmil.open_slide(found.to_tiff(tmp_path / "m.tif", downsample=4)) as colours:
        assert colours.size == tuple(-(-edge // 4) for edge in size)
        assert colours.mpp == pytest.approx(4 * mpp)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    for key, value in {"threshold": 1.5, "min_area_mm2": -1, "target": "negative"}.items():
        with pytest.raises(ConfigError, match=f"{key} = "):
            found.regions(**{key: value})
    for key, value in {"origin": "left", "downsample": 0, "colours": "hot", "name": "heat"}.items():
        with pytest.raises(ConfigError, match=f"{key} = "):
            found.to_tiff(tmp_path / "x.tif", **{key: value})
    assert not (tmp_path / "x.tif").exists()


def plain_image(folder: Path) -> str:
    noise = np.random.default_rng(0).integers(0, 255, (500, 740, 3), np.uint8)
    noise[..., 1] //= 3
    Image.fromarray(noise).save(folder / "a b.png")
    return str(folder / "a b.png")


def test_a_plain_image_is_predicted_where_its_resolution_is_given(bundle: distmil.Bundle, tmp_path: Path) -> None:
    found = distmil.predict_slide(bundle, plain_image(tmp_path), mpp=0.5)
    assert found.slide_id == "a-b"
    assert found.patches.num_rows > 0


# --- bundles


def test_a_wrong_bundle_is_refused(house: House, bundle: distmil.Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="place = 'gone': there is no such folder, nor a run"):
        distmil.load_bundle("gone", root=house.store.root)
    with pytest.raises(
        BundleError, match=r"this is a storage root, not a bundle; give a run of it: the runs there: door"
    ):
        distmil.load_bundle(house.store.root)
    with pytest.raises(ConfigError, match=r"place = 'ftp://x'"):
        distmil.load_bundle("ftp://x")
    with pytest.raises(ConfigError, match="place = ''"):
        distmil.load_bundle("")
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds note\.txt, which no bundle has; give a new folder"):
        bundle.save(tmp_path)
    with pytest.raises(BundleError, match="is a file"):
        bundle.save(tmp_path / "note.txt")
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_a_saved_bundle_is_the_bundle(bundle: distmil.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # a second time over the first
        assert bundle.save("models/mine") == str(tmp_path / "models/mine")
    again = distmil.load_bundle("models/mine")
    assert again.digest == bundle.digest
    assert again.classes == bundle.classes
    assert "head" not in repr(bundle)


# --- training


def test_a_fit_is_repeatable_and_leaves_the_callers_random_numbers_alone(house: House, run: distmil.FittedRun) -> None:
    train = distmil.open_bags(house.store.root, run=RUN, split="train")
    val = distmil.open_bags(house.store.root, run=RUN, split="val")
    assert len(train) + len(val) == len(distmil.open_bags(house.store.root, run=RUN)) == 6
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    rows: list[dict[str, float | None]] = []
    again = distmil.fit(train, val=val, config={"training": {"epochs": 3}, "model": dict(house.config.model)},
                        on_epoch=rows.append)  # fmt: skip
    assert torch.equal(torch.rand(1), expected)
    assert again.history == rows
    assert len(rows) == 3
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert distmil.fit(train, val=val).history == run.history
    best = distmil.fit(train, val=val, config=build_config({"training": {"epochs": 4, "patience": 4, "lr": 1e-2}}))
    assert best.bundle.metrics["epoch"] == best.best_epoch
    assert "4 epochs" in repr(best)


def test_what_cannot_be_trained_is_said(house: House, tmp_path: Path) -> None:
    root = house.store.root
    with pytest.raises(ConfigError, match="run = 'gone': there is no trained run of that name under"):
        distmil.open_bags(root, run="gone")
    with pytest.raises(ConfigError, match="split = 'test': expected train or val"):
        distmil.open_bags(root, run=RUN, split="test")
    train = distmil.open_bags(root, run=RUN, split="train")
    with pytest.raises(ConfigError, match=r"tiling\.mpp = 1\.0: the bags were made with 0\.5; leave it out"):
        distmil.fit(train, config={"tiling": {"mpp": 1.0}})
    with pytest.raises(ConfigError, match=r"training\.folds = 3: folds are of the job train"):
        distmil.fit(train, config={"training": {"folds": 3}})
    with pytest.raises(ConfigError, match="cannot read the config"):
        distmil.fit(train, config=tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"training\.epoch"):
        distmil.fit(train, config={"training": {"epoch": 1}})
    with pytest.raises(TrainingError, match="at least two classes"):
        distmil.fit(train[:1])
    assert [bag.slide_id for bag in train[1:3]] == [train[1].slide_id, train[2].slide_id]


# --- as a whole


def test_help_shows_arguments_units_and_errors() -> None:
    text = pydoc.render_doc(distmil.predict_slide, renderer=pydoc.plaintext)
    for word in ("mpp: Um per level-0 pixel", "SlideError: If the slide cannot be used", "bundle: "):
        assert word in text


def test_the_door_stays_shut_to_ray(house: House, bundle: distmil.Bundle, tmp_path: Path) -> None:
    """Slides are predicted where Ray and MLflow are not, and torch warns of nothing."""
    folder, image = bundle.save(tmp_path / "bundle"), plain_image(tmp_path)
    code = f"""
import sys, warnings
warnings.simplefilter("error", UserWarning)
sys.modules["ray"] = sys.modules["mlflow"] = None
import distmil
found = distmil.predict_slide(distmil.load_bundle({folder!r}), {image!r}, mpp=0.5, device="cpu")
bags = distmil.open_bags({house.store.root!r}, run={RUN!r})
run = distmil.fit(bags, config={{"training": {{"epochs": 1}}}})
print(found.bag, len(run.history))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    bag, epochs = done.stdout.split()
    assert float(bag) == pytest.approx(distmil.predict_slide(bundle, image, mpp=0.5).bag, abs=1e-12)
    assert epochs == "1"


def test_the_notebook_runs(house: House, bundle: distmil.Bundle, data: Path, tmp_path: Path) -> None:
    """Its code cells, in order, as Jupyter runs them, on the store of the demo and the real slide."""
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(
        not cell["outputs"] and cell["execution_count"] is None for cell in notebook["cells"] if "outputs" in cell
    )
    home = tmp_path / "home"
    shutil.copytree(house.store.root, home)
    shutil.copytree(home / "models" / RUN, home / "models" / "demo")
    shutil.copytree(home / "checkpoints" / RUN, home / "checkpoints" / "demo")
    for name in ("run", "cohort"):
        values = house.store.read_checked(f"checkpoints/{RUN}/{name}.json", owner=RUN)
        Store(str(home)).write_checked(f"checkpoints/demo/{name}.json", values, owner="demo")
    environment = {**os.environ, "DISTMIL_HOME": str(home), "DISTMIL_DATA": str(data), "OMP_NUM_THREADS": "1"}
    code = "\n".join(cells) + "\nprint(found, run)\n"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "SlidePrediction(CMU-1-Small-Region: " in done.stdout
    assert distmil.load_bundle(tmp_path / "models" / "mine").classes == ["negative", "positive"]
