"""What is said to do after a job: commands that the parser takes, in the form that the user wrote."""

import random
import shlex
from typing import Any

import pytest

from distmil.cli import STAGES
from distmil.command.arguments import job_parser
from distmil.command.next_steps import Command, in_lines, next_steps, program_words
from distmil.config.by_job import keys_read
from distmil.config.loading import load_config
from tests.support.scale import cases

ANSWER = {
    "run": "first",
    "weights": "/s/pretrained/own",
    "report": "/s/summary.html",
    "results": "/s/slides.csv",
    "maps": "/s/maps",
    "predictions": "/s",
    "export": "/s/export",
    "view": "/s/my view",
    "formats": ["png", "tiff", "geojson"],
    "wrong": 2,
    "in_doubt": 0,
}
VALUES = {
    "cohort.manifest": ["slides.csv", "my slides/a b.csv", "it's.csv"],
    "cohort.synthetic": ["3"],
    "cohort.columns": ['{label: "the label"}'],
    "storage.root": ["/data/a b", "s3://bucket/x?region=y&z=1"],
    "tiling.mpp": ["1.0", "null"],
    "tiling.default_mpp": ["0.25"],
    "labels.groups": ["{Tumor: positive}"],
    "training.run": ["first"],
    "training.use_gpu": ["false"],
    "bags.top_k": ["3"],
    "losses.patch": ["0.5"],
    "search.space.bags.top_k": ["[2, 4]"],
    "prediction.model": ["first"],
    "prediction.run": ["mine"],
    "prediction.split": ["val"],
    "prediction.slide_score": ["max"],
}


def steps(job: str, *overrides: str, answer: dict[str, Any] = ANSWER) -> list[str]:
    command = Command(("distmil", "{job}"), None, overrides)
    return next_steps(job, answer, load_config(None, overrides), command)


def test_each_job_says_what_follows() -> None:
    given = ("cohort.manifest=slides.csv", "storage.root=/s", "training.run=first", "tiling.mpp=1.0", "losses.bag=2")
    common = "cohort.manifest=slides.csv storage.root=/s"
    predict = "predict new slides: distmil predict storage.root=/s cohort.manifest=NEW.csv prediction.model=first"
    see = "see it in a browser: distmil view"
    take = "take it to QuPath, ASAP or a spreadsheet: distmil export"
    assert steps("tile", *given) == [
        "look at /s/summary.html",
        f"train: distmil train {common} training.run=first tiling.mpp=1.0 losses.bag=2",
        f"or only embed: distmil embed {common} tiling.mpp=1.0",
    ]
    assert steps("embed", *given) == [f"train: distmil train {common} training.run=first tiling.mpp=1.0 losses.bag=2"]
    assert steps("pretrain", *given, "pretraining.run=own", "encoder.weights=/old") == [
        f"train with it: distmil train {common} training.run=first tiling.mpp=1.0 losses.bag=2 "
        "encoder.weights=/s/pretrained/own"
    ]
    folder = ("encoder.name=local-dir:/a/uni", "storage.root=/s")
    assert steps("pretrain", *folder) == [
        "train with it: distmil train storage.root=/s encoder.name=local-dir:/s/pretrained/own"
    ]
    assert steps("train", *given) == [
        "look at the 2 wrong slides: /s/slides.csv and /s/maps",
        f"{see} {common} prediction.model=first prediction.run=first",
        f"{take} {common} prediction.model=first prediction.run=first",
        f"measure it on labelled slides: distmil evaluate {common} prediction.model=first",
        predict,
    ]
    given = ("cohort.manifest=slides.csv", "storage.root=/s", "prediction.model=first", "prediction.split=test")
    assert steps("evaluate", *given) == [
        "look at the 2 wrong slides: /s/slides.csv and /s/maps",
        f"{see} {common} prediction.model=first prediction.run=first",
        f"{take} {common} prediction.model=first prediction.run=first",
        predict,
    ]
    assert steps("predict", *given, answer=ANSWER | {"wrong": 0}) == [
        "look at the slides: /s/slides.csv and /s/maps",
        f"{see} {common} prediction.model=first prediction.run=first",
        f"{take} {common} prediction.model=first prediction.run=first",
    ]
    assert steps("export", *given) == [
        "in QuPath, with the slide open: File > Import objects from file, of /s/export/geojson",
        "in ASAP, QuPath or OpenSlide: colour maps in /s/export/tiff",
    ]
    assert steps("view", *given) == [
        "open it by any file server: python -m http.server --bind 127.0.0.1 -d '/s/my view'"
    ]
    assert steps("export", *given, answer={"export": "/e", "formats": ["png"]}) == ["look at /e"]
    assert steps("tune", *given) == []


@pytest.mark.parametrize(
    ("wrong", "in_doubt", "what"),
    [
        (0, 0, "images"),
        (1, 0, "wrong image"),
        (0, 1, "doubtful image"),
        (3, 2, "3 wrong and 2 doubtful images"),
        (1, 1, "1 wrong and 1 doubtful images"),
    ],
)
@pytest.mark.parametrize("job", ["train", "evaluate", "predict"])
def test_only_slides_that_are_there_are_looked_at(job: str, wrong: int, in_doubt: int, what: str) -> None:
    answer = ANSWER | {"wrong": wrong, "in_doubt": in_doubt}
    config = load_config(None, ["prediction.model=first"])
    found = next_steps(job, answer, config, Command(("distmil", "{job}"), None, ()), noun="image")
    assert found[0] == f"look at the {what}: /s/slides.csv and /s/maps"
    assert not any("slide" in step.partition(": ")[0] for step in found)


@pytest.mark.parametrize("job", sorted(STAGES))
def test_a_dry_run_is_followed_by_the_job_itself(job: str) -> None:
    given = ("cohort.manifest=a b.csv", "storage.root=/s")
    assert steps(job, *given, answer={"dry_run": True}) == [
        f"start it: distmil {job} 'cohort.manifest=a b.csv' storage.root=/s"
    ]


def test_an_output_that_the_file_names_is_unset() -> None:
    given = ("prediction.run=mine", "prediction.split=test")
    config = load_config(None, given)
    for file, end in ((None, ""), ("c.yaml", " prediction.run=null prediction.split=null")):
        found = next_steps("evaluate", ANSWER, config, Command(("distmil", "{job}"), file, given))
        assert found[-1].endswith(f"prediction.model=None{end}")


def test_without_held_out_slides_nothing_is_measured() -> None:
    assert steps("train", "cohort.synthetic=3", answer={"run": "first"}) == [
        "predict new slides: distmil predict cohort.manifest=NEW.csv prediction.model=first"
    ]


@pytest.mark.parametrize("seed", range(cases(100, full=3000)))
def test_every_printed_command_is_one_that_its_job_takes(seed: int) -> None:
    draw = random.Random(seed)
    keys = draw.sample(sorted(VALUES), draw.randint(0, len(VALUES)))
    overrides = tuple(f"{key}={draw.choice(VALUES[key])}" for key in keys)
    file = draw.choice([None, "c.yaml", "my file.yaml"])
    words = draw.choice([("distmil", "{job}"), ("python", "-m", "distmil", "{job}"), ("python", "my jobs/{job}.py")])
    job = draw.choice(list(STAGES))
    config = load_config(None, overrides)
    for step in next_steps(job, ANSWER, config, Command(words, file, overrides)):
        text = step.partition(": ")[2]
        if not text.startswith((*words[:1],)) or "http.server" in text:
            continue
        parts = shlex.split(text)
        (following,) = [name for name in STAGES if tuple(word.replace("{job}", name) for word in words) == tuple(
            parts[: len(words)]
        )]  # fmt: skip
        options = job_parser(following, None).parse_args(parts[len(words) :])
        assert options.config == file
        made = load_config(None, options.overrides)
        assert set(made.explicit()) <= set(keys_read(following))
        changed = {"cohort.manifest", "cohort.synthetic", "prediction.model", "prediction.run", "prediction.split"}
        kept = (set(config.explicit()) & set(keys_read(following))) - changed
        assert {key: made.flat()[key] for key in kept} == {key: config.flat()[key] for key in kept}
        if following in {"evaluate", "predict"}:
            assert made.prediction.run is None
            assert made.prediction.model == "first" or job == "evaluate"


@pytest.mark.parametrize(
    ("program", "script", "words"),
    [
        ("distmil train", "/x/bin/distmil", ("distmil", "{job}")),
        ("python -m distmil train", "/x/distmil/__main__.py", ("python", "-m", "distmil", "{job}")),
        (None, "jobs/train.py", ("python", "jobs/{job}.py")),
        (None, "/my jobs/train.py", ("python", "/my jobs/{job}.py")),
        (None, "/x/pytest", ("python", "jobs/{job}.py")),
    ],
)
def test_the_form_of_the_program_is_kept(program: str | None, script: str, words: tuple[str, ...]) -> None:
    assert program_words("train", program=program, script=script) == words


def test_steps_stand_below_each_other() -> None:
    assert in_lines(["a", "b"]) == "next: a\n      b"
