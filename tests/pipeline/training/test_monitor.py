"""What a run says while it trains: that its nodes are gone, and that they are there again."""

from typing import Any

import pytest

from distmil.config.root import Config
from distmil.console import Console
from distmil.pipeline import cluster
from distmil.pipeline.job import Job
from distmil.pipeline.training import monitor
from distmil.pipeline.training.monitor import _Room, workers_that_fit
from distmil.storage.store import Store


@pytest.mark.parametrize(
    ("nodes", "worker", "expected"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], {"CPU": 3.0}, 3),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0}], {"CPU": 1.0, "GPU": 1.0}, 1),
        ([{"CPU": 8.0, "GPU": 4.0}], {"CPU": 4.0, "GPU": 1.0}, 2),
        ([{"memory": 1e9}], {"CPU": 1.0}, 0),
        ([], {"CPU": 1.0}, 0),
    ],
)
def test_workers_are_counted_node_by_node(nodes: Any, worker: dict[str, float], expected: int) -> None:
    assert workers_that_fit(nodes, worker) == expected


def test_a_lack_of_nodes_is_told_once_and_its_end_too(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(monitor, "NODES_INTERVAL_S", 0.0)
    room = _Room(Job(Config(), store, Console()), {"CPU": 2.0}, needed=2)

    def look(*cores: int) -> str:
        nodes = [{"Alive": True, "Resources": {"CPU": float(count)}} for count in cores]
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0}}])
        room.show()
        return capsys.readouterr().err

    assert look(2, 2) == ""
    assert look(2) == ""  # replaced by the next look: not worth a word
    assert look(2, 2) == ""
    assert look(2) == ""
    assert "carry 1 of 2 worker(s) of 2 CPU" in look(2)
    assert look(2) == ""
    assert "carry 0 of 2 worker(s)" in look(1)
    assert "nodes for 2 worker(s) are there again" in look(4)
    assert look(4) == ""
