"""One local Ray for all tests of a worker that need no process of their own."""

import os
from collections.abc import Iterator

import pytest
import ray
import ray.data

from tests.support.s3_server import KEYS

OUTER = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's workers step back for everything else, and here that is other tests
    "OMP_NUM_THREADS": "1",
    **KEYS,  # for the S3 server of these tests
}


@pytest.fixture(scope="package")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Ray and its workers are started with; at the end of the folder Ray ends."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        for name, value in OUTER.items():
            patch.setenv(name, value)
        patch.setenv("DISTMIL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def local_ray(_environment: None) -> None:
    """A local Ray with two cores and a GPU that is only counted; it goes on from module to module.

    It is started as a job starts its own: under the umask of a job.
    """
    mask = os.umask(0o077)
    try:
        if not ray.is_initialized():
            ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False,
                     logging_level="ERROR")  # fmt: skip
    finally:
        os.umask(mask)
    ray.data.DataContext.get_current().enable_progress_bars = False


@pytest.fixture(scope="module")
def no_ray() -> None:
    """No Ray in this process: one that an earlier module left ends."""
    ray.shutdown()
