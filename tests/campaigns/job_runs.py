"""The real tiling job as a process, killed, starved of disk and told to verify; nothing of one run outlives it.

A job is the leader of a session of its own, which Ray's processes stay in when their driver is killed.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from tests.campaigns.accounts import Account
from tests.campaigns.faults import can_mount, complaints, small_disk
from tests.campaigns.forking import ask
from tests.campaigns.scenes import Scene, bad_commits, compare, flip_bit, num_temporary, size_on_disk
from tests.support.jobs import ROOT, Done, command, environment
from tests.support.jpeg_tiff import save_jpeg_tiff
from tests.support.slides import save_pyramid, tissue_image

JOB_LIMIT_S, GONE_LIMIT_S = 600.0, 90.0
NUM_SLIDES = 6
SETTINGS = {"strategy": "crop", "patch_px": 64, "encode": "png", "chunk_patches": 16}
_SIZE = (1500, 1000)
_SHARES = (0.2, 0.75)  # of what the whole root takes
# Ray's agents wait half a minute for a raylet that was killed; they touch nothing of ours.
_AGENTS = ("DashboardAgent", "RuntimeEnvAgent", "dashboard/agent.py", "runtime_env/agent/main.py")


@dataclass(frozen=True)
class JobRuns:
    """Runs ``jobs/tile.py`` as a user does."""

    logs: Path
    ray: Path
    """Ray's own folder; its path must be short."""

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        """Start a job in a session of its own."""
        surroundings = environment(self.logs) | {"RAY_TMPDIR": str(self.ray)}
        with (self.logs / "out").open("wb") as out, (self.logs / "err").open("wb") as err:
            return subprocess.Popen(
                command("tile", *arguments), cwd=ROOT, env=surroundings, stdout=out, stderr=err, start_new_session=True
            )

    def run(self, *arguments: object) -> Done:
        """Run a job to its end. Raises: subprocess.TimeoutExpired."""
        process = self.start(*arguments)
        try:
            code = process.wait(JOB_LIMIT_S)
        finally:
            self.end(process)
        return Done(code, *((self.logs / name).read_text(errors="replace") for name in ("out", "err")))

    def end(self, process: subprocess.Popen[bytes]) -> list[str]:
        """Kill -9 the driver if it runs, and wait until its whole session is gone.

        Returns:
            What did not end by itself, and was killed.
        """
        process.kill()
        process.wait()
        deadline = time.monotonic() + GONE_LIMIT_S
        while others := _session(process.pid):
            is_late = time.monotonic() > deadline
            if is_late or all(any(agent in name for agent in _AGENTS) for name in others.values()):
                for pid in others:
                    _kill(pid, session=process.pid)
                if is_late:
                    return sorted(others.values())
            time.sleep(0.1)
        return []


@contextmanager
def job_runs(folder: Path) -> Iterator[JobRuns]:
    """Give the runs their folders, and take Ray's away."""
    folder.mkdir(parents=True, exist_ok=True)
    ray = Path(tempfile.mkdtemp(prefix="dmr-", dir="/tmp"))
    try:
        yield JobRuns(folder, ray)
    finally:
        shutil.rmtree(ray, ignore_errors=True)


def _session(leader: int) -> dict[int, str]:
    """Return the living processes of a session and their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state not in "ZX":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue
    return found


def _kill(pid: int, *, session: int) -> None:
    """Kill a process of a session that was started here."""
    try:
        if os.getsid(pid) == session:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


# --- the cohort


@dataclass(frozen=True)
class JobCohort:
    """Slides for the job, and what an unbroken run of it makes of them."""

    scenes: Sequence[Scene]
    arguments: Sequence[str]
    unbroken: Path
    span_s: float
    """How long the unbroken run took."""

    def command(self, root: Path, *more: str) -> list[str]:
        """Return the job's arguments for a root."""
        return [*self.arguments, f"storage.root={root}", *more]


def make_cohort(folder: Path, runs: JobRuns) -> JobCohort:
    """Make slides and a manifest, and tile them by one job without a break."""
    slides = [Slide(f"slide-{i}", str(folder / f"slide-{i}.tif")) for i in range(NUM_SLIDES)]
    folder.mkdir(parents=True)
    ask(_draw, slides)
    manifest, unbroken = folder / "manifest.csv", folder / "unbroken"
    manifest.write_text("slide_id,slide_path\n" + "".join(f"{slide.slide_id},{slide.path}\n" for slide in slides))
    settings = [f"tiling.{name}={value}" for name, value in SETTINGS.items()]
    config = TilingConfig(**SETTINGS, mpp=None)
    scenes = [Scene(slide.slide_id, slide, config, unbroken) for slide in slides]
    cohort = JobCohort(scenes, [f"cohort.manifest={manifest}", "tiling.mpp=null", *settings], unbroken, 0.0)
    started = time.monotonic()
    done = runs.run(*cohort.command(unbroken))
    wrong = ask(_all_bad_commits, scenes, unbroken)
    if done.code or wrong or done.answer["slides"] != {"ok": NUM_SLIDES}:
        raise RuntimeError(f"the unbroken job failed: {done} {wrong}")
    return replace(cohort, span_s=time.monotonic() - started)


def _draw(slides: Sequence[Slide]) -> None:
    for i, slide in enumerate(slides):
        pixels = tissue_image(_SIZE, seed=i)
        if i % 2:
            save_jpeg_tiff(Path(slide.path), pixels, has_tables=True)
        else:
            save_pyramid(Path(slide.path), pixels)


def _all_bad_commits(scenes: Sequence[Scene], root: Path) -> list[str]:
    return [text for scene in scenes for text in bad_commits(scene, root)]


# --- campaigns


def job_kills(
    account: Account, runs: JobRuns, cohort: JobCohort, folder: Path, *, num: int, rng: np.random.Generator
) -> None:
    """Kill -9 the driver at random moments, on the same root until it is done, then on the next."""
    made = roots = 0
    while made < num:
        root, is_done = folder / f"root-{roots}", False
        roots += 1
        while not is_done and made < num:
            is_done = _kill_once(account, runs, cohort, root, rng.uniform(0, cohort.span_s))
            made += not is_done
            account.progress(made, num)
        if not is_done:
            done = runs.run(*cohort.command(root))
            if done.code:
                account.fail(f"the run after the last kill ended in {done.code}: {done.err[-500:]}; see {root}")
        _compare(account, cohort, root, "after kills")
    account.add("roots", roots)


def _kill_once(account: Account, runs: JobRuns, cohort: JobCohort, root: Path, delay_s: float) -> bool:
    """Kill one run, and return whether it was done before that."""
    process = runs.start(*cohort.command(root))
    try:
        code = process.wait(delay_s)
    except subprocess.TimeoutExpired:
        code = None
    stood = sum(1 for _ in root.glob("patches/*/*/commit.json"))
    running = runs.end(process)
    clue = f"killed after {delay_s:.2f} s"
    for name in running:
        account.fail(f"still running {GONE_LIMIT_S:.0f} s after its driver's death: {name} ({clue})")
    bad = ask(_all_bad_commits, cohort.scenes, root)
    account.add("bad commits", len(bad))
    for text in bad:
        account.fail(f"{text} ({clue})")
    if code is None:
        begun = any(root.glob("patches/*/*/*"))
        where = "before tiling" if not begun else "in tiling" if stood < len(cohort.scenes) else "after tiling"
        account.add(f"killed {where}")
    elif code:
        account.fail(f"a run ended in {code}: {(runs.logs / 'err').read_text(errors='replace')[-500:]}; see {root}")
    return code is not None


def _compare(account: Account, cohort: JobCohort, root: Path, clue: str) -> None:
    """Compare a finished root with the unbroken run's, and take it away if it is good."""
    wrong, left_over = compare(root, cohort.unbroken)
    wrong += ask(_all_bad_commits, cohort.scenes, root)
    account.add("temporary files", num_temporary(root))
    for text in wrong:
        account.fail(f"{text} ({clue}); see {root}")
    account.leave_over(left_over, clue)
    if not wrong:
        shutil.rmtree(root)


def job_full_disks(account: Account, runs: JobRuns, cohort: JobCohort, folder: Path) -> None:
    """Run the job on disks that are too small, make room, and run it again."""
    if not can_mount(folder):
        account.add("jobs left out: no disk can be mounted", len(_SHARES))
        return
    needed = size_on_disk(cohort.unbroken.rglob("*"))
    for share in _SHARES:
        size, mount = int(needed * share), folder / f"job-disk-{share}"
        clue = f"the job on a disk of {size} bytes"
        with small_disk(mount, size) as make_room:
            root = mount / "store"
            done = runs.run(*cohort.command(root))
            account.add("jobs on full disks")
            status = "refused" if done.code == 1 else f"exit code {done.code}"
            wrong = complaints(status, done.err, root=root, code=errno.ENOSPC)
            wrong += ["it shows a traceback"] * ("Traceback" in done.out + done.err)
            wrong += ask(_all_bad_commits, cohort.scenes, root)
            for text in wrong:
                account.fail(f"{text} ({clue}):\n{done.err[-1500:]}")
            make_room()
            done = runs.run(*cohort.command(root))
            if done.code:
                account.fail(f"with room made it ended in {done.code} ({clue}):\n{done.err[-1500:]}")
            _compare(account, cohort, root, clue)


def job_repair(account: Account, runs: JobRuns, cohort: JobCohort, root: Path, *, rng: np.random.Generator) -> None:
    """Flip a bit of a shard, and let the job find it and then make it anew."""
    shutil.copytree(cohort.unbroken, root)
    shards = sorted(root.glob("patches/*/*/part-*.parquet"))
    shard = shards[rng.integers(len(shards))]
    flip_bit(shard, bit=int(rng.integers(shard.stat().st_size * 8)))
    done = runs.run(*cohort.command(root, "tiling.verify=true"))
    account.add("jobs with verify")
    if done.code != 1 or str(shard) not in done.err or "Traceback" in done.err:
        account.fail(f"tiling.verify=true ended in {done.code} and should name {shard}:\n{done.err[-1500:]}")
    done = runs.run(*cohort.command(root, "tiling.verify=repair"))
    account.add("jobs with verify")
    if done.code or json.loads(done.out.splitlines()[-1]).get("repaired") != 1:
        account.fail(f"tiling.verify=repair ended in {done.code}:\n{done.err[-1500:]}")
    _compare(account, cohort, root, "after tiling.verify=repair")
