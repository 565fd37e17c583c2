"""The inventory of random stores against what is known of them, and what removing leaves, on disk and on S3."""

import json
import os
import random
from pathlib import Path

import pytest

from distmil.config.root import Config
from distmil.errors import StorageError
from distmil.inventory import removal
from distmil.inventory.removal import UNUSED, Plan, plan_removal, remove
from distmil.inventory.survey import Inventory, survey
from distmil.storage.store import Store
from tests.support.random_store import NOW_S, RandomStore
from tests.support.s3_server import KEYS, s3_server
from tests.support.scale import cases


@pytest.fixture(autouse=True)
def _quick_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No write waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _file: None)


def take(made: RandomStore) -> Inventory:
    return survey(made.store, Config(), now_s=NOW_S)


def clear(made: RandomStore, *wanted: str, is_forced: bool = False) -> list[str]:
    """Remove, and return the names of what was removed."""
    plan = plan_removal(take(made), wanted, is_forced=is_forced)
    return [item.name for item in remove(made.store, plan, now_s=NOW_S, note=lambda _: None)[0]]


def below(files: dict[str, bytes], item: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name == item or name.startswith(f"{item}/")}


@pytest.mark.parametrize("seed", range(cases(100, full=3000)))
def test_a_random_store_is_counted_and_cleaned(seed: int, tmp_path: Path) -> None:
    made = RandomStore(Store(str(tmp_path / "store")), random.Random(seed)).make()
    before, found = made.files(), take(made)
    assert found.entries.keys() == made.users.keys() | made.base.keys()
    for name, entry in found.entries.items():
        own = {key: data for key, data in below(before, name).items() if key not in made.temporary}
        assert (len(entry.item.files), entry.item.size_bytes) == (len(own), sum(map(len, own.values()))), name
        assert set(entry.used_by) == made.users[name], name
    unused = made.unused()
    assert {entry.name for entry in found.unused} == unused
    assert {file.name for file in found.temporary} == set(made.temporary)
    assert {file.name for item in found.others.values() for file in item.files} == set(made.others)
    assert found.total_bytes == sum(map(len, before.values()))
    gone = {key for name in unused for key in below(before, name)} | set(made.temporary)
    assert found.unused_bytes == sum(len(before[name]) for name in gone)
    assert set(clear(made, UNUSED)) == unused
    assert made.files() == {name: data for name, data in before.items() if name not in gone}
    assert not any(name.rstrip("/").count("/") and (made.root / name).exists() for name in unused)
    assert clear(made, UNUSED) == []


def dangling(root: Path) -> list[str]:
    """Name every record one of whose parts is not there."""
    found = []
    for path in root.rglob("*.json"):
        record = json.loads(path.read_text()).get("record") if path.name not in {"cohort.json", "run.json"} else None
        folder = path.parent.parent if path.parent.name == "records" else path.parent
        if record and not all((folder / part["name"]).exists() for part in record["parts"]):
            found.append(str(path))
    return found


@pytest.mark.parametrize("seed", range(cases(30, full=1000)))
def test_an_interruption_leaves_no_record_without_its_files(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RandomStore(Store(str(tmp_path / "store")), random.Random(seed)).make()
    found = take(made)
    free = [entry.name for entry in found.entries.values() if not entry.is_busy]
    plan = plan_removal(found, free, is_forced=True)
    left = random.Random(seed).randint(0, max(0, sum(len(entry.item.files) for entry in plan.entries) - 1))
    whole = Store.delete
    done: list[str] = []

    def delete(store: Store, name: str) -> None:
        if len(done) >= left:
            raise StorageError("interrupted")
        done.append(name)
        whole(store, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", delete)
        patch.setattr(removal, "WALKERS", 1)
        if plan.entries:
            with pytest.raises(StorageError, match="interrupted"):
                remove(made.store, plan, now_s=NOW_S, note=lambda _: None)
    assert dangling(made.root) == []
    rest = [name for name in free if name in take(made).entries]
    clear(made, *rest, is_forced=True)
    files = made.files()
    assert not [name for name in free if below(files, name)]


def test_an_item_that_is_written_meanwhile_stays(tmp_path: Path) -> None:
    made = RandomStore(Store(str(tmp_path / "store")), random.Random(1)).make()
    found = take(made)
    entry = next(entry for entry in found.entries.values() if entry.item.kind == "patches")
    made.store.write(f"{entry.name}/new/part.bin", b"x")
    before = made.files()
    assert remove(made.store, Plan([entry]), now_s=NOW_S, note=lambda _: None) == ([], [entry.name])
    assert made.files() == before


def test_links_are_neither_followed_nor_removed(tmp_path: Path) -> None:
    made = RandomStore(Store(str(tmp_path / "store")), random.Random(2)).make()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine" * 1000)
    name = next(name for name in made.base if name.startswith("patches/"))
    (made.root / name / "link").symlink_to(elsewhere)
    (made.root / "patches/0123456789ab").symlink_to(elsewhere)
    os.utime(made.root / name / "link", (1, 1), follow_symlinks=False)
    found = take(made)
    assert "patches/0123456789ab" not in found.entries
    assert found.entries[name].item.size_bytes < 4000
    clear(made, *(n for n in found.entries if n in made.base and not found.entries[n].is_busy), is_forced=True)
    assert not (made.root / name).exists()
    assert (elsewhere / "mine.txt").read_text() == "mine" * 1000


def shown(found: Inventory) -> list[object]:
    return [(e.name, e.item.size_bytes, e.words, e.used_by, e.slides, e.is_unused) for e in found.entries.values()]


def test_a_store_on_s3_is_the_one_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with s3_server(tmp_path / "log") as server:
        for seed in range(cases(3, full=30)):
            made = RandomStore(Store(str(tmp_path / f"store-{seed}")), random.Random(seed)).make()
            made.temporary = []
            remote = Store(server.uri(f"deep/store-{seed}"))
            for name, data in made.files().items():
                if ".tmp-" not in name:
                    remote.write(name, data)
            server.behaviour.share = 0.05
            later = NOW_S * 2
            here, there = (survey(store, Config(), now_s=later) for store in (made.store, remote))

            assert shown(here) == shown(there)
            unused = [entry.name for entry in there.unused]
            remove(remote, plan_removal(there, [UNUSED]), now_s=later, note=lambda _: None)
            assert not any(remote.exists(name) for name in unused)
            kept = {
                name for name in made.files() if ".tmp-" not in name and not any(below({name: b""}, u) for u in unused)
            }
            assert {file.name for file in remote.walk("")} == kept
            server.behaviour.share = 0.0
