"""What a store says of its items: the words, the half-made, and what is not known."""

import os
import random
import re
from pathlib import Path

import pytest

from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.registry import stored_spec
from distmil.errors import ConfigError
from distmil.inference.bundle import bundle_values
from distmil.inference.bundle_files import BundleFiles
from distmil.inference.question import claim_question, make_question
from distmil.inventory.removal import UNUSED, in_order, plan_removal, remove
from distmil.inventory.settings import Recipe, patches_words
from distmil.inventory.survey import Inventory, survey
from distmil.inventory.wording import age_in_words, lines, sentences, size_in_words
from distmil.storage.records import encode_json
from distmil.storage.store import Committed, Store
from distmil.tiling.shards import patches_folder
from tests.support.random_store import HOUR_S, NOW_S, RandomStore
from tests.support.trained import RUN, make_house

RESNET = stored_spec("resnet18", "ab" * 32)


@pytest.fixture
def empty(store: Store) -> RandomStore:
    """A store to be filled by a test."""
    return RandomStore(store, random.Random(0))


def look(made: RandomStore, *, config: Config | None = None) -> Inventory:
    """Survey a store hours after its last write."""
    for path in made.root.rglob("*"):
        os.utime(path, (NOW_S - 3 * HOUR_S, NOW_S - 3 * HOUR_S))
    return survey(made.store, config or Config(), now_s=NOW_S)


def unused(found: Inventory) -> set[str]:
    return {entry.name for entry in found.unused}


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "1.0 MB"), (1_234_567, "1.2 MB"),
     (99_960_000, "100 MB"), (3_500_000_000_000, "3.5 TB"), (7e18, "7000 PB")],
)  # fmt: skip
def test_sizes(size_bytes: float, words: str) -> None:
    assert size_in_words(size_bytes) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(-5, "0 s"), (40, "40 s"), (1200, "20 min"), (9000, "2 h 30 min"), (3 * 86_400, "3 days")]
)
def test_ages(seconds: float, words: str) -> None:
    assert age_in_words(seconds) == words


@pytest.mark.parametrize(
    ("tiling", "words"),
    [
        ({}, "224 px at 0.5 um/px, foreground, jpeg 90 or as in the file"),
        ({"patch_px": 96, "mpp": None, "strategy": "pad", "encode": "png"}, "96 px of the file's own, pad, png"),
        ({"encode": "jpeg", "stride_px": 112, "min_tissue": 0.3, "jpeg_quality": 80},
         "224 px at 0.5 um/px, foreground, jpeg 80, stride_px=112, min_tissue=0.3"),
    ],
)  # fmt: skip
def test_other_settings_have_other_words(tiling: dict[str, object], words: str) -> None:
    assert patches_words(build_config({"tiling": tiling}).tiling) == words


def test_a_store_that_a_job_made_is_in_words(tmp_path: Path) -> None:
    house = make_house(tmp_path / "store", num_slides=4)
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, (NOW_S, NOW_S))
    found = survey(house.store, Config(), now_s=NOW_S + 2 * HOUR_S)
    patches = patches_folder(house.config.tiling)
    run = f"checkpoints/{RUN}"
    assert {name.partition("/")[0]: (e.words, e.slides, list(e.used_by)) for name, e in found.entries.items()} == {
        "checkpoints": ("a run without a bundle, before its first epoch", 4, []),
        "patches": ("patches of 224 px at 0.5 um/px, foreground, jpeg 90 or as in the file", 4, [run]),
        "embeddings": (f"texture embeddings of {patches}", 4, [run]),
        "labels": (f"labels negative, positive of {patches}", 4, [run]),
        "outlines": (f"outlines as read for {patches}", 2, [run]),
    }
    assert found.unused == []
    shown = "\n".join([*lines(found), *sentences(found, "distmil store")])
    assert re.search(rf"^  {patches} +4 +[0-9.]+ MB  2 h 00 min +run {RUN}$", shown, re.M)
    assert shown.count(f"run {RUN}") == 4
    assert "unfinished: checkpoints/door, " in shown
    assert shown.endswith("nothing can go: something refers to every folder, or it was written in the last hour")


@pytest.mark.parametrize("file", ["cohort.json", "run.json"])
def test_a_run_whose_records_are_damaged_may_use_everything(empty: RandomStore, file: str) -> None:
    empty.commit("patches/0123456789ab", "s1", {})
    assert unused(look(empty)) == {"patches/0123456789ab"}
    empty.store.write(f"checkpoints/first/{file}", b"{damaged")
    found = look(empty)
    assert found.entries["checkpoints/first"].words == "what it uses is not recorded"
    assert found.entries["patches/0123456789ab"].used_by == ["checkpoints/first"]
    assert unused(found) == set()


def test_a_bundle_whose_run_is_gone_keeps_the_embeddings_that_may_be_its_own(empty: RandomStore) -> None:
    """The bundle does not say which weights made its embeddings."""
    config = build_config({"tiling": {"patch_px": 96}, "encoder": {"name": "resnet18"}})
    patches, other = patches_folder(config.tiling), "patches/0123456789ab"
    for folder in (patches, other):
        empty.commit(folder, "s1", {})
    own = next(name for name in Recipe(config, RESNET).folders() if name.startswith("embeddings/"))
    empty.stage(own, patches, ["s1"])
    empty.stage("embeddings/0123456789ab", other, ["s1"])
    assert RESNET.weights_file is not None
    empty.store.write(RESNET.weights_file, b"weights")
    assert unused(look(empty)) == {patches, own, other, "embeddings/0123456789ab", RESNET.weights_file}
    empty.store.write_json("models/gone/config.json", {"config": bundle_values(config)})
    Committed(empty.store, "models/gone", "gone").commit({"format_version": 2})
    assert unused(look(empty)) == {other, "embeddings/0123456789ab"}


def test_a_comparison_is_named_kept_and_removed_by_its_name(empty: RandomStore) -> None:
    store = empty.store
    for name in ("a--b", "a--b--c"):
        for file in ("comparison.html", "differences.csv"):
            store.write(f"comparisons/{name}/{file}", b"x" * 500)
    store.write("comparisons/mine/notes.txt", b"mine")
    found = look(empty)
    assert {name: (entry.words, entry.item.size_bytes) for name, entry in found.entries.items()} == {
        "comparisons/a--b": ("comparison of b with a", 1000),
        "comparisons/a--b--c": ("comparison of b and c with a", 1000),
    }
    assert list(found.others) == ["comparisons/mine"]
    assert unused(found) == set()
    plan = plan_removal(found, ["comparisons/a--b"])
    (entry,) = plan.entries
    assert in_order(entry.item, entry.item.files)[2] == ["comparisons/a--b/comparison.html"]
    removed, left = remove(store, plan, now_s=NOW_S, note=lambda _: None)
    assert ([item.name for item in removed], left) == (["comparisons/a--b"], [])
    assert not store.exists("comparisons/a--b")
    assert store.exists("comparisons/a--b--c/comparison.html")


def test_half_made_things_are_called_so(empty: RandomStore) -> None:
    store = empty.store
    empty.commit("patches/0123456789ab", "s1", {})
    store.write("patches/0123456789ab/s2/part-00000.parquet", b"x")
    store.write("models/first/model.safetensors", b"x")
    store.write_json("searches/wide/trials/a.json", {})
    for run in ("wide", "wide-0123456789ab"):
        entries = [{"folder": "embeddings/0123456789ab/s1", "labels": None}]
        store.write_checked(f"checkpoints/{run}/cohort.json", entries, owner=run)
    text = "\n".join([*lines(found := look(empty)), *sentences(found, "distmil store")])
    assert "patches, settings not recorded; 1 slide unfinished" in text
    assert "unfinished: models/first, 1 B, last written 3 h 00 min ago: an unfinished bundle" in text
    assert "search, unfinished; trials and repeats: 1" in text
    assert "a trial of the search wide in progress" in text
    assert "notes of a search" in text
    assert "nothing refers to 1 item: " in text


def test_settings_are_known_by_this_jobs_configuration_and_by_the_tiling_report(empty: RandomStore) -> None:
    mine, reported = (build_config({"tiling": {"patch_px": edge}}) for edge in (96, 128))
    for config in (mine, reported):
        empty.commit(patches_folder(config.tiling), "s1", {})
    report = {"settings": {"tiling.patch_px": 128, "tiling.mpp": 0.5, "tiling.encode": "reuse"}}
    empty.store.write_json("reports/tiling-01234567/summary.json", report)
    found = look(empty, config=mine)
    for edge, config in ((96, mine), (128, reported)):
        assert found.entries[patches_folder(config.tiling)].words.startswith(f"patches of {edge} px at 0.5 um/px")
    assert found.entries["reports/tiling-01234567"].words.startswith("tiling report: 128 px")
    assert unused(found) == {patches_folder(mine.tiling), patches_folder(reported.tiling)}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("patches/0123456789aa", "there is no 'patches/0123456789aa' in .*did you mean patches/0123456789ab"),
        ("0123456789ab", "did you mean patches/0123456789ab"),
        ("xyz", "expected a name of the list, or unused"),
        ("synthetic/8", "synthetic/8 is not removed by this command, which removes only models, predictions,"),
        ("../elsewhere", "there is no '../elsewhere'"),
    ],
)
def test_other_names_are_refused(empty: RandomStore, wanted: str, said: str) -> None:
    empty.commit("patches/0123456789ab", "s1", {})
    empty.store.write("synthetic/8/manifest.csv", b"x")
    with pytest.raises(ConfigError, match=said):
        plan_removal(look(empty), [wanted])


def test_what_is_used_is_removed_with_its_users_or_by_force(tmp_path: Path) -> None:
    made = next(
        made for seed in range(100)
        if (made := RandomStore(Store(str(tmp_path / str(seed))), random.Random(seed)).make()).users
        and any(name.startswith("predictions/") for name in made.users)
    )  # fmt: skip
    found = look(made)
    bundle = next(name for name in found.entries if name.startswith("models/") and found.entries[name].used_by)
    with pytest.raises(ConfigError, match=f"{bundle} is used by predictions/.*; --force removes it all the same"):
        plan_removal(found, [bundle])
    assert [e.name for e in plan_removal(found, [bundle], is_forced=True).entries] == [bundle]
    users = list(found.entries[bundle].used_by)
    assert [e.name for e in plan_removal(found, [bundle, *users]).entries] == [*sorted(users), bundle]


def test_what_was_written_just_now_stays_whatever_is_said(empty: RandomStore) -> None:
    empty.commit("patches/0123456789ab", "s1", {})
    empty.stage("embeddings/0123456789ab", "patches/0123456789ab", ["s1"])
    look(empty)
    path = empty.root / "embeddings/0123456789ab/s1/commit.json"
    os.utime(path, (NOW_S - 1200, NOW_S - 1200))
    found = survey(empty.store, Config(), now_s=NOW_S)
    with pytest.raises(ConfigError, match=r"embeddings/0123456789ab was written 20 min ago: a job may be at work"):
        plan_removal(found, ["embeddings/0123456789ab"], is_forced=True)
    with pytest.raises(ConfigError, match=r"patches/0123456789ab belongs with folders that were written in the last"):
        plan_removal(found, ["patches/0123456789ab"], is_forced=True)
    assert plan_removal(found, [UNUSED]).entries == []


def test_predictions_of_a_bundle_from_elsewhere_use_the_embeddings_that_were_scored(empty: RandomStore) -> None:
    patches = [f"patches/{i}123456789ab" for i in range(2)]
    for i, folder in enumerate(patches):
        empty.commit(folder, "s1", {"source": i})
        empty.stage(f"embeddings/{i}123456789ab", folder, ["s1"])
    claim_question(empty.store, "answer", make_question("a digest", [Slide("s1", "/x/s1.svs")]))
    scored = [part.sha256 for part in empty.records["embeddings/1123456789ab", "s1"].parts]
    Committed(empty.store, "predictions/answer", "s1", "records/s1.json").commit({"parts": scored})
    found = look(empty)
    assert unused(found) == {patches[0], "embeddings/0123456789ab"}
    assert found.entries[patches[1]].used_by == ["predictions/answer"]
    assert found.entries["predictions/answer"].words == "predictions of a bundle that is not in this store"


def test_patches_of_an_earlier_distmil_are_called_so(empty: RandomStore) -> None:
    folder = patches_folder(Config().tiling, version=1)
    empty.commit(folder, "s1", {})
    assert look(empty).entries[folder].words.endswith("jpeg 90 or as in the file, of an earlier distmil")


def test_an_empty_store_is_called_so(empty: RandomStore) -> None:
    empty.root.mkdir()
    found = look(empty)
    assert [*lines(found), *sentences(found, "distmil store")] == ["the store is empty"]


@pytest.mark.parametrize("version", [1, 2])
def test_predictions_name_their_bundle_whatever_its_format_version(empty: RandomStore, version: int) -> None:
    store, folder = empty.store, "models/first"
    config, labels = {"config": bundle_values(Config())}, {"classes": ["a", "b"]}
    files = {"config.json": config, "labels.json": labels, "metrics.json": {}}
    weights = store.write_part(folder, "model.safetensors", b"x", rows=1)
    written = [store.write_part(folder, name, encode_json(values), rows=1) for name, values in files.items()]
    parts = [weights, *(written if version > 1 else [])]
    record = Committed(store, folder, "first").commit({"format_version": version}, parts=parts)
    digest = BundleFiles(Store(store.path(folder)), record).digest()
    claim_question(store, "answer", make_question(digest, [Slide("s1", "/x/s1.svs")]))
    found = look(empty)
    assert found.entries[folder].used_by == ["predictions/answer"]
    assert found.entries["predictions/answer"].words == "predictions of models/first, unfinished"
