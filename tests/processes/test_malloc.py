"""Freed memory is reused."""

import platform
import subprocess
import sys

import pytest

from distmil.processes.malloc import keep_freed_memory

FAULTS = """
import resource, sys, threading
import numpy as np
from distmil.processes.malloc import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def touch():
    np.ones(6_000_000)  # 48 MB, 11,719 pages

def steps():
    touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        touch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=steps)  # as in a training worker
thread.start()
thread.join()
"""


def page_faults(mode: str) -> int:
    """Return the page faults of eight large arrays made and freed in turn, after a first one."""
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_arrays_reuse_touched_memory() -> None:
    assert page_faults("keep") < 200 < page_faults("default")


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
