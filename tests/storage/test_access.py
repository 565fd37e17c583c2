"""Permissions of a store: private, or those of a root that its group may write, whatever the process's mask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from distmil.errors import ConfigError
from distmil.storage.local_files import CACHE_VARIABLE, cache_folder, keep_copy
from distmil.storage.records import Record
from distmil.storage.store import Store


@pytest.fixture(params=[0o000, 0o022, 0o077], autouse=True)
def mask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def fill(store: Store) -> None:
    store.write("top.json", b"{}")
    part = store.write_part("patches/f/s", "part-0.parquet", b"tissue", rows=1)
    store.write_record("patches/f/s/commit.json", Record("s", {}, parts=(part,)))
    store.write_receipt("patches/f/s/part-0.json", {}, part)


def modes_below(root: Path) -> tuple[set[int], set[int]]:
    """Modes of folders and of files."""
    paths = list(root.rglob("*"))
    return {mode(p) for p in paths if p.is_dir()}, {mode(p) for p in paths if p.is_file()}


def test_a_root_that_distmil_makes_is_this_users_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "far" / "root"))
    store.check()
    fill(store)
    assert mode(store.root) == mode(tmp_path / "far") == 0o700
    assert modes_below(Path(store.root)) == ({0o700}, {0o600})


@pytest.mark.parametrize("given", [0o755, 0o700, 0o711])
def test_what_is_made_in_a_root_of_others_is_private_unless_its_group_may_write_it(tmp_path: Path, given: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(given)
    store = Store(str(root))
    store.check()
    fill(store)
    assert mode(root) == given
    assert modes_below(root) == ({0o700}, {0o600})


@pytest.mark.parametrize(("given", "files"), [(0o2770, 0o660), (0o770, 0o660), (0o2775, 0o664)])
def test_a_root_that_its_group_may_write_is_shared(tmp_path: Path, given: int, files: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(given)
    fill(Store(str(root)))
    assert modes_below(root) == ({given}, {files})


def test_access_for_a_group_is_asked_for_when_the_root_is_made(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    store.check(access="group")
    fill(store)
    assert mode(store.root) == 0o2770
    assert modes_below(Path(store.root)) == ({0o2770}, {0o660})
    Store(store.root).check(access="group")
    Store(store.root).check()  # another job need not say it
    private = tmp_path / "private"
    Store(str(private)).check()
    with pytest.raises(ConfigError, match=r"storage\.access = 'group': .*private is there already.*chmod g\+rwxs"):
        Store(str(private)).check(access="group")


def test_copies_of_a_far_store_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert mode(keep_copy(sha256, 5, lambda: b"hello")) == 0o600
    assert mode(cache_folder()) == 0o700


def test_a_root_where_no_folder_can_be_is_refused():
    with pytest.raises(ConfigError, match=r"storage.root = '/proc/distmil': no folder can be made there; choose"):
        Store("/proc/distmil").check()
