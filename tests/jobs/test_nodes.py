"""The look that every node of a cluster takes at the store before work starts, and for the doctor."""

import contextlib
import errno
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console as RichConsole

from distmil.config.root import Config
from distmil.console import Console
from distmil.errors import ConfigError, DistmilError, StorageError
from distmil.pipeline import nodes
from distmil.pipeline.doctor.finding import FAILED, OK
from distmil.pipeline.doctor.job import CLUSTER
from distmil.pipeline.job import Job
from distmil.pipeline.nodes import check_answers, check_cluster, check_nodes, look_at_store
from distmil.storage import files
from distmil.storage.roots import resolve_root
from distmil.storage.store import Store
from tests.support.s3_server import BUCKET, KEYS, s3_server

pytestmark = pytest.mark.usefixtures("no_ray")  # the driver connects to clusters of these tests

on_cluster = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]  # Ray's warnings, in this process


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the cluster's head and of one of its nodes."""
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the other node."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def cluster(no_ray: None, here: Path, elsewhere: Path) -> Iterator[Cluster]:
    """A head that does not work and two nodes that do, one of them elsewhere; none may use any object store."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "RAY_"))]:
            patch.delenv(name)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with contextlib.chdir(here):
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for folder, cores in ((here, 1), (elsewhere, 3)):
                with contextlib.chdir(folder):
                    cluster.add_node(num_cpus=cores)
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def connected(cluster: Cluster) -> Iterator[None]:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def make_job(store: Store) -> Job:
    return Job(Config(), store, Console(RichConsole(file=io.StringIO(), soft_wrap=True)))


def said(job: Job) -> str:
    assert isinstance(job.console.rich.file, io.StringIO)
    return job.console.rich.file.getvalue()


class TestOnACluster:
    pytestmark = on_cluster

    def test_a_folder_that_all_nodes_see_is_taken(self, connected: None, store: Store) -> None:
        job = make_job(store)
        check_nodes(job)
        assert store.names("") == []
        assert said(job) == ""

    def test_a_folder_that_only_the_driver_sees_is_refused(
        self, connected: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        store = Store("/proc/self/cwd/store")  # in each process another folder, as a path is on each machine's own disk
        with pytest.raises(ConfigError) as caught:
            check_nodes(make_job(store))
        assert "storage.root = '/proc/self/cwd/store' cannot be used on 2 of 2 other nodes: " in str(caught.value)
        assert "it does not see this folder. Work done there would be lost; mount one shared folder" in str(
            caught.value
        )
        for node in ray.nodes():
            is_named = node["NodeID"][:8] in str(caught.value)
            assert is_named is (node["Resources"].get("CPU", 0) > 0)

    def test_an_object_store_must_be_open_to_all_nodes(
        self, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with s3_server(tmp_path / "log") as s3:
            for name, value in s3.environment.items():  # of the driver alone
                monkeypatch.setenv(name, value)
            job = make_job(Store(resolve_root(f"s3://{BUCKET}/runs")))
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            try:
                with pytest.raises(StorageError) as caught:
                    check_nodes(job)
            finally:
                ray.shutdown()
            assert "cannot be used on 2 of 2 other nodes" in str(caught.value)
            assert "there are no credentials; set AWS_ACCESS_KEY_ID" in str(caught.value)
            assert "ray job submit --runtime-env-json" in str(caught.value)
            # what the message says: keys for this job; the endpoint is in the root already
            environment = {"env_vars": dict(KEYS)}
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", runtime_env=environment)
            try:
                check_nodes(job)
            finally:
                ray.shutdown()
            assert job.store.names("") == []

    def test_a_job_that_joins_a_cluster_looks(
        self, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        monkeypatch.chdir(tmp_path)
        try:
            with pytest.raises(ConfigError, match="does not see this folder"):
                check_cluster(make_job(Store("/proc/self/cwd/store")))
        finally:
            ray.shutdown()

    def test_the_doctor_names_the_node_that_does_not_see_the_store(
        self, cluster: Cluster, here: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        monkeypatch.chdir(here)
        try:
            total, *nodes = CLUSTER.run(root="/proc/self/cwd/store")
        finally:
            ray.shutdown()
        assert total.text.startswith("3 nodes, 4 CPUs, 0 GPUs; Ray "), total
        by_cpus = {node.text.partition(" ")[0]: node for node in nodes}
        assert set(by_cpus) == {"0", "1", "3"}
        assert by_cpus["1"].level == OK
        assert by_cpus["1"].text.endswith("equal versions; can use the storage")
        assert by_cpus["3"].level == FAILED
        assert by_cpus["3"].text.endswith("'/proc/self/cwd/store' cannot be used: it does not see this folder")
        assert "mount one shared folder" in by_cpus["3"].advice
        assert list((here / "store").iterdir()) == []
        assert not (elsewhere / "store").exists()


def test_a_job_alone_does_not_start_ray_to_look(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    started = time.monotonic()
    check_cluster(make_job(store))
    assert not ray.is_initialized()
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("answers", [{}, {"a": ""}, {"a": "", "b": None}])
def test_nodes_without_a_complaint_pass(store: Store, answers: dict[str, str | None]) -> None:
    check_answers(store, answers)


@pytest.mark.parametrize(
    ("root", "kind", "advice"),
    [
        ("/data/runs", ConfigError, "mount one shared folder at this path on all nodes"),
        ("s3://bucket/runs", StorageError, "give all nodes the credentials"),
    ],
)
def test_nodes_that_complain_are_named(root: str, kind: type[DistmilError], advice: str) -> None:
    answers: dict[str, str | None] = {f"node-{i}": "no such bucket" if i % 2 else "" for i in range(14)}
    with pytest.raises(kind) as caught:
        check_answers(Store(root), answers)
    text = "cannot be used on 7 of 14 other nodes: node-1, node-3, node-5, node-7, node-9, ...: no such bucket. "
    assert f"storage.root = {root!r} {text}" in str(caught.value)
    assert advice in str(caught.value)


def test_a_folder_is_looked_at_without_making_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "SEEN_WITHIN_S", 0.2)
    assert look_at_store(str(tmp_path / "absent"), "marker") == "it does not see this folder"
    assert not (tmp_path / "absent").exists()
    store = Store(str(tmp_path / "there"))
    store.write("marker", b"1")
    assert look_at_store(store.root, "marker") == ""
    assert store.names("") == ["marker"]


def test_a_folder_that_cannot_be_written_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    store.write("marker", b"1")
    monkeypatch.setattr(files, "write_whole", refuse)
    assert look_at_store(store.root, "marker").startswith(f"cannot write {store.root}/.probe-")
