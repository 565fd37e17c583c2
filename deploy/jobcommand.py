"""A command that runs one of the jobs, and what the job would make of it: found out here, by the job's own code."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from problems import ROOT, Problem

from distmil.cli import job_parser
from distmil.config.loading import load_config
from distmil.config.root import Config
from distmil.errors import ConfigError
from distmil.search.space import read_space

IMAGE_FOLDER = PurePosixPath("/home/ray/distmil")
"""The image's working folder, which has jobs/ as it is here."""
_JOB = re.compile(r"(?:python3? )?\S*jobs/(\w+)\.py(.*)", re.DOTALL)
_EXAMPLE = re.compile(r"\bpython3? jobs/\w+\.py.*")


@dataclass(frozen=True)
class JobCommand:
    """The job's name, and what it is given."""

    job: str
    arguments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "JobCommand | None":
        """Return the command that a text is, None if it is no job of ours with arguments."""
        found = _JOB.fullmatch(text.strip())
        try:
            arguments = shlex.split(found[2]) if found else []
        except ValueError:  # a quote without its other end
            return None
        return cls(found[1], tuple(arguments)) if found and arguments else None

    def override(self, key: str) -> str | None:
        """Return the value that it gives to a key of the configuration; of several the last one counts."""
        return next((text.partition("=")[2] for text in self.arguments[::-1] if text.startswith(f"{key}=")), None)

    def problems(self, place: str, text: str, *, is_in_image: bool) -> Iterator[Problem]:
        """Yield what is wrong with it.

        Args:
            place: Where it stands.
            text: All of what stands there.
            is_in_image: It runs in the image's working folder, without files that were submitted along.
        """
        jobs = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
        if self.job not in jobs:
            yield Problem(place, text, f"expected one of the jobs {', '.join(jobs)}: there is no jobs/{self.job}.py")
            return
        try:
            config, is_whole = self._config()
            if is_whole:
                _check(self.job, config, is_in_image=is_in_image)
            else:
                expected = "its --config cannot be read from here; what is in it was not checked"
                yield Problem(place, text, expected, is_error=False)
        except ConfigError as error:
            yield Problem(place, text, f"expected what the job understands: {error}")
        if self.override("storage.root") is None:
            expected = "expected storage.root=, on a volume or a bucket: a pod's own disk goes with the pod"
            yield Problem(place, text, expected)

    def _config(self) -> tuple[Config, bool]:
        """Return the configuration, and whether its file is part of it. Raises: ConfigError."""
        options = self._options()
        if options.config is None:
            return load_config(None, options.overrides), True
        path = PurePosixPath(options.config)
        if path.is_relative_to(IMAGE_FOLDER):
            path = path.relative_to(IMAGE_FOLDER)
        if path.is_absolute() or "://" in options.config:
            return load_config(None, options.overrides), False
        return load_config(ROOT / path, options.overrides), True

    def _options(self) -> Any:
        """Return its arguments as the job's own parser takes them. Raises: ConfigError."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                return job_parser(self.job, None).parse_args(self.arguments)
        except SystemExit:
            raise ConfigError(said.getvalue().strip().rpartition(": error: ")[2] or "no call for help") from None


def _check(job: str, config: Config, *, is_in_image: bool) -> None:
    """Refuse what the job would refuse at its start. Raises: ConfigError."""
    manifest = config.cohort.manifest
    if (manifest is None) == (config.cohort.synthetic == 0):
        raise ConfigError(
            "cohort.manifest: set it to a CSV or Parquet file (or cohort.synthetic to a number of slides)"
        )
    if manifest is not None and is_in_image and not manifest.startswith("/"):
        raise ConfigError(f"cohort.manifest = {manifest!r}: an absolute path on a volume, the image has no slides")
    if job in {"evaluate", "predict"} and config.prediction.model is None:
        raise ConfigError("prediction.model: set it to a bundle's folder, or to the name of a run")
    if job == "tune":
        read_space(config)


def example_problems(text: str) -> Iterator[Problem]:
    """Yield what is wrong with the commands in a file's comments, which are there to be copied."""
    line, joined = 1, re.sub(r"\\\n#\s*", "\\\n", text)
    for part in re.split(r"(?<!\\)\n", joined):
        example = _EXAMPLE.search(part.replace("\\\n", " ")) if part.startswith("#") else None
        command = JobCommand.parse(example[0]) if example else None
        if example and command:
            yield from command.problems(f"the example in line {line}", example[0], is_in_image=False)
        line += part.count("\n") + 1
