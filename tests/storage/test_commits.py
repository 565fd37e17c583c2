"""A stage's commit: it counts for its own slide and key alone, and its file on disk keeps its form."""

from pathlib import Path

import pytest

from distmil.storage.records import Part, Record, encode_json
from distmil.storage.store import Committed, Store

KEY = {"patches": "a1"}


@pytest.fixture
def committed(store: Store) -> Committed:
    return Committed(store, "labels/f00d", "s1", "s1.json")


def test_a_commit_counts_for_its_own_key_and_slide(committed: Committed) -> None:
    assert committed.finished(KEY) is None
    part = committed.store.write_part(committed.folder, "s1.parquet", b"rows", rows=2)
    record = committed.commit(KEY, parts=[part], info={"positive": 1})
    assert record == Record("s1", KEY, parts=(part,), info={"positive": 1})
    assert committed.read() == committed.finished({"patches": "a1"}) == record
    assert committed.finished({"patches": "a2"}) is None
    other = Committed(committed.store, committed.folder, "s2", "s2.json")
    committed.store.write(other.record_name, committed.store.read(committed.record_name))
    assert other.read() is other.finished(KEY) is None


def test_a_failure_is_committed_with_its_reason(committed: Committed) -> None:
    record = committed.commit(KEY, status="bad_annotation", error="no group")
    assert committed.finished(KEY) == record == Record("s1", KEY, status="bad_annotation", error="no group")


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"r0ws"), Path.unlink])
def test_a_damaged_part_is_seen(committed: Committed, damage: object) -> None:
    parts = [committed.store.write_part(committed.folder, name, b"rows", rows=2) for name in ("a", "b")]
    record = committed.commit(KEY, parts=parts)
    assert committed.is_whole(record)
    damage(Path(committed.store.path(f"{committed.folder}/b")))
    assert not committed.is_whole(record)


def test_the_file_of_a_commit_keeps_its_form(committed: Committed) -> None:
    part = Part.of("s1.parquet", b"rows", rows=2)
    committed.commit(KEY, parts=[part])
    found = committed.store.read_json("labels/f00d/s1.json")
    assert found["record"] == {
        "slide_id": "s1", "key": {"patches": "a1"}, "status": "ok", "error": None, "info": {},
        "parts": [{"name": "s1.parquet", "rows": 2, "size_bytes": 4, "sha256": part.sha256}],
    }  # fmt: skip
    assert found["sha256"] == "b4a846693a470c05255dfbd46723a983cf97e871f8c84b0a594168159d921831"  # as in older stores
    assert committed.store.read("labels/f00d/s1.json") == encode_json(found)
    assert encode_json({"b": [1], "a": "é"}) == b'{\n "a": "\\u00e9",\n "b": [\n  1\n ]\n}\n'
