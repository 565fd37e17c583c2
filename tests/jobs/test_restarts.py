"""kill -9 in the middle of tiling and embedding."""

import shutil
from pathlib import Path

import pytest

from tests.support.jobs import kill_job_when, run_job
from tests.support.scale import IS_FULL
from tests.support.trained import make_house

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.skipif(not IS_FULL, reason="both stages in one: test_stream.py; each alone: make test-all"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]


TRACES = {"tile": "patches/*/*/commit.json", "embed": "embeddings/*/*/part-*.arrow"}
"""A stream of both is killed in test_stream.py, a training in test_jobs.py, a search in test_tune.py."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that was filled without a break, in this process."""
    return Path(make_house(tmp_path_factory.mktemp("unbroken"), num_slides=8).store.root)


@pytest.mark.parametrize("job", TRACES)
def test_kill_9_then_the_same_command_ends_as_an_unbroken_run(unbroken: Path, tmp_path: Path, job: str) -> None:
    broken, traces = tmp_path / "home", TRACES[job]
    shutil.copytree(unbroken / "synthetic", broken / "synthetic", copy_function=shutil.copy2)
    if job == "embed":
        shutil.copytree(unbroken / "patches", broken / "patches", copy_function=shutil.copy2)
    kill_job_when(broken, lambda: len(list(broken.glob(traces))) >= 2, job, "cohort.synthetic=8")
    assert 2 <= len(list(broken.glob(traces))) < 8
    done = run_job(broken, job, "cohort.synthetic=8")
    assert done.code == 0, done.err
    for stage in ("patches", "embeddings") if job == "embed" else ("patches",):
        assert shards(broken / stage) == shards(unbroken / stage)


def shards(folder: Path) -> dict[str, bytes]:
    """Return every committed shard's bytes; a stage gathers its slides' records in a table, which is none."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in {".parquet", ".arrow"} and not path.name.startswith(".") and path.name != "slides.parquet"
    }
