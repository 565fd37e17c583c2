"""The viewer on finished predictions, served in this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distmil.config.loading import build_config
from distmil.pipeline.job import Job
from distmil.viewing.library import Library
from distmil.viewing.server import bind, serve
from tests.support.predicted import Predicted


def job_of(predicted: Predicted, *, run: str | None = None, **view: Any) -> Job:
    """Make the job `view` of these predictions."""
    config = build_config(
        {"cohort": {"manifest": str(predicted.manifest)}, "prediction": {"model": "a-run", "run": run}, "view": view}
    )
    return Job(config, predicted.store)


@contextmanager
def served(library: Library) -> Iterator[str]:
    """Serve on a free port, and give its address."""
    listener = bind("127.0.0.1", 0)
    server = serve(library, host="127.0.0.1")
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
