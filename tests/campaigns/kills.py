"""Writers killed at random moments, and several writers at once on the same slides."""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distmil.errors import StorageError
from distmil.storage.store import RECORD_FILE, Store
from distmil.tiling import worker
from distmil.tiling.tiler import SlideTiler
from distmil.tiling.worker import do_step
from tests.campaigns.accounts import Account
from tests.campaigns.forking import ForkFailed, ask, fork
from tests.campaigns.scenes import Scene, bad_commits, compare, count_patches, inspect, resume

_TIMED_RUNS = 3
_AGAIN = 0.3  # share of the killed runs whose next run is killed too
_LATE = 0.2  # share of the kills that fall around the commit
_END_S = 0.006  # about what commit and clean-up take
_LOOK_S, _WAIT_LIMIT_S = 0.0002, 2.0
_PASSES = 2  # as in distmil.pipeline.tile: what vanished under the work is done once more


def kills(account: Account, scenes: Sequence[Scene], folder: Path, *, num: int, rng: np.random.Generator) -> None:
    """Kill -9 the plain loop at random moments of its work, run it again, and compare with an unbroken run.

    Four of five moments are uniform over the work, the fifth is drawn from the time around the commit.
    """
    spans_s = [_span_s(scene, folder) for scene in scenes]
    made = tries = 0
    while made < num and tries < 5 * num + 20:
        which, root = tries % len(scenes), folder / f"kill-{tries}"
        tries += 1
        moments = [_draw_moment(spans_s[which], rng)]
        while made + len(moments) < num and rng.random() < _AGAIN:
            moments.append(_draw_moment(spans_s[which], rng))
        made += _kill_in_turn(account, scenes[which], root, moments)
        account.progress(made, num)
    if made < num:
        account.fail(f"only {made} kills came in time in {tries} tries")


def _draw_moment(span_s: float, rng: np.random.Generator) -> tuple[float, bool]:
    """Draw a delay and whether it counts from the last shard on, where commit and clean-up are over in no time."""
    is_late = rng.random() < _LATE
    return rng.uniform(0, _END_S if is_late else span_s), is_late


def _kill_in_turn(account: Account, scene: Scene, root: Path, moments: Sequence[tuple[float, bool]]) -> int:
    """Start a run on the same root for every moment and kill it; return how many kills came in time."""
    scene.set_up(root)
    made, bad, clue = 0, [], ""
    for delay_s, is_late in moments:
        child = fork(scene.run_for_status, root)
        child.wait_begun()
        if is_late:
            _await_last_shard(scene, root)
        time.sleep(delay_s)
        is_killed = child.kill()
        seen = ask(inspect, scene, root)
        made += is_killed
        account.add(f"killed in {seen['phase']}" if is_killed else "too late")
        since = "the last shard" if is_late else "the start"
        clue += f"{', ' if clue else ''}killed {delay_s:.4f} s after {since}, in {seen['phase']}"
        bad += seen["bad"]
        if bad or not is_killed:
            break
    account.add("bad commits", len(bad))
    settle(account, scene, root, already=bad, clue=clue)
    return made


def _await_last_shard(scene: Scene, root: Path) -> None:
    tiler = scene.tiler(root)
    record = Store(str(scene.unbroken)).read_record(tiler.committed.record_name)
    assert record is not None
    receipt = root / tiler.folder / f"{Path(record.parts[-1].name).stem}.json"
    deadline = time.monotonic() + _WAIT_LIMIT_S
    while not receipt.exists() and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def settle(account: Account, scene: Scene, root: Path, *, already: Sequence[str], clue: str) -> None:
    """Run a broken root to its end and count what is wrong with it; one that is good is taken away."""
    try:
        end = ask(resume, scene, root)
    except ForkFailed as error:
        end = {"wrong": [f"the next run failed: {error}"], "left_over": [], "temporary": 0, "lost": 0, "doubled": 0}
    account.add("lost patches", end["lost"])
    account.add("doubled patches", end["doubled"])
    account.add("temporary files", end["temporary"])
    account.leave_over(end["left_over"], f"{scene.name}; {clue}")
    for text in [*already, *end["wrong"]]:
        account.fail(f"{scene.name}: {text} ({clue}); see {root}")
    if not already and not end["wrong"]:
        shutil.rmtree(root)


def _span_s(scene: Scene, folder: Path) -> float:
    """Return the longest of some unbroken runs."""
    spans = []
    for i in range(_TIMED_RUNS):
        root = folder / f"timed-{scene.name}-{i}"
        scene.set_up(root)
        spans.append(ask(_timed, scene, root))
        shutil.rmtree(root)
    return float(max(spans))


def _timed(scene: Scene, root: Path) -> float:
    started = time.monotonic()
    scene.run(root)
    return time.monotonic() - started


# --- several at once


@dataclass(frozen=True)
class CountingStore(Store):
    """A store that notes its commits, and commits of others that it takes back."""

    events: list[str]

    def write_record(self, name: str, record: Any) -> None:
        """Commit."""
        super().write_record(name, record)
        self.events.append("commits")

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        if name.endswith(f"/{RECORD_FILE}") and self.exists(name):
            self.events.append("commits taken back")
        super().delete(name)


def twins(account: Account, scenes: Sequence[Scene], folder: Path, *, num: int, rng: np.random.Generator) -> None:
    """Let two or three processes tile the same slides into the same root, started together."""
    chosen = [scene for scene in scenes if scene.start is None]
    for i in range(num):
        root = folder / f"twins-{i}"
        root.mkdir(parents=True)
        orders = [chosen] * int(rng.integers(2, 4))
        if i % 2:  # else they meet on every slide
            orders = [[chosen[j] for j in rng.permutation(len(chosen))] for _ in orders]
        account.add("drivers", len(orders))
        account.add("slides", len(chosen))
        wrong = _together(account, orders, root)
        wrong += [text for scene in chosen for text in ask(_finished_wrong, scene, root)]
        for text in wrong:
            account.fail(f"round {i}, {len(orders)} drivers: {text}; see {root}")
        if not wrong:
            shutil.rmtree(root)
        account.progress(i + 1, num)


def _finished_wrong(scene: Scene, root: Path) -> list[str]:
    """Return what is wrong with one slide of a root that holds several."""
    wrong = compare(root, scene.unbroken)[0] + bad_commits(scene, root)
    lost, doubled = (0, 0) if wrong else count_patches(scene, root)
    return wrong + [f"{scene.name}: {lost} patches lost, {doubled} doubled"] * bool(lost or doubled)


def _together(account: Account, orders: Sequence[Sequence[Scene]], root: Path) -> list[str]:
    """Run drivers at once and return what failed."""
    gate = os.pipe()
    children = [fork(_drive_all, order, root, gate=gate) for order in orders]
    for end in gate:
        os.close(end)
    failures = []
    for child in children:
        try:
            answer = child.answer()
        except ForkFailed as error:
            failures.append(str(error))
            continue
        failures += answer["failures"]
        for event in answer["events"]:
            account.add(event)
        account.add("second passes", answer["second_passes"])
    return failures


def _drive_all(scenes: Sequence[Scene], root: Path) -> dict[str, Any]:
    store = CountingStore(str(root), [])
    failures, second_passes = [], 0
    for scene in scenes:
        try:
            passes = drive(SlideTiler(scene.slide, scene.config, store))
        except StorageError as error:
            failures.append(f"{scene.name}: {error}")
        else:
            second_passes += passes - 1
    return {"failures": failures, "events": store.events, "second_passes": second_passes}


def drive(tiler: SlideTiler) -> int:
    """Tile a slide step by step, as the job's driver has its workers do, and return the passes that it took.

    Raises:
        StorageError: If a step says that the store cannot be written, or if no pass ends in a usable slide.
    """
    worker.PAUSE_S = 0
    for number in range(1, _PASSES + 1):
        answer = do_step(tiler, None)
        for chunk in range(answer.chunks):
            if answer.record or answer.fatal:
                break
            answer = do_step(tiler, chunk)
        if answer.fatal:
            raise StorageError(answer.fatal)
        if answer.record:
            if not answer.record.ok:
                raise StorageError(f"{answer.record.status}: {answer.record.error}")
            return number
    raise StorageError(f"{tiler.slide.slide_id}: its shards vanished while they were made, {_PASSES} times")
