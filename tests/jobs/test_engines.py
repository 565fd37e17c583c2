"""The engine of a job: chosen once on the cohort's own patches, then the same for what is embedded later."""

import shutil
from pathlib import Path

import pytest

from tests.support.jobs import run_here
from tests.support.slides import save_pyramid, tissue_image

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]

EMBED = (
    "tiling.strategy=crop", "tiling.mpp=null", "tiling.patch_px=32", "encoder.name=resnet18", "encoder.weights=random",
    "encoder.engine=torch",
)  # fmt: skip


def test_an_engine_is_chosen_once_and_embeds_again_to_the_byte(tmp_path: Path, local_ray: None) -> None:
    (tmp_path / "slides").mkdir()
    for seed, name in enumerate(("a", "b")):
        save_pyramid(tmp_path / f"slides/{name}.tif", tissue_image((150, 90), seed=seed))
    home, arguments = tmp_path / "home", (f"cohort.manifest={tmp_path / 'slides'}", *EMBED)
    first = run_here(home, "embed", *arguments)
    assert first.code == 0, first.err
    assert "choosing the engine of resnet18: each is compared with fp32 on patches of the cohort" in first.err
    assert "engine: torch " in first.err
    [choice] = (home / "engines").iterdir()
    made = {path: path.read_bytes() for path in Path(first.answer["embeddings"]).rglob("*.arrow")}
    assert len(made) == 2
    shutil.rmtree(Path(first.answer["embeddings"]) / "b")
    written = choice.stat().st_mtime_ns
    again = run_here(home, "embed", *arguments)
    assert again.code == 0, again.err
    assert "choosing the engine" not in again.err
    assert choice.stat().st_mtime_ns == written
    assert {path: path.read_bytes() for path in made} == made
