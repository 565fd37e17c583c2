"""Bags and the drawing of steps."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmil.bags.bag import Bag, BagEntry, open_all_bags, open_bag, open_labels, targets
from distmil.bags.sampler import MIXED, Step, StepPlanner
from distmil.bags.source import EmbeddingSource, find_not_finite
from distmil.config.learning import BagsConfig
from distmil.errors import SlideError, StorageError
from distmil.storage.schemas import embeddings_schema, labels_schema, to_ipc
from distmil.storage.store import Store
from tests.support.bags import make_bag, make_bags, steps_of
from tests.support.scale import cases


def planner(bags: list[Bag], *, seed: int = 0, classes: int = 2, **options: object) -> StepPlanner:
    return StepPlanner(bags, BagsConfig(**options), num_classes=classes, seed=seed)


def test_take_gathers_across_shards_in_the_asked_order() -> None:
    parts = [np.arange(6, dtype=np.float16).reshape(3, 2), np.arange(6, 14, dtype=np.float16).reshape(4, 2)]
    source = EmbeddingSource(parts)
    whole = np.concatenate(parts)
    order = np.array([6, 0, 3, 3, 2])
    assert np.array_equal(source.take(order), whole[order])
    for start in range(7):
        assert np.array_equal(source.take(slice(start, start + 3)), whole[start : start + 3])


def test_a_single_shard_is_not_copied() -> None:
    part = np.zeros((5, 2), np.float16)
    assert np.shares_memory(EmbeddingSource([part]).take(slice(1, 4)), part)


@pytest.mark.parametrize("slides_per_step", [1, 3, 8])
@pytest.mark.parametrize("patches_per_step", [40, 100, 10_000])
@pytest.mark.parametrize("sample", [0, 30])
def test_every_bag_is_seen_once_an_epoch_within_the_budget(
    slides_per_step: int, patches_per_step: int, sample: int
) -> None:
    bags = make_bags(17)
    plan = planner(bags, slides_per_step=slides_per_step, patches_per_step=patches_per_step, sample=sample)
    for epoch in range(3):
        steps = list(steps_of(plan, epoch, with_mixed=True))
        assert Counter(i for step in steps for i in step.bags) == Counter(range(17))
        for step in steps:
            assert 1 <= len(step.bags) <= slides_per_step
            sizes = [len(step.samples.get(i, range(len(bags[i])))) for i in step.bags]
            assert step.is_chunked == (sum(sizes) > patches_per_step)
            assert not step.is_chunked or len(step.bags) == 1
            assert all((len(bags[i]) > sample > 0) == (i in step.samples) for i in step.bags)
            for drawn in step.samples.values():
                assert len(drawn) == len(set(drawn.tolist())) == sample


def test_steps_follow_from_the_seed_and_the_epoch() -> None:
    bags = make_bags(9)

    def drawn(seed: int, epoch: int) -> list[tuple[list[int], list[int]]]:
        steps = steps_of(planner(bags, seed=seed), epoch, with_mixed=True)
        return [(list(step.bags), step.mixed_patch.tolist()) for step in steps]

    assert drawn(1, 5) == drawn(1, 5)
    assert drawn(1, 5) != drawn(1, 6)
    assert drawn(1, 5) != drawn(2, 5)
    orders = {str([step.bags for step in steps_of(planner(bags, seed=seed), 5, with_mixed=False)]) for seed in range(4)}
    assert len(orders) == 4


def test_per_class_takes_positives_and_negatives_of_slides_of_every_class() -> None:
    bags = make_bags(12)
    for step in steps_of(planner(bags, k_positive=6, k_negative=10), 0, with_mixed=True):
        labels = [int(bags[b].label_N[p]) for b, p in zip(step.mixed_bag, step.mixed_patch, strict=True)]
        assert labels.count(1) == 6
        assert labels.count(0) == 10
        slide_of_negatives = [bags[b].label for b, p in zip(step.mixed_bag, step.mixed_patch, strict=True)
                              if bags[b].label_N[p] == 0]  # fmt: skip
        assert Counter(slide_of_negatives) == {0: 5, 1: 5}
        assert len(set(step.mixed_bag.tolist())) >= 2


def test_positives_are_not_repeated_while_there_are_others() -> None:
    bags = make_bags(12)
    total = sum(int((bag.label_N == 1).sum()) for bag in bags)
    step = next(steps_of(planner(bags, k_positive=total, k_negative=4), 0, with_mixed=True))
    pairs = [
        (b, p) for b, p in zip(step.mixed_bag.tolist(), step.mixed_patch.tolist(), strict=True)
        if bags[b].label_N[p] == 1
    ]  # fmt: skip
    assert len(pairs) == len(set(pairs)) == total


def test_per_class_shares_positives_among_the_classes() -> None:
    bags = make_bags(12, classes=3)
    step = next(steps_of(planner(bags, classes=3, k_positive=7, k_negative=9), 0, with_mixed=True))
    labels = Counter(int(bags[b].label_N[p]) for b, p in zip(step.mixed_bag, step.mixed_patch, strict=True))
    assert labels == {0: 9, 1: 3, 2: 4}


def random_cohort(generator: np.random.Generator) -> list[Bag]:
    """Bags of which few or none are annotated, completely or in part."""
    bags = []
    for i in range(int(generator.integers(1, 14))):
        bag = make_bag(i, size=int(generator.integers(1, 40)), annotated=generator.random() < 0.7)
        label_N, target_NC = bag.label_N.copy(), bag.target_NC.copy()
        hidden = generator.random(len(bag)) < generator.choice([0.0, 0.9, 1.0])
        label_N[hidden], target_NC[hidden] = -1, np.nan
        bags.append(replace(bag, label_N=label_N, target_NC=target_NC))
    return bags


@pytest.mark.parametrize("mixed", ["per_slide", "per_class", "pooled"])
@pytest.mark.parametrize("seed", range(cases(60, full=2000)))
def test_a_mixed_bag_comes_from_two_slides_and_per_slide_has_a_positive(mixed: str, seed: int) -> None:
    """Whatever is in play: one slide a step, slides without labels, few annotated ones."""
    generator = np.random.default_rng(seed)
    bags = random_cohort(generator)
    sizes = {name: int(generator.integers(2, 12)) for name in ("n", "k_positive", "k_negative")}
    budget = {"slides_per_step": int(generator.integers(1, 5)), "patches_per_step": int(generator.choice([16, 1000]))}
    labelled = [i for i, bag in enumerate(bags) if bag.is_known_N.any()]
    has_positive = any((bag.label_N > 0).any() for bag in bags)
    for step in steps_of(planner(bags, mixed=mixed, **sizes, **budget), seed, with_mixed=True):
        drawn = list(zip(step.mixed_bag.tolist(), step.mixed_patch.tolist(), strict=True))
        assert all(bags[b].label_N[p] >= 0 for b, p in drawn)
        assert len(set(step.mixed_bag.tolist())) >= min(2, len(labelled))
        if mixed == "per_slide":
            assert set(step.mixed_bag.tolist()) >= {i for i in step.bags if i in labelled}
            assert any(bags[b].label_N[p] > 0 for b, p in drawn) == has_positive
            assert not labelled or len(drawn) == max(sizes["n"], len(set(step.mixed_bag.tolist())))


def test_per_slide_takes_slides_in_play_alone_where_they_will_do() -> None:
    bags = [*make_bags(10), make_bag(11, annotated=False)]
    for step in steps_of(planner(bags, mixed="per_slide", n=4, slides_per_step=6), 0, with_mixed=True):
        labelled = {i for i in step.bags if bags[i].is_known_N.any()}
        is_enough = len(labelled) > 1 and any((bags[i].label_N > 0).any() for i in labelled)
        assert set(step.mixed_bag.tolist()) == labelled or not is_enough
        assert len(step.mixed_bag) == max(4, len(set(step.mixed_bag.tolist())))


def test_pooled_draws_without_repeats_from_all_labelled_patches() -> None:
    bags = [*make_bags(10), make_bag(11, annotated=False)]
    seen = set()
    for epoch in range(60):
        for step in steps_of(planner(bags, mixed="pooled", n=16), epoch, with_mixed=True):
            pairs = list(zip(step.mixed_bag.tolist(), step.mixed_patch.tolist(), strict=True))
            assert len(pairs) == len(set(pairs)) == 16
            assert all(bags[b].label_N[p] >= 0 for b, p in pairs)
            seen |= set(pairs)
    assert len(seen) > 0.9 * sum(int(bag.is_known_N.sum()) for bag in bags)


def test_every_view_of_every_bag_in_play_is_drawn_alike_often_and_the_rest_stays() -> None:
    plain = make_bags(12)
    viewed = [replace(bag, views=[bag.source] * (3 if i % 2 else 0)) for i, bag in enumerate(plain)]
    drawn: Counter[int] = Counter()
    for epoch in range(100):
        for step in steps_of(planner(viewed), epoch, with_mixed=True):
            assert set(step.views) == {i for i in (*step.bags, *step.mixed_bag.tolist()) if i % 2}
            drawn.update(step.views.values())
    assert set(drawn) == {0, 1, 2, 3}
    assert max(drawn.values()) < 1.1 * min(drawn.values())
    assert all(not step.views for step in steps_of(planner(plain), 0, with_mixed=True))


def test_unknown_patches_are_never_drawn() -> None:
    bags = [make_bag(i, annotated=i % 4 == 1) for i in range(12)]
    for mixed in ("per_class", "per_slide", "pooled"):
        for step in steps_of(planner(bags, mixed=mixed), 0, with_mixed=True):
            assert all(bags[b].label_N[p] >= 0 for b, p in zip(step.mixed_bag, step.mixed_patch, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_workers_share_a_step_without_gaps_or_doubles(size: int) -> None:
    bags = make_bags(12)
    lengths = {i: len(bag) for i, bag in enumerate(bags)}
    for step in steps_of(planner(bags, slides_per_step=5), 0, with_mixed=True):
        shares = [step.share(rank, size, lengths) for rank in range(size)]
        assert Counter(i for share in shares for i in share) == Counter([*step.bags, MIXED])


def test_workers_share_the_load_evenly() -> None:
    step = Step([0, 1, 2, 3], {}, np.empty(0, np.int64), np.empty(0, np.int64))
    assert [sorted(step.share(rank, 2, dict(enumerate([100, 60, 50, 10])))) for rank in (0, 1)] == [[0, 3], [1, 2]]


def write_slide(
    store: Store, *, shift: int = 0, spoilt: float | None = None, holds: str = "s", labels_hold: str = "s"
) -> BagEntry:
    """A slide "s" of two shards with labels 0, 1, unknown, 1, 0; the last embedding may be spoilt."""
    rng = np.random.default_rng(0)
    parts = []
    x = np.arange(5, dtype=np.int32) * 10
    for i, rows in enumerate((slice(0, 3), slice(3, 5))):
        places = [[holds] * len(x[rows]), x[rows], x[rows] + 7, np.full(len(x[rows]), 10, np.int32)]
        embedding_NE = rng.normal(size=(len(x[rows]), 4)).astype(np.float16)
        if i and spoilt is not None:
            embedding_NE[-1, 2] = spoilt
        flat = pa.array(embedding_NE.ravel())
        table = pa.table([*places, pa.FixedSizeListArray.from_arrays(flat, 4)], schema=embeddings_schema(4))
        parts.append(store.write_part("embeddings/s", f"part-{i}.arrow", to_ipc(table), rows=table.num_rows))
    label = pa.array([0, 1, None, 1, 0], pa.int8())
    fraction = pa.array([0.0, 0.25, None, 1.0, 0.0], pa.float32())
    labels = pa.table([[labels_hold] * 5, x + shift, x + 7, [10] * 5, label, fraction], schema=labels_schema(2))
    sink = pa.BufferOutputStream()
    pq.write_table(labels, sink)
    kept = store.write_part("labels", "s.parquet", sink.getvalue(), rows=5)
    return BagEntry("s", 1, "train", False, "embeddings/s", tuple(parts), "labels/s.parquet", (), kept)


def test_an_opened_bag_knows_three_states(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entry = BagEntry.from_json(write_slide(store).to_json())
    bag = open_bag(store, entry, num_classes=2, form="class")
    assert bag.label_N.tolist() == [0, 1, -1, 1, 0]
    assert bag.is_known_N.tolist() == [True, True, False, True, True]
    assert bag.target_NC[[1, 4]].tolist() == [[0, 1], [1, 0]]
    soft = open_bag(store, entry, num_classes=2, form="fraction")
    assert soft.target_NC[1].tolist() == [0.75, 0.25]
    assert soft.label_N.tolist() == bag.label_N.tolist()


def test_opening_a_bag_leaves_its_embeddings_in_the_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows, width = 500, 256
    place = pa.array(np.arange(rows, dtype=np.int32))
    flat = pa.array(np.ones(rows * width, np.float16))
    columns = [pa.array(["s"] * rows), place, place, place, pa.FixedSizeListArray.from_arrays(flat, width)]
    shard = to_ipc(pa.Table.from_arrays(columns, schema=embeddings_schema(width)))
    part = store.write_part("embeddings/s", "part-00000.arrow", shard, rows=rows)
    entry = BagEntry("s", 1, "train", False, "embeddings/s", (part,), None)
    before = pa.total_allocated_bytes()
    bag = open_bag(store, entry, num_classes=2, form="class")
    assert pa.total_allocated_bytes() - before < rows * width  # half of what the embeddings take
    assert bag.source.take(slice(None)).shape == (rows, width)


def test_a_bag_opened_for_its_labels_needs_no_shard(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entry = write_slide(store)
    for part in entry.parts:
        store.delete(f"{entry.folder}/{part.name}")
    bag = open_labels(store, entry, num_classes=2, form="class")
    assert (len(bag), bag.label_N.tolist()) == (5, [0, 1, -1, 1, 0])
    assert bag.source.take(slice(None)).shape == (5, 0)


def test_pieces_are_the_rows_as_they_lie(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    source = open_bag(store, write_slide(store), num_classes=2, form="class").source
    assert [len(piece) for piece in source.pieces(slice(None))] == [3, 2]
    for chosen in (slice(1, 4), slice(3, 5), slice(0, 0), np.array([4, 0, 3])):
        pieces = source.pieces(chosen)
        np.testing.assert_array_equal(np.concatenate(pieces), source.take(chosen))


def test_labels_of_another_grid_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entry = write_slide(store, shift=1)
    with pytest.raises(StorageError, match="different grids"):
        open_bag(store, entry, num_classes=2, form="class")


def test_an_entry_of_an_older_version_opens_without_the_labels_checksum(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    values = write_slide(store).to_json()
    del values["labels_part"]
    entry = BagEntry.from_json(values)
    assert entry.labels_part is None
    assert open_bag(store, entry, num_classes=2, form="class").label_N.tolist() == [0, 1, -1, 1, 0]


@pytest.mark.parametrize("held", [{"holds": "t"}, {"labels_hold": "t"}])
def test_tables_of_another_slide_are_refused(tmp_path: Path, held: dict[str, str]) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(StorageError, match="should hold the slide s and holds t"):
        open_bag(store, write_slide(store, **held), num_classes=2, form="class")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_the_slides_fault(tmp_path: Path, value: float) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(SlideError, match="s: the embedding of patch 4 is not finite"):
        open_bag(store, write_slide(store, spoilt=value), num_classes=2, form="class")
    open_bag(store, write_slide(store, spoilt=65504.0), num_classes=2, form="class")  # the largest half float


def test_all_bags_open_in_their_order_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entries = [replace(write_slide(store), label=label) for label in range(20)]
    opened = open_all_bags(store, entries, num_classes=2, form="class")
    assert [bag.label for bag in opened] == list(range(20))
    path = tmp_path / "embeddings/s/part-1.arrow"
    whole = bytearray(path.read_bytes())
    whole[-500] ^= 4
    path.write_bytes(whole)
    with pytest.raises(StorageError, match=r"part-1\.arrow is damaged: its checksum is not the committed one"):
        open_all_bags(store, entries, num_classes=2, form="class")


def test_the_first_row_that_is_not_finite_is_found_in_any_bits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(cases(300, full=5000)):
        rows, width = int(rng.integers(0, 50)), int(rng.integers(1, 9000))
        matrix_NE = (rng.integers(0, 2**16, (rows, width)) & 0xFBFF).astype(np.uint16).view(np.float16)
        for place in rng.integers(0, rows * width, rng.integers(0, 3)) if rows else ():
            matrix_NE.ravel()[place] = rng.choice([np.inf, -np.inf, np.nan])
        bad = np.flatnonzero(~np.isfinite(matrix_NE).all(axis=1))
        assert find_not_finite(matrix_NE) == (bad[0] if len(bad) else None)


def test_a_cut_shard_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entry = write_slide(store)
    path = tmp_path / "embeddings/s/part-1.arrow"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StorageError, match=r"part-1\.arrow"):
        open_bag(store, entry, num_classes=2, form="class")


def test_fractions_of_several_classes_are_soft_targets() -> None:
    schema = labels_schema(3)
    rows = [[0.5, 0.2, 0.3], None]
    table = pa.table([["s"] * 2, [0, 9], [0, 0], [9, 9], [2, None], [0.5, None], rows], schema=schema)
    target_NC = targets(table, num_classes=3, form="fraction")
    assert target_NC[0] == pytest.approx([0.5, 0.2, 0.3])
    assert np.isnan(target_NC[1]).all()
