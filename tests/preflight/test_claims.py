"""A run's name is compared with its settings before anything heavy is imported."""

from itertools import groupby

import pytest

from distmil.cohort import Cohort
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec
from distmil.errors import ConfigError
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import Prepared
from distmil.pipeline.training.claim import Claim
from distmil.preflight.claims import changes, check_claim, search_settings, settings_of
from distmil.storage.store import Store
from distmil.training.run_files import run_file

SPEC = EncoderSpec(name="texture", digest="", dimension=12, weights_file=None)
CLASSES = ["negative", "positive"]
TEXTURE = {"encoder": {"name": "texture"}}


def test_the_claim_is_where_the_job_puts_it() -> None:
    assert run_file("a-run", "run") == "checkpoints/a-run/run.json"


def take(store: Store, kind: str, values: dict) -> None:
    config = build_config(values)
    more = search_settings(config.search) if kind == "tune" else {}
    Claim(Job(config, store), SPEC, Cohort([], CLASSES), "r", kind, more).take(Prepared([], {}, {}, {}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bags": {"top_k": 2}}, "bags.top_k: 8 then, 2 now"),
        ({"tiling": {"mpp": 1.0}}, "tiling: "),
        ({"encoder": {"name": "resnet18", "weights": "random"}}, "encoder.name: 'texture' then, 'resnet18' now"),
        ({"training": {"run": "r", "lr": 0.5}}, "training.lr: 0.001 then, 0.5 now"),
    ],
)
def test_another_setting_is_refused_and_the_same_is_not(store: Store, change: dict, said: str) -> None:
    base = {**TEXTURE, "training": {"run": "r"}}
    take(store, "train", base)
    check_claim(build_config(base), CLASSES, store, job="train")
    check_claim(build_config({**TEXTURE, "training": {"run": "other", "lr": 0.5}}), CLASSES, store, job="train")
    with pytest.raises(ConfigError, match=r"training\.run = 'r' was started with something else") as caught:
        check_claim(build_config(base | change), CLASSES, store, job="train")
    assert said in str(caught.value)
    assert f"delete {store.path('checkpoints/r')}\n" in str(caught.value)


def test_a_search_compares_its_own_settings_too(store: Store) -> None:
    take(store, "tune", {**TEXTURE, "search": {"run": "r"}})
    check_claim(build_config({**TEXTURE, "search": {"run": "r", "trials": 99}}), CLASSES, store, job="tune")
    with pytest.raises(ConfigError, match=r"search\.folds: 0 then, 3 now"):
        check_claim(build_config({**TEXTURE, "search": {"run": "r", "folds": 3}}), CLASSES, store, job="tune")


def test_a_damaged_claim_is_left_to_the_job(store: Store) -> None:
    store.write(run_file("r", "run"), b"{")
    check_claim(build_config({"training": {"run": "r"}}), CLASSES, store, job="train")


@pytest.mark.parametrize(
    ("key", "default", "other"),
    [
        ("training.threshold_aim", "youden", "specificity=0.9"),
        ("training.folds", 0, 5),
        ("bags.hard_negatives", False, True),
        ("labels.scale", None, 4.0),
    ],
)
def test_a_setting_that_came_later_is_another_run_and_claims_without_it_stay_good(key, default, other):
    section, _, name = key.partition(".")
    plain, changed = (settings_of(build_config({section: {name: value}}), ["a", "b"]) for value in (default, other))
    assert key not in plain  # as in claims of earlier versions
    assert changes(changed, plain) == [f"{key}: {default!r} then, {other!r} now"]
    assert changes(plain, changed) == [f"{key}: {other!r} then, {default!r} now"]
    assert changes(changed, changed) == changes(plain, plain) == []


def test_the_claims_of_earlier_versions_hold_every_setting_that_a_claim_has_today():
    """A new setting would end every earlier run: it belongs among those that came later."""
    found = sorted(settings_of(Config(), ["a", "b"]))
    assert {section: " ".join(key.partition(".")[2] for key in keys) for section, keys in groupby(found, _section)} == {
        "bags": "k_negative k_positive mixed mixed_bag_loss n oversample paired patches_per_step sample "
        "slides_per_step top_k top_k_share",
        "cohort": "classes",
        "encoder": "trainable views",
        "labels": "form groups negative_below origin positive_at",
        "losses": "attention bag class_weights patch ramp topk",
        "model": "attention_dim dropout feature_dim input_dropout name patch_feature topk_detach topk_feature",
        "tiling": "",
        "training": "clip_norm ema encoder_lr epochs lr patience schedule seed select_by warmup_steps weight_decay",
    }


def _section(key: str) -> str:
    return key.partition(".")[0]
