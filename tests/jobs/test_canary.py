"""Nothing that names a person is stored, recorded or logged, and what is stored is its user's alone."""

import csv
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from tests.support.canaries import MARK, find_marks, make_canaries
from tests.support.jobs import ROOT, TIMEOUT_S, Done, command, environment, open_to_others, run_here
from tests.support.scale import IS_FULL

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]

SMALL = (
    "tiling.patch_px=256", "tiling.default_mpp=0.5", "tiling.max_bad_fraction=0.9", "training.run=net",
    "training.epochs=3", "model.feature_dim=32", "tracking.registered_model=net",
)  # fmt: skip
ALL_JOBS = {
    "tile": SMALL,
    "train": SMALL,
    "predict": ("prediction.model=net", "tiling.default_mpp=0.5", "tiling.max_bad_fraction=0.9"),
    "evaluate": (
        "prediction.model=net", "prediction.split=test", "tiling.default_mpp=0.5", "tiling.max_bad_fraction=0.9",
    ),
    "tune": (
        *SMALL[:3], "training.epochs=2", "search.run=found", "search.trials=2", "search.ablations=false",
        f"search.repeats={2 if IS_FULL else 0}", f"search.concurrent={2 if IS_FULL else 1}",
    ),
}  # fmt: skip
JOBS = ALL_JOBS if IS_FULL else {job: ALL_JOBS[job] for job in ("tile", "train", "tune")}
"""A training predicts and evaluates, too: by the very code of the jobs that do that alone."""
PROCESSES = tuple(JOBS) if IS_FULL else ()
"""Run by themselves, as a user does, and first; the others run here."""


@dataclass(frozen=True)
class Ran:
    """A home after every job, Ray's own files, how the jobs ended, and what the processes left open to others."""

    home: Path
    rays: tuple[Path, ...]
    done: dict[str, Done]
    is_open: list[Path]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[Ran]:
    manifest = make_canaries(tmp_path_factory.mktemp("cohort"), count=10 if IS_FULL else 6)
    home = tmp_path_factory.mktemp("outer") / "home"
    here = Path(ray._private.worker._global_node.get_session_dir_path())
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path: sockets lie in it
        done = {}
        for job in PROCESSES:
            ended = subprocess.run(
                command(job, f"cohort.manifest={manifest}", *JOBS[job]),
                cwd=ROOT, env={**environment(home), "RAY_TMPDIR": folder}, capture_output=True, text=True,
                timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
            done[job] = Done(ended.returncode, ended.stdout, ended.stderr)
        is_open = open_to_others(home) if PROCESSES else []
        for job in JOBS.keys() - done.keys():
            done[job] = run_here(home, job, f"cohort.manifest={manifest}", *JOBS[job])
        ray.shutdown()  # its files stay, and change no more
        yield Ran(home, (Path(folder), here) if PROCESSES else (here,), done, is_open)


@pytest.mark.parametrize("job", JOBS)
def test_the_jobs_use_the_good_slides_and_drop_the_bad_ones(ran: Ran, job: str) -> None:
    done = ran.done[job]
    assert done.code == 0, done.err
    assert "dropped" in done.err


def test_no_mark_is_in_the_store_the_record_or_the_logs(ran: Ran) -> None:
    assert list(ran.home.rglob("*_fused.png"))
    assert (ran.home / "mlflow.db").exists()
    results = list(ran.home.glob("predictions/*/slides.csv"))
    assert results
    for path in results:  # a person's table, of what the manifest says: files, and patients
        lines = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
        assert not any(
            MARK in text
            for line in lines
            for name, text in line.items()
            if name not in {"slide_path", "patient_id", "site"}
        )
    groups = list(ran.home.glob("predictions/*/groups.csv"))
    for path in groups:  # metrics by site, which stay in the store
        lines = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
        assert not any(MARK in text for line in lines for name, text in line.items() if name != "group")
    found = find_marks(ran.home)
    assert set(found) <= {str(path.relative_to(ran.home)) for path in (*results, *groups)}
    for folder in ran.rays:
        assert list(folder.rglob("*.out"))
        assert find_marks(folder) == []


def test_the_search_finds_marks(ran: Ran, tmp_path: Path) -> None:
    """What is searched for is found in a compressed table, too."""
    pq.write_table(pa.table({"text": [f"{MARK}X"] * 1000}), tmp_path / "a.parquet", compression="zstd")
    (tmp_path / "b.txt").write_text(MARK, encoding="utf-16")
    (tmp_path / f"{MARK}.txt").touch()
    assert len(find_marks(tmp_path)) == 3


@pytest.mark.parametrize("job", JOBS)
def test_no_mark_is_in_the_answer(ran: Ran, job: str) -> None:
    assert MARK not in ran.done[job].out


@pytest.mark.skipif(not IS_FULL, reason="of every job: make test-all; of the main job: test_jobs.py")
def test_what_is_stored_is_its_users_alone(ran: Ran) -> None:
    assert ran.is_open == []
