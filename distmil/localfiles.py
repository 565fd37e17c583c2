"""Files on this machine's disks: written whole or not at all, and kept as copies of what is far away."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from distmil.errors import StorageError

CACHE_VARIABLE = "DISTMIL_CACHE"
SPARED_SHARE = 0.05
"""Of the cache's disk, which copies leave free as long as older ones can go."""
SPARED_S = 600.0
"""A copy that was used within this time does not go."""


def write_whole(target: Path, data: bytes | pa.Buffer, *, is_durable: bool) -> None:
    """Write by temporary name, fsync, rename, fsync of the folder; without the syncs if it need not be durable."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    if not is_durable:
        return
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cache_folder() -> Path:
    """Return where copies are kept: ``$DISTMIL_CACHE``, else a folder of this user's among the temporary files."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path(tempfile.gettempdir()) / f"distmil-cache-{os.getuid()}"


def keep_copy(sha256: str, size_bytes: int, fetch: Callable[[], bytes]) -> Path:
    """Return a local copy of a file that is known by its checksum, fetching it unless there is a whole one.

    Of several processes that want the same file at once one fetches it. When its disk is full the cache gives up what
    was not used for longest; nothing else bounds it.

    Args:
        sha256: The content's checksum, and the copy's name.
        size_bytes: Its size; a copy of another size is fetched anew.
        fetch: Gets the content, verified.

    Raises:
        StorageError: If there is no room for it, or the cache is not this user's.
    """
    folder = cache_folder()
    path = folder / sha256
    try:
        _claim(folder)
        if not _is_whole(path, size_bytes):
            with _alone(folder / f"lock-{sha256[:2]}"):
                if not _is_whole(path, size_bytes):
                    data = fetch()
                    _make_room(folder, size_bytes)
                    write_whole(path, data, is_durable=True)
        os.utime(path)
    except OSError as error:
        full = "free some space there" if error.errno == errno.ENOSPC else "look at that folder"
        raise StorageError(
            f"cannot keep a copy of {size_bytes} bytes in {folder}: {error.strerror or error}; {full}, or set "
            f"{CACHE_VARIABLE} to a folder on a larger disk"
        ) from error
    return path


def _claim(folder: Path) -> None:
    """Make the cache for this user alone. Raises: StorageError if it is someone else's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise StorageError(f"{folder} belongs to another user; set {CACHE_VARIABLE} to a folder of your own")


def _is_whole(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Keep other processes of this machine out; the lock goes with its holder, however that ends."""
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_room(folder: Path, size_bytes: int) -> None:
    """Where the disk is nearly full, take away the copies that were not used for longest."""
    disk = shutil.disk_usage(folder)
    missing = size_bytes + int(SPARED_SHARE * disk.total) - disk.free
    if missing <= 0:
        return
    for used, size, path in sorted(_copies(folder)):
        if missing <= 0 or time.time() - used < SPARED_S:
            return
        path.unlink(missing_ok=True)
        missing -= size


def _copies(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield when each copy was used last, its size and its path; what else lies there is not the cache's."""
    for path in folder.iterdir():
        if re.fullmatch("[0-9a-f]{64}", path.name):
            with contextlib.suppress(FileNotFoundError):  # another process made room
                status = path.stat()
                yield status.st_mtime, status.st_size, path
