"""What training workers do before they train, without Ray."""

import threading
import time
from dataclasses import replace

import pytest

from distmil.bags.bag import BagEntry, Shards
from distmil.config.loading import build_config
from distmil.encoders.registry import EncoderSpec
from distmil.pipeline import cluster
from distmil.pipeline.training import worker
from distmil.pipeline.training.worker import fetch
from distmil.storage.records import Part
from distmil.storage.store import Store
from distmil.training.run_files import run_file
from distmil.training.workers import WorkersFailed
from tests.support.bags import make_bag, small_config
from tests.support.thread_workers import run_as_workers

SPEC = EncoderSpec("texture", "made", 12, None)


def far(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Make a store of two slides look far away."""
    parts = [Part(f"part-{i}.arrow", 1, 1, f"{i:064d}") for i in range(3)]
    views = [Shards("views/s0", parts[:1])]
    entries = [
        BagEntry("s0", 1, "train", False, "embeddings/s0", parts, None, views),
        BagEntry("s1", 1, "train", False, "embeddings/s1", parts, None),
    ]
    store.write_checked(run_file("run", "cohort"), [entry.to_json() for entry in entries], owner="run")
    monkeypatch.setattr(Store, "is_local", False)
    monkeypatch.setattr(Store, "read_checked", lambda _self, _name, owner: [entry.to_json() for entry in entries])
    monkeypatch.setattr(worker, "FETCH_TURN_S", 0.02)
    return store


def test_workers_fetch_every_shard_and_wait_for_the_slowest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched, lock = [], threading.Lock()

    def copy(_store: Store, name: str, _part: Part) -> None:
        time.sleep(0.05)  # more than a turn
        with lock:
            fetched.append(name)

    monkeypatch.setattr(Store, "local_copy", copy)
    far_store = far(store, monkeypatch)
    run_as_workers(2, lambda workers: fetch(far_store, "run", workers))
    wanted = [f"embeddings/s{i}/part-{j}.arrow" for i in range(2) for j in range(3)] + ["views/s0/part-0.arrow"]
    assert sorted(fetched) == sorted(wanted * 2)


def test_a_shard_that_one_worker_cannot_fetch_stops_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(_store: Store, name: str, _part: Part) -> None:
        if name.endswith("s1/part-2.arrow"):
            raise worker.StorageError(f"{name} is gone")

    monkeypatch.setattr(Store, "local_copy", copy)
    far_store = far(store, monkeypatch)

    def work(workers: worker.Workers) -> str:
        with pytest.raises(WorkersFailed) as caught:
            fetch(far_store, "run", workers)
        return str(caught.value.__cause__)

    assert run_as_workers(2, work) == ["embeddings/s1/part-2.arrow is gone"] * 2


@pytest.mark.parametrize(
    ("have", "workers", "fewest", "wanted"), [(2, 2, None, True), (1, 2, None, False), (1, 2, 1, True)]
)
def test_auto_takes_gpus_where_there_are_enough(
    have: int, workers: int, fewest: int | None, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "start_ray", lambda: None)
    monkeypatch.setattr(cluster, "cluster_resources", lambda: {"CPU": 8.0, "GPU": float(have)})
    config = build_config({"training": {"num_workers": workers, "min_workers": fewest}})
    assert cluster.wants_gpu(config, count=fewest or workers) is wanted


def test_a_run_learns_from_the_train_split_and_is_judged_on_val(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = ("train", "val", "test", "train", "val", "train")
    bags = [replace(make_bag(i), split=split) for i, split in enumerate(splits)]
    monkeypatch.setattr(worker, "open_bags", lambda *_, **__: bags)
    monkeypatch.setattr(worker, "open_run", lambda _config, learning, validation, *_, **__: (learning, validation))
    found = worker._open(small_config(), store, "run", SPEC, is_gpu=False)
    learning, validation = ([bag.slide_id for bag in part] for part in found)
    assert learning == ["slide-00", "slide-03", "slide-05"]
    assert validation == ["slide-01", "slide-04"]
