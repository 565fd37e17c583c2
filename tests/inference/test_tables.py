"""Predictions as tables: what is written is what the network said, and judging it gives what evaluation gives."""

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmil.bags.bag import BagEntry
from distmil.errors import StorageError
from distmil.evaluation.calibration import calibration_of
from distmil.evaluation.intervals import Bootstrap
from distmil.evaluation.localisation import overlap_of
from distmil.evaluation.metrics import at_threshold, label_scores, summarise
from distmil.evaluation.predictions import Rules, evaluate_predictions
from distmil.inference.scoring import READ_OUTS, BagScores
from distmil.inference.tables import patch_table, predictions_folder, slide_row, write_slide_table
from distmil.storage.records import Part
from distmil.storage.schemas import labels_schema, patch_predictions_schema, slide_predictions_schema, to_parquet

PATCH_THRESHOLD = 0.4
TWO, THREE = ("negative", "positive"), ("normal", "adenoma", "carcinoma")


def some_scores(num, *, classes=TWO, seed=0):
    generator = np.random.default_rng(seed)
    class_NC = generator.dirichlet(np.ones(len(classes)), num).astype(np.float32)
    attention_N = generator.random(num, np.float32)
    probability_N = class_NC[:, 1:].sum(axis=1)
    bag_C = generator.dirichlet(np.ones(len(classes)))
    fused_N = attention_N * probability_N
    return BagScores(
        attention_N=attention_N,
        probability_N=probability_N,
        topk_probability_N=generator.random(num, np.float32),
        fused_N=fused_N,
        class_probability_NC=class_NC,
        bag_C=bag_C,
        bag=float(bag_C[1:].sum()),
        max=float(fused_N.max()),
        topk_mean=float(np.sort(fused_N)[-3:].mean()),
        regions=float(generator.random()),
    )


def places(num, slide_id="s1"):
    x, y = np.arange(num, dtype=np.int32) % 7 * 50, np.arange(num, dtype=np.int32) // 7 * 50
    columns = [pa.array([slide_id] * num), pa.array(x), pa.array(y), pa.array(np.full(num, 50, np.int32))]
    return pa.table(columns, names=["slide_id", "x", "y", "extent_px"])


# --- patches


@pytest.mark.parametrize("classes", [TWO, THREE])
def test_a_patch_table_says_what_the_network_said(classes):
    scores = some_scores(30, classes=classes)
    table = patch_table(scores, places(30), classes=classes, threshold=0.5)
    assert table.schema == patch_predictions_schema(classes)
    assert table.select(places(30).column_names).to_pylist() == places(30).to_pylist()
    for name in ("attention", "probability", "topk_probability", "fused"):
        assert np.array_equal(table[name].to_numpy(), getattr(scores, f"{name}_N"))
    if len(classes) > 2:
        for i, name in enumerate(classes):
            assert np.array_equal(table[f"probability_{name}"].to_numpy(), scores.class_probability_NC[:, i])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_a_patch_is_abnormal_from_the_threshold_on(threshold):
    scores = some_scores(40)
    probability_N = scores.probability_N.copy()
    threshold = float(np.float32(threshold))
    probability_N[:2] = threshold, np.nextafter(np.float32(threshold), np.float32(-1))
    scores = dataclasses.replace(scores, probability_N=probability_N)
    predicted = patch_table(scores, places(40), classes=TWO, threshold=threshold)["predicted"].to_pylist()
    assert predicted == ["positive" if p >= threshold else "negative" for p in probability_N.tolist()]


def test_an_abnormal_patch_takes_its_likeliest_abnormal_class():
    class_NC = np.array([[0.45, 0.35, 0.2], [0.45, 0.15, 0.4], [0.6, 0.1, 0.3], [0.0, 0.5, 0.5]], np.float32)
    scores = dataclasses.replace(
        some_scores(4, classes=THREE), class_probability_NC=class_NC, probability_N=class_NC[:, 1:].sum(axis=1)
    )
    predicted = patch_table(scores, places(4), classes=THREE, threshold=0.5)["predicted"].to_pylist()
    # normal is the likeliest single class of the first two, but something abnormal is likelier than not
    assert predicted == ["adenoma", "carcinoma", "normal", "adenoma"]


# --- slides


@pytest.mark.parametrize("slide_score", READ_OUTS)
def test_a_slides_probability_is_the_read_out_that_counts(slide_score):
    scores = some_scores(20)
    value = getattr(scores, slide_score)
    for threshold, predicted in ((value, "positive"), (value + 1e-9, "negative")):
        row = slide_row(scores, slide_id="s1", label=0, classes=TWO, slide_score=slide_score, threshold=threshold)
        assert row["probability"] == value
        assert row["predicted"] == predicted
        assert [row[name] for name in READ_OUTS] == [getattr(scores, name) for name in READ_OUTS]
        assert (row["label"], row["num_patches"]) == ("negative", 20)


def test_a_read_out_that_a_bundle_lacks_is_empty():
    scores = replace(some_scores(20), regions=math.nan)
    row = slide_row(scores, slide_id="s1", label=0, classes=TWO, slide_score="bag", threshold=0.5)
    assert row["regions"] is None


@pytest.mark.parametrize("classes", [TWO, THREE])
def test_the_slide_table_comes_back_as_it_was(store, classes):
    rows = [
        slide_row(
            some_scores(9, classes=classes, seed=i),
            slide_id=f"00{i}",
            label=label,
            classes=classes,
            slide_score="bag",
            threshold=0.5,
        )
        for i, label in enumerate([0, None, 1])
    ]
    name = write_slide_table(store, "run-1", rows, classes)
    assert name == "predictions/run-1/slides.parquet"
    table = pq.read_table(store.path(name))
    assert table.schema.equals(slide_predictions_schema(classes))
    assert table.to_pylist() == rows
    assert table["label"].to_pylist() == [classes[0], None, classes[1]]


# --- judging


def write_table(store, slide_id, table):
    return store.write_part(predictions_folder("run"), f"patches/{slide_id}.parquet", to_parquet(table), rows=1)


def write_run(store, *, classes=TWO, num=25, count=6):
    """Write predictions and labels of some slides; return entries, rows, parts, and what evaluation would keep."""
    entries, rows, tables, kept = [], {}, {}, []
    for i in range(count):
        slide_id = f"s{i}"
        scores = some_scores(num, classes=classes, seed=i)
        label = i % len(classes)
        label_N = np.random.default_rng(100 + i).integers(-1, len(classes), num).astype(np.int8)
        name = f"labels/{slide_id}.parquet" if i != 1 else None
        if name:
            columns = {field: places(num, slide_id)[field] for field in ("slide_id", "x", "y", "extent_px")}
            columns |= {"label": pa.array(label_N, mask=label_N < 0), "target_fraction": pa.nulls(num, pa.float32())}
            if len(classes) > 2:
                columns["fractions"] = pa.nulls(num, pa.list_(pa.float32()))
            store.write(name, to_parquet(pa.table(columns, schema=labels_schema(len(classes)))))
        table = patch_table(scores, places(num, slide_id), classes=classes, threshold=0.5)
        tables[slide_id] = write_table(store, slide_id, table)
        rows[slide_id] = slide_row(
            scores, slide_id=slide_id, label=label, classes=classes, slide_score="max", threshold=0.5
        )
        entries.append(BagEntry(slide_id, label, "val", False, "", (Part("p", num, 0, ""),), name))
        kept.append(label_scores(scores, label=label, label_N=label_N if name else np.full(num, -1, np.int8)))
    return entries, rows, tables, kept


def judged(store, rows, entries, tables, classes=TWO, *, threshold=0.5):
    rules = Rules(classes=classes, slide_score="max", threshold=threshold, patch_threshold=PATCH_THRESHOLD, draws=20)
    names = {entry.slide_id: entry.slide_id for entry in entries}
    return evaluate_predictions(
        store, "run", rows, entries, rules, tables=tables, patients=names, sites=dict.fromkeys(names),
        lesions_of=lambda slide_id: None,
    ).metrics  # fmt: skip


def expected_of(kept):
    probability, is_positive = [row.read_outs[READ_OUTS.index("max")] for row in kept], [row.label > 0 for row in kept]
    calibration = calibration_of(is_positive, probability, Bootstrap.of([str(i) for i in range(len(kept))], draws=2))
    return (
        summarise(kept, slide_score="max")
        | at_threshold(kept, slide_score="max", threshold=0.5)
        | overlap_of(kept, ["p"] * len(kept), threshold=PATCH_THRESHOLD)[0]
        | {"slide_ece": calibration.error, "slide_brier": calibration.brier}
    )


@pytest.mark.parametrize("classes", [TWO, THREE])
def test_judging_written_predictions_gives_what_evaluation_gives(store, classes):
    entries, rows, tables, kept = write_run(store, classes=classes)
    expected = expected_of(kept)
    found = judged(store, rows, entries, tables, classes)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name
    assert all(value is not None for value in expected.values())


def test_pseudo_labels_and_missing_labels_judge_nothing(store):
    entries, rows, tables, kept = write_run(store)
    changed = [
        dataclasses.replace(entry, is_pseudo=i == 0, label=None if i == 3 else entry.label)
        for i, entry in enumerate(entries)
    ]
    expected = expected_of([row for i, row in enumerate(kept) if i not in {0, 3}])
    assert judged(store, rows, changed, tables) == pytest.approx(expected)
    del rows["s2"]  # a slide that failed has no prediction
    expected = expected_of([row for i, row in enumerate(kept) if i not in {0, 2, 3}])
    assert judged(store, rows, changed, tables) == pytest.approx(expected)
    assert judged(store, {}, entries, tables) == {}


def test_labels_on_another_grid_are_refused(store):
    entries, rows, tables, _ = write_run(store)
    shifted = places(25, "s0").set_column(1, "x", pa.array(np.arange(25, dtype=np.int32)))
    tables["s0"] = write_table(store, "s0", patch_table(some_scores(25), shifted, classes=TWO, threshold=0.5))
    with pytest.raises(StorageError, match="s0: predictions and labels lie on different grids"):
        judged(store, rows, entries, tables)


def test_the_accuracy_is_that_of_the_bundles_threshold(store):
    entries, rows, tables, kept = write_run(store)
    highest = sorted(row["max"] for row in rows.values())
    for threshold in (0.0, highest[2], highest[3] + 1e-9, 1.0):
        right = [(row["max"] >= threshold) == (one.label > 0) for row, one in zip(rows.values(), kept, strict=True)]
        assert judged(store, rows, entries, tables, threshold=threshold)["slide_accuracy"] == np.mean(right)


def test_damaged_predictions_are_not_judged(store):
    entries, rows, tables, _ = write_run(store)
    name = f"{predictions_folder('run')}/patches/s0.parquet"
    data = bytearray(store.read(name))
    data[len(data) // 2] ^= 1
    store.write(name, bytes(data))
    with pytest.raises(StorageError, match="damaged"):
        judged(store, rows, entries, tables)


# --- the slide table


def test_a_patch_threshold_between_neighbours_among_floats_tells_them_apart():
    scores = some_scores(2)
    for start in (0.3, 0.7, 0.1):
        low = np.float32(start)
        high = np.nextafter(low, np.float32(1))
        scores = dataclasses.replace(scores, probability_N=np.array([low, high]))
        middle = (float(low) + float(high)) / 2
        table = patch_table(scores, places(2), classes=TWO, threshold=middle)
        assert table["predicted"].to_pylist() == ["negative", "positive"]


def test_metrics_go_when_the_table_beside_them_changes(store):
    _, rows, _, _ = write_run(store)
    metrics = f"{predictions_folder('run')}/metrics.json"
    write_slide_table(store, "run", list(rows.values()), TWO)
    record = store.read_record(f"{predictions_folder('run')}/slides.json")
    assert store.is_intact(predictions_folder("run"), record.parts[0])
    store.write_json(metrics, {})
    write_slide_table(store, "run", list(rows.values()), TWO)
    assert store.exists(metrics)
    rows["s0"]["label"] = "positive"
    write_slide_table(store, "run", list(rows.values()), TWO)
    assert not store.exists(metrics)
