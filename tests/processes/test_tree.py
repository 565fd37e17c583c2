"""Processes that another one started: found, told apart, and ended; and what signals do to a job."""

import os
import signal
import subprocess
import sys
import time

import pytest

from distmil.processes.interruption import exit_code
from distmil.processes.tree import Process, descendants, end_processes

TREE = """
import subprocess, sys, time
depth = int(sys.argv[1])
command = [sys.executable, "-c", sys.argv[2], str(depth - 1), sys.argv[2]]
children = [subprocess.Popen(command) for _ in range(2 * (depth > 0))]
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"
JOB = """
import sys, time
from distmil.processes.interruption import Interrupted, Interruption
found = Interruption("job: interrupted")
found.install()
try:
    print("ready", flush=True)
    time.sleep(60)
except Interrupted as error:
    if sys.argv[1] == "slow":
        time.sleep(60)
    sys.exit(128 + found.number)
"""


def wait_for(is_true, limit_s=20.0):
    deadline = time.monotonic() + limit_s
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_true()


def test_a_tree_of_processes_is_found_and_ended():
    root = subprocess.Popen([sys.executable, "-c", TREE, "2", TREE])
    try:
        assert wait_for(lambda: len(descendants([root.pid])) == 7)
        found = descendants([root.pid])
        assert found[0].pid == root.pid
        others = [process for process in found if process.pid != root.pid]
        end_processes(others, patience_s=0.1)
        assert wait_for(lambda: not any(process.is_alive for process in others))
        assert root.poll() is None
    finally:
        end_processes(descendants([root.pid]), patience_s=0.0)
        root.wait()
    assert descendants([root.pid]) == []


def test_what_ignores_sigterm_is_killed():
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read(1)
    end_processes(descendants([child.pid]), patience_s=0.2)
    assert child.wait(10) == -signal.SIGKILL
    child.stdout.close()


def test_another_process_of_the_same_number_is_told_apart():
    (own,) = [process for process in descendants([os.getpid()]) if process.pid == os.getpid()]
    assert own.is_alive
    assert not Process(own.pid, own.start_ticks + 1).is_alive
    end_processes([Process(own.pid, own.start_ticks + 1)], patience_s=0.0)  # or this test would end here


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("how", ["quick", "slow"])
def test_a_signal_is_said_at_once_and_a_second_one_ends_it(number, how):
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)],  # noqa: PLW1509
    )  # fmt: skip
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    job.send_signal(number)
    if how == "slow":
        time.sleep(1.2)
        assert job.poll() is None
        job.send_signal(number)
    _, err = job.communicate(timeout=20)
    assert job.returncode == exit_code(number) == 128 + number
    assert err == "\njob: interrupted\n"


def test_a_signal_that_the_starter_has_ignored_stays_ignored():
    code = "import signal; from distmil.processes.interruption import Interruption; Interruption('x').install(); "
    code += "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert done.stdout == "True\n"


HELD = """
import os, signal
from distmil.processes.interruption import Interrupted, Interruption, interruption_held
Interruption("job: interrupted").install()
try:
    with interruption_held():
        with interruption_held():
            os.kill(os.getpid(), signal.SIGTERM)
            print("goes on")
        print("to its end")
    print("never said")
except Interrupted as error:
    print(error.number)
with interruption_held():
    print("not again")
"""


def test_a_block_that_holds_an_interruption_ends_first():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["goes on", "to its end", "15", "not again", ""]
    assert done.stderr == "\njob: interrupted\n"
