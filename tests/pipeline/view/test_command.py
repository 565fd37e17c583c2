"""The command as people start it: a process that shows slides until Ctrl-C, without Ray."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.predicted import RUN, make_predicted

WITHOUT_RAY = (
    "import sys; sys.modules['ray'] = None\n"
    "from distmil.__main__ import run\n"
    "sys.argv[0] = 'distmil'; sys.exit(run(sys.argv[1:]))"
)


@pytest.mark.slow
def test_slides_are_shown_until_ctrl_c_without_ray(tmp_path: Path) -> None:
    predicted = make_predicted(tmp_path)
    keys = [f"cohort.manifest={predicted.manifest}", f"storage.root={predicted.store.root}", "prediction.model=a-run"]
    viewer = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_RAY, "view", *keys, "view.port=0"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
    )  # fmt: skip
    try:
        assert viewer.stderr
        said = ""
        while not (found := re.search(r"are shown at (http://127\.0\.0\.1:\d+/)", " ".join(said.split()))):
            line = viewer.stderr.readline()
            assert line, said
            said += line
        with urllib.request.urlopen(f"{found[1]}run.json", timeout=60) as answer:
            assert json.load(answer)["name"] == RUN
        viewer.send_signal(signal.SIGINT)
        rest = viewer.communicate(timeout=60)[1]
    finally:
        viewer.kill()
        viewer.communicate()
    assert viewer.returncode == 130, said + rest
    assert "view: interrupted" in rest
    assert "Traceback" not in rest, rest
