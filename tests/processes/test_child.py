"""A child may die or hang; the caller learns of it and goes on."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distmil.processes.child import Child, ChildCrashed, ChildTimedOut


@pytest.fixture
def child():
    made = Child("tests.support.child_work:act")
    yield made
    made.close()


def echo(child, text="hello"):
    answer = child.call({"do": "echo", "text": text}, timeout_s=20)
    assert answer["said"] == text
    return answer["pid"]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_one_process_serves_many_calls_and_large_ones(child):
    assert echo(child) == echo(child, "x" * 300_000 + "\n\u00e9") != os.getpid()


def test_what_is_printed_does_not_mix_with_the_answers(child):
    assert child.call({"do": "print"}, timeout_s=20) == {}
    echo(child)


@pytest.mark.parametrize(("do", "reason"), [("crash", "SIGSEGV"), ("exit", "exit code 7")])
def test_a_crash_is_named_and_the_next_call_starts_anew(child, do, reason):
    first = echo(child)
    with pytest.raises(ChildCrashed, match=reason):
        child.call({"do": do}, timeout_s=20)
    assert not is_alive(first)
    assert echo(child) != first


@pytest.mark.parametrize("request_", [{"do": "sleep", "seconds": 60}, {"do": "block"}], ids=["sleep", "block"])
def test_a_call_that_does_not_end_is_ended(child, request_):
    first = echo(child)
    started = time.monotonic()
    with pytest.raises(ChildTimedOut, match=r"0\.3 s"):
        child.call(request_, timeout_s=0.3)
    assert time.monotonic() - started < 5
    assert not is_alive(first)
    assert echo(child) != first


def test_closing_ends_the_process(child):
    pid = echo(child)
    child.close()
    assert not is_alive(pid)
    child.close()


def test_a_child_does_not_outlive_a_killed_parent(tmp_path):
    code = (
        "import sys, time\n"
        "from distmil.processes.child import Child\n"
        "child = Child('tests.support.child_work:act')\n"
        "print(child.call({'do': 'echo', 'text': ''}, timeout_s=20)['pid'], flush=True)\n"
        "child.call({'do': 'sleep', 'seconds': 60}, timeout_s=60)\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root)
    try:
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(pid)
