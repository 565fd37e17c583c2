"""Features of other tools through the jobs, without a slide: imported, trained on, predicted, exported, refused."""

import csv
import json

import h5py
import numpy as np
import pytest

from tests.support.feature_files import random_features, write_clam, write_stamp, write_trident
from tests.support.jobs import run_here

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray warns of its own settings
WIDTH = 6
SMALL = ("training.epochs=2", "training.run=t", "bags.n=8", "tracking.experiment=x", "model.feature_dim=8")


def cohort(tmp_path, write=write_trident, *, num_slides=8, seed=0, **values):
    """Positive slides have patches far from the others; their outline is left out."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_slides):
        label = number % 2
        xy = np.array([[512 * (i % 5), 512 * (i // 5)] for i in range(20)])
        features = rng.normal(size=(20, WIDTH)) + 3 * label * (np.arange(20)[:, None] < 8)
        made = random_features(
            rng, slide_id=f"s{number}", xy=xy, features=features.astype(np.float16), extent_px=512, patch_px=256,
            overlap_px=0, mpp=0.25, size=(10_300, 2_100), **values,
        )  # fmt: skip
        folder = write(made, tmp_path)
        split = "val" if number >= num_slides - 2 else "train"
        rows.append({"slide_id": made.slide_id, "label": label, "split": split, "mpp": 0.25})
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "manifest.csv", folder


@pytest.mark.slow
def test_from_features_to_maps_without_a_slide(local_ray, tmp_path):
    home = tmp_path / "home"
    manifest, folder = cohort(tmp_path / "trident")
    (folder / "s1.h5").unlink()
    given = (f"cohort.manifest={manifest}", f"features.folder={folder}")
    imported = run_here(home, "import_features", *given, "tiling.max_bad_fraction=0.2")
    assert imported.code == 0, imported.err
    assert imported.answer["slides"] == {"ok": 7, "missing": 1}
    assert "no file of features.folder is named as the slide's id" in imported.err
    few = run_here(home, "import_features", *given)
    assert (few.code, "1 of 8 slides cannot be used (1 missing)" in few.err) == (1, True)

    train = (*given, *SMALL, "tiling.max_bad_fraction=0.2")
    trained = run_here(home, "train", *train)
    assert trained.code == 0, trained.err
    assert "drawn on white" not in trained.err
    assert sorted(path.name for path in (home / "predictions/t/maps").glob("*_sheet.png")) == [
        "s6_sheet.png", "s7_sheet.png",
    ]  # fmt: skip
    config = json.loads((home / "models/t/config.json").read_text())["config"]
    assert config["features"] == {"encoder": "uni_v1", "dimension": WIDTH}
    assert (config["tiling"]["strategy"], config["tiling"]["mpp"]) == ("features", 0.5)
    again = run_here(home, "train", *train)
    assert (again.code, again.answer["metrics"]) == (0, trained.answer["metrics"]), again.err

    stamp_manifest, stamp = cohort(tmp_path / "stamp", write_stamp)
    predict = ("prediction.model=t", "prediction.run=p")
    predicted = run_here(home, "predict", f"cohort.manifest={stamp_manifest}", f"features.folder={stamp}", *predict)
    assert (predicted.code, predicted.answer["slides"]) == (0, {"ok": 8}), predicted.err
    stamped = (f"cohort.manifest={stamp_manifest}", f"features.folder={stamp}", *predict)
    exported = run_here(home, "export", *stamped, "export.threshold=0.01", "export.formats=[png,tiff,geojson]")
    assert (exported.code, exported.answer["slides"]) == (0, {"ok": 8}), exported.err
    assert len(list((home / "predictions/p/export/geojson").glob("*_regions.geojson"))) == 8

    other_manifest, other = cohort(tmp_path / "other", encoder="virchow2")
    refused = run_here(home, "predict", f"cohort.manifest={other_manifest}", f"features.folder={other}", *predict)
    assert refused.code == 2
    assert "features of virchow2, 6 wide, at 0.5 um/px: the bundle t was trained on those of uni_v1" in refused.err
    unset = run_here(home, "predict", f"cohort.manifest={manifest}", *predict)
    assert unset.code == 2


@pytest.mark.slow
def test_one_tools_features_become_anothers(local_ray, tmp_path):
    home = tmp_path / "home"
    manifest, folder = cohort(tmp_path / "clam", write_clam, num_slides=4)
    given = (f"cohort.manifest={manifest}", f"features.folder={folder}", "features.encoder=uni_v1")
    out = tmp_path / "out"
    done = run_here(home, "export_features", *given, f"features.export_folder={out}", "features.export_layout=stamp")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (out / "uni_v1").iterdir()) == [f"s{i}.h5" for i in range(4)]
    back = run_here(tmp_path / "b", "import_features", given[0], f"features.folder={out}")
    assert (back.answer["num_patches"], back.answer["layouts"], back.answer["encoder"]) == (80, ["stamp"], "uni_v1")


def test_a_dry_run_of_an_import_says_what_comes_in_and_what_does_not(tmp_path):
    manifest, folder = cohort(tmp_path / "f", num_slides=5)
    (folder / "s1.h5").unlink()
    with h5py.File(folder / "s2.h5", "a") as file:
        file["coords"][3] = (9_000_000, 0)
    home = tmp_path / "home"
    given = (f"cohort.manifest={manifest}", f"features.folder={folder}", "--dry-run")
    done = run_here(home, "import_features", *given, "tiling.max_bad_fraction=0.5")
    assert done.code == 0, done.err
    assert {name: done.answer[name] for name in ("dry_run", "layouts", "num_patches", "done", "slides")} == {
        "dry_run": True, "layouts": ["trident"], "num_patches": 60, "done": 0,
        "slides": {"ok": 3, "missing": 1, "unreadable": 1},
    }  # fmt: skip
    assert 60 * WIDTH * 2 < done.answer["bytes"] < 10_000
    for words in ("trident", "3 slides", "60 patches", "features of uni_v1, 6 wide at 0.5 um/px", "are free",
                  "no file of features.folder is named as the slide's id", "(9000000, 0)"):  # fmt: skip
        assert words in done.err
    assert not (home / "embeddings").exists()
    assert not (home / "patches").exists()
    refused = run_here(home, "import_features", *given)
    assert (refused.code, "2 of 5 slides cannot be used (1 missing, 1 unreadable)" in refused.err) == (1, True)


@pytest.mark.parametrize(
    ("job", "arguments", "refusal"),
    [
        ("import_features", (), "features.folder: set it"),
        ("tile", ("features.folder={folder}",), "tile has nothing to do; run import_features"),
        ("embed", ("features.folder={folder}",), "embed has nothing to do"),
        ("export_features", (), "features.export_folder = None: set it to a folder"),
        ("train", ("features.folder={folder}", "encoder.name=resnet18", "encoder.trainable=true"), "encoder.trainable"),
        ("train", ("features.folder={folder}", "encoder.views=2"), "encoder.views = 2: the features were made without"),
        ("train", ("features.folder={folder}", "tiling.mpp=0.5"), "tiling.mpp = 0.5: features.folder decides it"),
        ("train", ("tiling.strategy=features",), "belongs to features.folder"),
        ("train", ("features.folder={folder}", "features.encoder=conch"), "features of uni_v1 (6 wide), none of conch"),
        ("train", ("features.folder={folder}/none",), "there is no such folder"),
        ("train", ("features.folder={folder}", "--dry-run"), "--dry-run estimates work on slides"),
    ],
)
def test_settings_that_need_pixels_or_contradict_exit_2(job, arguments, refusal, tmp_path):
    manifest, folder = cohort(tmp_path / "f", num_slides=4)
    slide = tmp_path / "f" / "slide.tif"
    slide.touch()
    if not any("features.folder" in text for text in arguments):
        rows = manifest.read_text().splitlines()
        manifest.write_text("\n".join([f"{rows[0]},slide_path", *(f"{row},slide.tif" for row in rows[1:2])]) + "\n")
    done = run_here(
        tmp_path / "home", job, f"cohort.manifest={manifest}", *(text.format(folder=folder) for text in arguments)
    )
    assert done.code == 2, done.err
    assert refusal in done.err
