"""A finding on a terminal and in a log; a check that crashes, hangs, exits or raises is a finding, too."""

import time

import pytest

from distmil.pipeline.doctor.finding import FAILED, OK, WARNING, Check, Finding

LONG = Finding(FAILED, "storage", "cannot write " + "/a/long/folder" * 4, "make it writable for this user, or " * 4)


@pytest.mark.parametrize("width", [80, 120])
def test_a_finding_is_wrapped_under_its_name(width: int) -> None:
    lines = LONG.lines(width).splitlines()
    assert lines[0].startswith("FAILED   storage: cannot write")
    assert len(lines) > 1
    assert all(line.startswith(" " * 9) for line in lines[1:])
    assert sum(line.startswith(" " * 9 + "-> make it") for line in lines) == 1
    assert max(map(len, lines)) <= width


def test_a_finding_is_one_line_in_a_log() -> None:
    assert Finding(WARNING, "disk", "1 GB free", "free some").lines(None) == "warning  disk: 1 GB free; free some"
    assert Finding(OK, "disk", "9 GB free").lines(None) == "ok       disk: 9 GB free"
    assert "\n" not in LONG.lines(None)


def test_colours_do_not_move_the_text() -> None:
    plain, coloured = LONG.lines(80), LONG.lines(80, has_colour=True)
    assert coloured.replace("\033[1;31m", "").replace("\033[0m", "") == plain != coloured


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raising", "ImportError: libfoo.so.1: cannot open shared object file and more"),
        ("exiting", "SystemExit: 3"),
        ("crashing", "the check crashed: killed by SIGABRT"),
        ("absent", "AttributeError: module 'tests.support.broken_checks' has no attribute 'absent'"),
    ],
)
def test_a_check_that_breaks_is_a_finding(function: str, said: str) -> None:
    check = Check("thing", f"tests.support.broken_checks:{function}", 60, "mend it")
    assert check.run() == [Finding(FAILED, "thing", said, "mend it")]


def test_a_check_that_hangs_is_ended() -> None:
    started = time.monotonic()
    found = Check("thing", "tests.support.broken_checks:hanging", 0.5, "mend it").run()
    assert found == [Finding(FAILED, "thing", "no answer within 0.5 s", "mend it")]
    assert time.monotonic() - started < 60


def test_a_check_returns_its_findings_and_hides_noise(capfd: pytest.CaptureFixture[str]) -> None:
    found = Check("thing", "tests.support.broken_checks:good", 60).run(text="it works")
    assert found == [Finding(OK, "good", "it works")]
    assert capfd.readouterr() == ("", "")
