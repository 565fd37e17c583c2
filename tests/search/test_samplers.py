"""Draws from a space: what is in it, reproducible, and no setting twice."""

import itertools

import numpy as np
import pytest

from distmil.search.samplers import OptunaSampler, all_values, draw_ahead, num_settings, random_values
from distmil.search.space import Domain
from distmil.search.trial import Trial

SMALL = {"bags.top_k": Domain("choice", (1, 2, 4)), "losses.bag": Domain("int", (0.0, 2.0))}
WIDE = {
    "bags.top_k": Domain("int", (1, 4)),
    "losses.bag": Domain("loguniform", (0.1, 10.0)),
    "model.dropout": Domain("uniform", (0.0, 0.5)),
    "losses.ramp": Domain("choice", ({}, {"topk": 5})),
}
DEFAULT = {"bags.top_k": 4, "losses.bag": 1.0}


def test_settings_are_counted_where_they_can_be() -> None:
    assert num_settings(SMALL) == 9 == len(list(all_values(SMALL)))
    assert num_settings(WIDE) is None
    assert all(type(values["losses.bag"]) is float for values in all_values(SMALL))


def test_random_draws_lie_in_the_space_and_fill_it() -> None:
    drawn = list(itertools.islice(random_values(WIDE, seed=1), 2000))
    assert all(values[key] in domain for values in drawn for key, domain in WIDE.items())
    assert {values["bags.top_k"] for values in drawn} == {1, 2, 3, 4}
    assert np.median([values["losses.bag"] for values in drawn]) == pytest.approx(1.0, rel=0.1)
    assert np.median([values["model.dropout"] for values in drawn]) == pytest.approx(0.25, rel=0.1)


def test_more_trials_begin_with_those_that_were() -> None:
    space = {"bags.top_k": WIDE["bags.top_k"], "losses.bag": WIDE["losses.bag"]}
    few, _ = draw_ahead(space, DEFAULT, algorithm="random", count=4, seed=0)
    more, count = draw_ahead(space, DEFAULT, algorithm="random", count=9, seed=0)
    assert more[:4] == few
    assert more[0] == DEFAULT
    assert len(more) == count == 9


@pytest.mark.parametrize("algorithm", ["random", "optuna", "grid"])
def test_a_space_smaller_than_the_trials_is_gone_through_whole(algorithm: str) -> None:
    settings, count = draw_ahead(SMALL, DEFAULT, algorithm=algorithm, count=20, seed=0)
    assert count == 9
    assert settings[0] == DEFAULT
    assert sorted(map(str, settings)) == sorted(map(str, all_values(SMALL)))


def test_random_draws_on_a_small_space_repeat_nothing() -> None:
    settings, count = draw_ahead(SMALL, DEFAULT, algorithm="random", count=8, seed=0)
    assert len({str(values) for values in settings}) == count == 8


def test_a_default_outside_the_space_is_not_tried() -> None:
    settings, _ = draw_ahead(SMALL, {"bags.top_k": 8, "losses.bag": 1.0}, algorithm="random", count=3, seed=0)
    assert all(values["bags.top_k"] != 8 for values in settings)
    assert draw_ahead(SMALL, DEFAULT, algorithm="optuna", count=3, seed=0) == ([DEFAULT], 3)


def test_optuna_learns_from_what_it_is_told() -> None:
    pytest.importorskip("optuna")
    sampler, scores = OptunaSampler(WIDE, seed=0, results=[]), []
    for _ in range(40):
        values = sampler.ask(lambda _: True)
        assert all(values[key] in domain for key, domain in WIDE.items())
        scores.append(-abs(np.log(values["losses.bag"] / 5)) - (values["losses.ramp"] == {}))
        sampler.tell(values, scores[-1])
    assert np.mean(scores[20:]) > np.mean(scores[:10]) + 0.3
    known = [Trial({**values}, 0, False, 0, "finished", score=1.0) for values in [values]]
    OptunaSampler(WIDE, seed=0, results=known).tell(values, None)
