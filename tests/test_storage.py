"""The commit protocol: a failing write leaves the old content and no trace, and nothing leaves the root."""

import errno
import hashlib
import json
import os
import pickle
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from distmil import storage
from distmil.errors import ConfigError, StorageError
from distmil.sources import source_key
from distmil.storage import JOB_VARIABLE, Part, Record, Store, resolve_root

RECORD = Record(
    "s1",
    key={"source": {"size_bytes": 7, "mtime_ns": 1_700_000_000_123_456_789}, "mpp": 0.243},
    parts=(Part("part-00000.parquet", 3, 20, "aa"), Part("part-00001.parquet", 2, 10, "bb")),
    info={"width_px": 70, "mpp": None},
)


@pytest.fixture
def remote(monkeypatch):
    """A store on an object store, played by an in-memory file system."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    target = (pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), "bucket/root")
    monkeypatch.setattr(Store, "_target", property(lambda _: target))
    return Store("s3://bucket/root")


@pytest.fixture(params=["local", "remote"])
def any_store(request):
    return request.getfixturevalue("store" if request.param == "local" else "remote")


def failing(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


class FailingFile:
    """A file that takes half of what is written and then fails."""

    def __init__(self, file, code):
        self._file, self._code = file, code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data):
        self._file.write(bytes(data)[: len(data) // 2])
        failing(self._code)()


def break_step(monkeypatch, step, code):
    """Make one step of a durable write fail."""
    if step == "fsync":
        monkeypatch.setattr(storage.os, "fsync", failing(code))
    elif step == "write":
        whole = Path.open
        monkeypatch.setattr(Path, "open", lambda *given, **more: FailingFile(whole(*given, **more), code))
    else:
        monkeypatch.setattr(Path, step, failing(code))


# --- writing


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("step", ["mkdir", "open", "write", "fsync", "replace"])
@pytest.mark.parametrize("old", [b"old content", None])
def test_a_failing_write_leaves_what_was_there(store, monkeypatch, step, code, old):
    if old is not None:
        store.write("a/b.json", old)
    with monkeypatch.context() as broken:
        break_step(broken, step, code)
        with pytest.raises(StorageError) as caught:
            store.write("a/b.json", b"new content")
    assert store.path("a/b.json") in str(caught.value)
    assert ("disk is full" in str(caught.value)) is (code == errno.ENOSPC)
    left = [path for path in Path(store.root).rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in left] == ([] if old is None else [old])
    store.write("a/b.json", b"new content")
    assert store.read("a/b.json") == b"new content"


def test_a_write_that_only_fails_to_sync_its_folder_is_whole(store, monkeypatch):
    store.write("a/b", b"old")
    calls = []

    def second_fails(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            failing(errno.EIO)()

    monkeypatch.setattr(storage.os, "fsync", second_fails)
    with pytest.raises(StorageError, match="a/b"):
        store.write("a/b", b"new")
    assert store.read("a/b") == b"new"
    assert store.names("a") == ["b"]


def test_an_interrupted_write_leaves_nothing(store, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.write("a/b", b"new")
    assert store.names("a") == []


def test_the_content_is_synced_before_it_gets_its_name(store, monkeypatch):
    order = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(storage.os, "fsync", lambda fd: (order.append("sync"), sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("rename"), replace(a, b))[1])
    store.write("a", b"content")
    assert order == ["sync", "rename", "sync"]


def test_a_root_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/store"):
        Store(str(tmp_path / "file" / "store")).check()


def test_trying_a_root_out_leaves_nothing(any_store):
    any_store.check()
    assert any_store.names("") == []


# --- reading back, on a local folder and on an object store alike


def test_what_is_written_is_read(any_store):
    any_store.write("a/b/one", b"1")
    any_store.write("a/b/one", pa.py_buffer(b"one"))
    any_store.write("a/b/two", b"2")
    assert any_store.read("a/b/one") == b"one"
    assert any_store.open_buffer("a/b/one").to_pybytes() == b"one"
    assert any_store.names("a/b") == ["one", "two"]
    assert any_store.names("a") == any_store.names("nowhere") == []
    assert any_store.exists("a/b/one")
    assert not any_store.exists("a/b/three")
    any_store.delete("a/b/one")
    any_store.delete("a/b/one")
    assert any_store.names("a/b") == ["two"]


@pytest.mark.parametrize("call", ["read", "open_buffer", "read_json"])
def test_what_is_absent_is_not_found(any_store, call):
    with pytest.raises(FileNotFoundError):
        getattr(any_store, call)("a/absent")


@pytest.mark.parametrize("name", ["../b", "a/../../b", "/etc/passwd", "a/.."])
@pytest.mark.parametrize("call", ["write", "read", "open_buffer", "exists", "names", "delete"])
def test_no_name_leaves_the_root(any_store, call, name):
    with pytest.raises(StorageError, match="leaves the storage root"):
        getattr(any_store, call)(name, *([b"x"] if call == "write" else []))


def test_a_committed_file_has_a_local_path(any_store, monkeypatch, tmp_path):
    monkeypatch.setattr(storage.tempfile, "gettempdir", lambda: str(tmp_path / "cache"))
    part = any_store.write_part("a", "x.arrow", b"content", rows=1)
    for _ in range(2):
        assert any_store.local_copy("a/x.arrow", part.sha256).read_bytes() == b"content"


def test_a_store_travels_between_processes(store):
    store.write("a", b"1")
    assert store.names("") == ["a"]
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


# --- records


def test_a_record_comes_back_as_it_was(any_store):
    any_store.write_record("s1/commit.json", RECORD)
    found = any_store.read_record("s1/commit.json")
    assert found == RECORD
    assert found.key == RECORD.key
    assert found.rows == 5
    assert found.digest == RECORD.digest


@pytest.mark.parametrize(
    "change",
    [
        {"slide_id": "s2"},
        {"status": "failed"},
        {"parts": RECORD.parts[::-1]},
        {"parts": RECORD.parts[:1]},
        {"parts": (RECORD.parts[0], Part("part-00001.parquet", 2, 10, "cc"))},
    ],
)
def test_a_digest_follows_the_content(change):
    assert Record(**{**vars(RECORD), **change}).digest != RECORD.digest


def test_a_digest_does_not_follow_the_source_file():
    # what is made from the patches stays good where a touched file was tiled to the same bytes
    assert Record(**{**vars(RECORD), "key": {"mpp": 1.0}}).digest == RECORD.digest


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"text"', b"{}", b'{"parts": []}', b'{"parts": 3}', b"\xff\xfe", b'{"parts": [{}]}'],
)
def test_a_record_that_cannot_be_read_is_none(store, content):
    store.write("commit.json", content)
    assert store.read_record("commit.json") is None


def test_no_record_is_none(any_store):
    assert any_store.read_record("s1/commit.json") is None


def test_half_a_record_is_none(store):
    text = json.dumps(RECORD.to_json())
    for length in range(0, len(text), 7):
        store.write("commit.json", text[:length].encode())
        assert store.read_record("commit.json") is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_a_meaning_is_refused(store, value):
    store.write_json("a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        store.write_json("a.json", {"x": value})
    assert store.read_json("a.json") == {"x": 1}


def test_damaged_json_is_named(store):
    store.write("a.json", b'{"x": ')
    with pytest.raises(StorageError, match=r"a\.json is damaged"):
        store.read_json("a.json")


def test_a_part_states_size_and_checksum_of_what_is_there(store):
    part = store.write_part("a", "x.bin", pa.py_buffer(b"seven77"), rows=2)
    path = Path(store.path("a/x.bin"))
    assert (part.size_bytes, part.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_committed_part_is_read_only_as_it_was_written(any_store):
    part = any_store.write_part("a", "x.bin", b"content", rows=2)
    assert any_store.read_part("a", part) == b"content"
    any_store.write("a/x.bin", b"c0ntent")
    with pytest.raises(StorageError, match=r"a/x\.bin is damaged"):
        any_store.read_part("a", part)
    any_store.delete("a/x.bin")
    with pytest.raises(StorageError, match=r"a/x\.bin is gone"):
        any_store.read_part("a", part)


def test_a_source_is_another_one_when_its_size_or_time_differs(tmp_path):
    path = tmp_path / "slide"
    path.write_bytes(b"1")
    os.utime(path, ns=(1, 1))
    first = source_key(path)
    assert source_key(path) == first
    os.utime(path, ns=(1, 2))
    assert source_key(path) != first
    path.write_bytes(b"22")
    os.utime(path, ns=(1, 1))
    assert source_key(path) != first


# --- the root


def test_the_root_is_the_given_one_else_the_environments_else_home(monkeypatch, tmp_path):
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DISTMIL_HOME", str(tmp_path / "environment"))
    monkeypatch.chdir(tmp_path)
    assert resolve_root(str(tmp_path / "given")) == str(tmp_path / "given")
    assert resolve_root("relative/folder") == str(tmp_path / "relative" / "folder")
    assert resolve_root("~/x") == str(tmp_path / "home" / "x")
    assert resolve_root(None) == str(tmp_path / "environment")
    monkeypatch.delenv("DISTMIL_HOME")
    assert resolve_root(None) == str(tmp_path / "home" / ".distmil")


@pytest.mark.parametrize(
    ("given", "root"),
    [("s3://bucket/a/", "s3://bucket/a"), ("gs://bucket", "gs://bucket"), ("file:///data/a/", "/data/a")],
)
def test_a_uri_is_kept(given, root):
    assert resolve_root(given) == root
    assert Store(resolve_root(given)).is_local is root.startswith("/")


def test_a_relative_root_is_refused_inside_a_ray_job(monkeypatch):
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    with pytest.raises(ConfigError, match=r"storage\.root = 'runs'.*absolute"):
        resolve_root("runs")
    monkeypatch.setenv("DISTMIL_HOME", "runs")
    with pytest.raises(ConfigError, match="thrown away"):
        resolve_root(None)
    assert resolve_root("/data/runs") == "/data/runs"
    assert resolve_root("s3://bucket/runs") == "s3://bucket/runs"


def test_the_job_variable_is_rays():
    constants = pytest.importorskip("ray._private.runtime_env.constants")
    assert constants.RAY_JOB_CONFIG_JSON_ENV_VAR == JOB_VARIABLE


@pytest.mark.parametrize("uri", ["http://host/a", "hdfs://a", "S3://bucket", "file://host/a"])
def test_another_kind_of_uri_is_refused(uri):
    with pytest.raises(ConfigError, match=r"storage\.root"):
        resolve_root(uri)
