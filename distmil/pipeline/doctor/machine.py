"""Checks of this machine: Python, processors, memory and disks. Only the standard library is needed."""

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import distmil
from distmil.pipeline.doctor.finding import FAILED, OK, WARNING, Finding

GB = 1e9
MIN_MEMORY_GB = 4.0
MIN_DISK_GB = 10.0
MIN_SHARED_GB = 1.0
FULL_SHARE = 0.95
"""Ray starts no work that writes to a disk with less than 5 % free."""
_LOWEST, _HIGHEST = (3, 11), (3, 14)
_CGROUP_MEMORY = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_machine() -> list[Finding]:
    """Check Python, name distmil's version and folder, and check what this process's container may use."""
    python = f"{platform.python_version()} ({sys.executable}), on {platform.platform(terse=True)}"
    is_fit = _LOWEST <= sys.version_info[:2] < _HIGHEST
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory_gb = min([total, *_limits()]) / GB
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{cpus} CPUs, {memory_gb:.1f} GB of memory"
    needed = f"Ray and one worker need about {MIN_MEMORY_GB:g} GB"
    return [
        Finding(OK, "Python", python) if is_fit else Finding(FAILED, "Python", python, "use Python 3.11, 3.12 or 3.13"),
        Finding(OK, "distmil", f"{distmil.__version__} in {Path(distmil.__file__).parent}"),
        Finding(OK, "machine", text) if memory_gb >= MIN_MEMORY_GB else Finding(WARNING, "machine", text, needed),
    ]


def _limits() -> list[int]:
    """Read the memory limit of this process's container, if it has one."""
    found = []
    for name in _CGROUP_MEMORY:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return found


def check_disks(root: str | None) -> list[Finding]:
    """Check the disks of the storage root, of temporary files, and of Ray's shared memory."""
    there = "free some space, or choose another storage.root"
    temporary = (
        "Ray writes its sessions and objects that do not fit into memory there; free some space, or set RAY_TMPDIR"
    )
    return [
        *([check_disk("storage disk", root, there)] if root is not None and "://" not in root else []),
        check_disk("temporary files", os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), temporary),
        *check_shared_memory(),
    ]


def check_disk(name: str, folder: str, advice: str) -> Finding:
    """Check the free space of a folder's disk; of a folder that is absent, its nearest parent's."""
    path = Path(folder)
    try:
        while not path.exists() and path != path.parent:
            path = path.parent
        usage = shutil.disk_usage(path)
    except OSError as error:
        return Finding(WARNING, name, f"{folder}: {error.strerror}", advice)
    free_gb = usage.free / GB
    text = f"{free_gb:.1f} GB free of {usage.total / GB:.1f} GB in {folder}"
    is_full = free_gb < MIN_DISK_GB or usage.used > FULL_SHARE * (usage.used + usage.free)
    return Finding(WARNING, name, text, advice) if is_full else Finding(OK, name, text)


def check_shared_memory(folder: str = "/dev/shm") -> list[Finding]:  # noqa: S108 (Ray's own place)
    """Check the shared memory of Ray's object store, which containers often limit to 64 MB."""
    try:
        total_gb = shutil.disk_usage(folder).total / GB
    except OSError:  # not Linux
        return []
    text = f"{total_gb:.1f} GB in {folder}"
    if total_gb >= MIN_SHARED_GB:
        return [Finding(OK, "shared memory", text)]
    advice = "Ray moves its objects to the disk, which is slow; start the container with --shm-size=8g"
    return [Finding(WARNING, "shared memory", text, advice)]
