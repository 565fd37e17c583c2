"""Search spaces, trials and comparisons: what is accepted, refused, and concluded."""

from typing import Any

import pytest

from distmil.config.loading import build_config, load_config
from distmil.config.root import Config
from distmil.errors import ConfigError
from distmil.search.space import Domain, check_folds, default_values, read_space, with_values
from distmil.search.trial import Trial, best_trial, score_of


def config_with(space: dict[str, Any], **search: Any) -> Config:
    return build_config({"search": {"space": space, **search}})


def test_the_default_space_holds_k_and_the_four_loss_weights() -> None:
    space = read_space(Config())
    assert list(space) == ["bags.top_k", "losses.patch", "losses.bag", "losses.topk", "losses.attention"]
    assert all(value in space[key] for key, value in default_values(Config(), space).items())


def test_lists_nested_sections_and_dotted_keys_say_the_same() -> None:
    dotted = read_space(config_with({"bags.top_k": {"choice": [2, 4]}, "training.lr": {"loguniform": [1e-4, 1e-2]}}))
    nested = read_space(config_with({"bags": {"top_k": [2, 4]}, "training": {"lr": {"loguniform": [1e-4, 1e-2]}}}))
    given = read_space(
        load_config(None, ["search.space.bags.top_k=[2, 4]", "search.space.training.lr.loguniform=[1e-4, 1e-2]"])
    )
    assert dotted == nested == given


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"bags.topk": [2]}, r"search\.space\.bags\.topk: there is no such key"),
        ({"tiling.patch_px": [96]}, r"search\.space\.tiling\.patch_px: there is no such key in bags, model"),
        ({"training.seed": [1, 2]}, "the same for all trials"),
        ({"training.epochs": [1, 2]}, "the same for all trials"),
        ({"training.num_workers": [1, 2]}, "the same for all trials"),
        ({"bags.top_k": []}, r"bags\.top_k = .*expected a list of values"),
        ({"bags.top_k": [0]}, r"search\.space\.bags\.top_k = 0: expected an integer >= 1"),
        ({"bags.top_k": [8, "many"]}, r"bags\.top_k = 'many': expected an integer"),
        ({"bags.top_k": {"uniform": [1, 8]}}, None),
        ({"bags.top_k": {"range": [1, 8]}}, "one of choice"),
        ({"bags.top_k": {"int": [1, 8.5]}}, "two integers"),
        ({"losses.bag": {"uniform": [1]}}, "two numbers, the smaller first"),
        ({"losses.bag": {"uniform": [2, 1]}}, "two numbers, the smaller first"),
        ({"losses.bag": {"loguniform": [0, 1]}}, "starts above 0"),
        ({"losses.bag": {"uniform": [0, 5000]}}, r"losses\.bag = 5000: expected a number"),
        ({"losses.bag": {"uniform": [0, float("nan")]}}, "two numbers"),
        ({"losses.bag": 3}, "expected a list of values"),
        ({"model.name": ["dual", "duel"]}, r"model\.name = 'duel'"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_in_words(space: dict[str, Any], message: str | None) -> None:
    if message is None:
        with pytest.raises(ConfigError, match="needs whole numbers"):
            read_space(config_with(space))
        return
    with pytest.raises(ConfigError, match=message):
        read_space(config_with(space))


def test_values_are_as_the_configuration_has_them_and_each_is_there_once() -> None:
    space = read_space(config_with({"losses.bag": [0, 0.0, 1], "losses.topk": {"int": [0, 2]}, "bags.top_k": [4, 4]}))
    assert space["losses.bag"].values == (0.0, 1.0)
    assert space["bags.top_k"].values == (4,)
    assert all(type(value) is float for key in ("losses.bag", "losses.topk") for value in space[key].values)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_space(config_with({"bags.topk": [2], "losses.bag": 3, "training.seed": [1]}))
    assert len(str(caught.value).splitlines()) == 3


def test_a_grid_needs_choices() -> None:
    with pytest.raises(ConfigError, match=r"losses\.bag: a grid needs choices"):
        read_space(config_with({"losses.bag": {"uniform": [0, 1]}}, algorithm="grid"))


@pytest.mark.parametrize("search", [{"folds": 1}, {"repeats": 1}, {"space": {}}, {"reduction": 1.0}, {"trials": 0}])
def test_settings_out_of_range_are_refused(search: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"search.{next(iter(search))}"):
        build_config({"search": search})


def test_folds_are_refused_for_trials_of_several_workers() -> None:
    check_folds(build_config({"search": {"folds": 5}}))
    check_folds(build_config({"training": {"num_workers": 2}}))
    with pytest.raises(ConfigError, match=r"search\.folds = 5: a trial with training\.num_workers = 2"):
        check_folds(build_config({"search": {"folds": 5}, "training": {"num_workers": 2}}))


def test_a_trial_is_named_by_what_it_trains() -> None:
    one = Trial({"bags.top_k": 4, "losses.bag": 1.0}, seed=0)
    assert one.key == Trial({"losses.bag": 1.0, "bags.top_k": 4}, seed=0).key
    others = [Trial(one.values, seed=1), Trial(one.values, seed=0, is_repeat=True), Trial({"bags.top_k": 4}, seed=0)]
    others.append(Trial(one.values, seed=0, claim="the same name on other slides"))
    assert len({one.key, *(other.key for other in others)}) == 5


def record(number: int, score: float | None, status: Any = "finished") -> Trial:
    return Trial({"bags.top_k": number}, 0, is_repeat=False, number=number, status=status, score=score)


def test_only_trials_that_went_to_the_end_can_win() -> None:
    records = [record(0, 0.5), record(1, 0.9, "stopped"), record(2, None), record(3, 0.6), record(4, 0.6)]
    best = best_trial(records)
    assert best is not None
    assert best.number == 3
    assert best_trial([record(0, 0.9, "failed")]) is None


def test_scores_are_higher_where_trials_are_better() -> None:
    row = {"val_slide_loss": 0.4, "val_slide_auc": 0.8, "held_out_slide_auc": 0.7}
    assert score_of(row, "loss") == -0.4
    assert score_of(row, "slide_auc") == 0.8
    assert score_of(row, "slide_auc", "held_out_") == 0.7
    assert score_of(row, "slide_ap") is None


def test_values_are_laid_over_the_configuration() -> None:
    config = with_values(Config(), {"losses.bag": 0.25, "training.seed": 7})
    assert (config.losses.bag, config.training.seed, config.losses.patch) == (0.25, 7, 1.0)


def test_a_domain_knows_what_it_holds() -> None:
    assert 3 in Domain("int", (1, 8))
    assert 9 not in Domain("int", (1, 8))
    assert 0.5 in Domain("loguniform", (0.1, 1))
    assert "x" not in Domain("uniform", (0, 1))
    assert True in Domain("choice", (True, False))
