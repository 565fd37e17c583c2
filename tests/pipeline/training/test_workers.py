"""The workers' own failures, with workers that only seem to train."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray.exceptions
import ray.train

from distmil.pipeline.training.attempts import fit_again


def died() -> ray.train.ControllerError:
    return ray.train.ControllerError(ray.exceptions.ActorDiedError())


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done to the connection to Ray."""
    done: list[str] = []
    monkeypatch.setattr("distmil.pipeline.training.attempts.stop_ray", lambda: done.append("shutdown"))
    monkeypatch.setattr("distmil.pipeline.training.attempts.start_ray", lambda: done.append("start"))
    return done


def run(*failures: Exception | None, starts: int) -> tuple[str, list[str]]:
    """Attempts that end in these failures, or in none."""
    notes: list[str] = []
    rest = iter(failures)

    def attempt() -> Any:
        failure = next(rest)
        if failure is not None:
            raise failure
        return "trained"

    return fit_again(attempt, starts=starts, note=notes.append), notes


def test_a_worker_that_dies_as_it_is_handed_the_work_costs_a_start(connections: list[str]) -> None:
    assert run(None, starts=0) == ("trained", [])
    found, notes = run(died(), died(), None, starts=2)
    assert found == "trained"
    assert connections == ["shutdown", "start", "shutdown", "start"]
    assert notes == 2 * ["a worker died while the workers were starting; they start again"]


@pytest.mark.usefixtures("connections")
def test_there_are_no_more_starts_than_allowed() -> None:
    with pytest.raises(ray.train.ControllerError):
        run(died(), None, starts=0)
    with pytest.raises(ray.train.ControllerError):
        run(died(), died(), died(), None, starts=2)


def test_a_thread_that_is_not_the_main_one_does_not_connect_anew(connections: list[str]) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(ray.train.ControllerError):
        pool.submit(run, died(), None, starts=3).result()
    assert not connections


@pytest.mark.parametrize(
    "failure",
    [ray.train.ControllerError(ValueError("a mistake")), ray.train.WorkerGroupError("failed", {0: ValueError("nan")})],
)
def test_other_failures_are_not_tried_again(failure: Exception, connections: list[str]) -> None:
    with pytest.raises(type(failure)):
        run(failure, None, starts=3)
    assert not connections
