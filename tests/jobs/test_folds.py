"""Cross-validation by the main job: predictions out of fold, and the bundle of all networks."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from distmil.bags.bag import Bag, BagEntry, open_all_bags
from distmil.inference.bundle import Bundle, load_bundle
from distmil.inference.scoring import BagScores, score_bag
from distmil.inference.thresholds import youden_threshold
from distmil.storage.store import Store
from distmil.training.run_files import run_file
from tests.support.jobs import Done, run_here

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]

FOLDS = 3
SETTINGS = [
    "cohort.synthetic=12", "cohort.val_fraction=0.25", "encoder.name=texture", "training.epochs=2",
    "bags.slides_per_step=2", "model.feature_dim=16", "model.attention_dim=8", "training.run=crossed",
    f"training.folds={FOLDS}", "tracking.uri=none", "prediction.maps=false", "bags.top_k=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained(home: Path) -> Done:
    done = run_here(home, "train", *SETTINGS)
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def store(home: Path, trained: Done) -> Store:
    return Store(str(home))


def bundle_of(store: Store, fold: int | None = None) -> Bundle:
    return load_bundle("crossed" if fold is None else f"crossed-fold-{fold}", store)


def bags_of(store: Store, run: str, split: str) -> list[Bag]:
    entries = [BagEntry.from_json(value) for value in store.read_checked(run_file(run, "cohort"), owner=run)]
    return open_all_bags(store, [entry for entry in entries if entry.split == split], num_classes=2, form="patch")


def scored(bundle: Bundle, bag: Bag) -> BagScores:
    return score_bag(bundle.heads, bag.source, lambda patches: torch.as_tensor(patches).float(), top_k=4)


def table(folder: str) -> dict[str, dict[str, object]]:
    return {row["slide_id"]: row for row in pq.read_table(Path(folder, "slides.parquet")).to_pylist()}


def test_every_train_slide_is_held_out_once_with_all_of_its_patient(home: Path, store: Store, trained: Done) -> None:
    with next(home.glob("synthetic/*/manifest.csv")).open() as file:
        patients = {row["slide_id"]: row["patient_id"] or row["slide_id"] for row in csv.DictReader(file)}
    held = [{bag.slide_id for bag in bags_of(store, f"crossed-fold-{fold}", "val")} for fold in range(1, FOLDS + 1)]
    train = {bag.slide_id for bag in bags_of(store, "crossed", "train")}
    assert set.union(*held) == train
    assert sum(map(len, held)) == len(train)
    for fold, ids in enumerate(held, 1):
        learned = {bag.slide_id for bag in bags_of(store, f"crossed-fold-{fold}", "train")}
        assert learned == train - ids
        assert not {patients[i] for i in ids} & {patients[i] for i in learned}
    assert table(trained.answer["out_of_fold"]).keys() == train


def test_each_slide_out_of_fold_has_the_scores_of_the_network_without_it(store: Store, trained: Done) -> None:
    rows = table(trained.answer["out_of_fold"])
    for fold in range(1, FOLDS + 1):
        for bag in bags_of(store, f"crossed-fold-{fold}", "val"):
            scores = scored(bundle_of(store, fold), bag)
            assert rows[bag.slide_id]["bag"] == pytest.approx(scores.bag, abs=1e-6)
            assert rows[bag.slide_id]["max"] == pytest.approx(scores.max, abs=1e-6)
    label = [row["label"] == bundle_of(store).classes[1] for row in rows.values()]
    score = [row["bag"] for row in rows.values()]
    found = trained.answer["metrics"]["out_of_fold"]
    assert found["slide_auc"] == pytest.approx(roc_auc_score(label, score))
    expected = youden_threshold(label, score)
    for bundle in (bundle_of(store), bundle_of(store, 1)):
        assert bundle.slide_thresholds["bag"] == pytest.approx(0.5 if expected is None else expected, abs=1e-6)


def test_the_bundle_averages_the_networks_of_all_folds(store: Store, trained: Done) -> None:
    bundle = bundle_of(store)
    assert len(bundle.heads) == FOLDS
    for fold, head in enumerate(bundle.heads, 1):
        (alone,) = bundle_of(store, fold).heads
        assert all(torch.equal(value, alone.state_dict()[name]) for name, value in head.state_dict().items())
    rows = table(trained.answer["predictions"])
    bags = bags_of(store, "crossed", "val")
    assert rows.keys() == {bag.slide_id for bag in bags}
    for bag in bags:
        each = [scored(bundle_of(store, fold), bag).bag for fold in range(1, FOLDS + 1)]
        assert rows[bag.slide_id]["bag"] == pytest.approx(np.mean(each), abs=1e-6)
    assert set(trained.answer["metrics"]) == {"out_of_fold", "val"}


def test_the_same_command_trains_nothing_again_and_another_number_of_folds_is_refused(
    home: Path, store: Store, trained: Done
) -> None:
    before = {path: path.read_bytes() for path in (home / "models").rglob("*") if path.is_file()}
    done = run_here(home, "train", *SETTINGS)
    assert done.code == 0, done.err
    assert done.err.count("is trained already") == FOLDS
    assert done.answer["metrics"] == trained.answer["metrics"]
    assert {path: path.read_bytes() for path in before} == before
    other = run_here(home, "train", *SETTINGS, "training.folds=2")
    assert other.code == 2
    assert "training.folds: 3 then, 2 now" in other.err
    alone = run_here(home, "train", *SETTINGS, "training.folds=0")
    assert "training.folds: 3 then, 0 now" in alone.err


def test_a_fold_trains_to_its_end_where_it_stopped(home: Path, store: Store, trained: Done) -> None:
    copy = home.with_name("copy")
    shutil.copytree(home, copy)
    for name in ("models/crossed", "models/crossed-fold-2", "checkpoints/crossed-fold-2"):
        shutil.rmtree(copy / name)
    done = run_here(copy, "train", *SETTINGS)
    assert done.code == 0, done.err
    assert done.err.count("is trained already") == FOLDS - 1
    assert done.answer["metrics"] == trained.answer["metrics"]
