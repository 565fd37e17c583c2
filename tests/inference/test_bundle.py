"""Bundles: what they carry, what they refuse, and how a job's own keys meet theirs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from distmil.config.loading import build_config, per_job_keys
from distmil.config.root import Config
from distmil.errors import BundleError, ConfigError
from distmil.inference.bundle import Bundle, bundle_values, load_bundle, save_bundle, with_bundle
from distmil.inference.bundle_place import home_of
from distmil.models.network import DualNetwork
from distmil.models.regions import PatchEvidence
from distmil.storage.records import Part, Record
from distmil.storage.store import Store
from tests.support.scale import cases

THRESHOLDS = {"bag": 0.4, "max": 0.7, "topk_mean": 0.25, "regions": 0.35}


def make_bundle(**encoder: str) -> Bundle:
    values = {
        "cohort": {"classes": ["normal", "tumour", "stroma"]},
        "tiling": {"patch_px": 96, "mpp": 1.0},
        "model": {"feature_dim": 8, "attention_dim": 4},
        "encoder": encoder or {"name": "texture"},
    }
    config = build_config(values)
    torch.manual_seed(0)
    head = DualNetwork(config.model, embedding_dim=5, num_classes=3).eval()
    state = {"conv1.weight": torch.ones(2, 3)} if encoder else None
    return Bundle("run", config, (head,), state, 0.3, THRESHOLDS, metrics={"last": {"val_slide_auc": None}})


@pytest.mark.parametrize(
    ("folder", "home"),
    [
        ("/data/home/models/first", "/data/home"),
        ("/models/first", "/"),
        ("s3://bucket/models/first", "s3://bucket"),
        ("gs://bucket/a/models/first?region=eu/models/x", "gs://bucket/a?region=eu/models/x"),
        ("/data/models/what?/first", None),
        ("/data/first", None),
    ],
)
def test_a_bundle_knows_the_store_that_it_lies_in(folder: str, home: str | None) -> None:
    assert home_of(SimpleNamespace(root=folder)) == home  # type: ignore[arg-type]


def test_a_bundle_comes_back_as_it_was(store: Store) -> None:
    bundle = make_bundle()
    digest = save_bundle(store, bundle).digest
    for place in ("run", store.path("models/run")):
        found = load_bundle(place, store)
        assert found.classes == ["normal", "tumour", "stroma"]
        assert (found.patch_threshold, found.slide_thresholds, found.digest) == (0.3, THRESHOLDS, digest)
        assert (found.run, found.format_version, found.metrics) == ("run", 2, {"last": {"val_slide_auc": None}})
        assert found.config.tiling == bundle.config.tiling
        z = torch.randn(4, 5)
        for one, other in zip(found.heads[0](z), bundle.heads[0](z), strict=True):
            assert torch.equal(one, other)


def ensemble(count: int) -> Bundle:
    bundle = make_bundle()
    heads = []
    for seed in range(count):
        torch.manual_seed(seed)
        heads.append(DualNetwork(bundle.config.model, embedding_dim=5, num_classes=3).eval())
    return replace(bundle, heads=tuple(heads))


@pytest.mark.parametrize("count", [2, 3, 12])
def test_the_networks_of_folds_come_back_in_order(store: Store, count: int) -> None:
    bundle = ensemble(count)
    save_bundle(store, bundle)
    found = load_bundle("run", store)
    assert len(found.heads) == count
    for one, other in zip(found.heads, bundle.heads, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("members", [0, 2, 4, 101, True, "3", None])
def test_a_bundle_with_another_number_of_networks_than_it_says_is_refused(store: Store, members: object) -> None:
    save_bundle(store, ensemble(3))
    edited("config.json", "members", value=members)(store)
    with pytest.raises(BundleError, match=r"members|networks|names, shapes"):
        load_bundle("run", store)


def test_an_encoder_travels_without_its_path(store: Store) -> None:
    bundle = make_bundle(name="resnet18", weights="/home/someone/secret/weights.pth")
    save_bundle(store, bundle)
    assert b"someone" not in b"".join(path.read_bytes() for path in Path(store.path("models/run")).iterdir())
    found = load_bundle("run", store)
    assert found.encoder_state is not None
    assert torch.equal(found.encoder_state["conv1.weight"], torch.ones(2, 3))
    same = build_config({"encoder": {"name": "resnet18", "weights": "/elsewhere/weights.pth"}})
    assert with_bundle(same, found).encoder.weights == "weights.pth"


@pytest.mark.parametrize("damage", ["no record", "cut weights", "other version", "no config"])
def test_a_bundle_that_is_not_whole_is_refused(store: Store, damage: str) -> None:
    save_bundle(store, make_bundle())
    folder = Path(store.path("models/run"))
    if damage == "no record":
        (folder / "commit.json").unlink()
    elif damage == "cut weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-3])
    elif damage == "other version":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"format_version": 2', '"format_version": 99'))
    else:
        (folder / "config.json").unlink()
    with pytest.raises(BundleError, match="models/run"):
        load_bundle("run", store)


def test_a_bundle_that_is_not_there_is_said(store: Store) -> None:
    with pytest.raises(BundleError, match=r"prediction\.model = 'gone': there is no such folder, nor a run"):
        load_bundle("gone", store)


def test_the_runs_that_are_there_are_listed(store: Store) -> None:
    with pytest.raises(BundleError, match=r"/models; no run there is trained to its end$"):
        load_bundle("frist", store)
    for run in ("first", "other", "unfinished"):
        save_bundle(store, replace(make_bundle(), run=run))
    store.delete("models/unfinished/commit.json")
    for place in ("frist", "models/frist", "/nowhere/frist"):
        with pytest.raises(BundleError, match=r"/models; did you mean first\? The runs there: first, other$"):
            load_bundle(place, store)
    with pytest.raises(BundleError, match=r"/models; the runs there: first, other$"):
        load_bundle("xyz", store)


def test_of_many_runs_some_are_listed(store: Store) -> None:
    for number in range(23):
        store.write(f"models/r{number:02d}/commit.json", b"{}")
    with pytest.raises(BundleError, match=r"the runs there: r00, .*, r19 and 3 more$"):
        load_bundle("xyz", store)


def test_every_file_is_in_the_commit_and_in_the_digest(store: Store) -> None:
    bundle = make_bundle()
    record = save_bundle(store, bundle)
    files = {path.name for path in Path(store.path("models/run")).iterdir()} - {"commit.json"}
    assert {part.name for part in record.parts} == files
    assert files == {"model.safetensors", "config.json", "labels.json", "metrics.json"}
    others = [
        replace(bundle, patch_threshold=0.31),
        replace(bundle, slide_thresholds=THRESHOLDS | {"max": 0.71}),
        replace(bundle, metrics={"last": {}}),
        replace(bundle, config=build_config({**bundle_values(bundle.config), "bags": {"top_k": 9}})),
    ]
    assert len({record.digest, *(save_bundle(store, other).digest for other in others)}) == 5


def test_temperatures_are_kept_and_bundles_without_them_open(store: Store) -> None:
    bundle = replace(make_bundle(), temperatures={"bag": 1.7, "topk_mean": 0.4})
    digest = save_bundle(store, bundle).digest
    assert load_bundle("run", store).temperatures == bundle.temperatures
    assert save_bundle(store, make_bundle()).digest != digest
    removed("labels.json", "temperatures")(store)
    assert load_bundle("run", store).temperatures == {}


def test_a_file_that_an_earlier_bundle_of_the_run_left_goes(store: Store) -> None:
    save_bundle(store, make_bundle(name="resnet18", weights="random"))
    save_bundle(store, make_bundle())
    assert "encoder.safetensors" not in store.names("models/run")
    assert load_bundle("run", store).encoder_state is None


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "labels.json", "metrics.json", "commit.json"])
def test_a_flipped_bit_in_any_file_is_found(store: Store, name: str) -> None:
    bundle = make_bundle()
    save_bundle(store, bundle)
    path = Path(store.path(f"models/run/{name}"))
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(cases(60, full=600)):
        data = bytearray(whole)
        data[int(generator.integers(len(data)))] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)
        with pytest.raises(BundleError, match="models/run"):
            load_bundle("run", store)


# --- hostile bundles: what is changed here is committed again, so that every checksum is right


def commit(store: Store, name: str, data: bytes, *, key: Any = None) -> None:
    """Put a file into the bundle, and its checksum into the record, as whoever made the bundle would."""
    record = store.read_record("models/run/commit.json")
    assert record is not None
    part = store.write_part("models/run", name, data, rows=1)
    parts = (*(kept for kept in record.parts if kept.name != name), part)
    store.write_record("models/run/commit.json", replace(record, parts=parts, key=key or record.key))


def edited(name: str, *path: str, value: Any) -> Callable[[Store], None]:
    """Set a value in a JSON file, or the whole of it."""

    def change(store: Store) -> None:
        values = json.loads(store.read(f"models/run/{name}")) if path else value
        node = values
        for key in path[:-1]:
            node = node[key]
        if path:
            node[path[-1]] = value
        commit(store, name, json.dumps(values).encode())

    return change


def removed(name: str, *path: str) -> Callable[[Store], None]:
    def change(store: Store) -> None:
        values = json.loads(store.read(f"models/run/{name}"))
        node = values
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
        commit(store, name, json.dumps(values).encode())

    return change


def text(name: str, data: bytes) -> Callable[[Store], None]:
    return lambda store: commit(store, name, data)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Store], None]:
    def apply(store: Store) -> None:
        state = load(store.read("models/run/model.safetensors"))
        change(state)
        commit(store, "model.safetensors", save(state))

    return apply


def record_as(**values: Any) -> Callable[[Store], None]:
    def change(store: Store) -> None:
        record = store.read_record("models/run/commit.json")
        assert record is not None
        store.write_record("models/run/commit.json", replace(record, **values))

    return change


def named_elsewhere(store: Store) -> None:
    record = store.read_record("models/run/commit.json")
    assert record is not None
    strange = Part("../../secret", 1, 1, "0")
    store.write_record("models/run/commit.json", replace(record, parts=(*record.parts, strange)))


HOSTILE: dict[str, Callable[[Store], None]] = {
    "config a list": edited("config.json", value=[]),
    "config null": edited("config.json", value=None),
    "config a number": edited("config.json", value=3),
    "config text": edited("config.json", "config", value="x"),
    "config a list inside": edited("config.json", "config", value=[1]),
    "a section null": edited("config.json", "config", "tiling", value=None),
    "a section a list": edited("config.json", "config", "model", value=[1]),
    "an unknown section": edited("config.json", "config", "evil", value={}),
    "a section of another kind": edited("config.json", "config", "training", value={"epochs": 5}),
    "an unknown key": edited("config.json", "config", "tiling", "evil", value=1),
    "a missing key": removed("config.json", "config", "tiling", "mpp"),
    "a missing section": removed("config.json", "config", "encoder"),
    "a key of the job": edited("config.json", "config", "tiling", "default_mpp", value=0.25),
    "a key out of range": edited("config.json", "config", "tiling", "patch_px", value=-1),
    "a width of billions": edited("config.json", "config", "model", "feature_dim", value=2**40),
    "a width that is allowed and not there": edited("config.json", "config", "model", "feature_dim", value=65_536),
    "a billion patches": edited("config.json", "config", "bags", "top_k", value="8"),
    "no version": removed("config.json", "format_version"),
    "a version of text": edited("config.json", "format_version", value="2"),
    "the first version": edited("config.json", "format_version", value=1),
    "no run": removed("config.json", "run"),
    "a run that leaves": edited("config.json", "run", value="../../elsewhere"),
    "a run with a line break": edited("config.json", "run", value="run\n"),
    "a run that is a number": edited("config.json", "run", value=7),
    "a dimension of text": edited("config.json", "embedding_dim", value="5"),
    "a dimension of a million": edited("config.json", "embedding_dim", value=1_000_000),
    "a dimension of 2^40": edited("config.json", "embedding_dim", value=2**40),
    "a dimension below 1": edited("config.json", "embedding_dim", value=0),
    "a dimension that is true": edited("config.json", "embedding_dim", value=True),
    "labels a list": edited("labels.json", value=[]),
    "labels null": edited("labels.json", value=None),
    "classes swapped": edited("labels.json", "classes", value=["tumour", "normal", "stroma"]),
    "classes missing": removed("labels.json", "classes"),
    "a threshold of text": edited("labels.json", "patch_threshold", value="0.5"),
    "a threshold of null": edited("labels.json", "slide_thresholds", "bag", value=None),
    "a threshold below 0": edited("labels.json", "slide_thresholds", "max", value=-1),
    "a threshold above 1": edited("labels.json", "slide_thresholds", "topk_mean", value=1.5),
    "a threshold that is true": edited("labels.json", "patch_threshold", value=True),
    "a threshold that is NaN": edited("labels.json", "patch_threshold", value=float("nan")),
    "a temperature of 0": edited("labels.json", "temperatures", value={"bag": 0.0}),
    "a temperature of text": edited("labels.json", "temperatures", value={"bag": "1"}),
    "a temperature that is infinite": edited("labels.json", "temperatures", value={"bag": 1e999}),
    "a temperature of no read-out": edited("labels.json", "temperatures", value={"mean": 1.0}),
    "temperatures a list": edited("labels.json", "temperatures", value=[1.0]),
    "thresholds of a read-out missing": removed("labels.json", "slide_thresholds", "max"),
    "evidence a list": edited("labels.json", "evidence", value=[0.5, 0.0]),
    "evidence without an offset": edited("labels.json", "evidence", value={"slope": 0.5}),
    "evidence that falls": edited("labels.json", "evidence", value={"slope": -0.5, "offset": 0.0}),
    "evidence of text": edited("labels.json", "evidence", value={"slope": "0.5", "offset": 0.0}),
    "no usual patches": edited("labels.json", "usual_patches", value=0),
    "usual patches of text": edited("labels.json", "usual_patches", value="9"),
    "thresholds a list": edited("labels.json", "slide_thresholds", value=[0.5]),
    "metrics a list": edited("metrics.json", value=[]),
    "metrics with NaN": text("metrics.json", b'{"epoch": NaN}'),
    "JSON nested 100,000 deep": text("config.json", b"[" * 100_000),
    "an integer of 100,000 digits": text("config.json", b"1" * 100_000),
    "JSON that is no UTF-8": text("labels.json", b'{"classes": "\xff"}'),
    "no JSON": text("labels.json", b"garbage"),
    "weights that are no weights": text("model.safetensors", b"garbage"),
    "a header of petabytes": text("model.safetensors", (2**50).to_bytes(8, "little") + b"{}"),
    "weights with NaN": weights(lambda state: state["phi.weight"].fill_(float("nan"))),
    "weights with infinity": weights(lambda state: state["classifier.bias"].fill_(float("inf"))),
    "statistics with NaN": weights(lambda state: state["normaliser.low"].fill_(float("nan"))),
    "statistics out of order": weights(
        lambda state: state["normaliser.low"].fill_(1).sub_(state["normaliser.high"].fill_(0))
    ),
    "a weight missing": weights(lambda state: state.pop("phi.bias")),
    "a weight too many": weights(lambda state: state.update(evil=torch.ones(2))),
    "weights of another shape": weights(lambda state: state.update({"phi.bias": torch.ones(9)})),
    "weights of another type": weights(lambda state: state.update({"phi.bias": state["phi.bias"].double()})),
    "an encoder that is not configured": text("encoder.safetensors", save({"conv": torch.ones(2)})),
    "an encoder that is not there": edited("config.json", "config", "encoder", "name", value="resnet18"),
    "a part that leaves the folder": named_elsewhere,
    "no parts": record_as(parts=()),
    "a failed record": record_as(status="failed"),
    "a record of another version": record_as(key={"format_version": 99}),
    "a record without a version": record_as(key={}),
    "a record whose key is a list": record_as(key=[]),
    "a record deeply nested": lambda store: store.write("models/run/commit.json", b"[" * 100_000),
    "a record that is a list": lambda store: store.write("models/run/commit.json", b"[]"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_refused_in_words(store: Store, name: str) -> None:
    save_bundle(store, make_bundle())
    HOSTILE[name](store)
    with pytest.raises(BundleError, match=r"bundle|models/run") as error:
        load_bundle("run", store)
    assert len(str(error.value)) < 1000
    assert error.value.exit_code == 2


def test_hostile_encoder_weights_are_refused(store: Store) -> None:
    save_bundle(store, make_bundle(name="resnet18", weights="random"))
    commit(store, "encoder.safetensors", save({"conv1.weight": torch.full((2, 3), torch.nan)}))
    with pytest.raises(BundleError, match=r"conv1\.weight are not finite"):
        load_bundle("run", store)


def test_evidence_and_the_usual_size_travel_and_older_bundles_lack_them(store: Store) -> None:
    evidence = PatchEvidence(0.7, -0.25)
    save_bundle(store, replace(make_bundle(), evidence=evidence, usual_patches=140))
    found = load_bundle("run", store)
    assert (found.evidence, found.usual_patches) == (evidence, 140)
    found.check_gives("regions")
    for key in (("evidence",), ("usual_patches",), ("slide_thresholds", "regions")):
        removed("labels.json", *key)(store)
    found = load_bundle("run", store)
    assert (found.evidence, found.usual_patches, found.slide_thresholds["regions"]) == (None, None, 0.5)
    found.check_gives("bag")
    with pytest.raises(ConfigError, match="slide_score = regions: the bundle run has no evidence"):
        found.check_gives("regions")


# --- bundles of the first version


def make_old(store: Store, bundle: Bundle, *, run: str = "run") -> str:
    """Write a bundle as the first version did, and return its record's digest."""
    save_bundle(store, bundle)
    folder = f"models/{run}"
    config = json.loads(store.read(f"{folder}/config.json")) | {"format_version": 1}
    config["config"]["tiling"] |= {"default_mpp": 0.25, "max_bad_fraction": 1.0, "verify": "repair"}
    del config["config"]["tiling"]["snap"]
    store.write_json(f"{folder}/config.json", config)
    labels = {"classes": bundle.classes, "patch_threshold": 0.3, "slide_threshold": 0.6}
    store.write_json(f"{folder}/labels.json", labels)
    record = store.read_record(f"{folder}/commit.json")
    assert record is not None
    old = Record(run, {"format_version": 1}, parts=[part for part in record.parts if "json" not in part.name])
    store.write_record(f"{folder}/commit.json", old)
    return old.digest


def test_a_bundle_of_the_first_version_opens(store: Store) -> None:
    bundle = make_bundle()
    digest = make_old(store, bundle)
    found = load_bundle("run", store)
    assert found.format_version == 1
    assert found.patch_threshold == 0.3
    assert found.slide_thresholds == dict.fromkeys(THRESHOLDS, 0.6)
    assert found.config.tiling == bundle.config.tiling  # what it lacks has today's default, a job's keys are left out
    path = Path(store.path("models/run/labels.json"))
    path.write_text(path.read_text().replace("0.6", "0.7"))
    assert len({digest, found.digest, load_bundle("run", store).digest}) == 3
    path.write_text(path.read_text().replace("0.7", "7"))
    with pytest.raises(BundleError, match="slide_threshold = 7: expected a number from 0 to 1"):
        load_bundle("run", store)


# --- a job's keys and the bundle's


def test_keys_of_a_job_never_come_from_a_bundle(store: Store) -> None:
    bundle = make_bundle()
    theirs = {key.partition(".")[2]: None for key in per_job_keys()}
    values = bundle_values(bundle.config)
    assert not theirs.keys() & {key for section in values.values() for key in section}
    make_old(store, bundle)
    merged = with_bundle(Config(), load_bundle("run", store))
    assert (merged.tiling.default_mpp, merged.tiling.verify) == (None, False)
    assert merged.tiling.max_bad_fraction == Config().tiling.max_bad_fraction


def test_the_bundles_keys_hold_and_the_jobs_own_stay(store: Store) -> None:
    bundle = make_bundle()
    own = build_config({"tiling": {"default_mpp": 0.25, "patch_px": 96}, "prediction": {"map_px": 300}})
    merged = with_bundle(own, bundle)
    assert (merged.tiling.patch_px, merged.tiling.mpp, merged.tiling.default_mpp) == (96, 1.0, 0.25)
    assert merged.cohort.classes == bundle.classes
    assert merged.prediction.map_px == 300
    assert with_bundle(Config(), bundle).model == bundle.config.model


def test_every_clash_is_named(store: Store) -> None:
    own = build_config({"tiling": {"mpp": 0.5}, "model": {"feature_dim": 9}})
    with pytest.raises(ConfigError) as error:
        with_bundle(own, replace(make_bundle(), run="old"))
    assert "tiling.mpp = 0.5: the bundle old was trained with 1.0" in str(error.value)
    assert "model.feature_dim = 9" in str(error.value)


def test_a_bundle_of_the_first_version_with_a_random_encoder_opens(store: Store) -> None:
    """Its configuration says `none`, which is refused today."""
    bundle = make_bundle(name="resnet18", weights="random")
    save_bundle(store, bundle)
    folder = Path(store.path("models/run"))
    config = json.loads((folder / "config.json").read_text())
    config["format_version"] = 1
    config["config"]["encoder"]["weights"] = "none"
    del config["config"]["bags"]["top_k_share"]
    labels = json.loads((folder / "labels.json").read_text()) | {"slide_threshold": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "labels.json").write_text(json.dumps(labels))
    record = store.read_record("models/run/commit.json")
    assert record is not None
    weights = tuple(part for part in record.parts if part.name.endswith(".safetensors"))
    store.write_record("models/run/commit.json", replace(record, key={"format_version": 1}, parts=weights))
    found = load_bundle("run", store)
    assert found.config.encoder.weights == "random"
    assert found.config.bags.top_k_share == 0.1
    assert with_bundle(build_config({}), found).encoder.weights == "random"


@pytest.mark.parametrize("weights", ["auto", "DEFAULT"])
def test_published_weights_are_the_same_by_either_name(store: Store, weights: str) -> None:
    save_bundle(store, make_bundle(name="resnet18", weights="auto"))
    found = load_bundle("run", store)
    assert found.config.encoder.weights == "DEFAULT"
    own = build_config({"encoder": {"name": "resnet18", "weights": weights}})
    assert with_bundle(own, found).encoder.weights == "DEFAULT"
