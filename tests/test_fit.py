"""The worker group's own failures, with groups that only seem to train."""

import pytest
import ray.exceptions
import ray.train

from distmil.stages.fit import fit_again


class Group:
    """Ends as it is told."""

    def __init__(self, failure: Exception | None) -> None:
        self.failure = failure

    def fit(self) -> str:
        if self.failure is not None:
            raise self.failure
        return "trained"


def died() -> ray.train.ControllerError:
    return ray.train.ControllerError(ray.exceptions.ActorDiedError())


def run(*failures: Exception | None, starts: int) -> tuple[str, list[str]]:
    notes: list[str] = []
    first, *others = map(Group, failures)
    rest = iter(others)
    return fit_again(first, lambda: next(rest), starts=starts, note=notes.append), notes


def test_a_worker_that_dies_as_its_group_is_handed_the_work_costs_a_start() -> None:
    assert run(None, starts=0) == ("trained", [])
    found, notes = run(died(), died(), None, starts=2)
    assert found == "trained"
    assert notes == 2 * ["a worker died while its group was starting; the group starts again"]


def test_there_are_no_more_starts_than_allowed() -> None:
    with pytest.raises(ray.train.ControllerError):
        run(died(), None, starts=0)
    with pytest.raises(ray.train.ControllerError):
        run(died(), died(), died(), None, starts=2)


@pytest.mark.parametrize(
    "failure",
    [ray.train.ControllerError(ValueError("a mistake")), ray.train.WorkerGroupError("failed", {0: ValueError("nan")})],
)
def test_other_failures_are_not_tried_again(failure: Exception) -> None:
    with pytest.raises(type(failure)):
        run(failure, None, starts=3)
