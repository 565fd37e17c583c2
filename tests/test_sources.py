"""One version of a slide's file told from another."""

import hashlib
import os

import numpy as np
import pytest

from distmil.sources import has_checksum, is_intact, is_unchanged, source_key


def write(path, data, *, mtime_ns=1_000):
    path.write_bytes(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


CONTENT = np.random.default_rng(0).bytes(5_000_000)


def test_a_full_checksum_is_that_of_the_file(tmp_path):
    path = write(tmp_path / "a.svs", CONTENT)
    assert source_key(path, checksum="full") == {
        "size_bytes": len(CONTENT),
        "mtime_ns": 1_000,
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }


@pytest.mark.parametrize("checksum", ["fast", "full"])
def test_a_checksum_tells_a_touched_file_from_a_changed_one(tmp_path, checksum):
    path = write(tmp_path / "a.svs", CONTENT)
    key = source_key(path, checksum=checksum)
    assert has_checksum(key, checksum)
    write(path, CONTENT, mtime_ns=2_000)
    assert is_unchanged(key, path)
    write(path, CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), mtime_ns=2_000)
    assert not is_unchanged(key, path)
    assert is_intact(key, path) is False


def test_without_a_checksum_time_and_size_decide(tmp_path):
    path = write(tmp_path / "a.svs", CONTENT)
    key = source_key(path)
    assert has_checksum(key, "none")
    assert not has_checksum(key, "full")
    assert is_unchanged(key, path)
    assert is_intact(key, path) is None
    write(path, CONTENT, mtime_ns=2_000)
    assert not is_unchanged(key, path)
    write(path, CONTENT[:-1])
    assert not is_unchanged(key, path)


def test_a_full_checksum_finds_what_happens_behind_an_unchanged_time(tmp_path):
    path = write(tmp_path / "a.svs", CONTENT)
    key = source_key(path, checksum="full")
    middle = len(CONTENT) // 2
    write(path, CONTENT[:middle] + bytes([CONTENT[middle] ^ 16]) + CONTENT[middle + 1 :])
    assert is_unchanged(key, path)  # by what is quickly seen
    assert is_intact(key, path) is False


@pytest.mark.parametrize("size", [0, 1, 1000, 2**16, 2**16 + 1])
def test_a_small_file_is_sampled_whole(tmp_path, size):
    path = write(tmp_path / "a.svs", CONTENT[:size])
    key = source_key(path, checksum="fast")
    assert is_intact(key, path)
    for at in {0, size // 2, size - 1} if size else ():
        write(path, CONTENT[:at] + bytes([CONTENT[at] ^ 255]) + CONTENT[at + 1 : size])
        assert is_intact(key, path) is False


@pytest.mark.parametrize("checksum", ["none", "fast", "full"])
def test_the_pixels_of_a_mrxs_slide_are_in_its_folder(tmp_path, checksum):
    path = write(tmp_path / "a.mrxs", b"index")
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "Data0000.dat", CONTENT)
    key = source_key(path, checksum=checksum)
    assert key["size_bytes"] == 5 + len(CONTENT)
    write(tmp_path / "a" / "Data0000.dat", CONTENT[::-1], mtime_ns=3_000)
    assert source_key(path, checksum=checksum) != key


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        source_key(tmp_path / "none.svs")
