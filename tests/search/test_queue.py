"""What is trained next: every trial once, a lost one again, and nothing that is over."""

from dataclasses import replace

import pytest

from distmil.search.queue import TrialQueue
from distmil.search.samplers import OptunaSampler
from distmil.search.space import Domain
from distmil.search.trial import Trial

TRIALS = [Trial({"bags.top_k": k}, 0, number=i) for i, k in enumerate((1, 2, 4, 8))]


def record(trial: Trial, status: str, number: int = 0) -> Trial:
    return Trial(dict(trial.values), 0, is_repeat=False, number=number, status=status, score=0.5)  # type: ignore[arg-type]


def test_what_is_over_is_not_handed_out_and_what_was_interrupted_or_failed_is() -> None:
    statuses = dict(zip((trial.key for trial in TRIALS), ("finished", "running", "failed", "stopped"), strict=True))
    known = {trial.key: record(trial, statuses[trial.key], number=9) for trial in TRIALS}
    queue = TrialQueue(TRIALS, known=known, max_lost=0)
    assert [(found.values["bags.top_k"], found.number) for found in queue.over] == [(1, 0), (8, 3)]
    assert list(iter(queue.next, None)) == TRIALS[1:3]
    assert not queue.is_done
    for trial in TRIALS[1:3]:
        queue.end(trial, 0.5)
    assert queue.is_done


def test_a_lost_task_comes_next_until_it_was_lost_too_often() -> None:
    queue = TrialQueue(TRIALS, known={}, max_lost=2)
    starts = []
    while (trial := queue.next()) is not None:
        starts.append(trial)
        if trial == TRIALS[1] and queue.lose(trial):
            continue
        queue.end(trial, None)
    assert starts == [TRIALS[0], *[TRIALS[1]] * 3, *TRIALS[2:]]
    assert queue.is_done


@pytest.mark.parametrize("at_once", [1, 3])
def test_optuna_draws_every_setting_once_though_the_space_is_small(at_once: int) -> None:
    pytest.importorskip("optuna")
    space = {"bags.top_k": Domain("choice", (1, 2, 4)), "losses.bag": Domain("choice", (0.5, 1.0))}

    def make(values):
        return Trial(values, 0)

    first = make({"bags.top_k": 4, "losses.bag": 1.0})
    queue = TrialQueue(
        [first], known={}, max_lost=0, sampler=OptunaSampler(space, seed=0, results=[]), make=make, count=6
    )
    running, starts, numbers = [], [], []
    while not queue.is_done:
        while len(running) < at_once and (trial := queue.next()) is not None:
            running.append(trial)
            starts.append(trial.key)
            numbers.append(trial.number)
        trial = running.pop(0)
        queue.end(trial, float(trial.values["bags.top_k"]))
    assert len(starts) == len(set(starts)) == 6
    assert (starts[0], numbers) == (first.key, [0, 1, 2, 3, 4, 5])


def test_a_resumed_optuna_goes_on_with_other_draws() -> None:
    pytest.importorskip("optuna")
    space = {"losses.bag": Domain("loguniform", (0.1, 10.0))}
    values = [{"losses.bag": value} for value in (1.0, 2.0, 5.0)]
    results = [replace(record(Trial(v, 0), "finished"), score=v["losses.bag"]) for v in values]

    def drawn(known: int) -> list[float]:
        sampler = OptunaSampler(space, seed=3, results=results[:known])
        return [sampler.ask(lambda _: True)["losses.bag"] for _ in range(3)]

    assert drawn(2) == drawn(2)
    assert not set(drawn(2)) & set(drawn(3))
    assert all(0.1 <= value <= 10 for value in drawn(2))


def ended(number, status, score):
    return Trial({"bags.top_k": number}, 0, False, number, status, [{}], score)


def test_the_best_trial_is_handed_out_again_where_all_were_ended_early():
    trials = [ended(0, "stopped", 0.4), ended(1, "stopped", 0.6), ended(2, "stopped", 0.6)]
    queue = TrialQueue(trials, known={trial.key: trial for trial in trials}, max_lost=0)
    assert queue.is_done
    assert queue.reopen([*trials, ended(3, "failed", None)]) == trials[1]
    assert not queue.is_done
    assert queue.next() == trials[1]
    queue.end(trials[1], 0.7)
    assert queue.is_done


@pytest.mark.parametrize("statuses", [["finished", "stopped"], ["failed", "failed"], []])
def test_no_trial_is_handed_out_again_where_one_finished_or_none_was_ended_early(statuses):
    trials = [ended(i, status, None if status == "failed" else 0.5) for i, status in enumerate(statuses)]
    queue = TrialQueue(trials, known={trial.key: trial for trial in trials}, max_lost=0)
    assert queue.reopen(trials) is None
    assert queue.next() == next((trial for trial in trials if trial.status == "failed"), None)
