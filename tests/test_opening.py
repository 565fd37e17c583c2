"""What a name stands for: settings and data, the slides of each fold with them."""

from typing import Any

import pytest

from distmil.cohort import Cohort
from distmil.configfile import build_config
from distmil.encoders import EncoderSpec
from distmil.errors import ConfigError
from distmil.stages.opening import claim_run
from distmil.stages.prepare import Prepared
from distmil.stages.runtime import Job
from distmil.stages.tune import identity
from distmil.storage import Store

SPEC = EncoderSpec(name="texture", digest="", dimension=12, weights_file=None)
FOLDS = [(["a", "b"], ["c", "d"]), (["c", "d"], ["a", "b"])]


def claim(store: Store, folds: Any, held_out: list[str], **labels: Any) -> str:
    job = Job(build_config({"search": {"run": "s", "folds": 2}, "labels": labels}), store)
    more = identity(job.config.search, folds, held_out)
    cohort, prepared = Cohort([], ["negative", "positive"]), Prepared([], {}, {}, {})
    return claim_run(job, prepared, SPEC, cohort, name="s", kind="tune", more=more, folders=["searches/s"])


def test_a_search_on_other_folds_needs_another_name(tmp_path):
    store = Store(str(tmp_path))
    assert claim(store, FOLDS, ["e"]) == claim(store, FOLDS, ["e"]) == "s"
    for folds, held_out in ((FOLDS[::-1], ["e"]), (FOLDS, ["e", "f"])):
        with pytest.raises(ConfigError, match="slides of the folds") as caught:
            claim(store, folds, held_out)
        assert f"delete {store.path('checkpoints/s')} and {store.path('searches/s')}" in str(caught.value)


def test_patience_with_annotations_is_no_other_run_but_another_origin_is(tmp_path):
    store = Store(str(tmp_path))
    assert claim(store, FOLDS, ["e"]) == claim(store, FOLDS, ["e"], timeout_s=900) == "s"
    with pytest.raises(ConfigError, match=r"labels.origin: 'auto' then, 'bounds' now"):
        claim(store, FOLDS, ["e"], origin="bounds")
