"""Files on this machine's disks: written whole or not at all, and kept as copies of far files."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from distmil.errors import StorageError
from distmil.storage.access import PRIVATE, Access, make_folder

CACHE_VARIABLE = "DISTMIL_CACHE"
SPARED_SHARE = 0.05
"""Of the cache's disk, which copies leave free as long as older ones can go."""
SPARED_S = 600.0
"""A copy that was used within this time does not go."""
SETTLED_S = 1.0
"""A file that changed within this time is not remembered as verified: its next change might have the same time."""

_verified: set[tuple[str, int, int, int, str]] = set()
"""Files that this process has verified: path, size, time in ns, inode and checksum of each file."""


def has_checksum(path: Path, *, sha256: str, size_bytes: int) -> bool:
    """Compare a file with its checksum, once in a process as long as it stays the same file.

    Hashing leaves other threads of the process alone.

    Args:
        path: The file.
        sha256: Checksum of the right content.
        size_bytes: Its size; a file of another size is not read.

    Raises:
        OSError: If the file cannot be read.
    """
    status = path.stat()
    identity = (str(path), status.st_size, status.st_mtime_ns, status.st_ino, sha256)
    if identity in _verified:
        return True
    if status.st_size != size_bytes:
        return False
    with path.open("rb") as file:
        is_same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    if is_same and time.time() - status.st_mtime > SETTLED_S:
        _verified.add(identity)
    return is_same


def write_whole(target: Path, data: bytes | pa.Buffer, *, is_durable: bool, access: Access = PRIVATE) -> None:
    """Write by temporary name, fsync, rename, fsync of the folder; without the syncs if it need not be durable."""
    make_folder(target.parent, access)
    partial = target.parent / f".{target.name}.tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        partial.touch(mode=0o600, exist_ok=False)
        partial.chmod(access.file_mode)
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


def write_outside(target: Path, data: bytes) -> Path:
    """Write a file outside the store beside its place, and rename it: nothing half written has its name.

    Its rights are those of the user's other files.

    Raises:
        OSError: If it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with part.open("xb") as file:
            file.write(data)
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def write_new(target: Path, data: bytes) -> None:
    """Write a file outside the store into a folder, under a name that nothing has yet: whole, or not at all.

    Raises:
        FileExistsError: If the name is taken.
        OSError: If it cannot be written.
    """
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with part.open("xb") as file:
            file.write(data)
            os.fsync(file.fileno())
        os.link(part, target)  # unlike a rename it never takes the place of another file
    finally:
        part.unlink(missing_ok=True)


def walk_folder(folder: Path, *, is_deep: bool) -> list[tuple[str, int, float]]:
    """List the files in a folder, or below it too.

    A file or folder that vanishes meanwhile is left out; a link counts as a small file.

    Returns:
        The name relative to the folder, the size in bytes and the time of change in seconds, sorted.

    Raises:
        OSError: If a folder below cannot be listed.
    """
    found = []

    def check(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for inner, folders, files in islice(os.walk(folder, onerror=check), None if is_deep else 1):
        links = [name for name in folders if Path(inner, name).is_symlink()]
        for name in (*files, *links):
            path = Path(inner, name)
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                found.append((path.relative_to(folder).as_posix(), status.st_size, status.st_mtime))
    return sorted(found)


def cache_folder() -> Path:
    """Find the folder of the copies: ``$DISTMIL_CACHE``, else a folder of this user's among the temporary files."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path(tempfile.gettempdir()) / f"distmil-cache-{os.getuid()}"


def keep_copy(sha256: str, size_bytes: int, fetch: Callable[[], bytes]) -> Path:
    """Keep a local copy of a file that is known by its checksum, fetching it unless there is a whole copy.

    A process verifies a copy when it meets it first. Of several processes that want the same file at once one fetches
    it. When its disk is full the cache gives up what was not used for longest; nothing else bounds it.

    Args:
        sha256: The content's checksum, and the copy's name.
        size_bytes: Its size; a damaged copy is fetched again.
        fetch: Gets the content, verified.

    Raises:
        StorageError: If there is no room for it, or the cache is not this user's.
    """
    folder = cache_folder()
    path = folder / sha256
    try:
        _claim(folder)
        if not _is_whole(path, sha256, size_bytes):
            with _alone(folder / f"lock-{sha256[:2]}"):
                if not _is_whole(path, sha256, size_bytes):
                    data = fetch()
                    _make_room(folder, size_bytes)
                    write_whole(path, data, is_durable=True)
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # its time of change says that it was verified
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


def _is_whole(path: Path, sha256: str, size_bytes: int) -> bool:
    try:
        return has_checksum(path, sha256=sha256, size_bytes=size_bytes)
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
    """Yield when each copy was used last, its size and its path; other files there are not the cache's."""
    for path in folder.iterdir():
        if re.fullmatch("[0-9a-f]{64}", path.name):
            with contextlib.suppress(FileNotFoundError):  # another process made room
                status = path.stat()
                yield status.st_atime, status.st_size, path
