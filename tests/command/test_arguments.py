"""What a job says to arguments in another form: the right form, in a line, and the code of bad input."""

import shlex

import pytest

from distmil.__main__ import JOBS
from distmil.command.arguments import BAD_INPUT, job_parser
from distmil.config.by_job import keys_read
from distmil.config.loading import load_config


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train --epochs 10", "--epochs 10: write training.epochs=10"),
        ("train --run first", "--run first: write training.run=first"),
        ("tune --run first", "--run first: write search.run=first"),
        ("predict --run first", "--run first: write prediction.run=first"),
        ("train --lr=0.1", "--lr=0.1: write training.lr=0.1"),
        ("train --lr -1", "--lr -1: write training.lr=-1"),
        ("train training.epochs 10", "training.epochs 10: write training.epochs=10"),
        ("train training.epochs = 10", "training.epochs = 10: write training.epochs=10"),
        ("train training.epochs =10", "training.epochs =10: write training.epochs=10"),
        ("train training.epochs= 10", "training.epochs= 10: write training.epochs=10"),
        ("train training.epochs: 10", "training.epochs: 10: write training.epochs=10"),
        ("train training.epochs", "training.epochs: write training.epochs=VALUE"),
        ("train --training.epochs=10", "--training.epochs=10: write training.epochs=10"),
        ("train --top-k 3", "--top-k 3: write bags.top_k=3"),
        ("train --manifest 'my slides.csv'", "--manifest 'my slides.csv': write cohort.manifest='my slides.csv'"),
        ("train -c my.yaml", "-c my.yaml: write --config my.yaml"),
        ("train my.yaml", "my.yaml: write --config my.yaml"),
        ("tile slides.csv", "slides.csv: write cohort.manifest=slides.csv"),
        ("train --workers 3", "--workers 3: write training.num_workers=3"),
        ("train --confg x.yaml", "--confg x.yaml: there is no such option; did you mean --config?"),
        ("train --epoch 10", "--epoch 10: there is no such option; did you mean training.epochs=10?"),
        (
            "train --verbose",
            "--verbose: there is no such option; settings are written section.key=value, and --help lists them",
        ),
        ("train --config", "argument --config: expected one argument"),
    ],
)
def test_another_form_is_answered_with_the_right_one(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    job, *words = shlex.split(line)
    with pytest.raises(SystemExit, match=str(BAD_INPUT)):
        job_parser(job, None).parse_args(words)
    assert capsys.readouterr() == ("", f"{job}: {said}\n")


def test_each_wrong_argument_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=str(BAD_INPUT)):
        job_parser("tile", None).parse_args(["--mpp", "0.5", "tiling.snap=true", "--patch-px=96"])
    assert capsys.readouterr().err == (
        "tile: --mpp 0.5: write tiling.mpp=0.5\ntile: --patch-px=96: write tiling.patch_px=96\n"
    )


@pytest.mark.parametrize("job", JOBS)
def test_the_answer_to_every_key_as_an_option_is_a_form_that_is_taken(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in keys_read(job):
        with pytest.raises(SystemExit, match=str(BAD_INPUT)):
            job_parser(job, None).parse_args([f"--{key.replace('_', '-')}", "null"])
        right = capsys.readouterr().err.strip().rpartition("write ")[2]
        assert job_parser(job, None).parse_args([right]).overrides == [f"{key}=null"]


def test_overrides_may_stand_on_both_sides_of_options() -> None:
    options = job_parser("train", None).parse_args(["training.lr=1", "--config", "x.yaml", "training.epochs=2"])
    assert (options.config, options.overrides) == ("x.yaml", ["training.lr=1", "training.epochs=2"])


def test_the_default_value_may_be_empty() -> None:
    options = job_parser("train", None).parse_args(["training.run=", "training.epochs=2"])
    assert load_config(None, options.overrides).training.run is None
