"""The same command under `ray job submit`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import ROOT
from tests.support.ports import free_port
from tests.support.scale import IS_FULL
from tests.support.trained import make_house

AGENT_START_S = 120

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# A head of its own, in a process of its own; it ends when its standard input closes.
# Its job agent has a port of its own, too: every Ray of the machine would take the usual one.
HEAD = """
import sys
from ray.cluster_utils import Cluster
port, agent_port = map(int, sys.argv[1:])
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 2, "include_dashboard": True, "dashboard_port": port, "dashboard_agent_listen_port": agent_port})
print(f"http://127.0.0.1:{port}", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    home = tmp_path_factory.mktemp("submit-home")
    # The entrypoint's `python` is found on the head's PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**kept, "PATH": path, "RAY_AUTH_MODE": "disabled", "DISTMIL_HOME": str(home), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def head(environment: dict[str, str]) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(free_port()), str(free_port())],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield next(line.strip() for line in process.stdout if line.startswith("http://"))
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def submit(head: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    ray = Path(sys.executable).with_name("ray")
    command = [
        str(ray), "job", "submit", "--address", head, "--working-dir", ".", "--", "python", "jobs/train.py", *arguments
    ]  # fmt: skip
    deadline = time.monotonic() + AGENT_START_S
    while True:
        done = subprocess.run(
            command,
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)


def test_a_submitted_job_trains_and_its_bundle_stays(head: str, environment: dict[str, str]) -> None:
    make_house(Path(environment["DISTMIL_HOME"]), num_slides=4)  # what other jobs show is done already
    done = submit(
        head, environment, "--config", "jobs/configs/demo.yaml", "cohort.synthetic=4", "training.epochs=2",
        "training.run=submitted", "encoder.name=texture", "prediction.split=test", "tracking.uri=none",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"job"'))
    bundle = Path(json.loads(line)["bundle"])
    assert bundle == Path(environment["DISTMIL_HOME"]) / "models" / "submitted"
    assert (bundle / "model.safetensors").exists()


@pytest.mark.skipif(not IS_FULL, reason="a job's own exit codes: test_cli.py; submitted: make test-all")
def test_a_wrong_key_ends_the_job_with_code_2(head: str, environment: dict[str, str]) -> None:
    done = submit(head, environment, "--config", "jobs/configs/demo.yaml", "training.epoch=2")
    assert done.returncode == 1
    text = done.stdout + done.stderr
    assert "unknown key training.epoch; did you mean epochs?" in text
    assert "exit code 2" in text


@pytest.mark.skipif(not IS_FULL, reason="a function refuses it: storage/test_store.py; submitted: make test-all")
def test_a_relative_root_is_refused_inside_a_job(head: str, environment: dict[str, str]) -> None:
    done = submit(head, environment, "--config", "jobs/configs/demo.yaml", "storage.root=out")
    assert done.returncode == 1
    assert "a relative folder inside a Ray job is thrown away" in done.stdout + done.stderr
