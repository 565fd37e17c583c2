"""What tells one version of a slide from another: size and time of its files, and a checksum where one is asked for.

A slide may be several files: a DICOM series, a MIRAX index with its folder, a Hamamatsu index with its images. What one
of them is, is found by names and headers alone.
"""

import errno
import functools
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distmil.slides.dicom import series_uid

CHECKSUMS = {"fast": "sample_sha256", "full": "sha256"}
"""Name in the key by ``tiling.checksum``."""
SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".czi"})
"""Endings of whole-slide formats."""
MAX_SIBLINGS = 20_000
"""Most files of a folder that are looked at for a DICOM series."""
_BLOCK = 2**20
_SAMPLE, _NUM_SAMPLES = 2**16, 64
_NEVER_DICOM = SLIDE_SUFFIXES - {".dcm"} | {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp"}
"""Endings of files that need not be opened to see it."""
_INDEX_SUFFIXES = {".vms", ".vmu"}
_MAX_INDEX_BYTES = 2**20
_SETTLED_NS = 2 * 10**9
"""Age of a folder's last change from which its time tells the next change apart: clocks of shares are coarse."""
_KINDS = {
    stat.S_IFIFO: "is a FIFO",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
    stat.S_IFDIR: "is a folder",
}


_FEATURES = frozenset({".h5", ".hdf5", ".pt", ".pth", ".npy", ".npz", ".safetensors"})


def unusable(path: str | Path) -> str | None:
    """Say why a path that exists cannot be read as a file: nothing is opened, so that no FIFO or device can hang it.

    Returns:
        The reason, which goes on after "the slide", or None.

    Raises:
        OSError: If there is nothing at the path.
    """
    kind = stat.S_IFMT(Path(path).stat().st_mode)
    if kind != stat.S_IFREG:
        return f"{_KINDS.get(kind, 'is of an unknown kind')}, not a file"
    if Path(path).suffix.lower() in _FEATURES:
        return (
            "is a file of features or weights, not a slide; distmil import_features takes over features that other "
            "tools made (features.folder)"
        )
    return None if os.access(path, os.R_OK) else "cannot be read: permission denied"


def source_key(path: str | Path, *, checksum: str = "none") -> dict[str, Any]:
    """Read size, modification time and, if asked for, a checksum of a slide's file or files.

    Args:
        path: The file.
        checksum: ``none``; ``fast``, SHA-256 of the size and of 64 samples of 64 KiB, the first and the last bytes
            among them; or ``full``, SHA-256 of everything.

    Returns:
        ``size_bytes``, the sum; ``mtime_ns``, the latest; with several files ``files`` too, a hash of the name, size
        and time of each; and the checksum.

    Raises:
        OSError: If it cannot be read.
    """
    _regular(Path(path))  # an index that is a FIFO is not to be waited for
    files = files_of(Path(path))
    stats = [_regular(file) for file in files]
    key: dict[str, Any] = {
        "size_bytes": sum(status.st_size for status in stats),
        "mtime_ns": max(status.st_mtime_ns for status in stats),
    }
    if len(files) > 1:
        rows = [f"{file.name}|{status.st_size}|{status.st_mtime_ns}" for file, status in zip(files, stats, strict=True)]
        key["files"] = hashlib.sha256("\n".join(rows).encode(errors="surrogateescape")).hexdigest()[:16]
    if checksum != "none":
        digest = hashlib.sha256()
        for file in files:
            for block in _whole(file) if checksum == "full" else _samples(file):
                digest.update(block)
        key[CHECKSUMS[checksum]] = digest.hexdigest()
    return key


def _regular(path: Path) -> os.stat_result:
    """Return a file's status. Raises: OSError if it is none, or gone."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"it {unusable(path)}")
    return status


def has_checksum(source: Mapping[str, Any], checksum: str) -> bool:
    """Test whether a key holds the checksum asked for."""
    return checksum == "none" or CHECKSUMS[checksum] in source


def is_same_version(source: Mapping[str, Any], path: str | Path) -> bool:
    """Tell whether a slide is the one of a key by size and time of each of its files. Raises: OSError."""
    now = source_key(path)
    return all(source.get(name) == now.get(name) for name in ("size_bytes", "mtime_ns", "files"))


def is_unchanged(source: Mapping[str, Any], path: str | Path) -> bool:
    """Test whether a file is that of a key: by size and time, else by the key's checksum. Raises: OSError."""
    if source["size_bytes"] != source_key(path)["size_bytes"]:
        return False
    return is_same_version(source, path) or is_intact(source, path) is True


def is_intact(source: Mapping[str, Any], path: str | Path) -> bool | None:
    """Test whether a file still has the checksum of a key, None where the key has none. Raises: OSError."""
    for checksum, name in reversed(CHECKSUMS.items()):
        if name in source:
            return bool(source_key(path, checksum=checksum)[name] == source[name])
    return None


def same_files(paths: Sequence[str]) -> list[list[int]]:
    """Find the paths that lead to one file: the same after links, or the same on the disk. Nothing is opened.

    Args:
        paths: Files that are there; an empty text stands for none.

    Returns:
        The indices of each file that has several paths.

    Raises:
        OSError: If one of them is gone.
    """
    group_of: dict[Any, list[int]] = {}
    for i, path in enumerate(paths):
        if not path:
            continue
        status = Path(path).stat()
        names = [os.path.realpath(path), *([(status.st_dev, status.st_ino)] if status.st_ino else [])]
        group = next((group_of[name] for name in names if name in group_of), [])
        group.append(i)
        group_of.update(dict.fromkeys(names, group))
    groups = {id(group): group for group in group_of.values()}
    return [group for group in groups.values() if len(group) > 1]


# --- slides of several files -------------------------------------------------------------------------------------


def files_of(path: Path) -> list[Path]:
    """Find the files that make up a slide, the given one first. Raises: OSError if its folder cannot be read."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        folder = path.with_suffix("")
        return [path, *sorted(file for file in folder.iterdir() if file.is_file())] if folder.is_dir() else [path]
    if suffix in _INDEX_SUFFIXES:
        return [path, *_named_by(path)]
    series = _series_of(path)
    if series is None:
        return [path]
    return [path, *(file for file in _dicom_files(path.parent, series) if file.name != path.name)]


def slide_in_folder(folder: Path) -> Path:
    """Find the file by which a folder is opened that holds exactly one slide.

    Raises:
        ValueError: If it holds none, or several; the text says so without a name.
        OSError: If it cannot be read.
    """
    index = folder.with_name(f"{folder.name}.mrxs")
    if (folder / "Slidedat.ini").is_file() and index.is_file():
        return index
    found = slides_in_folder(folder)
    if len(found) != 1:
        what = f"{len(found)} slides" if found else "no DICOM series and no file of a whole-slide format"
        raise ValueError(f"a folder that holds {what}; give the path of one file (of any one file of a DICOM series)")
    return found[0]


def slides_in_folder(folder: Path) -> list[Path]:
    """Find the whole slides directly in a folder: their files by name, of a DICOM series the first one.

    Raises:
        OSError: If it cannot be read.
    """
    found: dict[str, Path] = {}
    for file in _listed(folder):
        series = _series_of(file)
        if series is not None or (file.suffix.lower() in SLIDE_SUFFIXES and unusable(file) is None):
            found.setdefault(series or file.name, file)
    return list(found.values())


def _listed(folder: Path) -> list[Path]:
    """List a folder's regular files by name, as many as are looked at."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    return [folder / name for name in names[:MAX_SIBLINGS]]


def _named_by(index: Path) -> list[Path]:
    """Find the files beside a Hamamatsu index that it names as values."""
    with index.open("rb") as file:
        text = file.read(_MAX_INDEX_BYTES).decode("utf-8", "replace")
    names = {Path(line.partition("=")[2].strip()).name for line in text.splitlines() if "=" in line}
    beside = (index.parent / name for name in sorted(names) if name and "\0" not in name)
    return [file for file in beside if file != index and file.is_file()]


def _series_of(path: Path) -> str | None:
    """Read the series of a DICOM file; None for any other file. Raises: OSError."""
    if path.suffix.lower() in _NEVER_DICOM or unusable(path) is not None:
        return None
    status = path.stat()
    return series_uid(path, status.st_size, status.st_mtime_ns)


def _dicom_files(folder: Path, series: str) -> list[Path]:
    """Find the files of a series in a folder, by name.

    A folder may hold thousands of series. Files whose series is known are opened again only after something was added,
    renamed or removed beside them.
    """
    changed_ns = folder.stat().st_mtime_ns
    is_settled = time.time_ns() - changed_ns > _SETTLED_NS
    by_series, others = _settled(folder, changed_ns) if is_settled else _by_series(folder)
    return sorted([*by_series.get(series, ()), *(file for file in others if _series_of(file) == series)])


@functools.lru_cache(maxsize=16)
def _settled(folder: Path, changed_ns: int) -> tuple[Mapping[str, list[Path]], list[Path]]:
    """Remember the series of a folder since its last change."""
    del changed_ns
    return _by_series(folder)


def _by_series(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Sort a folder's files by series; the others may be DICOM files that are not whole yet."""
    by_series: dict[str, list[Path]] = {}
    others = []
    for file in _listed(folder):
        series = _series_of(file)
        if series is not None:
            by_series.setdefault(series, []).append(file)
        elif file.suffix.lower() not in _NEVER_DICOM:
            others.append(file)
    return by_series, others


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
