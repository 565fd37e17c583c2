"""What an encoder cannot be trained in is refused before anything is tiled."""

import pytest

from distmil.cohort import Cohort
from distmil.config.loading import build_config
from distmil.errors import EncoderError
from distmil.pipeline import job as jobs
from distmil.pipeline.training import job as training
from distmil.pipeline.training import network
from distmil.pipeline.tuning import job as tuning


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"trainable": "lora"}, "no linear layers in its blocks"),
        ({"trainable": True, "checkpointing": True}, "cannot do"),
    ],
)
def test_the_part_is_found_before_tiling(store, monkeypatch, values, text):
    config = build_config({"encoder": {"name": "resnet18", "weights": "random", **values}})
    job = jobs.Job(config, store)
    for module in (network, tuning):
        monkeypatch.setattr(module, "prepare", lambda *given, **more: pytest.fail("it was tiled"))
    cohort = Cohort([], ["negative", "positive"])
    with pytest.raises(EncoderError, match=text):
        training.train(job, cohort, tracker=None)
    with pytest.raises(EncoderError, match=text):
        tuning._run(job, cohort, {}, record=None)
