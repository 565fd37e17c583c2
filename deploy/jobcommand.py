"""Read a command that runs one of the jobs, by the job's own parser and configuration."""

import contextlib
import io
import re
import shlex
from pathlib import PurePosixPath

from rules import ROOT

from distmil.__main__ import JOBS
from distmil.command.arguments import job_parser
from distmil.config.loading import load_config
from distmil.config.root import Config
from distmil.errors import ConfigError

IMAGE_FOLDER = PurePosixPath("/home/ray/distmil")
"""The image's working folder, which has jobs/ as it is here."""
_JOB = re.compile(r"(?:(?:python3? )?\S*jobs/(\w+)\.py|(?:python3? -m )?distmil (\w+))\b(.*)", re.DOTALL)


def job_config(command: str) -> tuple[Config, bool]:
    """Load the configuration of a job's command, and return it and whether its file is here.

    Raises:
        ConfigError: If the command is not a job's, or not one that the job understands.
    """
    found = _JOB.fullmatch(command.strip())
    if found is None or (found[1] or found[2]) not in JOBS:
        raise ConfigError(f"distmil JOB, or python jobs/JOB.py, with one of the jobs {', '.join(JOBS)}")
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            options = job_parser(found[1] or found[2], None).parse_args(shlex.split(found[3]))
    except SystemExit:  # the parser's answer to options that it does not know
        raise ConfigError(output.getvalue().strip() or "no call for help") from None
    except ValueError as error:  # a quote without its other end
        raise ConfigError(str(error)) from None
    path = PurePosixPath(options.config or "")
    if path.is_relative_to(IMAGE_FOLDER):
        path = path.relative_to(IMAGE_FOLDER)
    is_here = options.config is None or not (path.is_absolute() or "://" in options.config)
    return load_config(ROOT / path if options.config and is_here else None, options.overrides), is_here
