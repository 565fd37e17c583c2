"""What is trained next: every task once, a lost one again, and nothing that is over."""

from dataclasses import replace

import pytest

from distmil.search.queue import TrialQueue
from distmil.search.samplers import OptunaSampler
from distmil.search.space import Domain, Task, TrialRecord

TASKS = [Task({"bags.top_k": k}, 0) for k in (1, 2, 4, 8)]


def record(task: Task, status: str, number: int = 0) -> TrialRecord:
    return TrialRecord(dict(task.values), 0, is_repeat=False, number=number, status=status, score=0.5)  # type: ignore[arg-type]


def test_what_is_over_is_not_handed_out_and_what_was_interrupted_or_failed_is() -> None:
    statuses = dict(zip((task.key for task in TASKS), ("finished", "running", "failed", "stopped"), strict=True))
    known = {task.key: record(task, statuses[task.key], number=9) for task in TASKS}
    queue = TrialQueue(TASKS, known=known, max_lost=0)
    assert [(found.values["bags.top_k"], found.number) for found in queue.over] == [(1, 0), (8, 3)]
    assert list(iter(queue.next, None)) == TASKS[1:3]
    assert not queue.is_done
    for task in TASKS[1:3]:
        queue.end(task, 0.5)
    assert queue.is_done


def test_a_lost_task_comes_next_until_it_was_lost_too_often() -> None:
    queue = TrialQueue(TASKS, known={}, max_lost=2)
    starts = []
    while (task := queue.next()) is not None:
        starts.append(task)
        if task is TASKS[1] and queue.lose(task):
            continue
        queue.end(task, None)
    assert starts == [TASKS[0], *[TASKS[1]] * 3, *TASKS[2:]]
    assert queue.is_done


@pytest.mark.parametrize("at_once", [1, 3])
def test_optuna_draws_every_setting_once_though_the_space_is_small(at_once: int) -> None:
    pytest.importorskip("optuna")
    space = {"bags.top_k": Domain("choice", (1, 2, 4)), "losses.bag": Domain("choice", (0.5, 1.0))}

    def make(values):
        return Task(values, 0)

    first = make({"bags.top_k": 4, "losses.bag": 1.0})
    queue = TrialQueue(
        [first], known={}, max_lost=0, sampler=OptunaSampler(space, seed=0, results=[]), make=make, count=6
    )
    running, starts = [], []
    while not queue.is_done:
        while len(running) < at_once and (task := queue.next()) is not None:
            running.append(task)
            starts.append(task.key)
        task = running.pop(0)
        queue.end(task, float(task.values["bags.top_k"]))
    assert len(starts) == len(set(starts)) == 6
    assert [queue.number(Task(task, 0)) for task in (first.values,)] == [0]


def test_a_resumed_optuna_goes_on_with_other_draws() -> None:
    pytest.importorskip("optuna")
    space = {"losses.bag": Domain("loguniform", (0.1, 10.0))}
    values = [{"losses.bag": value} for value in (1.0, 2.0, 5.0)]
    results = [replace(record(Task(v, 0), "finished"), score=v["losses.bag"]) for v in values]

    def drawn(known: int) -> list[float]:
        sampler = OptunaSampler(space, seed=3, results=results[:known])
        return [sampler.ask(lambda _: True)["losses.bag"] for _ in range(3)]

    assert drawn(2) == drawn(2)
    assert not set(drawn(2)) & set(drawn(3))
    assert all(0.1 <= value <= 10 for value in drawn(2))
