"""One stream: two pools behind each other on Ray, held back where one waits, and the same bytes as two passes."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from distmil.errors import DamagedStore
from distmil.pipeline import cluster
from distmil.pipeline.streaming import chain
from distmil.pipeline.streaming.chain import Stage, chain_slides
from tests.support.cohorts import save_cohort
from tests.support.jobs import Done, kill_job_when, run_here, run_job
from tests.support.scale import IS_FULL, cases

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]


class Cutter:
    """Answers a number with its square, and has as many items follow as its last digit says."""

    def __init__(self, *, bad: int | None = None) -> None:
        self._bad = bad

    def __call__(self, number: int) -> tuple[tuple[int, float], list[tuple[int, int]]]:
        if number == self._bad:
            raise DamagedStore(f"{number}: gone")
        return (number**2, time.monotonic()), [(number, i) for i in range(number % 10)]


class Taker:
    """Answers an item with its sum, after a while."""

    def __init__(self, *, pause_s: float = 0.0, bad: tuple[int, int] | None = None) -> None:
        self._pause_s, self._bad = pause_s, bad

    def __call__(self, item: tuple[int, int]) -> tuple[int, float]:
        if item == self._bad:
            raise DamagedStore(f"{item}: gone")
        time.sleep(self._pause_s)
        return sum(item), time.monotonic()


@pytest.mark.parametrize("is_gpu", [False, True])
def test_every_item_and_all_that_follows_is_answered_once(is_gpu: bool) -> None:
    found = list(chain_slides(range(30), Stage(Cutter, {}), Stage(Taker, {}), is_gpu=is_gpu))
    firsts = {item: answer[0] for item, answer in found if isinstance(item, int)}
    seconds = {item: answer[0] for item, answer in found if isinstance(item, tuple)}
    assert firsts == {number: number**2 for number in range(30)}
    assert seconds == {(n, i): n + i for n in range(30) for i in range(n % 10)}
    assert len(found) == len(firsts) + len(seconds)
    assert list(chain_slides([], Stage(Cutter, {}), Stage(Taker, {}), is_gpu=is_gpu)) == []


@pytest.mark.parametrize("stages", [({"bad": 7}, {}), ({}, {"bad": (9, 4)})])
def test_a_failing_store_is_raised_as_it_is_from_both_stages(
    stages: tuple[dict[str, int], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "MAX_ACTORS", 1)
    with pytest.raises(DamagedStore, match="gone"):
        list(chain_slides(range(30), Stage(Cutter, stages[0]), Stage(Taker, stages[1]), is_gpu=False))


def test_the_first_stage_waits_for_a_slow_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit it would be through with all of its numbers before the second stage has done a few."""
    monkeypatch.setattr(cluster, "MAX_ACTORS", 1)
    monkeypatch.setattr(chain, "LEAST_WAITING", 4)
    monkeypatch.setattr(chain, "WAITING_PER_ACTOR", 4)
    found = list(chain_slides([1] * 60, Stage(Cutter, {}), Stage(Taker, {"pause_s": 0.05}), is_gpu=False))
    cut = sorted(answer[1] for item, answer in found if item == 1)
    taken = sorted(answer[1] for item, answer in found if item != 1)
    ahead = [sum(moment < after for moment in cut) - number for number, after in enumerate(taken)]
    assert max(ahead) < 30


VALUES = (
    "tiling.patch_px=32", "tiling.mpp=0.5", "tiling.chunk_patches=16", "tiling.encode=png",
    "tiling.max_bad_fraction=0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cohort(tmp_path_factory.mktemp("cohort"))


def embed(home: Path, manifest: Path, *more: str, actors: int = 2) -> Done:
    done = run_here(home, "embed", f"cohort.manifest={manifest}", *VALUES, *more, actors=actors)
    assert done.code == 0, done.err
    return done


def files(home: Path) -> list[Path]:
    """Every file of a store's patches and embeddings, but for the halves of files whose writer was killed."""
    kinds = ("patches", "embeddings")
    return [path for kind in kinds for path in (home / kind).rglob("[!.]*") if path.is_file()]


def shards(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in files(home)}


@dataclass(frozen=True)
class TwoPasses:
    """A home whose slides were tiled and then embedded, and how the job ended."""

    home: Path
    done: Done


@pytest.fixture(scope="module")
def two_passes(manifest: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> TwoPasses:
    """What streams are compared with."""
    home = tmp_path_factory.mktemp("two")
    return TwoPasses(home, embed(home, manifest, "tiling.stream=false", actors=1))


def test_one_stream_writes_the_bytes_of_two_passes(manifest: Path, two_passes: TwoPasses, tmp_path: Path) -> None:
    """Slides of more chunks than a worker writes in a row, small ones, and one that cannot be read."""
    two = two_passes.done
    one = embed(tmp_path / "one", manifest, "tiling.stream=true")
    assert shards(tmp_path / "one") == shards(two_passes.home)
    assert one.answer["slides"] == two.answer["slides"] == {"ok": 4, "unreadable": 1}
    assert "embedding 5 slides with texture at the same time, each when it is tiled" in one.err
    assert "at the same time" not in two.err
    lines = one.err.splitlines()
    assert [line.split(",")[0] for line in lines if ": 5/5" in line] == ["tile: 5/5 slides", "embed: 5/5 slides"]
    ends = [done.err.split("1 of 5 slides")[-1] for done in (one, two)]  # dropped slides with reasons, and next:
    assert ends[0].replace("tiling.stream=true", "tiling.stream=false") == ends[1]


def test_tiled_slides_are_embedded_with_the_others_and_what_is_done_stays(manifest: Path, tmp_path: Path) -> None:
    half = manifest.with_name("half.csv")
    half.write_text("".join(manifest.read_text().splitlines(keepends=True)[:3]))
    done = run_here(tmp_path, "tile", f"cohort.manifest={half}", *VALUES)
    assert done.code == 0, done.err
    first = embed(tmp_path, manifest, "tiling.stream=true", actors=1)
    assert "embedding 4 slides with" in first.err
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*")}
    again = embed(tmp_path, manifest, "tiling.stream=true", actors=1)
    assert again.answer == first.answer
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*")} == before


def test_pixels_that_stay_in_the_slides_give_the_same_embeddings(
    manifest: Path, two_passes: TwoPasses, tmp_path: Path
) -> None:
    stored = two_passes.done
    read = embed(tmp_path / "read", manifest, "tiling.store=coords", "tiling.stream=true", actors=1)
    assert read.answer["slides"] == stored.answer["slides"] == {"ok": 4, "unreadable": 1}
    made = [Path(done.answer["embeddings"]) for done in (stored, read)]
    assert made[0].name != made[1].name
    parts = [{str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.arrow")} for folder in made]
    assert parts[0] == parts[1]
    sizes = [
        sum(path.stat().st_size for path in Path(done.answer["patches"]).rglob("part-*")) for done in (stored, read)
    ]
    assert sizes[1] < 0.5 * sizes[0]  # shards of sixteen patches are mostly headers


def test_a_stream_that_is_killed_again_and_again_ends_in_the_same_bytes(
    manifest: Path, two_passes: TwoPasses, tmp_path: Path
) -> None:
    """SIGKILL for the driver and all that it started, as soon as a random number of files is there.

    What the last run leaves is that of the unbroken one, and perhaps receipts of a slide that was committed before.
    """
    rng = np.random.default_rng(9)
    given = ["embed", f"cohort.manifest={manifest}", *VALUES]
    expected = shards(two_passes.home)
    kills, wanted = 0, cases(1, full=10)
    for root in range(wanted):
        home = tmp_path / f"killed-{root}"
        for share in sorted(rng.uniform(0, 0.9, min(3, wanted - kills))):
            num_files = max(len(files(home)) + 1, round(share * len(expected)))
            kill_job_when(home, lambda n=num_files, home=home: len(files(home)) >= n, *given, "tiling.stream=true")
            kills += 1
        done = (run_job if IS_FULL else run_here)(home, *given, "tiling.stream=true")
        assert done.code == 0, done.err
        assert done.answer["slides"] == two_passes.done.answer["slides"]
        found = shards(home)
        assert {name: found.get(name) for name in expected} == expected
        more = {Path(name).name for name in found.keys() - expected.keys()}  # of a kill just behind a commit
        assert {name.partition("-")[0].removesuffix(".json") for name in more} <= {"plan", "part"}
        assert all(name.endswith(".json") for name in more)
        if kills == wanted:
            break
