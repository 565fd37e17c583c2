"""Shards that come in any order, some twice, some never: each whole slide is committed, and no other."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from distmil.pipeline.streaming.embedding import Gathered, Shard, shards_of
from distmil.storage.records import Part, Record
from tests.support.scale import cases


@dataclass
class Committer:
    """In the place of a ``SlideEmbedder``: keeps what it is given to commit."""

    patches: Record
    view: int = 0
    commits: list[list[Part]] = field(default_factory=list)

    def commit(self, parts):
        self.commits.append(list(parts))
        return Record(self.patches.name, {"view": self.view}, parts=tuple(parts))


def patches_of(slide_id, count):
    return Record(slide_id, {}, parts=tuple(Part(f"part-{i}.parquet", 4, 9, f"{slide_id}{i}") for i in range(count)))


def made_of(shard):
    return Part(f"part-{shard.part}.arrow", 4, 1, f"{shard.slide_id}/{shard.view}/{shard.part}")


@pytest.mark.parametrize("seed", range(cases(200, full=5000)))
def test_every_whole_slide_is_committed_in_the_order_of_its_shards(seed):
    rng = np.random.default_rng(seed)
    embedders = [
        Committer(patches_of(f"s{i}", int(rng.integers(1, 6))), view)
        for i in range(rng.integers(1, 5)) for view in range(rng.integers(1, 3))
    ]  # fmt: skip
    events, lost, failed = list(embedders), set(), set()
    for embedder in embedders:
        key = embedder.patches.name, embedder.view
        for shard in shards_of(embedder.patches, embedder.view):
            draw = rng.random()
            if draw < 0.05:
                lost.add(key)
            elif draw < 0.1:
                failed.add(key)
                events.append((shard, Record(shard.slide_id, {}, status="failed")))
            else:
                events += [(shard, made_of(shard))] * (1 + (rng.random() < 0.2))
    settled = []
    gathered = Gathered(when_done=lambda: settled.append(1))
    for i in rng.permutation(len(events)):
        event = events[i]
        gathered.expect(event) if isinstance(event, Committer) else gathered.add(*event)
    for embedder in embedders:
        key = embedder.patches.name, embedder.view
        if key in lost | failed:
            assert embedder.commits == []
            assert (key in gathered.records) is (key in failed)
            continue
        wanted = [made_of(shard) for shard in shards_of(embedder.patches, embedder.view)]
        assert embedder.commits
        assert all(parts == wanted for parts in embedder.commits)
        assert gathered.records[key].ok
    assert len(settled) == len(gathered.records)


def test_a_shard_is_ids_alone_however_much_is_known_of_its_slide():
    record = Record("s1", {"source": "x" * 10_000}, parts=patches_of("s1", 400).parts, info={"doubts": ["y"] * 1000})
    (first, *others) = shards_of(record, 2)
    assert first == Shard("s1", record.digest[:12], 0, 2)
    assert first.key == ("s1", 2)
    assert len(others) == 399
