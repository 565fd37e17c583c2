"""Copies of far files: fetched once, whole, by one process, and the oldest go when the disk is full."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from distmil.errors import StorageError
from distmil.storage import local_files
from distmil.storage.local_files import SETTLED_S, SPARED_S, cache_folder, has_checksum, keep_copy

CONTENT = b"content"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Disk = namedtuple("Disk", "total used free")

# Fetches slowly, and notes each time.
SLOW_READER = """
import sys, time
from pathlib import Path
from distmil.storage.local_files import keep_copy

def fetch():
    with Path(sys.argv[1]).open("a") as file:
        file.write("x")
    time.sleep(0.5)
    return b"content"

print(keep_copy(sys.argv[2], 7, fetch).read_bytes().decode())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTMIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never():
    raise AssertionError("it was fetched again")


def named(content):
    return hashlib.sha256(content).hexdigest()


def keep(content):
    return keep_copy(named(content), len(content), lambda: content)


def test_a_copy_is_fetched_once():
    assert keep(CONTENT).read_bytes() == CONTENT
    assert keep_copy(SHA256, 7, never).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"", b"cont", b"content and more"])
def test_a_copy_of_another_size_is_fetched_anew(folder, left):
    folder.mkdir()
    (folder / SHA256).write_bytes(left)
    assert keep(CONTENT).read_bytes() == CONTENT


def age(path, *, seconds=100 * SETTLED_S):
    """Make a file look old, as most are that are verified."""
    used = path.stat().st_atime
    os.utime(path, (used, time.time() - seconds))


@pytest.fixture
def hashed(monkeypatch):
    """How often a file was hashed."""
    calls = []
    digest = hashlib.file_digest

    def count(file, name):
        calls.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(local_files.hashlib, "file_digest", count)
    return calls


def test_a_damaged_copy_of_the_right_size_is_fetched_again(folder):
    path = keep(CONTENT)
    path.write_bytes(b"CONTENT")
    assert keep(CONTENT).read_bytes() == CONTENT


def test_a_copy_is_verified_once_in_a_process(hashed):
    age(keep(CONTENT))
    for _ in range(3):
        keep_copy(SHA256, 7, never)
    assert len(hashed) == 1


def test_a_file_is_hashed_once_until_it_changes(tmp_path, hashed):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    age(path)
    assert [has_checksum(path, sha256=SHA256, size_bytes=7) for _ in range(3)] == [True] * 3
    assert len(hashed) == 1
    path.write_bytes(b"CONTENT")
    assert not has_checksum(path, sha256=SHA256, size_bytes=7)
    path.write_bytes(CONTENT)
    age(path, seconds=200)
    assert has_checksum(path, sha256=SHA256, size_bytes=7)
    assert not has_checksum(path, sha256=named(b"other"), size_bytes=7)


def test_another_file_of_the_same_time_and_size_is_hashed(tmp_path, hashed):
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(CONTENT)
    other.write_bytes(b"CONTENT")
    age(path)
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    assert has_checksum(path, sha256=SHA256, size_bytes=7)
    other.replace(path)
    assert not has_checksum(path, sha256=SHA256, size_bytes=7)


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    now = path.stat().st_mtime_ns
    assert has_checksum(path, sha256=SHA256, size_bytes=7)
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(now, now))  # clocks of file systems are coarse
    assert not has_checksum(path, sha256=SHA256, size_bytes=7)


def test_of_processes_at_once_one_fetches(tmp_path):
    command = [sys.executable, "-c", SLOW_READER, str(tmp_path / "fetches"), SHA256]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in processes] == ["content"] * 3
    assert (tmp_path / "fetches").read_text() == "x"


def test_a_failed_fetch_leaves_nothing_and_locks_nobody_out(folder):
    def fail():
        raise StorageError("the server is gone")

    with pytest.raises(StorageError, match="the server is gone"):
        keep_copy(SHA256, 7, fail)
    assert not (folder / SHA256).exists()
    assert keep(CONTENT).read_bytes() == CONTENT


def test_a_full_disk_is_said_and_leaves_nothing(folder, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local_files.os, "fsync", full)
    with pytest.raises(StorageError) as caught:
        keep(CONTENT)
    assert f"cannot keep a copy of 7 bytes in {folder}: No space left on device" in str(caught.value)
    assert "set DISTMIL_CACHE to a folder on a larger disk" in str(caught.value)
    assert [path.name for path in folder.iterdir() if not path.name.startswith("lock-")] == []


def test_when_the_disk_is_nearly_full_the_longest_unused_go(folder, monkeypatch):
    contents = [bytes([65 + i]) * 100 for i in range(5)]
    for content in contents:
        keep(content)
    own = folder / "not a copy"
    own.write_bytes(b"1" * 100)
    now = time.time()
    for content, age_s in zip(contents, (50, 40, 30, 20), strict=False):
        os.utime(folder / named(content), (now - SPARED_S - age_s, now))
    os.utime(own, (0, 0))
    keep(contents[0])  # used again
    # 1000 bytes, of which 50 are to stay free: 100 for the new one need two copies of 100 gone
    monkeypatch.setattr(local_files.shutil, "disk_usage", lambda _: Disk(1000, 1000, 0))
    keep(CONTENT * 10)
    assert [(folder / named(content)).exists() for content in contents] == [True, False, False, True, True]
    assert own.exists()


def test_what_is_in_use_stays_on_a_full_disk(folder, monkeypatch):
    keep(b"just fetched")
    monkeypatch.setattr(local_files.shutil, "disk_usage", lambda _: Disk(1000, 1000, 0))
    keep(CONTENT)
    assert (folder / named(b"just fetched")).exists()


def test_the_cache_is_this_users_alone(folder, monkeypatch):
    keep(CONTENT)
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(local_files.os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(StorageError, match="belongs to another user; set DISTMIL_CACHE"):
        keep(CONTENT)


def test_the_cache_is_among_the_temporary_files_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("DISTMIL_CACHE")
    monkeypatch.setattr(local_files.tempfile, "gettempdir", lambda: str(tmp_path))
    assert cache_folder() == tmp_path / f"distmil-cache-{os.getuid()}"
