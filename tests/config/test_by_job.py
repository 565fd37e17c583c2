"""Which keys a job reads."""

import pytest

from distmil.cli import STAGES
from distmil.config.by_job import EXAMPLES, SECTIONS, USUAL, keys_read
from distmil.config.loading import load_config
from distmil.config.root import Config
from distmil.inference.bundle import bundle_values

KEYS = list(Config().flat())


def sections(job: str) -> set[str]:
    return {key.partition(".")[0] for key in keys_read(job)}


def test_every_job_is_described() -> None:
    assert set(SECTIONS) == set(USUAL) == set(EXAMPLES) == set(STAGES)


def test_every_key_is_read_by_a_job() -> None:
    assert [key for key in KEYS if not any(key in keys_read(job) for job in STAGES)] == []


@pytest.mark.parametrize("job", STAGES)
def test_the_ten_usual_keys_are_read(job: str) -> None:
    assert len(set(USUAL[job])) == 10
    assert set(USUAL[job]) <= set(keys_read(job))


@pytest.mark.parametrize("job", STAGES)
def test_the_example_sets_keys_that_are_read(job: str) -> None:
    assert set(load_config(None, EXAMPLES[job].split()).explicit()) <= set(keys_read(job))


@pytest.mark.parametrize("job", ["evaluate", "predict", "export", "view"])
def test_what_a_bundle_decides_is_not_read(job: str) -> None:
    of_bundle = {f"{section}.{key}" for section, keys in bundle_values(Config()).items() for key in keys}
    assert of_bundle & set(keys_read(job)) == set()
    assert {"tiling.default_mpp", "tiling.max_bad_fraction"} <= set(keys_read(job))
    assert ("encoder.batch_size" in keys_read(job)) == (job not in {"export", "view"})


def test_sections_of_other_jobs_are_not_read() -> None:
    assert {"search", "losses", "bags", "model", "tracking"} & sections("predict") == set()
    assert sections("tile") == {"cohort", "storage", "tiling", "labels", "encoder"}
    assert [key for key in keys_read("tile") if key.startswith("encoder.")] == ["encoder.name"]
    assert [job for job in STAGES if "search" in sections(job)] == ["tune"]
    assert [job for job in STAGES if "losses" in sections(job)] == ["train", "tune"]
    assert [job for job in STAGES if "prediction.model" in keys_read(job)] == ["predict", "evaluate", "export", "view"]
