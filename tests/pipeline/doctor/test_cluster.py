"""What the doctor says of a cluster's nodes; on a cluster: jobs/test_nodes.py."""

from typing import Any

import pytest
from ray.exceptions import RayTaskError

from distmil.pipeline.doctor.cluster import code_version, node_finding
from distmil.pipeline.doctor.finding import FAILED, OK, WARNING

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
