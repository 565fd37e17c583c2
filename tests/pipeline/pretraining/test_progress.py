"""What the terminal shows of a pre-training."""

from dataclasses import dataclass, field

import pytest

from distmil.config.root import Config
from distmil.errors import TrainingError
from distmil.pace import Pace
from distmil.pipeline.job import Job
from distmil.pipeline.pretraining import job as jobs
from distmil.pipeline.pretraining.progress import Progress, verdict
from distmil.pretraining.checkpoints import save_checkpoint
from distmil.pretraining.history import History, Row
from distmil.pretraining.plan import Plan
from distmil.storage.records import Record
from distmil.storage.store import Store
from distmil.training.run_files import run_file
from tests.support.pretraining import SPEC, open_small, small_config, use_small_network, write_slides


@dataclass
class Notes:
    """A console that keeps its lines."""

    lines: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.lines.append(text.partition(";")[0])


def row(probe: float | None, rank: float = 9.0, spread: float = 0.5, **more: float) -> Row:
    return {**more, "probe_auc": probe, "rank": rank, "spread": spread}


def test_epochs_steps_and_a_collapse_are_shown_as_they_are_committed(store: Store) -> None:
    notes = Notes()
    job = Job(Config(), store, notes)  # type: ignore[arg-type]
    show = Progress(job, "pretrain-r", Plan([100], 10, 0, 3), 0, Pace(30))

    def commit(step: int, *rows: Row) -> list[str]:
        info = {"history": History(rows=list(rows), probe="patch labels").to_json()}
        store.write_record(
            run_file("pretrain-r", "latest"), Record("pretrain-r", {"epoch": 0, "step": step}, info=info)
        )
        show(is_last=False)
        found, notes.lines = notes.lines, []
        return found

    show(is_last=False)
    assert notes.lines == []
    first, second = row(0.8), row(0.9, loss=2.5)
    assert commit(0, first) == ["before: probe AUC 0.800 (patch labels), rank 9.0, spread 0.500"]
    assert commit(2, first) == []
    assert commit(4, first) == ["step 4/30"]
    assert commit(10, first, second) == [
        "epoch 1/3: loss 2.500, probe AUC 0.900 (patch labels), rank 9.0, spread 0.500"
    ]
    assert commit(10, first, second) == []
    flat = row(None, rank=0.0, spread=0.0, loss=2.5)
    assert commit(20, first, second, flat) == [
        "epoch 2/3: loss 2.500, rank 0.0, spread 0.000",
        "WARNING: epoch 2: the encoder gives nearly one embedding for all patches (spread 0 of 1)",
    ]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            0.8,
            0.9,
            "probe on slide labels of train: AUC 0.800 before, 0.900 after; effective rank 9.0 before, 7.0 after",
        ),
        (0.8, 0.7, "rank 9.0 before, 7.0 after. The probe fell: compare both encoders by training with each"),
        (None, None, "effective rank 9.0 before, 7.0 after; there were too few labels for a probe: compare both encod"),
    ],
)
def test_the_verdict_says_what_the_probe_did(before: float | None, after: float | None, said: str) -> None:
    assert said in verdict(History(rows=[row(before), row(after, rank=7.0)], probe="slide labels"))


def test_a_collapsed_encoder_ends_the_job_without_weights(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_network(monkeypatch)
    monkeypatch.setattr(jobs, "encoder_to_train", lambda *_: open_small(store, entries, config).learner.encoder)
    config, entries = small_config(), write_slides(store)
    run = open_small(store, entries, config)
    run.history.rows = [row(0.8), row(0.5, rank=1.1, loss=2.5)]
    save_checkpoint(store, "pretrain-r", run.learner, run.history)
    with pytest.raises(TrainingError) as caught:
        jobs._save(Job(config, store), "pretrain-r", SPEC)
    assert str(caught.value).startswith(
        "pre-training r is of no use, and its weights are not kept: the embeddings of all patches lie on one line "
        "(effective rank 1.1). Lower pretraining.learning_rate, raise pretraining.batch_patches, or take "
        "pretraining.method=vicreg, under another pretraining.run"
    )
    assert not store.folders("pretrained")
