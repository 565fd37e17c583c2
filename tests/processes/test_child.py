"""A child may die or hang; the caller learns of it and goes on."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distmil.processes.child import Child, ChildCrashed, ChildTimedOut

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"do": "crash"}, "SIGSEGV"),
        ({"do": "exit"}, "exit code 7"),
        ({"do": "exit", "code": 0}, "exit code 0"),  # a library that ends the process is noticed at once
    ],
)
def test_a_crash_is_named_and_the_next_call_starts_another_process(child, request_, reason):
    first = echo(child)
    with pytest.raises(ChildCrashed, match=reason):
        child.call(request_, timeout_s=20)
    assert not is_alive(first)
    assert echo(child) != first


@pytest.mark.parametrize("by", ["pickle", "endless brackets"])
def test_an_answer_runs_no_code_here(child, tmp_path, by):
    first = echo(child)
    with pytest.raises(ChildCrashed, match="its answer is not JSON"):
        child.call({"do": "take over", "by": by, "file": str(tmp_path / "evil")}, timeout_s=20)
    assert not (tmp_path / "evil").exists()
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


def test_a_child_inherits_no_file(child, tmp_path):
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert str(tmp_path / "open") not in child.call({"do": "files"}, timeout_s=20)["files"]


def test_a_script_without_a_guard_is_not_run_again(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "print('run', flush=True)\n"
        "from distmil.processes.child import Child\n"
        "child = Child('tests.support.child_work:act')\n"
        "print(child.call({'do': 'echo', 'text': 'hello'}, timeout_s=20)['said'])\n"
        "child.close()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["run", "hello"]


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
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
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
