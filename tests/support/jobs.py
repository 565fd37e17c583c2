"""Running the jobs as a user does: as processes from the project's folder, or by their command line in this process."""

import contextlib
import io
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distmil import cli
from distmil.pipeline import cluster
from distmil.processes.tree import descendants

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 400


@dataclass(frozen=True)
class Done:
    """How a job ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON line."""
        return json.loads(self.out.splitlines()[-1])


def command(job: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *with_quick_encoder(job, arguments)]


def with_quick_encoder(job: str, arguments: Sequence[object]) -> list[str]:
    """Embed by texture where nothing is said of what embeds: most tests of jobs are about something else."""
    given = [str(argument) for argument in arguments]
    is_said = any(
        text.startswith(("encoder.name=", "encoder.weights=", "features.folder=", "--config")) for text in given
    )
    return given if is_said or job not in {"embed", "train", "tune"} else [*given, "encoder.name=texture"]


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    ours = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    return {**kept, **ours, "DISTMIL_HOME": str(home)}


def run_job(home: Path, job: str, *arguments: object) -> Done:
    """Run a job to its end."""
    done = subprocess.run(
        command(job, *arguments),
        cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def run_here(home: Path, job: str, *arguments: object, actors: int = 1) -> Done:
    """Run a job to its end by its command line, in this process and on the Ray that runs: see ``local_ray``.

    A process of its own costs its imports and a Ray, which is most of the time of a small job. Ray's GPU is only
    counted, so that a job asks for none unless told.

    Args:
        home: Storage root.
        job: Its name.
        arguments: Of its command line.
        actors: Most processes that slides are spread over.
    """
    given = with_quick_encoder(job, arguments)
    if not any(text.startswith("training.use_gpu=") for text in given):
        given.append("training.use_gpu=false")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("DISTMIL_HOME", str(home))
        patch.setattr(cluster, "MAX_ACTORS", actors)
        patch.setattr(cluster, "stop_ray", lambda: None)
        patch.setattr(cluster, "after_start", lambda _call: None)
        stack.enter_context(_logging_kept())
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        code = cli.main(job, None, given)
    return Done(code, out.getvalue(), err.getvalue())


def open_to_others(home: Path) -> list[Path]:
    """List what others than its user may read, write or enter, the folder itself among it."""
    return [path for path in (home, *home.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077]


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """Give the loggers back as they were: a job sets them up for a process of its own."""
    root, own = logging.getLogger(), logging.getLogger("distmil")
    handlers, levels = root.handlers[:], (root.level, own.level)
    root.handlers.clear()  # or they would be closed
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        own.setLevel(levels[1])


def interrupt_job_when(home: Path, is_time: Callable[[], bool], job: str, *arguments: object) -> Done:
    """Start a job, press Ctrl-C as soon as the moment has come, and wait for its end."""
    process = subprocess.Popen(
        command(job, *arguments),
        cwd=ROOT, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (background jobs ignore it)
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    while not is_time() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    return Done(process.returncode, out, err)


def kill_job_when(home: Path, is_time: Callable[[], bool], job: str, *arguments: object) -> None:
    """Start a job and kill -9 it, with everything it started, as soon as the moment has come."""
    process = subprocess.Popen(
        command(job, *arguments),
        cwd=ROOT, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not is_time():
            assert process.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        started = [child.pid for child in descendants([process.pid])[1:]]
        for pid in (process.pid, *started):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
