"""What several test files share."""

import pytest
import torch

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


def pytest_configure(config):
    """Keep torch to one thread: small tensors on many threads spend their time waiting for each other."""
    torch.set_num_threads(1)
