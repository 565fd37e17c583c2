"""What tells one version of a slide's file from another: size and time, and a checksum where one is asked for."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CHECKSUMS = {"fast": "sample_sha256", "full": "sha256"}
"""Name in the key by ``tiling.checksum``."""
_BLOCK = 2**20
_SAMPLE, _NUM_SAMPLES = 2**16, 64
_WITH_FOLDER = {".mrxs"}  # the file is an index, the pixels are in a folder of its name


def source_key(path: str | Path, *, checksum: str = "none") -> dict[str, Any]:
    """Return size, modification time and, if asked for, a checksum of a slide's file or files.

    Args:
        path: The file.
        checksum: ``none``; ``fast``, SHA-256 of the size and of 64 samples of 64 KiB, the first and the last bytes
            among them; or ``full``, SHA-256 of everything.

    Raises:
        OSError: If it cannot be read.
    """
    stats = [file.stat() for file in _files(Path(path))]
    key: dict[str, Any] = {
        "size_bytes": sum(status.st_size for status in stats),
        "mtime_ns": max(status.st_mtime_ns for status in stats),
    }
    if checksum != "none":
        digest = hashlib.sha256()
        for file in _files(Path(path)):
            for block in _whole(file) if checksum == "full" else _samples(file):
                digest.update(block)
        key[CHECKSUMS[checksum]] = digest.hexdigest()
    return key


def has_checksum(source: Mapping[str, Any], checksum: str) -> bool:
    """Return whether a key holds the checksum asked for."""
    return checksum == "none" or CHECKSUMS[checksum] in source


def is_unchanged(source: Mapping[str, Any], path: str | Path) -> bool:
    """Return whether a file is the one of a key: by size and time, else by the key's checksum. Raises: OSError."""
    now = source_key(path)
    if source["size_bytes"] != now["size_bytes"]:
        return False
    return bool(source["mtime_ns"] == now["mtime_ns"]) or is_intact(source, path) is True


def is_intact(source: Mapping[str, Any], path: str | Path) -> bool | None:
    """Return whether a file still has the checksum of a key, None where the key has none. Raises: OSError."""
    for checksum, name in reversed(CHECKSUMS.items()):
        if name in source:
            return bool(source_key(path, checksum=checksum)[name] == source[name])
    return None


def _files(path: Path) -> list[Path]:
    """Return the file and what belongs to it."""
    folder = path.with_suffix("")
    if path.suffix.lower() not in _WITH_FOLDER or not folder.is_dir():
        return [path]
    return [path, *sorted(file for file in folder.iterdir() if file.is_file())]


def _whole(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _samples(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield str(size).encode()
    last = max(0, size - _SAMPLE)
    with path.open("rb") as file:
        for offset in sorted({last * i // (_NUM_SAMPLES - 1) for i in range(_NUM_SAMPLES)}):
            file.seek(offset)
            yield file.read(_SAMPLE)
