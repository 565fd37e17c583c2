"""Damage in the store is found by who reads it, or has no effect: flipped bits and exchanged files of every kind.

``python -m tests.campaigns.damage`` does the same with 300 bits a kind.
"""

import os
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from distmil.errors import StorageError
from distmil.inference.bundle import load_bundle
from distmil.pipeline import predict
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import Prepared
from distmil.storage.local_files import CACHE_VARIABLE, SETTLED_S
from distmil.storage.schemas import to_ipc
from tests.campaigns.damage import FOUND, HARMLESS, WRONG, attack
from tests.campaigns.damage_kinds import KINDS, MADE_AGAIN, Kind
from tests.campaigns.trained_store import make_trained_store
from tests.support.scale import cases

VERIFIED = sorted(KINDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained store whose files are old enough to be remembered as verified."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder / "cache"))
        made = make_trained_store(folder)
        long_ago = time.time() - 100 * SETTLED_S
        for path in folder.rglob("*"):
            if path.is_file() and "slides" not in path.parts:
                os.utime(path, (long_ago, long_ago))
        yield made


@pytest.mark.parametrize("name", VERIFIED)
def test_damage_is_found_or_without_effect(made, name):
    rng = np.random.default_rng(VERIFIED.index(name))
    flips = cases(8 if name == "weights" else 25, full=300)
    counts, failures = attack(KINDS[name](made), flips=flips, swaps=5, rng=rng)
    assert failures == []
    assert counts.total() == flips + 5


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda path: path.read_bytes(), WRONG),
        (lambda path: int(path.read_bytes()), WRONG),
        (lambda _: 1, HARMLESS),
        (lambda path: 1 if path.read_bytes() in (b"123", b"456") else MADE_AGAIN, FOUND),
    ],
)
def test_the_campaign_tells_outcomes_apart(tmp_path, read, outcome):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, content in zip(paths, (b"123", b"456"), strict=True):
        path.write_bytes(content)
    kind = Kind("numbers", [(path, lambda path=path: read(path)) for path in paths])
    counts, failures = attack(kind, flips=30, swaps=0, rng=np.random.default_rng(0))
    assert set(counts) == {f"flips {outcome}"}
    assert len(failures) == 30 * (outcome == WRONG)
    assert [path.read_bytes() for path in paths] == [b"123", b"456"]


def test_a_slide_whose_embeddings_are_not_finite_costs_its_own_prediction(made, monkeypatch, capsys):
    spoilt = made.entries[1]
    table = pa.ipc.open_file(made.path(spoilt.files[0][0])).read_all()
    values = np.array(table["embedding"].chunk(0).flatten())
    values[7] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float16()), made.spec.dimension)
    shard = to_ipc(table.set_column(4, table.schema.field("embedding"), column))
    part = made.store.write_part("spoilt", "part-00000.arrow", shard, rows=table.num_rows)
    entries = [replace(entry, folder="spoilt", parts=(part,)) if entry is spoilt else entry for entry in made.entries]
    prepared = Prepared(entries, made.patches, made.labels, {"ok": 4})

    def in_process(items, worker, num_gpus, **arguments):
        work = worker(**arguments)
        return [(item, work(item)) for item in items]

    monkeypatch.setattr(predict, "prepare", lambda *_, **__: prepared)
    monkeypatch.setattr(predict, "map_slides", in_process)
    monkeypatch.setattr(predict, "wants_gpu", lambda _: False)
    config = made.config.model_copy(update={"tiling": made.config.tiling.model_copy(update={"max_bad_fraction": 0.5})})
    job, bundle = Job(config, made.store), load_bundle("first", made.store)
    found = predict.predict_slides(
        job, made.cohort, made.slides, bundle, place="first", run="spoilt", with_labels=False
    )
    assert sorted(found.rows) == ["s0", "s2", "s3"]
    assert found.prepared.statuses == {"ok": 3, "failed": 1}
    job.outcomes.show(job.console)
    assert "the embedding of patch 0 is not finite" in capsys.readouterr().err


def test_damaged_embeddings_name_the_file_and_what_to_do(made):
    path, read = KINDS["embeddings"](made).files[3]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000] + bytes(1000))
    with pytest.raises(StorageError) as caught:
        read()
    path.write_bytes(whole)
    assert str(caught.value) == (
        f"{path} is damaged: its checksum is not the committed one; delete the folder {path.parent} and run the same "
        "command again"
    )
