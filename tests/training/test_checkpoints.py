"""Checkpoints: what a run goes on from, whatever happened while they were written."""

import copy
from pathlib import Path

import pytest
import torch

from distmil.errors import StorageError, TrainingError
from distmil.pipeline.training.worker import check_same_start
from distmil.storage.store import Store
from distmil.training import checkpoints
from distmil.training.checkpoints import load_checkpoint, save_checkpoint
from distmil.training.engine import History
from distmil.training.learner import Learner
from distmil.training.ownership import Lease, take_over
from distmil.training.run_files import checkpoint_folder
from distmil.training.workers import Workers
from tests.support.bags import make_bags, small_config
from tests.support.thread_workers import run_as_workers
from tests.training.test_engine import make

RUN = "run"


def learner_with(value: float, *, ema: float = 0.0) -> Learner:
    learner, _ = make(small_config(training={"ema": ema}), make_bags(4))
    fill(learner.head, value)
    return learner


def fill(head: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(value)


def value_of(head: torch.nn.Module) -> float:
    (value,) = {float(v) for p in head.parameters() for v in p.detach().unique()}
    return value


def save(store: Store, learner: Learner, history: History, score: float) -> None:
    is_best = history.add({"val_slide_auc": score}, select_by="slide_auc")
    save_checkpoint(store, RUN, learner, history, is_best=is_best)


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def names(store: Store) -> list[str]:
    return store.names(checkpoint_folder(RUN))


def test_the_latest_and_the_best_are_kept_and_nothing_else(store: Store) -> None:
    history = History()
    for epoch, score in enumerate([0.5, 0.9, 0.7, 0.6]):
        save(store, learner_with(epoch), history, score)
    assert [name[:11] for name in names(store) if name.endswith(".safetensors")] == ["epoch-00001", "epoch-00003"]
    learner = learner_with(-1)
    found = load_checkpoint(store, RUN, learner)
    assert found is not None
    assert (len(found.rows), value_of(learner.head)) == (4, 3)
    best = load_checkpoint(store, RUN, learner, best=True)
    assert best is not None
    assert (len(best.rows), best.best_epoch, value_of(learner.head)) == (2, 1, 1)


@pytest.mark.parametrize("score", [0.1, 0.95])
def test_an_epoch_that_is_trained_again_otherwise_leaves_the_best_one_loadable(
    store: Store, monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    history = History()
    for epoch, value in enumerate([0.5, 0.8]):
        save(store, learner_with(epoch), history, value)
    lost = copy.deepcopy(history)
    with monkeypatch.context() as patch:  # killed when the files of epoch 2 are there, but not its record
        patch.setattr(Store, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            save(store, learner_with(2), lost, 0.9)
    save(store, learner_with(2.5), history, score)
    learner = learner_with(-1)
    best = load_checkpoint(store, RUN, learner, best=True)
    assert best is not None
    assert value_of(learner.head) == (1 if score < 0.8 else 2.5)


def test_what_cannot_be_read_or_is_damaged_is_no_reason_to_begin_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, learner_with(1), History(), 0.5)
    path = Path(store.path(f"{checkpoint_folder(RUN)}/latest.json"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(StorageError, match=r"latest\.json is damaged"):
        load_checkpoint(store, RUN, learner_with(0))
    path.write_bytes(whole)

    def stale(*_: object) -> bytes:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(StorageError, match="Stale file handle"):
        load_checkpoint(store, RUN, learner_with(0))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_flipped_bit_of_the_weights_or_the_optimizer_is_found(store: Store, suffix: str) -> None:
    save(store, learner_with(1), History(), 0.5)
    (name,) = [name for name in names(store) if name.endswith(suffix)]
    path = Path(store.path(f"{checkpoint_folder(RUN)}/{name}"))
    whole = path.read_bytes()
    for place in (len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match="is damaged"):
            load_checkpoint(store, RUN, learner_with(0))


def test_the_record_of_another_run_is_refused(store: Store) -> None:
    save(store, learner_with(1), History(), 0.5)
    store.write("checkpoints/other/latest.json", store.read(f"{checkpoint_folder(RUN)}/latest.json"))
    with pytest.raises(StorageError, match=r"other/latest\.json belongs to the run run; restore it, or delete"):
        checkpoints.read_latest(store, "other")


def test_a_run_that_never_saved_has_no_checkpoint(store: Store) -> None:
    assert load_checkpoint(store, RUN, learner_with(0)) is None
    assert checkpoints.read_latest(store, RUN) is None


def test_averaged_weights_travel(store: Store) -> None:
    learner = learner_with(1, ema=0.9)
    assert learner.averaged is not None
    fill(learner.averaged.head, 7)
    save(store, learner, History(), 0.5)
    other = learner_with(0, ema=0.9)
    assert load_checkpoint(store, RUN, other) is not None
    assert (value_of(other.head), value_of(other.eval_model.head)) == (1, 7)


def test_workers_that_see_different_checkpoints_do_not_train() -> None:
    def start(workers: Workers) -> str:
        history = History([{"loss": float(epoch)} for epoch in range(7 if workers.rank else 6)], 0)
        try:
            check_same_start(history, workers)
        except StorageError as error:
            return str(error)
        return "went on"

    found = run_as_workers(2, start)
    assert all("after 6, 7 epochs" in text for text in found)
    same = run_as_workers(2, lambda workers: check_same_start(History([{"loss": 1.0}], 0), workers))
    assert same == [None, None]


def leased(store: Store) -> Lease:
    return take_over(store, checkpoint_folder(RUN), run=RUN)


def test_the_later_of_two_jobs_goes_on_and_the_earlier_one_saves_nothing_more(store: Store) -> None:
    first, second = History(), History()
    earlier = leased(store)
    assert first.add({"val_slide_auc": 0.5}, select_by="slide_auc")
    save_checkpoint(store, RUN, learner_with(1), first, is_best=True, lease=earlier)
    later = leased(store)
    before = store.read(f"{checkpoint_folder(RUN)}/latest.json")
    with pytest.raises(TrainingError, match=r"another job took it over .* the last committed epoch"):
        save_checkpoint(store, RUN, learner_with(9), first, is_best=True, lease=earlier)
    assert store.read(f"{checkpoint_folder(RUN)}/latest.json") == before
    assert second.add({"val_slide_auc": 0.6}, select_by="slide_auc")
    save_checkpoint(store, RUN, learner_with(2), second, is_best=True, lease=later)
    learner = learner_with(0)
    load_checkpoint(store, RUN, learner)
    assert value_of(learner.head) == 2


def test_a_job_that_is_taken_over_while_it_writes_commits_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, lease, write = History(), leased(store), Store.write_part
    history.add({"val_slide_auc": 0.5}, select_by="slide_auc")

    def write_late(store: Store, *arguments: object, **options: object) -> object:
        made = write(store, *arguments, **options)  # type: ignore[arg-type]
        leased(store)
        return made

    monkeypatch.setattr(Store, "write_part", write_late)
    with pytest.raises(TrainingError, match="another job took it over"):
        save_checkpoint(store, RUN, learner_with(1), history, is_best=True, lease=lease)
    assert checkpoints.read_latest(store, RUN) is None


@pytest.mark.parametrize("is_best", [True, False])
def test_files_of_two_jobs_never_overwrite_or_delete_each_other(store: Store, is_best: bool) -> None:
    history = History()
    for value in (0.9, 0.5):
        history.add({"val_slide_auc": value}, select_by="slide_auc")
    folder = checkpoint_folder(RUN)
    save(store, learner_with(0), History(), 0.9)
    theirs = {f"epoch-0000{epoch}-{'ab' * 4}.pt" for epoch in (1, 2)}  # of a job that takes over just now
    for name in theirs:
        store.write(f"{folder}/{name}", b"theirs")
    save_checkpoint(store, RUN, learner_with(1), history, is_best=is_best)
    assert theirs < set(names(store))
    assert all(store.read(f"{folder}/{name}") == b"theirs" for name in theirs)


def test_a_deleted_folder_stops_its_job(store: Store) -> None:
    lease = leased(store)
    store.delete_folder(checkpoint_folder(RUN))
    with pytest.raises(TrainingError, match="was deleted while this job worked on it"):
        lease.check(store)
