"""Tiling under attack, in small; `tests/campaigns/durability.py` does the same at full strength."""

import numpy as np
import pytest

from tests.campaigns.accounts import Account
from tests.campaigns.faults import faults, full_disks
from tests.campaigns.flips import flips, repairs
from tests.campaigns.kills import kills, twins
from tests.campaigns.mutants import STATUSES, mutants, read_sources
from tests.campaigns.scenes import make_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def account():
    # a kill right after the commit leaves plan and receipts beside the slide until it is verified
    return Account("small", tolerates_left_over=True)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def total(account, *starts):
    return sum(number for what, number in account.counts.items() if what.startswith(starts))


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_loses_and_doubles_nothing(account, scenes, tmp_path, rng):
    kills(account, scenes, tmp_path, num=12, rng=rng)
    assert account.failures == []
    assert total(account, "killed in") == 12


def test_a_call_that_fails_is_a_clean_error_or_none(account, scenes, tmp_path):
    faults(account, scenes[0], tmp_path, num=13, in_turn=True)
    assert account.failures == []
    assert min(account.counts[what] for what in ("succeeded", "refused cleanly", "killed")) > 0
    assert total(account, "succeeded", "refused", "killed") == 13


def test_a_full_disk_is_said_and_got_over(account, scenes, tmp_path):
    full_disks(account, scenes, tmp_path, num=6, is_real=False)
    assert account.failures == []
    assert account.counts["refused cleanly"] == 6


def test_every_flipped_bit_is_found(account, scenes, tmp_path, rng):
    flips(account, scenes, tmp_path, num=60, rng=rng)
    assert account.failures == []
    assert total(account, "flips in") == 60


def test_a_repair_looks_behind_receipts_that_were_left(account, scenes, tmp_path):
    repairs(account, scenes[:1], tmp_path)
    assert account.failures == []


def test_drivers_at_once_end_in_one_set_of_shards(account, scenes, tmp_path, rng):
    twins(account, scenes, tmp_path, num=2, rng=rng)
    assert account.failures == []
    assert account.counts["commits"] >= account.counts["slides"] == 6


@pytest.mark.slow
def test_every_damaged_slide_ends_in_a_status(account, tmp_path):
    (tmp_path / "mutants").mkdir()
    sources = read_sources(tmp_path / "no data", tmp_path / "whole")
    mutants(account, sources[-1:], tmp_path / "mutants", num=15, seed=7)
    assert account.failures == []
    assert sum(account.counts[status] for status in STATUSES) == 15
    assert account.counts["ok"] < 15


def test_an_account_that_saw_a_failure_has_not_passed(account, capsys):
    account.add("tries", 3)
    account.leave_over(["plan.json"], "a kill")
    assert account.has_passed
    strict = Account("strict")
    strict.leave_over(["plan.json"], "a kill")
    assert not strict.has_passed
    assert "left over for good: plan.json (a kill)" in capsys.readouterr().out
    assert account.line() == "small: passed in 0 s; tries 3, roots with left-over work files 1, failures 0"
