"""What several test files share."""

from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits

from distmil.storage.store import Store
from tests.support.data import DATA


@pytest.fixture
def store(tmp_path):
    """An empty store."""
    return Store(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def data():
    """The shared real data, read in place."""
    if not DATA.is_dir():
        pytest.skip(f"the shared data is not at {DATA}; set DISTMIL_DATA")
    return DATA


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """An MLflow database without runs, to be copied; making one takes seconds."""
    from mlflow import MlflowClient  # noqa: PLC0415  # takes seconds, and few tests need it

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


DEAR = (
    "test_docs.py",  # walks the README's way
    *(f"jobs/test_{name}.py" for name in (
        "jobs", "stream", "tune", "interruption", "faults", "s3", "twins", "mlflow_server", "submit", "tile",
        "restarts", "map_slides", "pretrain", "trainable", "store", "features", "export", "engines", "folds",
    )),
    *(f"jobs/test_{name}.py" for name in ("canary", "nodes")),  # they end the Ray that the others of a worker share
    "preflight/test_checks.py", "test_api.py", "encoders/test_networks.py", "pipeline/doctor/test_job.py",
)  # fmt: skip
"""Files of minutes. They come first, so that the many short ones even out at the end what they left uneven."""


def pytest_collection_modifyitems(items):
    """Put dear files first: ``--dist loadfile --no-loadscope-reorder`` hands files out in this order."""
    folder = Path(__file__).parent

    def place(item):
        name = item.path.relative_to(folder).as_posix()
        return DEAR.index(name) if name in DEAR else len(DEAR)

    items.sort(key=place)


def pytest_configure(config):
    """Keep torch and BLAS to one thread: small arrays on many threads spend their time waiting for each other."""
    torch.set_num_threads(1)
    threadpool_limits(limits=1, user_api="blas")
