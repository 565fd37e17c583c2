"""Where the record is kept, how a run ends, and how long a server that does not answer is left alone. No MLflow."""

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from distmil.storage.object_store import s3_endpoint, without_options
from distmil.storage.roots import DEFAULT_ROOT

Row = Mapping[str, float | None]

RETRY_S = 30.0
# A call that takes long to fail waits longer for its next try: at most this share of the time goes into failing.
MAX_SHARE = 0.1
S3_VARIABLE = "MLFLOW_S3_ENDPOINT_URL"


class RunGone(Exception):
    """The run was deleted in MLflow."""


def resolve_uri(uri: str | None, root: str) -> str | None:
    """Resolve the tracking URI: the given one, else SQLite under a local storage root, else under ``~/.distmil``."""
    if uri is not None:
        return None if uri == "none" else uri
    folder = Path(DEFAULT_ROOT).expanduser() if "://" in root else Path(root)
    return f"sqlite:///{folder / 'mlflow.db'}"


def artifact_location(folder: str) -> str:
    """Write a folder or URI as MLflow takes it, and let MLflow's S3 client find the server that the URI names."""
    if "://" not in folder:
        return folder
    if endpoint := s3_endpoint(folder):
        os.environ.setdefault(S3_VARIABLE, endpoint)
    return without_options(folder)


@dataclass
class Outage:
    """Since when a server does not answer, and when it is asked again."""

    began: datetime | None = None
    retry_at_s: float = 0.0

    def fail(self, *, took_s: float) -> bool:
        """Note a failed call and how long it took, and return whether the outage begins with it."""
        self.retry_at_s = time.monotonic() + max(RETRY_S, took_s / MAX_SHARE)
        is_new = self.began is None
        self.began = self.began or datetime.now().astimezone()
        return is_new

    def may_try(self) -> bool:
        """Return whether a call is worth its time."""
        return self.began is None or time.monotonic() >= self.retry_at_s

    def end(self) -> datetime | None:
        """Note an answer, and return when the outage began that it ended."""
        began, self.began = self.began, None
        return began


@functools.cache
def outage_of(uri: str) -> Outage:
    """Return the outage of a server, which all runs of this process share."""
    return Outage()


@contextmanager
def closing_run(finish: Callable[[str], object]) -> Iterator[None]:
    """Call ``finish`` with how the block ended: FINISHED, KILLED if it was interrupted, or FAILED."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        finish(status)


def in_short(error: BaseException) -> str:
    """Word an error in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def clock(moment: datetime) -> str:
    """Word a time of day."""
    return f"{moment:%H:%M:%S}"
