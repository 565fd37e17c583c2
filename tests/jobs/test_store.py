"""A store that jobs made, cleaned: what they made is found again by the next jobs."""

import json
import os
import shutil
from pathlib import Path

import pytest

from distmil.__main__ import run
from tests.support.jobs import run_here
from tests.support.scale import IS_FULL

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.skipif(not IS_FULL, reason="five jobs: make test-all; tests/inventory shows what is kept"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]

SMALL = [
    "cohort.synthetic=6", "cohort.val_fraction=0.4", "training.epochs=2", "bags.slides_per_step=2",
    "model.feature_dim=16", "model.attention_dim=8", "training.run=small", "tracking.uri=none", "prediction.maps=false",
]  # fmt: skip
ASKED = ["prediction.model=small", "cohort.synthetic=6", "prediction.maps=false", "tracking.uri=none"]
MADE = ("patches", "embeddings", "labels", "outlines", "models")


def age(home: Path) -> None:
    """Let two hours pass since the last write; the slides stay as they are, for their time tells their version."""
    for path in home.rglob("*"):
        if "synthetic" not in path.parts:
            os.utime(path, ns=(0, path.lstat().st_mtime_ns - 7200 * 10**9))


def contents(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}


def test_jobs_find_everything_again_in_a_cleaned_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTMIL_HOME", str(tmp_path))
    trained = run_here(tmp_path, "train", *SMALL)
    assert trained.code == 0, trained.err
    tiled = run_here(tmp_path, "tile", "cohort.synthetic=6", "tiling.patch_px=96")
    assert tiled.code == 0, tiled.err
    assert run(["store", "--yes", "--remove", "unused"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == []  # all of it was written just now
    age(tmp_path)
    shutil.copytree(tmp_path / "checkpoints/small", tmp_path / "patches/0123456789ab")
    age(tmp_path / "patches/0123456789ab")
    before = contents(tmp_path)
    assert run(["store", "--yes", "--remove", "unused"]) == 0
    removed = json.loads(capsys.readouterr().out)["removed"]
    wasted = str(Path(tiled.answer["patches"]).relative_to(tmp_path))
    (outlines,) = (name for name in removed if name.startswith("outlines/"))  # drawn on the wasted patches
    assert len(list((tmp_path / "outlines").iterdir())) == 1
    assert sorted(removed) == sorted(["patches/0123456789ab", wasted, "ray-train/small", outlines])
    gone = tuple(f"{name}/" for name in removed)
    kept = {name: data for name, data in before.items() if not name.startswith(gone)}
    assert contents(tmp_path) == kept
    again = run_here(tmp_path, "train", *SMALL)
    assert again.code == 0, again.err
    assert "run small is trained already" in again.err
    assert again.answer["metrics"] == trained.answer["metrics"]
    predicted = run_here(tmp_path, "predict", *ASKED)
    assert predicted.code == 0, predicted.err
    assert not [line for line in (again.err + predicted.err).splitlines() if line.startswith(("tiling", "embed"))]
    after = contents(tmp_path)
    made = [name for name in kept if name.startswith(MADE) and not name.endswith("/slides.parquet")]  # of a manifest
    assert {name: after[name] for name in made} == {name: kept[name] for name in made}
    assert {name.partition("/")[0] for name in after.keys() - kept.keys()} <= {"predictions", "ray-train"}
