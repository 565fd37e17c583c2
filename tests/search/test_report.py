"""The end of a search: its verdict, tables, files and answer."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from distmil.config.loading import build_config, load_config
from distmil.console import Console
from distmil.search.comparison import Spread
from distmil.search.report import Outcome, write_report
from distmil.search.space import Domain
from distmil.search.trial import Trial
from distmil.storage.store import Store

SPACE = {"bags.top_k": Domain("choice", (2, 8)), "losses.bag": Domain("loguniform", (0.1, 10.0))}
DEFAULT = {"bags.top_k": 8, "losses.bag": 1.0}
BEST = {"bags.top_k": 2, "losses.bag": 0.5}


def make_outcome(best: tuple[float, ...], default: tuple[float, ...], **changed: Any) -> Outcome:
    winner = Trial(dict(BEST), 0, is_repeat=False, number=1, status="finished", score=0.6, rows=[{}, {}])
    other = Trial(dict(DEFAULT), 0, is_repeat=False, number=0, status="stopped", score=0.5, rows=[{}])
    values: dict[str, Any] = {
        "run": "r", "metric": "slide_auc", "space": SPACE, "default": DEFAULT, "winner": winner,
        "records": [other, winner], "held_out": {}, "seconds": 12.0,
        "spreads": {"default": Spread(default), "best": Spread(best)} if best else {},
    }  # fmt: skip
    return Outcome(**values | changed)


@pytest.mark.parametrize(
    ("best", "default", "said"),
    [
        ((0.80, 0.81, 0.82), (0.70, 0.72, 0.71), "better than the default: +0.1000"),
        ((0.800, 0.810, 0.821), (0.700, 0.710, 0.720), "over 3 seeds, p < 0.001, 3 of 3 seeds"),
        ((0.70, 0.72, 0.71), (0.80, 0.81, 0.82), "worse than the default"),
        ((0.80, 0.70, 0.75), (0.75, 0.76, 0.70), "no better than the default"),
        ((0.75, 0.75), (0.75, 0.75), "no better than the default: +0.0000 ± 0.0000 over 2 seeds, 0 of 2 seeds"),
        ((), (), "one trial proves nothing"),
    ],
)
def test_the_verdict_follows_the_test(best: tuple[float, ...], default: tuple[float, ...], said: str) -> None:
    assert said in make_outcome(best, default).verdict


BETTER = ((0.80, 0.81, 0.82), (0.70, 0.72, 0.71))


@pytest.mark.parametrize(
    ("unseen", "said", "is_better"),
    [
        (((0.90, 0.91, 0.93), (0.80, 0.82, 0.80)), r"^better .*\+0\.1000.*; on unseen slides \+0\.1067", True),
        (((0.80, 0.81, 0.82), (0.81, 0.82, 0.82)), "no better than the default, for it is worse on unseen", False),
        (None, "^better than the default: [^;]*$", True),
    ],
)
def test_unseen_slides_take_part_in_the_verdict(unseen: Any, said: str, is_better: bool) -> None:
    held_out = dict(zip(("best", "default"), map(Spread, unseen), strict=True)) if unseen else {}
    outcome = make_outcome(*BETTER, held_out=held_out)
    assert re.search(said, outcome.verdict)
    assert outcome.is_better == is_better
    assert ("held_out_difference_mean" in outcome.numbers()) == bool(unseen)


def test_differences_without_spread_are_no_test() -> None:
    outcome = make_outcome((0.8, 0.8), (0.7, 0.7))
    assert outcome.verdict.startswith("no test possible, for every seed differs from the default by the same: +0.1000")
    assert not outcome.is_better


def test_the_default_may_win() -> None:
    winner = Trial(dict(DEFAULT), 0, is_repeat=False, number=0, status="finished", score=0.6)
    assert make_outcome((), (), winner=winner).verdict == "the default values are the best that was tried"


def test_the_report_has_every_number(tmp_path: Path) -> None:
    config = build_config(
        {"cohort": {"manifest": "m.csv"}, "training": {"epochs": 7, "run": "x"}, "search": {"trials": 2}}
    )
    held = {"default": Spread((0.6, 0.62)), "best": Spread((0.65, 0.66))}
    outcome = make_outcome((0.8, 0.82), (0.7, 0.71), held_out=held, failed={"best without bag": "no loss is left"})
    outcome.spreads["best without topk"] = Spread((0.8, 0.81))  # type: ignore[index]
    answer = write_report(outcome, config, Store(str(tmp_path)), Console(), folder="searches/r")
    folder = tmp_path / "searches" / "r"
    assert {path.name for path in folder.iterdir()} == {
        "report.md", "trials.csv", "comparison.csv", "comparison.png", "parallel.png", "parameters.png", "best.yaml",
        "result.json",
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(answer))
    assert answer["winner"] == {
        "values": BEST, "search_score": 0.6, "mean": pytest.approx(0.81), "sd": pytest.approx(0.01414, abs=1e-5),
        "seeds": 2, "held_out_mean": pytest.approx(0.655), "held_out_sd": pytest.approx(0.00707, abs=1e-5),
    }  # fmt: skip
    trials = list(csv.DictReader(io.StringIO((folder / "trials.csv").read_text())))
    assert [row["status"] for row in trials] == ["finished", "stopped"]
    assert [row["slide_auc"] for row in trials] == ["0.6", "0.5"]
    page = (folder / "report.md").read_text()
    assert outcome.verdict[1:] in page
    assert "0.8100" in page
    assert "best without bag: no loss is left" in page
    assert "1 in number, and p is not corrected" in page
    assert "0.6550 ± 0.0071" in page
    best = load_config(folder / "best.yaml")
    assert (best.bags.top_k, best.losses.bag, best.training.epochs, best.training.run) == (2, 0.5, 7, None)
    assert "search" not in yaml.safe_load((folder / "best.yaml").read_text())
