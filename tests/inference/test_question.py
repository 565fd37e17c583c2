"""A folder of predictions answers one question: another one gets another name, or is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distmil.cohort import Slide
from distmil.errors import ConfigError
from distmil.inference.question import check_owner, claim_question, default_name, make_question

SLIDES = [Slide("a", "/x/a.svs", split="val"), Slide("b", "/x/b.svs", split="test")]
QUESTION = make_question("digest", SLIDES)
OTHERS = {
    "bundle": make_question("another", SLIDES),
    "fewer slides": make_question("digest", SLIDES[:1]),
    "more slides": make_question("digest", [*SLIDES, Slide("c", "/x/c.svs")]),
    "split": make_question("digest", [SLIDES[0], replace(SLIDES[1], split="val")]),
}
SAME = {
    "order": make_question("digest", SLIDES[::-1]),
    "place and label": make_question("digest", [replace(SLIDES[0], path="/y/a.svs", label=1), SLIDES[1]]),
}


@pytest.mark.parametrize(
    "place", ["small", "/home/models/small", "/home/models/small/", "s3://b/models/small?region=x"]
)
def test_the_default_name_holds_the_place_and_the_question(place):
    name = default_name(place, QUESTION)
    assert name.startswith("small-")
    assert len(name) == len("small-") + 8
    assert len({name, *(default_name(place, other) for other in OTHERS.values())}) == 5
    assert {default_name(place, same) for same in SAME.values()} == {name}


@pytest.mark.parametrize("place", ["/x/..", "/x/a b;$(rm)", "/x/" + "y" * 300, "/x/ä", "/"])
def test_the_default_name_is_one_that_a_run_may_have(place, store):
    name = default_name(place, QUESTION)
    claim_question(store, name, QUESTION)
    assert Path(store.path(f"predictions/{name}/question.json")).is_file()
    assert len(name) <= 128


@pytest.mark.parametrize("same", SAME.values(), ids=SAME)
def test_the_same_question_may_be_asked_again(store, same):
    claim_question(store, "run", QUESTION)
    store.write("predictions/run/metrics.json", b"{}")
    claim_question(store, "run", same)
    claim_question(store, "run", same, owner="run")
    assert store.exists("predictions/run/metrics.json")


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_question_is_refused(store, other):
    claim_question(store, "run", QUESTION)
    with pytest.raises(
        ConfigError, match=r"prediction\.run = 'run': .*predictions/run holds the predictions of another"
    ):
        claim_question(store, "run", other)
    with pytest.raises(ConfigError, match="choose another name, or delete that folder"):
        claim_question(store, "run", other, owner="run")  # a training run's name does not make it its own
    claim_question(store, "run", QUESTION)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_training_run_replaces_its_own_answers(store, other):
    claim_question(store, "held-out", QUESTION, owner="run")
    for name in ("metrics.json", "slides.parquet", "patches/a.parquet"):
        store.write(f"predictions/held-out/{name}", b"")
    check_owner(store, "held-out", owner="run")
    claim_question(store, "held-out", other, owner="run")
    assert store.names("predictions/held-out") == ["question.json"]
    assert store.names("predictions/held-out/patches") == []
    with pytest.raises(ConfigError, match="another"):
        check_owner(store, "held-out", owner="another-run")


def test_a_folder_of_an_earlier_version_is_left_alone(store):
    store.write("predictions/run/slides.parquet", b"")
    store.write("predictions/run/metrics.json", b"{}")
    with pytest.raises(ConfigError, match="does not say of which bundle"):
        claim_question(store, "run", QUESTION)
    with pytest.raises(ConfigError, match="does not say of which bundle"):
        check_owner(store, "run", owner="other")
    check_owner(store, "run", owner="run")
    check_owner(store, "new", owner="run")
    claim_question(store, "run", QUESTION, owner="run")  # a run's own name; its old metrics go
    assert store.names("predictions/run") == ["question.json", "slides.parquet"]


def test_a_damaged_question_is_no_question(store):
    claim_question(store, "run", QUESTION)
    path = Path(store.path("predictions/run/question.json"))
    values = json.loads(path.read_text())
    values["record"]["key"]["bundle"] = "another"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="delete that folder"):
        claim_question(store, "run", make_question("another", SLIDES))
