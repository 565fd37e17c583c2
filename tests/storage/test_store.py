"""The commit protocol: a failing write leaves the old content and no trace, and nothing leaves the root."""

import errno
import hashlib
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from distmil.config.loading import load_config
from distmil.errors import ConfigError, StorageError
from distmil.slides.file_version import source_key
from distmil.storage import files, object_store
from distmil.storage.object_store import Patience, open_filesystem
from distmil.storage.records import Part, Record
from distmil.storage.roots import JOB_VARIABLE, resolve_root
from distmil.storage.store import Store
from tests.support.ports import free_port
from tests.support.s3_server import BUCKET, DENIED, FAULTS, HOST, KEYS, s3_server

RECORD = Record(
    "s1",
    key={"source": {"size_bytes": 7, "mtime_ns": 1_700_000_000_123_456_789}, "mpp": 0.243},
    parts=(Part("part-00000.parquet", 3, 20, "aa"), Part("part-00001.parquet", 2, 10, "bb")),
    info={"width_px": 70, "mpp": None},
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An S3 server."""
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """The server, well again, and nothing of this machine's own settings."""
    for name in (*object_store.ENDPOINT_VARIABLES, *object_store.REGION_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**KEYS, "HOME": str(tmp_path), "DISTMIL_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    server.behaviour.share, server.behaviour.kinds, server.behaviour.slow_s = 0.0, FAULTS, 0.2
    server.behaviour.done.clear()
    server.behaviour.rng.seed(0)
    return server


@pytest.fixture
def remote(s3, request):
    """A store on the server, of this test alone."""
    return Store(s3.uri(f"tests/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"))


@pytest.fixture(params=["local", "remote"])
def any_store(request):
    return request.getfixturevalue("store" if request.param == "local" else "remote")


@pytest.fixture
def hasty(monkeypatch):
    """No patience: one attempt for everything."""
    hasty = Patience(attempts=1, request_s=2, connect_s=2, limit_s=2)
    monkeypatch.setattr(files, "TRIAL", hasty)
    monkeypatch.setattr(files, "open_filesystem", lambda uri, patience=hasty: open_filesystem(uri, patience=hasty))


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
        monkeypatch.setattr(os, "fsync", failing(code))
    elif step == "write":
        whole = Path.open
        monkeypatch.setattr(Path, "open", lambda *given, **more: FailingFile(whole(*given, **more), code))
    else:
        monkeypatch.setattr(Path, step, failing(code))


# --- writing


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(
    ("step", "old"),
    [(step, old) for step in ("touch", "open", "write", "fsync", "replace") for old in (b"old content", None)]
    + [("mkdir", None)],
)
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

    monkeypatch.setattr(os, "fsync", second_fails)
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
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), sync(fd))[1])
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


def test_a_committed_file_has_a_local_path(any_store):
    part = any_store.write_part("a", "x.arrow", b"content", rows=1)
    for _ in range(2):
        assert any_store.local_copy("a/x.arrow", part).read_bytes() == b"content"


def test_a_store_travels_between_processes(any_store):
    any_store.write("a", b"1")
    assert any_store.names("") == ["a"]
    assert pickle.loads(pickle.dumps(any_store)).read("a") == b"1"


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
        {"name": "s2"},
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


def test_checked_json_comes_back_to_its_owner_alone(store):
    values = {"values": [1, 2.5, None], "sha256": "mine"}
    store.write_checked("a.json", values, owner="run")
    assert store.read_checked("a.json", owner="run") == values
    with pytest.raises(StorageError, match=r"a\.json is damaged: its checksum differs; delete it and run the same"):
        store.read_checked("a.json", owner="other")
    with pytest.raises(FileNotFoundError):
        store.read_checked("b.json", owner="run")


@pytest.mark.parametrize("values", [[1], 7, "x", {"x": 1}, {"values": 1, "x": 2, "y": 3}, {"sha256": 1}])
def test_json_of_older_versions_is_read_without_a_checksum(store, values):
    store.write_json("a.json", values)
    assert store.read_checked("a.json", owner="run") == values


def test_no_flipped_bit_of_checked_json_is_read_as_other_values(store):
    values = {"entries": [{"slide_id": "s1", "parts": [1, 2], "label": None}], "mpp": 0.5}
    store.write_checked("a.json", values, owner="run")
    whole = store.read("a.json")
    num_found = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        store.write("a.json", bytes(damaged), is_durable=False)
        try:
            assert store.read_checked("a.json", owner="run") == values, bit
        except StorageError:
            num_found += 1
    assert num_found > 4 * len(whole)


def test_a_damaged_receipt_counts_as_no_receipt(store):
    part = Part("x.bin", 2, 7, "0" * 64)
    store.write_receipt("a/x.json", {"plan": 1}, part)
    assert store.read_receipt("a/x.json", {"plan": 1}) == part
    assert store.read_receipt("a/x.json", {"plan": 2}) is None
    whole = store.read("a/x.json")
    store.write("a/x.json", whole.replace(b'"size_bytes": 7', b'"size_bytes": 5'))
    assert store.read_receipt("a/x.json", {"plan": 1}) is None
    store.write("a/x.json", whole.replace(b'"rows"', b'"rovs"'))
    assert store.read_receipt("a/x.json", {"plan": 1}) is None


def test_a_part_is_opened_with_the_committed_content_alone(any_store):
    part = any_store.write_part("a", "x.bin", b"content", rows=2)
    assert any_store.open_part("a", part).to_pybytes() == b"content"
    any_store.write("a/x.bin", b"c0ntent")
    with pytest.raises(StorageError, match=r"a/x\.bin\S* is damaged: its checksum is not the committed one; delete"):
        any_store.open_part("a", part)


def test_a_copy_that_was_damaged_in_the_cache_is_fetched_again(remote):
    part = remote.write_part("a", "x.arrow", b"content", rows=1)
    path = remote.local_copy("a/x.arrow", part)
    path.write_bytes(b"c0ntent")
    assert remote.local_copy("a/x.arrow", part).read_bytes() == b"content"


def test_a_local_path_is_given_for_the_committed_content_alone(store):
    part = store.write_part("a", "x.bin", b"content", rows=2)
    assert store.local_copy("a/x.bin", part).read_bytes() == b"content"
    for damaged in (b"c0ntent", b"content and more"):
        store.write("a/x.bin", damaged)
        for read in (lambda: store.local_copy("a/x.bin", part), lambda: store.open_part("a", part)):
            with pytest.raises(StorageError, match=r"a/x\.bin is damaged: .* delete the folder \S*/a and run the same"):
                read()
    store.delete("a/x.bin")
    with pytest.raises(StorageError, match=r"a/x\.bin is gone"):
        store.local_copy("a/x.bin", part)


def test_a_part_states_size_and_checksum_of_what_is_there(store):
    part = store.write_part("a", "x.bin", pa.py_buffer(b"seven77"), rows=2)
    path = Path(store.path("a/x.bin"))
    assert (part.size_bytes, part.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_committed_part_is_read_only_as_it_was_written(any_store):
    part = any_store.write_part("a", "x.bin", b"content", rows=2)
    assert any_store.read_part("a", part) == b"content"
    any_store.write("a/x.bin", b"c0ntent")
    with pytest.raises(StorageError, match=r"a/x\.bin\S* is damaged"):
        any_store.read_part("a", part)
    any_store.delete("a/x.bin")
    with pytest.raises(StorageError, match=r"a/x\.bin\S* is gone"):
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


# --- on an object store


def misbehave(server, share, *kinds):
    server.behaviour.share, server.behaviour.kinds = share, kinds


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_of_every_kind_are_ridden_out(s3, remote, kind):
    misbehave(s3, 0.3, kind)
    for i in range(4):
        remote.write_record(f"a/{i}.json", RECORD)
        assert remote.read_record(f"a/{i}.json") == RECORD
        assert remote.exists(f"a/{i}.json")
    remote.delete("a/3.json")
    assert remote.names("a") == ["0.json", "1.json", "2.json"]
    assert s3.behaviour.done[kind] >= 3


def test_a_large_file_comes_whole_through_lost_and_broken_answers(s3, remote):
    data = bytes(range(256)) * 50_000  # in parts, which the server puts together
    misbehave(s3, 0.4, "lost", "cut")
    for _ in range(2):
        part = remote.write_part("a", "large", data, rows=1)
        assert remote.read_part("a", part) == data
    assert s3.behaviour.num_faults >= 4


def test_a_small_file_is_one_request_and_reading_one_is_two(s3, remote):
    remote.write("a/b", b"1" * 3_000_000)
    assert s3.behaviour.done == Counter(PUT=1)
    assert len(remote.read("a/b")) == 3_000_000
    assert s3.behaviour.done == Counter(PUT=1, HEAD=1, GET=1)


@pytest.mark.parametrize(
    ("bucket", "said"),
    [
        ("nowhere", "there is no bucket 'nowhere' on http://127.0.0.1:{port}; make it (distmil never does)"),
        (
            DENIED,
            "http://127.0.0.1:{port} denies access to bucket 'denied': look at the credentials (AWS_ACCESS_KEY_ID",
        ),
    ],
)
def test_a_bucket_that_cannot_be_used_is_said(s3, bucket, said):
    with pytest.raises(StorageError) as caught:
        Store(s3.uri("runs", bucket)).check()
    assert f"s3://{bucket}/runs" in str(caught.value)
    assert said.format(port=s3.endpoint.rpartition(":")[2]) in str(caught.value)
    assert not Store(s3.uri("", bucket="nowhere")).names("")


def test_a_missing_bucket_is_not_made(s3):
    for _ in range(2):
        with pytest.raises(StorageError, match="there is no bucket 'nowhere'"):
            Store(s3.uri("runs", "nowhere")).write("a", b"1")


def test_missing_credentials_are_said(s3, tmp_path):
    # in a process of its own: those of this one are found once and kept
    code = f"from distmil.storage.store import Store\nStore({s3.uri('runs')!r}).check()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (
        f"there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write {tmp_path}" in done.stderr
    )


def test_a_dead_server_is_told_soon(s3):
    root = f"s3://{BUCKET}/runs?endpoint_override=http://{HOST}:{free_port()}"
    started = time.monotonic()
    with pytest.raises(
        StorageError, match=r"does not answer; look at the network and at the endpoint .*AWS_ENDPOINT_URL"
    ):
        Store(root).check()
    assert time.monotonic() - started < 20


def test_a_server_that_never_answers_is_given_up(s3, hasty):
    with socket.socket() as mute:
        mute.bind((HOST, 0))
        mute.listen()
        started = time.monotonic()
        with pytest.raises(StorageError, match="does not answer"):
            Store(f"s3://{BUCKET}/runs?endpoint_override=http://{HOST}:{mute.getsockname()[1]}").check()
    assert 2 <= time.monotonic() - started < 10


@pytest.mark.parametrize("call", ["read_record", "read", "exists", "names", "delete"])
def test_a_server_that_fails_is_not_an_absent_file(s3, remote, hasty, call):
    remote.write_record("a", RECORD)
    misbehave(s3, 1, "500")
    with pytest.raises(StorageError, match=r"failed again and again|HTTP status 500"):
        getattr(Store(remote.root), call)("a")
    misbehave(s3, 0)
    assert remote.read_record("a") == RECORD


def test_ray_gets_a_file_system_that_stays_patient(s3, remote, store):
    settings = pickle.loads(pickle.dumps(remote.for_ray("ray-train")))
    filesystem, path = settings["storage_filesystem"], settings["storage_path"]
    assert f"s3://{path}" == remote.path("ray-train").partition("?")[0]
    misbehave(s3, 0.6, "500", "503")  # three attempts, pyarrow's own number, would not do
    for i in range(2):
        filesystem.create_dir(f"{path}/{i}")
        with filesystem.open_output_stream(f"{path}/{i}/marker"):
            pass
    assert s3.behaviour.num_faults > 3
    assert store.for_ray("ray-train") == {"storage_path": f"{store.root}/ray-train"}


def test_threads_write_side_by_side(s3, remote):
    misbehave(s3, 0.1, "500", "lost", "cut")
    threads = [threading.Thread(target=remote.write, args=(f"a/{i}", bytes([i]) * 1000)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    misbehave(s3, 0)
    assert [remote.read(f"a/{i}") for i in range(12)] == [bytes([i]) * 1000 for i in range(12)]


def test_a_copy_is_fetched_once_and_again_when_it_is_not_whole(s3, remote):
    part = remote.write_part("a", "x.arrow", b"content", rows=1)
    path = remote.local_copy("a/x.arrow", part)
    asked = s3.behaviour.done["GET"]
    assert remote.local_copy("a/x.arrow", part) == path
    assert s3.behaviour.done["GET"] == asked
    path.write_bytes(b"cont")
    assert remote.local_copy("a/x.arrow", part).read_bytes() == b"content"
    path.unlink()
    remote.write("a/x.arrow", b"c0ntent")
    with pytest.raises(StorageError, match=r"a/x\.arrow\S* is damaged"):
        remote.local_copy("a/x.arrow", part)
    assert not path.exists()


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


@pytest.mark.parametrize("variable", object_store.ENDPOINT_VARIABLES)
def test_a_root_carries_the_endpoint_of_the_environment(monkeypatch, variable):
    for name in object_store.ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://minio:9000")
    assert resolve_root("s3://bucket/a/") == "s3://bucket/a?endpoint_override=http://minio:9000"
    assert resolve_root(resolve_root("s3://bucket/a")) == resolve_root("s3://bucket/a")
    given = "s3://bucket/a?region=eu&endpoint_override=https://ceph"
    assert resolve_root(given) == given
    assert resolve_root("gs://bucket/a") == "gs://bucket/a"


def test_options_of_a_root_stay_last():
    store = Store("s3://bucket/a?endpoint_override=http://minio:9000&region=eu")
    assert store.path("b/c") == "s3://bucket/a/b/c?endpoint_override=http://minio:9000&region=eu"
    assert Store(store.path("b")).path("c") == store.path("b/c")
    assert Store("gs://bucket").path("b") == "gs://bucket/b"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3:///folder", "expected s3://bucket/folder"),
        (
            "s3://bucket/a?endpoint=http://minio",
            "option endpoint = 'http://minio' is not known; expected any of endpoint_",
        ),
        ("s3://bucket/a?allow_bucket_creation=true", "is not known"),
        ("s3://bucket/a?region=", "each with a value"),
        ("gs://bucket/a?region=eu", "option region = 'eu' is not known"),
        ("s3://key:hunter2@bucket/a", "credentials do not belong into a URI"),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused(uri, said):
    with pytest.raises(ConfigError) as caught:
        resolve_root(uri)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_region_is_the_uris_else_the_environments(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    for query, region in [("?region=eu-west-9", "eu-west-9"), ("", "eu-north-1")]:
        assert open_filesystem(f"s3://of-this-test/a{query}")[0].region == region


def test_a_file_smaller_than_a_refusal_is_asked_for_again(s3, remote, monkeypatch):
    monkeypatch.setattr(object_store.random, "uniform", lambda low, high: 0.01)
    remote.write("tiny.json", b"{}")
    for kind in ("500", "503", "lost"):
        s3.behaviour.kinds, s3.behaviour.share = (kind,), 0.3
        assert [remote.read("tiny.json") for _ in range(5)] == [b"{}"] * 5
        assert s3.behaviour.done[kind] > 0


# --- a configuration on the store --------------------------------------------------------------------------------


def test_a_config_is_taken_by_its_uri(s3, remote, monkeypatch):
    remote.write("searches/mine/best.yaml", "training: {lr: 1e-3}\ncohort: {manifest: /data/ä.csv}\n".encode())
    uri = remote.path("searches/mine/best.yaml")
    config = load_config(uri, ["training.epochs=3"])
    assert (config.training.lr, config.training.epochs, config.cohort.manifest) == (1e-3, 3, "/data/ä.csv")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    assert load_config(uri.partition("?")[0], ["training.epochs=3"]) == config


@pytest.mark.parametrize(
    ("uri", "error", "said"),
    [
        ("s3://bucket/runs/nothing.yaml{}", ConfigError, "cannot read the config s3://bucket/runs/nothing.yaml"),
        ("s3://nowhere/best.yaml{}", ConfigError, "cannot read the config s3://nowhere/best.yaml"),
        ("s3://bucket{}", ConfigError, "expected s3://bucket/file"),
        ("s3://key:hunter2@bucket/best.yaml{}", ConfigError, "--config = 's3://bucket/best.yaml': credentials do not"),
        ("s3://denied/best.yaml{}", StorageError, "denies access to bucket 'denied'"),
        ("s3://bucket/best.yaml?endpoint_override=http://127.0.0.1:9", StorageError, "127.0.0.1:9 does not answer"),
    ],
)
def test_a_config_that_cannot_be_read_from_a_store_is_named(s3, hasty, uri, error, said):
    with pytest.raises(error, match=re.escape(said)) as caught:
        load_config(uri.format(f"?endpoint_override={s3.endpoint}"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("s3://b/a?endpoint_override=http://minio:9000&region=eu", "http://minio:9000"),
        ("s3://b/a?endpoint_override=minio:9000", "https://minio:9000"),
        ("s3://b/a?scheme=http&endpoint_override=minio:9000", "http://minio:9000"),
        ("s3://b/a?region=eu", None),
        ("gs://b/a?endpoint_override=minio:9000", None),
    ],
)
def test_the_address_of_an_s3_server(uri, found):
    assert object_store.s3_endpoint(uri) == found


def test_a_folder_is_deleted_with_all_below_it(any_store):
    for name in ("a/b/c.txt", "a/b/d/e.txt", "a/bb.txt"):
        any_store.write(name, b"x")
    any_store.delete_folder("a/b")
    any_store.delete_folder("a/b")
    assert not any_store.exists("a/b/c.txt")
    assert not any_store.exists("a/b/d/e.txt")
    assert any_store.read("a/bb.txt") == b"x"


def test_a_listing_has_every_file_with_its_size(any_store):
    sizes = {"a/x": 3, "a/b/y": 0, "a/b/c/z": 70, "ab/x": 5, "top": 1}
    before = time.time()
    for name, size in sizes.items():
        any_store.write(name, b"x" * size)
    assert {file.name: file.size_bytes for file in any_store.walk("")} == sizes
    assert [file.name for file in any_store.walk("a")] == ["a/b/c/z", "a/b/y", "a/x"]
    assert [file.name for file in any_store.walk("a", is_deep=False)] == ["a/x"]
    assert [file.name for file in any_store.walk("", is_deep=False)] == ["top"]
    assert any_store.walk("nowhere") == []
    assert all(before - 5 < file.written_s < time.time() + 5 for file in any_store.walk(""))
    assert any_store.folders("") == ["a", "ab"]
    assert any_store.folders("a") == ["b"]
    assert any_store.folders("nowhere") == []


def test_an_empty_folder_is_deleted_and_one_with_a_file_is_not(any_store):
    for name in ("a/b/x", "a/c/d/y"):
        any_store.write(name, b"x")
    any_store.delete("a/b/x")
    any_store.delete_if_empty("a")
    assert any_store.exists("a/c/d/y")
    any_store.delete("a/c/d/y")
    any_store.delete_if_empty("a")
    assert not any_store.exists("a")
    any_store.delete_if_empty("a")


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(store, monkeypatch):
    store.write("a/b/x", b"x")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match=r"cannot list .*: Permission denied"):
        store.walk("a")
