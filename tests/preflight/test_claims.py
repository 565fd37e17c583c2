"""A run's name is compared with its settings before anything heavy is imported."""

import pytest

from distmil.cohort import Cohort
from distmil.config.loading import build_config
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


def test_another_aim_of_the_thresholds_is_another_run_and_claims_without_one_stay_good():
    plain, aimed = (
        settings_of(build_config({"training": {"threshold_aim": aim}}), ["a", "b"])
        for aim in ("youden", "specificity=0.9")
    )
    assert "training.threshold_aim" not in plain  # as in claims of earlier versions
    assert changes(aimed, plain) == ["training.threshold_aim: 'youden' then, 'specificity=0.9' now"]
    assert changes(plain, aimed) == ["training.threshold_aim: 'specificity=0.9' then, 'youden' now"]
    assert changes(aimed, aimed) == changes(plain, plain) == []
