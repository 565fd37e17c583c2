"""What to do after a job: what to look at, and the commands that follow, as they are typed."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmil.config.by_job import keys_read
from distmil.config.root import Config
from distmil.encoders.catalog.names import FOLDER

_JOB = "{job}"
NEW_SLIDES = "NEW.csv"
"""Stands for a manifest that the user has yet to name."""
_OF_THIS_JOB = ("prediction.run", "prediction.split")


@dataclass(frozen=True)
class Command:
    """A job's command line as it was given."""

    words: tuple[str, ...]
    """The program, such as ``distmil {job}``."""
    config: str | None
    overrides: tuple[str, ...]

    def line(self, job: str, changes: Mapping[str, str] | None = None, *, without: Collection[str] = ()) -> str:
        """Write the command of another job, for the shell.

        Args:
            job: Its name; of the overrides those that it reads are kept.
            changes: New values of keys.
            without: Keys whose overrides are left out.
        """
        changes, read = changes or {}, keys_read(job)
        kept = []
        for text in self.overrides:
            key = ".".join(text.partition("=")[0].strip().split(".")[:2])  # such as of search.space.bags.top_k
            if key in read and key not in changes and key not in without:
                kept.append(text)
        file = ["--config", self.config] if self.config else []
        given = [f"{key}={value}" for key, value in changes.items()]
        return shlex.join([*(word.replace(_JOB, job) for word in self.words), *file, *kept, *given])


def program_words(name: str, *, program: str | None, script: str) -> tuple[str, ...]:
    """Return the words that start a job, with ``{job}`` for its name.

    Args:
        name: The job that runs.
        program: How it was started by the command, such as ``distmil train``; None: by its file.
        script: That file.
    """
    if program:
        return (*program.split()[:-1], _JOB)
    folder = Path(script).parent if Path(script).name == f"{name}.py" else Path("jobs")
    return "python", str(folder / f"{_JOB}.py")


def next_steps(
    job: str, answer: Mapping[str, Any], config: Config, command: Command, *, noun: str = "slide"
) -> list[str]:
    """List what may follow a job, the first thing first; nothing for `tune`, whose report says it.

    Args:
        job: The job that is done.
        answer: Its JSON line.
        config: Its configuration.
        command: How it was started.
        noun: What a slide is called: slide or image.
    """
    if "dry_run" in answer:
        return [f"start it: {command.line(job)}"]
    if job == "tile":
        page = [f"look at {answer['report']}"] if "report" in answer else []
        return [*page, f"train: {command.line('train')}", f"or only embed: {command.line('embed')}"]
    if job in {"embed", "import_features"}:
        return [f"train: {command.line('train')}"]
    if job == "pretrain":
        return [f"train with it: {command.line('train', _pretrained(answer, config))}"]
    if job == "train":
        return _after_train(answer, config, command, noun)
    if job == "evaluate":
        model = str(config.prediction.model)
        return [*_results(answer, noun), *_shown(model, answer, command), _on_new_slides(model, config, command, noun)]
    if job == "predict":
        return [*_results(answer, noun), *_shown(str(config.prediction.model), answer, command)]
    if job == "view":
        return [f"open it by any file server: python -m http.server --bind 127.0.0.1 -d {shlex.quote(answer['view'])}"]
    return _after_export(answer) if job == "export" else []


def _pretrained(answer: Mapping[str, Any], config: Config) -> dict[str, str]:
    """Return the keys that name pre-trained weights; of an encoder that is a folder they are another folder."""
    place = str(answer["weights"])
    is_folder = config.encoder.name.startswith(FOLDER)
    return {"encoder.name": f"{FOLDER}{place}"} if is_folder else {"encoder.weights": place}


def _after_train(answer: Mapping[str, Any], config: Config, command: Command, noun: str) -> list[str]:
    run = str(answer.get("run"))
    steps = _results(answer, noun)
    if "predictions" in answer:
        unset = _unset(config, command, "prediction.run")
        line = command.line("evaluate", {"prediction.model": run, **unset}, without=["prediction.run"])
        steps += [*_shown(run, answer, command), f"measure it on labelled {noun}s: {line}"]
    return [*steps, _on_new_slides(run, config, command, noun)]


def _shown(model: str, answer: Mapping[str, Any], command: Command) -> list[str]:
    """Say how predictions are looked at, and taken to other programs."""
    changes = {"prediction.model": model, "prediction.run": str(answer["run"])}
    return [
        f"see it in a browser: {command.line('view', changes)}",
        f"take it to QuPath, ASAP or a spreadsheet: {command.line('export', changes)}",
    ]


def _after_export(answer: Mapping[str, Any]) -> list[str]:
    """Say what opens the files."""
    opens = {
        "geojson": "in QuPath, with the slide open: File > Import objects from file, of",
        "tiff": "in ASAP, QuPath or OpenSlide: colour maps in",
        "csv": "in a spreadsheet: tables in",
    }
    found = [f"{text} {answer['export']}/{kind}" for kind, text in opens.items() if kind in answer["formats"]]
    return found or [f"look at {answer['export']}"]


def _on_new_slides(model: str, config: Config, command: Command, noun: str) -> str:
    changes = {
        "cohort.manifest": NEW_SLIDES,
        "prediction.model": model,
        **_unset(config, command, *_OF_THIS_JOB),
    }
    return f"predict new {noun}s: {command.line('predict', changes, without=('cohort.synthetic', *_OF_THIS_JOB))}"


def _unset(config: Config, command: Command, *keys: str) -> dict[str, str]:
    """Return null for the keys that a configuration file may set: they name an output or a split of this job."""
    values = config.flat()
    return {key: "null" for key in keys if command.config and values[key] is not None}


def _results(answer: Mapping[str, Any], noun: str) -> list[str]:
    """Say where the results of slides are, and which of them to look at first."""
    places = [answer[name] for name in ("results", "maps") if name in answer]
    wrong, doubtful = answer.get("wrong", 0), answer.get("in_doubt", 0)
    is_one = wrong + doubtful == 1
    counts = [(wrong, "wrong"), (doubtful, "doubtful")]
    first = [word if is_one else f"{count} {word}" for count, word in counts if count]
    what = " and ".join(first) + " " * bool(first) + noun + "s" * (not is_one)
    return [f"look at the {what}: {' and '.join(places)}"] if places else []


def in_lines(steps: Sequence[str]) -> str:
    """Write steps for the console."""
    return "next: " + "\n      ".join(steps)
