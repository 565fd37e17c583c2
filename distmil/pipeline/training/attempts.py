"""Running workers to their end, through deaths of workers that Ray's own retries do not cover."""

import threading
from collections.abc import Callable

import ray
import ray.exceptions
import ray.train

from distmil.errors import TrainingError
from distmil.pipeline.cluster import start_ray, stop_ray


def run_attempts(attempt: Callable[[], ray.train.Result], *, starts: int, note: Callable[[str], None]) -> None:
    """Run workers to their end; the arguments are those of ``fit_again``.

    Raises:
        TrainingError: If the workers failed more often than they may.
        DistmilError: What the workers returned as the error of all of them.
    """
    try:
        result = fit_again(attempt, starts=starts, note=note)
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"the workers failed: {_root_cause(error)}; the same command goes on") from error
    if failure := (result.return_value or {}).get("error"):
        raise failure


def fit_again(attempt: Callable[[], ray.train.Result], *, starts: int, note: Callable[[str], None]) -> ray.train.Result:
    """Train, and try again after the death of a worker that Ray's own retries do not cover.

    Ray starts workers again if one dies while they are made or train. If a worker dies in between, while the
    workers get their work, the training ends, and they keep their cores until the driver disconnects (Ray 2.60).
    Therefore the driver connects again before it tries again.

    Args:
        attempt: Trains, going on from the run's own checkpoints.
        starts: How often to try again.
        note: Takes a line for the terminal at each further try.

    Raises:
        ray.train.TrainingFailedError: For any other failure, or once more than ``starts`` times.
    """
    for _ in range(starts):
        try:
            return attempt()
        except ray.train.ControllerError as error:
            is_main = threading.current_thread() is threading.main_thread()  # no other can connect again
            if not (is_main and isinstance(error.controller_failure, ray.exceptions.RayActorError)):
                raise
        note("a worker died while the workers were starting; they start again")
        stop_ray()
        start_ray()
    return attempt()


def _root_cause(error: BaseException) -> str:
    """Read the last line of the deepest failure."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__
