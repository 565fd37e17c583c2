"""kill -9 in the middle of tiling and embedding."""

import shutil
from pathlib import Path

import pytest

from tests.support.jobs import kill_job_when, run_here

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that one run filled without a break."""
    home = tmp_path_factory.mktemp("unbroken")
    done = run_here(home, "embed", "cohort.synthetic=8")
    assert done.code == 0, done.err
    assert done.answer["slides"] == {"ok": 8}
    return home


@pytest.mark.parametrize(
    ("job", "traces"), [("tile", "patches/*/*/commit.json"), ("embed", "embeddings/*/*/part-*.arrow")]
)
def test_kill_9_then_the_same_command_ends_as_an_unbroken_run(
    unbroken: Path, tmp_path: Path, job: str, traces: str
) -> None:
    broken = tmp_path / "home"
    shutil.copytree(unbroken / "synthetic", broken / "synthetic", copy_function=shutil.copy2)
    if job == "embed":
        shutil.copytree(unbroken / "patches", broken / "patches", copy_function=shutil.copy2)
    kill_job_when(broken, lambda: len(list(broken.glob(traces))) >= 2, job, "cohort.synthetic=8")
    assert 2 <= len(list(broken.glob(traces))) < 8
    done = run_here(broken, job, "cohort.synthetic=8")
    assert done.code == 0, done.err
    for stage in ("patches", "embeddings") if job == "embed" else ("patches",):
        assert shards(broken / stage) == shards(unbroken / stage)


def shards(folder: Path) -> dict[str, bytes]:
    """Return every committed shard's bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in {".parquet", ".arrow"} and not path.name.startswith(".")
    }
