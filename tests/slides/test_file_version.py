"""One version of a slide's file told from another."""

import hashlib
import os

import numpy as np
import pytest

from distmil.slides import file_version
from distmil.slides.file_version import (
    files_of,
    has_checksum,
    is_intact,
    is_same_version,
    is_unchanged,
    same_files,
    slide_in_folder,
    source_key,
    unusable,
)
from tests.support.dicom import save_dicom
from tests.support.scale import cases


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


# --- slides of several files


def series(folder, number, *, uid="1.2.3", names="{}.dcm"):
    folder.mkdir(exist_ok=True)
    return [save_dicom(folder / names.format(i), uid, seed=i) for i in range(number)]


def mirax(folder):
    index = write(folder / "a.mrxs", b"index")
    (folder / "a").mkdir()
    return [index, write(folder / "a" / "Slidedat.ini", b"[GENERAL]"), write(folder / "a" / "Data0000.dat", CONTENT)]


def hamamatsu(folder):
    text = "[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=a.jpg\nImageFile(1,0)=b.jpg\nMapFile=map.jpg\n"
    names = ("a.jpg", "b.jpg", "map.jpg")
    return [write(folder / "a.vms", text.encode()), *(write(folder / name, name.encode() * 9) for name in names)]


@pytest.mark.parametrize("make", [lambda folder: series(folder, 4), mirax, hamamatsu])
@pytest.mark.parametrize("change", ["written", "touched back", "removed", "swapped"])
def test_a_changed_sibling_is_another_version_of_the_slide(tmp_path, make, change):
    path, *siblings = make(tmp_path)
    assert files_of(path) == [path, *sorted(siblings)]
    for file in (path, *siblings):
        os.utime(file, ns=(5_000, 5_000))
    write(tmp_path / "notes.txt", b"none of the slide's")
    keys = {checksum: source_key(path, checksum=checksum) for checksum in ("none", "fast", "full")}
    assert is_same_version(keys["none"], path)
    last = siblings[-1]
    data = last.read_bytes()
    if change == "written":
        write(last, data[:-1] + bytes([data[-1] ^ 1]), mtime_ns=5_000)
        assert source_key(path) == keys["none"]  # neither size nor time has changed: that is what checksums are for
        assert not is_intact(keys["full"], path)
        assert not is_intact(keys["fast"], path)
        return
    if change == "touched back":
        os.utime(last, ns=(4_000, 4_000))
    elif change == "removed":
        last.unlink()
    else:
        other = siblings[0]
        one, two = other.read_bytes(), last.read_bytes()
        write(other, two, mtime_ns=5_000)
        write(last, one, mtime_ns=5_000)
        if len(one) == len(two):
            return
    assert not is_same_version(keys["none"], path)
    assert is_unchanged(keys["full"], path) is (change == "touched back")


def test_a_slide_of_one_file_has_the_key_that_it_always_had(tmp_path):
    (path,) = series(tmp_path, 1)
    assert set(source_key(path)) == {"size_bytes", "mtime_ns"}


def test_a_sibling_that_is_added_counts_and_other_series_do_not(tmp_path):
    path, *_ = series(tmp_path, 3)
    key = source_key(path)
    series(tmp_path, 5, uid="7.7.7", names="other{}.dcm")
    (tmp_path / "folder.dcm").mkdir()
    os.mkfifo(tmp_path / "fifo")
    assert is_same_version(key, path)
    save_dicom(tmp_path / "late", "1.2.3", seed=8)
    assert not is_same_version(key, path)


def settle(folder, rng):
    """Let the folder's last change lie some time ago, as after a while."""
    at = 10**18 + int(rng.integers(10**15))
    os.utime(folder, ns=(at, at))


def test_siblings_are_found_after_whatever_happens_in_the_folder(tmp_path):
    rng = np.random.default_rng(5)
    folder = tmp_path / "study"
    folder.mkdir()
    series_of = {}

    def save(name):
        series_of[name] = None if rng.random() < 0.2 else f"1.2.{rng.integers(3)}"
        save_dicom(folder / name, series_of[name], seed=int(rng.integers(100)))

    for step in range(cases(150, full=2000)):
        change = rng.choice(["add", "add", "remove", "rename", "cut"])
        name = str(rng.choice(sorted(series_of))) if series_of else ""
        if change == "add" or not name:
            save(f"{step}.dcm")
        elif change == "remove":
            (folder / name).unlink()
            del series_of[name]
        elif change == "rename":
            (folder / name).rename(folder / f"{step}.dcm")
            series_of[f"{step}.dcm"] = series_of.pop(name)
        else:  # a file that is not whole when it is first seen is filled later
            (folder / f"{step}.dcm").write_bytes(b"")
            settle(folder, rng)
            others = [other for other in series_of if series_of[other]]
            if others:
                files_of(folder / others[0])
            save(f"{step}.dcm")
        if change != "cut" and rng.random() < 0.7:
            settle(folder, rng)
        for file, series in series_of.items():
            expected = {other for other in series_of if series and series_of[other] == series} | {file}
            assert {found.name for found in files_of(folder / file)} == expected, (step, change)


def test_a_folder_of_many_series_is_looked_through_once(tmp_path, monkeypatch):
    for i in range(60):
        save_dicom(tmp_path / f"{i}.dcm", f"1.2.{i // 3}", seed=i)
    os.utime(tmp_path, ns=(10**18, 10**18))
    looks = []
    find = file_version.series_uid
    monkeypatch.setattr(file_version, "series_uid", lambda *args: (looks.append(args), find(*args))[1])
    for i in range(60):
        assert len(files_of(tmp_path / f"{i}.dcm")) == 3
    assert len(looks) == 60 + 60  # all of them once, and each that is asked for


def test_a_folder_is_opened_where_it_holds_exactly_one_slide(tmp_path):
    first, *_ = series(tmp_path / "one", 3)
    write(tmp_path / "one" / "notes.txt", b"text")
    assert slide_in_folder(tmp_path / "one") == first
    index, slidedat, _ = mirax(tmp_path)
    assert slide_in_folder(slidedat.parent) == index
    (tmp_path / "alone").mkdir()
    alone = write(tmp_path / "alone" / "Doe.SVS", b"x")
    assert slide_in_folder(alone.parent) == alone
    series(tmp_path / "one", 2, uid="7.7.7", names="other{}.dcm")
    (tmp_path / "empty").mkdir()
    for folder, text in (("one", "holds 2 slides"), ("empty", "holds no DICOM series and no file of a whole-slide")):
        with pytest.raises(ValueError, match=f"{text}.* give the path of one file") as caught:
            slide_in_folder(tmp_path / folder)
        assert str(tmp_path) not in str(caught.value)


def test_one_file_is_known_by_every_path(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / name, b"the same bytes")
    (tmp_path / "link").symlink_to("a")
    os.link(tmp_path / "b", tmp_path / "hard")
    (tmp_path / "sub").mkdir()
    paths = ["a", "b", "c", "link", "", "hard", "sub/../a", "sub/../c"]
    assert same_files([path and f"{tmp_path}/{path}" for path in paths]) == [[0, 3, 6], [1, 5], [2, 7]]


@pytest.mark.parametrize("name", ["slide.h5", "SLIDE.PT", "slide.npy"])
def test_features_of_other_tools_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    assert unusable(tmp_path / name).startswith("is a file of features or weights, not a slide")
