"""Check a command that runs one of the jobs, by the job's own parser and configuration."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from images import ROOT
from problems import Problem

from distmil.__main__ import JOBS
from distmil.cli import job_parser
from distmil.config.loading import load_config
from distmil.config.root import Config
from distmil.errors import ConfigError
from distmil.search.space import read_space

IMAGE_FOLDER = PurePosixPath("/home/ray/distmil")
"""The image's working folder, which has jobs/ as it is here."""
_JOB = re.compile(r"(?:(?:python3? )?\S*jobs/(\w+)\.py|(?:python3? -m )?distmil (\w+))\b(.*)", re.DOTALL)
_EXAMPLE = re.compile(rf"\bpython3? jobs/\w+\.py.*|\bdistmil (?:{'|'.join(JOBS)}) (?=--|\S+=).*")


@dataclass(frozen=True)
class JobCommand:
    """A job's name and its arguments."""

    job: str
    arguments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "JobCommand | None":
        """Parse a text; None if it is not a job of ours with arguments."""
        found = _JOB.fullmatch(text.strip())
        try:
            arguments = shlex.split(found[3]) if found else []
        except ValueError:  # a quote without its other end
            return None
        return cls(found[1] or found[2], tuple(arguments)) if found and arguments else None

    def override(self, key: str) -> str | None:
        """Find the value that the command gives to a key of the configuration; of several the last counts."""
        return next((text.partition("=")[2] for text in self.arguments[::-1] if text.startswith(f"{key}=")), None)

    def problems(self, place: str, text: str, *, is_in_image: bool) -> Iterator[Problem]:
        """Yield what is wrong with the command; in the image it runs without files that were submitted along."""
        if self.job not in JOBS:
            yield Problem(place, text, f"expected one of the jobs {', '.join(JOBS)}: there is no job {self.job}")
            return
        try:
            config = self._config()
            if config is None:
                expected = "its --config cannot be read from here; what is in it was not checked"
                yield Problem(place, text, expected, is_error=False)
            else:
                _check(self.job, config, is_in_image=is_in_image)
        except ConfigError as error:
            yield Problem(place, text, f"expected what the job understands: {' '.join(str(error).split())}")
        if self.override("storage.root") is None:
            expected = "expected storage.root=, on a volume or a bucket: a pod's own disk goes with the pod"
            yield Problem(place, text, expected)

    def _config(self) -> Config | None:
        """Load the configuration; None if its file is not here. Raises: ConfigError."""
        output = io.StringIO()
        try:
            with contextlib.redirect_stderr(output):
                options = job_parser(self.job, None).parse_args(self.arguments)
        except SystemExit:
            raise ConfigError(output.getvalue().strip().rpartition(": error: ")[2] or "no call for help") from None
        path = PurePosixPath(options.config or "")
        if path.is_relative_to(IMAGE_FOLDER):
            path = path.relative_to(IMAGE_FOLDER)
        is_elsewhere = path.is_absolute() or "://" in (options.config or "")
        file = ROOT / path if options.config and not is_elsewhere else None
        config = load_config(file, options.overrides)
        return None if is_elsewhere else config


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
