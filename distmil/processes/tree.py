"""Processes that a job started, and theirs: found while they run, and ended when the job ends.

They are read off ``/proc``; where there is none, nothing is found, and the system's own means must do.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_POLL_S = 0.05
_ROUNDS = 5
_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """One process; a process that gets its number later differs by its start."""

    pid: int
    start_ticks: int

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        found = _read(self.pid)
        return found is not None and found[1] == self.start_ticks and found[2] != "Z"


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that ``descendants`` goes on finding them.

    Only Linux; elsewhere nothing changes.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(*, patience_s: float) -> None:
    """End everything that this process started, and what that started meanwhile; see ``end_processes``."""
    for _ in range(_ROUNDS):
        alive = [process for process in descendants([os.getpid()])[1:] if process.is_alive]
        if not alive:
            return
        end_processes(alive, patience_s=patience_s)


def descendants(roots: Iterable[int]) -> list[Process]:
    """Find the processes that some processes started, and theirs.

    Args:
        roots: Numbers of processes, which are found too.
    """
    found: dict[int, Process] = {}
    children: dict[int, list[Process]] = {}
    with contextlib.suppress(OSError):
        for entry in _PROC.iterdir():
            if entry.name.isdigit() and (status := _read(int(entry.name))):
                process = Process(int(entry.name), status[1])
                children.setdefault(status[0], []).append(process)
                found[process.pid] = process
    below: list[Process] = []
    todo = [found[pid] for pid in roots if pid in found]
    while todo:
        process = todo.pop()
        below.append(process)
        todo += children.get(process.pid, [])
    return below


def end_processes(processes: Collection[Process], *, patience_s: float) -> None:
    """End processes that still run.

    Args:
        processes: Which.
        patience_s: How long they may take by themselves, and again after SIGTERM; then they are killed.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + patience_s
        while (alive := [process for process in processes if process.is_alive]) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        for process in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)


def _read(pid: int) -> tuple[int, int, str] | None:
    """Read the parent, the start and the state of a process, None if it is gone."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[19]), fields[0]
