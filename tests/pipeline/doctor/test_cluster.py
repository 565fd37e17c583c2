"""The doctor's look at a cluster: a node that does not see the store, and nodes with other versions."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from ray.exceptions import RayTaskError

from distmil.pipeline.doctor.cluster import code_version, node_finding
from distmil.pipeline.doctor.finding import FAILED, OK, WARNING
from distmil.pipeline.doctor.job import CLUSTER

OWN = code_version()
NODE: dict[str, Any] = {
    "NodeManagerHostname": "gpu-1",
    "NodeManagerAddress": "10.0.0.7",
    "NodeID": "0123456789abcdef",
    "Resources": {"CPU": 8.0, "GPU": 1.0, "memory": 16.0 * 2**30},
}
HAS = "8 CPUs, 1 GPUs, 16.0 GiB of memory; "


@pytest.mark.parametrize(
    ("answer", "level", "text", "advice"),
    [
        ((OWN, ""), OK, "equal versions; can use the storage", ""),
        ((OWN, None), OK, "equal versions", ""),
        (TimeoutError("no answer in time"), WARNING, "TimeoutError: no answer in time", "ray status"),
        (
            ("distmil 0.0.9, source ffff", "broken"),
            FAILED,
            f"other code: distmil 0.0.9, source ffff, here {OWN}",
            "--working-dir",
        ),
        (
            RayTaskError("look", "Traceback\nModuleNotFoundError: No module named 'distmil'\n", ImportError()),
            FAILED,
            "distmil does not run there: ModuleNotFoundError: No module named 'distmil'",
            "--working-dir",
        ),
        (
            (OWN, "it does not see this folder"),
            FAILED,
            "storage.root = '/data' cannot be used: it does not see this folder",
            "mount one shared folder",
        ),
    ],
)
def test_a_node_is_compared_with_the_driver(answer: Any, level: str, text: str, advice: str) -> None:
    found = node_finding(NODE, answer, "/data")
    assert (found.level, found.name, found.text) == (level, "node gpu-1 (10.0.0.7, 01234567)", HAS + text)
    assert advice in found.advice


def test_an_object_store_needs_credentials() -> None:
    found = node_finding(NODE, (OWN, "there are no credentials"), "s3://bucket/data")
    assert found.level == FAILED
    assert "ray job submit --runtime-env-json" in found.advice


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A head that does not work, a node in the driver's folder, and a node in another one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "RAY_"))]:
            patch.delenv(name)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name in ("here", "elsewhere"):
            (tmp_path / name).mkdir()
        patch.chdir(tmp_path / "here")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1)
            patch.chdir(tmp_path / "elsewhere")
            cluster.add_node(num_cpus=3)
            patch.chdir(tmp_path / "here")
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
        finally:
            cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_node_that_does_not_see_the_store_is_named(cluster: Cluster, tmp_path: Path) -> None:
    # In each process another folder, as a path is on each machine's own disk.
    total, *nodes = CLUSTER.run(root="/proc/self/cwd/store")
    assert total.text.startswith("3 nodes, 4 CPUs, 0 GPUs; Ray "), total
    by_cpus = {node.text.partition(" ")[0]: node for node in nodes}
    assert set(by_cpus) == {"0", "1", "3"}
    assert by_cpus["1"].level == OK
    assert by_cpus["1"].text.endswith("equal versions; can use the storage")
    assert by_cpus["3"].level == FAILED
    assert by_cpus["3"].text.endswith("'/proc/self/cwd/store' cannot be used: it does not see this folder")
    assert "mount one shared folder" in by_cpus["3"].advice
    assert list((tmp_path / "here" / "store").iterdir()) == []
    assert not (tmp_path / "elsewhere" / "store").exists()
