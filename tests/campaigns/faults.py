"""A file system that fails, fills up or kills under the writers of one small slide.

Calls are caught where distmil's local store makes them: ``io.open`` for writing and the raw writes of what it opens,
``os.fsync``, ``os.replace``. What Arrow's file system does in C++ (look up, list, delete) is not caught.
"""

import errno
import io
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from distmil.errors import StorageError
from tests.campaigns.accounts import Account
from tests.campaigns.forking import ForkFailed, ask
from tests.campaigns.kills import drive, settle
from tests.campaigns.scenes import Scene, bad_commits, compare, size_on_disk

KINDS = ("open", "write", "fsync", "rename")
KILL = -1
"""Stands for an errno: the process is killed at the call."""
WAYS = ("loop", "steps")
_PAGE = 4096
_ROOM = "256m"


@dataclass
class Trap:
    """Counts the calls that write below a folder and makes one of them fail, or the disk full."""

    folder: str
    at: int | None = None
    """Number of the call that fails; None: none."""
    code: int = errno.EIO
    is_for_ever: bool = False
    """Every later call fails too."""
    room_bytes: int | None = None
    """Bytes that can be written before the disk is full; None: no end."""
    calls: list[str] = field(default_factory=list)

    def springs(self, kind: str) -> bool:
        """Count a call and return whether it is to fail."""
        number = len(self.calls)
        self.calls.append(kind)
        return self.at is not None and (number == self.at or (self.is_for_ever and number > self.at))

    def fail(self) -> None:
        """Fail as told. Raises: OSError."""
        if self.code == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.code, os.strerror(self.code))

    def pass_call(self, kind: str) -> None:
        """Count a call that has no data. Raises: OSError."""
        if self.springs(kind):
            self.fail()


class _TrappedFile(io.FileIO):
    """A file whose writes may be torn or find no room."""

    trap: Trap

    def write(self, data: Any) -> int:
        view, trap = memoryview(data).cast("B"), self.trap
        if trap.springs("write"):
            super().write(view[: len(view) // 2])
            trap.fail()
        if trap.room_bytes is None:
            return super().write(view)
        if trap.room_bytes == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().write(view[: trap.room_bytes])
        trap.room_bytes -= written
        return written


@contextmanager
def sprung(trap: Trap) -> Iterator[None]:
    """Lay the trap under this process's files."""
    real_open, real_fsync, real_replace = io.open, os.fsync, os.replace

    def is_below(path: Any) -> bool:
        return isinstance(path, str | Path) and str(path).startswith(trap.folder)

    def open_(file: Any, mode: str = "r", *given: Any, **more: Any) -> Any:
        if mode != "wb" or not is_below(file):
            return real_open(file, mode, *given, **more)
        trap.pass_call("open")
        raw = _TrappedFile(file, "wb")
        raw.trap = trap
        return io.BufferedWriter(raw)

    def fsync(number: int) -> None:
        trap.pass_call("fsync")
        real_fsync(number)

    def replace(source: Any, target: Any, **more: Any) -> None:
        if is_below(target):
            trap.pass_call("rename")
        real_replace(source, target, **more)

    io.open, os.fsync, os.replace = open_, fsync, replace
    try:
        yield
    finally:
        io.open, os.fsync, os.replace = real_open, real_fsync, real_replace


@dataclass(frozen=True)
class Try:
    """One run of a scene under a trap."""

    scene: Scene
    root: Path
    trap: Trap
    way: str
    """loop: the plain loop; steps: as the job's workers do it, with its repeats."""
    clue: str
    """What is needed to see it again."""

    def run(self) -> dict[str, Any]:
        """Tile under the trap; a clean error is a StorageError, everything else is raised."""
        status, text = "ok", ""
        with sprung(self.trap):
            try:
                if self.way == "loop":
                    status = self.scene.run(self.root).status
                else:
                    drive(self.scene.tiler(self.root))
            except StorageError as error:
                status, text = "refused", str(error)
        wrong = compare(self.root, self.scene.unbroken)[0] if status == "ok" else []
        return {"status": status, "text": text, "calls": self.trap.calls, "wrong": wrong}


def judge(account: Account, one: Try, *, make_room: Callable[[], None] = lambda: None) -> None:
    """Tile under a trap, judge how that ended, and what the next run makes of it."""
    one.scene.set_up(one.root)
    try:
        end = ask(one.run)
    except ForkFailed as error:
        is_meant = one.trap.code == KILL and "SIGKILL" in str(error)
        wrong = [] if is_meant else [f"an unclean end: {error}"]
        account.add("killed" if is_meant else "unclean")
    else:
        wrong = end["wrong"] + complaints(end["status"], end["text"], root=one.root, code=one.trap.code)
        account.add({"ok": "succeeded", "refused": "refused cleanly"}.get(end["status"], "unclean"))
    bad = ask(bad_commits, one.scene, one.root)
    account.add("bad commits", len(bad))
    make_room()
    settle(account, one.scene, one.root, already=wrong + bad, clue=one.clue)


def complaints(status: str, text: str, *, root: Path, code: int) -> list[str]:
    """Return what an error's text lacks, and any status that blames the slide for the store."""
    if status == "ok":
        return []
    if status != "refused":
        return [f"status {status} for a store that cannot be written"]
    wanted = [str(root), os.strerror(code), *(["disk is full"] if code == errno.ENOSPC else [])]
    return [f"the error does not say {part!r}: {text}" for part in wanted if part not in text]


def faults(account: Account, scene: Scene, folder: Path, *, num: int | None, in_turn: bool = False) -> None:
    """Let every call that writes fail, once or from then on, by EIO and ENOSPC, or be the writer's last.

    Args:
        account: Takes the counts.
        scene: The slide.
        folder: For the roots.
        num: Calls to try, spread over all of them; None: every one.
        in_turn: Try one kind of failure a call instead of each.
    """
    calls = _count_calls(account, scene, folder / "counted")
    wanted = len(calls) if num is None else min(num, len(calls))
    kinds = [*product((errno.EIO, errno.ENOSPC), (False, True), WAYS), (KILL, False, "loop")]
    for i, at in enumerate(sorted({int(at) for at in np.linspace(0, len(calls) - 1, wanted)})):
        for code, is_for_ever, way in [kinds[i % len(kinds)]] if in_turn else kinds:
            name = "kill" if code == KILL else errno.errorcode[code]
            clue = f"{name} {'from' if is_for_ever else 'at'} call {at} of {len(calls)} ({calls[at]}), by {way}"
            root = folder / f"fault-{at}-{name}-{'from' if is_for_ever else 'at'}-{way}"
            judge(account, Try(scene, root, Trap(str(root), at, code, is_for_ever), way, clue))
        account.progress(at + 1, len(calls))


def _count_calls(account: Account, scene: Scene, root: Path) -> list[str]:
    """Return the calls that a whole run makes."""
    scene.set_up(root)
    calls: list[str] = ask(Try(scene, root, Trap(str(root)), "loop", "").run)["calls"]
    shutil.rmtree(root)
    for kind in KINDS:
        account.add(f"calls of {kind}", calls.count(kind))
        if kind not in calls:
            account.fail(f"no call of {kind} was seen: distmil writes in another way, and the trap is to follow")
    return calls


# --- full disks


def can_mount(folder: Path) -> bool:
    """Return whether a small file system can be mounted here."""
    try:
        with small_disk(folder / "mount-trial", _PAGE):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Callable[[], None]]:
    """Mount a small tmpfs and yield what makes room on it. Raises: OSError, CalledProcessError."""
    folder.mkdir(parents=True)
    try:
        _call("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", folder)
        try:
            yield lambda: _call("mount", "-o", f"remount,size={_ROOM}", folder)
        finally:
            _call("umount", folder)
    finally:
        folder.rmdir()


def _call(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def full_disks(
    account: Account, scenes: Sequence[Scene], folder: Path, *, num: int, is_real: bool | None = None
) -> None:
    """Tile onto disks that are full at different sizes, make room, and tile again.

    Args:
        account: Takes the counts.
        scenes: The slides.
        folder: For the roots.
        num: Sizes, from one page to nearly enough.
        is_real: Mount real disks; None: where that can be done, else their end is simulated.
    """
    is_real = can_mount(folder) if is_real is None else is_real
    account.add("real disks" if is_real else "simulated disks", num)
    scenes = [scene for scene in scenes if scene.start is None]
    for i in range(num):
        scene, way = scenes[i % len(scenes)], WAYS[i // len(scenes) % 2]
        most = size_on_disk(scene.unbroken.rglob("*")) // _PAGE - 1
        size = (1 + most * i // num) * _PAGE
        place, clue = folder / f"disk-{i}", f"a disk of {size} bytes, by {way}"
        if is_real:
            with small_disk(place, size) as make_room:
                root = place / "store"
                judge(account, Try(scene, root, Trap(str(root), code=errno.ENOSPC), way, clue), make_room=make_room)
        else:
            trap = Trap(str(place), code=errno.ENOSPC, room_bytes=size)
            judge(account, Try(scene, place, trap, way, clue))
        account.progress(i + 1, num)
