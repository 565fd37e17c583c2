"""Running a job from its command line: arguments in, a JSON line and an exit code out."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from distmil.command.arguments import job_parser
from distmil.command.ending import run_command
from distmil.command.next_steps import Command, in_lines, next_steps, program_words
from distmil.config.loading import annotated_yaml, load_config
from distmil.console import Console, set_up_logging
from distmil.errors import TooManyBadSlides
from distmil.processes.interruption import Interruption
from distmil.storage.roots import checkout_note, resolve_root
from distmil.storage.store import Store

STAGES = {
    **{name: f"distmil.pipeline.{name}" for name in ("tile", "embed", "predict", "evaluate")},
    "pretrain": "distmil.pipeline.pretraining.job",
    "train": "distmil.pipeline.training.job",
    "tune": "distmil.pipeline.tuning.job",
    "export": "distmil.pipeline.export.job",
    "view": "distmil.pipeline.view.job",
    **{name: f"distmil.pipeline.exchange.{name}" for name in ("import_features", "export_features")},
}
"""The module of each job, which has ``run(job)``."""
WITHOUT_RAY = {"view"}


def main(name: str, description: str | None, argv: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Run a job from its command line and return the exit code; see ``run_command``.

    Args:
        name: One of ``STAGES``.
        description: For ``--help``.
        argv: Arguments without the program's name; default: the process's.
        program: The program's name for ``--help``; see ``job_parser``.
    """
    options = job_parser(name, description, program=program).parse_args(argv)
    words = program_words(name, program=program, script=sys.argv[0])
    command = Command(words, options.config, tuple(options.overrides))
    console = Console()
    set_up_logging(console)
    mask = os.umask(0o077)
    try:
        return run_command(name, lambda interruption: _run(name, options, console, interruption, command), console)
    finally:
        os.umask(mask)


def _run(
    name: str, options: argparse.Namespace, console: Console, interruption: Interruption, command: Command
) -> dict[str, Any] | None:
    """Run a job, then end Ray and, unless it was interrupted, list its dropped slides; return the job's answer."""
    config = load_config(options.config, options.overrides)
    if options.print_config:
        sys.stdout.write(annotated_yaml(config, title=f"{name}, storage root {resolve_root(config.storage.root)}"))
        return None
    store = Store(resolve_root(config.storage.root))
    store.check(access=config.storage.access)
    os.umask(store.access.umask)  # for what Ray, MLflow and tifffile write
    console.note(f"storage: {store.root}")
    if note := checkout_note(store.root):
        console.note(note)
    # Imported only now: Ray and torch take seconds, and a wrong key or manifest should not cost them.
    jobs = importlib.import_module("distmil.pipeline.job")
    job = jobs.Job(config, store, console)
    if name == "tune":
        importlib.import_module("distmil.search.space").read_space(config)
    jobs.check_input(job, name)
    if config.features.folder is not None or "features" in (name.partition("_")[2], config.tiling.strategy):
        job = importlib.import_module("distmil.pipeline.exchange.settle").settle_features(job, name)
    jobs.check_ahead(job, name)
    if options.dry_run:
        answer = importlib.import_module("distmil.pipeline.dry_run.estimate").run(job, name, STAGES[name])
        console.note(in_lines(next_steps(name, answer, config, command)))
        return {"job": name, "storage": store.root, **answer}
    stage = importlib.import_module(STAGES[name])
    if name in WITHOUT_RAY:
        answer = stage.run(job)
        return _ended(name, answer, job, command)
    runtime = importlib.import_module("distmil.pipeline.cluster")
    runtime.after_start(interruption.install)
    try:
        importlib.import_module("distmil.pipeline.nodes").check_cluster(job)
        answer = stage.run(job)
    finally:
        runtime.stop_ray()
        if not isinstance(sys.exception(), KeyboardInterrupt):
            job.outcomes.show(console, with_dropped=not isinstance(sys.exception(), TooManyBadSlides))
    return _ended(name, answer, job, command)


def _ended(name: str, answer: dict[str, Any], job: Any, command: Command) -> dict[str, Any]:
    """Say what follows a job that is done, and return its answer."""
    job.outcomes.check_defects()
    if steps := next_steps(name, answer, job.config, command, noun=job.outcomes.noun):
        job.console.note(in_lines(steps))
    return {"job": name, "storage": job.store.root, **answer}
