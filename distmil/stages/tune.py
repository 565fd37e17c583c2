"""Searches K, the loss weights or any other key of the network's training, and makes sure of what it finds."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distmil.agenda import Agenda
from distmil.bags import Bag
from distmil.cohort import Cohort, Slide
from distmil.comparison import Spread, ablations, repeat_tasks, spread_of
from distmil.config import Config, SearchConfig, fingerprint
from distmil.draws import OptunaDraws, distinct, draw_ahead
from distmil.encoders import prepare_encoder
from distmil.engine import active_config
from distmil.errors import ConfigError, TrainingError
from distmil.folds import patient_folds
from distmil.sampling import StepPlanner
from distmil.search import (
    Domain,
    Task,
    TrialRecord,
    Values,
    best_trial,
    check_folds,
    default_values,
    read_space,
    with_values,
)
from distmil.stages.inputs import open_cohort
from distmil.stages.opening import announce, check_classes, claim_run, read_or_none
from distmil.stages.prepare import Prepared, prepare
from distmil.stages.runtime import Job, start_ray, wants_gpu
from distmil.stages.sweeping import check_any_finished, concurrency, run_agenda, trial_resources
from distmil.stages.sweepreport import Outcome, write_report
from distmil.stages.trialbook import TrialBook
from distmil.stages.trials import HELD_OUT, Sweep, read_trial, read_trials, search_folder
from distmil.stages.worker import open_bags, run_file
from distmil.steps import LOSSES
from distmil.tracking import Tracker, resolve_uri
from distmil.trial import Row

FoldIds = tuple[list[str], list[str]]
MAX_LOST = 10_000
NEEDED = ("default", "best")
FIRST_REPEAT = 1
"""Seeds of the comparison are training.seed plus this and on: none that the search was run with."""


def run(job: Job) -> dict[str, Any]:
    """Search, then train the best and the default values with fresh seeds and compare them."""
    check_folds(job.config)
    space = read_space(job.config)
    cohort = open_cohort(job, needs_labels=True, needs_splits=True)
    uri = resolve_uri(job.config.tracking.uri, job.store.root)
    book = Book(job, Tracker(uri, job.config.tracking.experiment))
    status = "FAILED"
    try:
        answer = _run(job, cohort, space, book)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        book.finish(status)
    return answer | {"tracking": {"uri": uri, "experiment": book.parent.experiment, "run_id": book.parent.run_id}}


def _run(job: Job, cohort: Cohort, space: dict[str, Domain], book: "Book") -> dict[str, Any]:
    search = job.config.search
    spec = prepare_encoder(job.config.encoder, job.store)
    used = cohort.of_split("train", "val", "test")
    prepared = prepare(job, used, spec, with_labels=True, from_images=job.config.encoder.trainable)
    check_classes(prepared, cohort)
    folds, held_out = _split(search, used, prepared, job.config)
    run = claim_run(
        job, prepared, spec, cohort, name=search.run, kind="tune", more=identity(search, folds, held_out),
        folders=[search_folder(search.run)] if search.run else [],
    )  # fmt: skip
    job.store.write_json(run_file(run, "cohort"), [entry.to_json() for entry in prepared.entries])
    space = _without_inactive(job, announce(job, prepared), space)
    bags = {bag.slide_id: bag for bag in open_bags(job.config, job.store, run)}
    metric = _metric(job, [bags[i] for _, judging in folds for i in judging])
    start_ray()
    sweep = Sweep(
        run=run, root=job.store.root, values=job.config.model_dump(), spec=spec, metric=metric,
        is_gpu=wants_gpu(job.config), folds=folds, held_out=held_out, seed=job.config.training.seed,
        claim=fingerprint(job.store.read_json(run_file(run, "run"))),
    )  # fmt: skip
    book.open(sweep, space, cohort)
    records = _search(job, sweep, space, book)
    winner = best_trial(records)
    if winner is None:
        raise TrainingError(f"no trial has a {metric} after its last epoch: nothing to compare")
    default = default_values(job.config, space)
    job.console.note(f"best of {len(records)} trials: {metric} {winner.score:.4f} with {_words(winner.values)}")
    learning = [bag for bag in bags.values() if bag.split == "train"]
    repeats = _repeat(job, sweep, _settings(job.config, winner.values, default, learning), book)
    outcome = Outcome(
        run=run, metric=metric, space=space, default=default, winner=winner, records=records, spreads=repeats.spreads,
        held_out=repeats.held_out, failed=repeats.failed, seconds=sum(record.seconds for record in records),
    )  # fmt: skip
    answer = write_report(job, search_folder(run), outcome)
    book.record(outcome, search_folder(run))
    return answer


def identity(search: SearchConfig, folds: Sequence[FoldIds], held_out: Sequence[str]) -> dict[str, Any]:
    """Return what a search depends on; more trials or repeats go on with it."""
    keys = ("space", "algorithm", "metric", "stopping", "grace_epochs", "reduction", "folds")
    slides = fingerprint({"folds": folds, "held_out": held_out})
    return {f"search.{key}": getattr(search, key) for key in keys} | {"slides of the folds": slides}


def _without_inactive(job: Job, active: Config, space: Mapping[str, Domain]) -> dict[str, Domain]:
    """Leave out the weights of losses that are off whatever their weight. Raises: ConfigError if nothing is left."""
    off = [f"losses.{name}" for name in LOSSES if getattr(job.config.losses, name) and not getattr(active.losses, name)]
    gone = [key for key in space if key in off]
    if gone:
        job.console.note(f"note: not searched, for the labels do not carry it: {', '.join(gone)}")
    left = {key: domain for key, domain in space.items() if key not in gone}
    if not left:
        raise ConfigError("search.space: nothing is left to search")
    return left


def _split(
    search: SearchConfig, slides: Sequence[Slide], prepared: Prepared, config: Config
) -> tuple[list[FoldIds], list[str]]:
    """Return each fold's slides to train on and to judge on, and the slides that no trial sees.

    Raises:
        ConfigError: If there is nothing to judge on, or the folds cannot be made.
    """
    ids: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for entry in prepared.entries:
        ids[entry.split or "train"].append(entry.slide_id)
    if search.folds == 0:
        if not ids["val"]:
            raise ConfigError("search.folds = 0: the manifest has no val slide to judge trials on; set search.folds=5")
        return [(ids["train"], ids["val"])], ids["test"]
    known = set(ids["train"])
    learning = [slide for slide in slides if slide.slide_id in known]
    return patient_folds(learning, count=search.folds, seed=config.cohort.split_seed), ids["val"] + ids["test"]


def _metric(job: Job, judging: Sequence[Bag]) -> str:
    """Return what trials are compared by: as configured, or by slides where no patch label is positive."""
    metric = job.config.search.metric
    if metric.startswith("patch") and not any((bag.label_N > 0).any() for bag in judging if not bag.is_pseudo):
        job.console.note(f"note: no positive patch label to judge {metric} by; trials are compared by slide_auc")
        return "slide_auc"
    return metric


def _search(job: Job, sweep: Sweep, space: Mapping[str, Domain], book: "Book") -> list[TrialRecord]:
    """Run the trials and return their records."""
    search = job.config.search
    agenda = search_agenda(job.config, sweep, space)
    at_once = concurrency(job.config, trial_resources(job.config, is_gpu=sweep.is_gpu))
    if search.algorithm != "grid" and agenda.total < search.trials:
        job.console.note(
            f"the space has {agenda.total} settings, fewer than search.trials = {search.trials}: all are tried"
        )
    job.console.note(
        f"search {sweep.run}: {agenda.total} trials ({search.algorithm}), {min(at_once, agenda.total)} at once on "
        f"{'GPU' if sweep.is_gpu else 'CPU'}, {job.config.training.epochs} epochs"
        + (f" on {len(sweep.folds)} folds" if search.folds else "")
        + (", those behind are ended early" if search.stopping == "asha" else "")
    )
    trials = book.trial_book(agenda)
    run_agenda(sweep, job.config, trials, stops_early=True)
    records = sorted(trials.records.values(), key=lambda record: record.number)
    check_any_finished(records)
    return records


def search_agenda(config: Config, sweep: Sweep, space: Mapping[str, Domain]) -> Agenda:
    """Return what is to be trained: what is drawn already, less what is over, and what Optuna will draw."""
    search, default = config.search, default_values(config, space)
    settings, count = draw_ahead(
        space, default, algorithm=search.algorithm, count=search.trials, seed=config.training.seed
    )
    known, draws = read_trials(sweep), None
    if search.algorithm == "optuna" and len(settings) < count:
        earlier = sorted((r for r in known.values() if not r.is_repeat), key=lambda record: record.number)
        settings = distinct([*settings, *(record.values for record in earlier)], count)
        told = [record for record in earlier if record.is_over]
        draws = OptunaDraws(space, seed=config.training.seed, told=told)

    def make(values: Values) -> Task:
        return Task(values, sweep.seed, claim=sweep.claim)

    tasks = [make(values) for values in settings]
    return Agenda(tasks, known=known, max_lost=search.max_failures, draws=draws, make=make, count=count)


@dataclass
class Repeats:
    """What training some settings again came to, by setting."""

    spreads: dict[str, Spread] = field(default_factory=dict)
    held_out: dict[str, Spread] = field(default_factory=dict)
    """On slides that no trial sees."""
    failed: dict[str, str] = field(default_factory=dict)


def _repeat(job: Job, sweep: Sweep, settings: Mapping[str, Values], book: "Book") -> Repeats:
    """Train settings with fresh seeds. Raises: TrainingError if the best or the default values fail."""
    seeds = [sweep.seed + FIRST_REPEAT + i for i in range(job.config.search.repeats)]
    found = Repeats()
    if not seeds:
        return found
    tasks = repeat_tasks(settings, seeds, claim=sweep.claim)
    job.console.note(f"comparing {len(settings)} settings over {len(seeds)} seeds: {len(tasks)} trainings")
    agenda = Agenda(tasks, known=read_trials(sweep), max_lost=job.config.search.max_failures)
    run_agenda(sweep, job.config, book.trial_book(agenda), stops_early=False)
    for name, values in settings.items():
        try:
            rows = [_last_row(sweep, task) for task in repeat_tasks({name: values}, seeds, claim=sweep.claim)]
        except TrainingError as error:
            if name in NEEDED:
                raise
            found.failed[name] = str(error)
            job.console.note(f"{name} is not compared: {error}")
            continue
        if spread := spread_of(rows, sweep.metric):
            found.spreads[name] = spread
        if unseen := spread_of(rows, sweep.metric, HELD_OUT):
            found.held_out[name] = unseen
    return found


def _settings(config: Config, winner: Values, default: Values, learning: Sequence[Bag]) -> dict[str, Values]:
    """Return what is compared by name: the default and the best values, and the best without each of its losses."""
    settings: dict[str, Values] = {"default": default, "best": winner}
    if config.search.ablations:
        best = with_values(config, winner)
        planner = StepPlanner(learning, best.bags, num_classes=len(config.cohort.classes), seed=config.training.seed)
        active, _ = active_config(best, planner)
        settings |= {f"best without {name}": values for name, values in ablations(active, winner).items()}
    return settings


def _last_row(sweep: Sweep, task: Task) -> Row:
    """Return the last row of a setting that was trained again. Raises: TrainingError if it failed."""
    record = read_trial(sweep, task)
    if record is None or not record.is_over or record.score is None:
        raise TrainingError(
            f"a training of the comparison has no {sweep.metric}: {(record and record.error) or 'lost'}; "
            f"training.seed={task.seed}, {_words(task.values)}; the same command tries it again"
        )
    return record.rows[-1]


def _words(values: Values) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )


@dataclass
class Book:
    """The record of a search: a parent run in MLflow, a child for each trial, and what the terminal is told."""

    job: Job
    parent: Tracker
    children: dict[str, Tracker] = field(default_factory=dict)
    """Of the trials that are running, by key."""
    over: set[str | None] = field(default_factory=set)
    """MLflow's ids of the trials that were over before."""
    _sweep: Sweep | None = None

    def open(self, sweep: Sweep, space: Mapping[str, Domain], cohort: Cohort) -> None:
        """Start the parent run, or go on with it."""
        store, file = self.job.store, run_file(sweep.run, "mlflow")
        self._sweep = sweep
        self.parent.start(
            sweep.run, artifacts=store.path("mlflow-artifacts"), resume=read_or_none(store, file),
            tags={"distmil.job": "tune"},
        )  # fmt: skip
        if self.parent.run_id is not None:
            store.write_json(file, self.parent.run_id)
        self.parent.log_params(self.job.config, **{"data.fingerprint": cohort.fingerprint})
        spaces = {f"space.{key}": f"{domain.kind} {list(domain.values)}" for key, domain in space.items()}
        self.parent.log_values(spaces)

    def trial_book(self, agenda: Agenda) -> TrialBook:
        """Return what keeps the records of some trials, and show how far they are."""
        assert self._sweep is not None
        return TrialBook(self._sweep, agenda, self._start, self._row, _Progress(self, agenda.total))

    def _start(self, record: TrialRecord) -> None:
        assert self._sweep is not None
        config, parent = self.job.config, self.parent.run_id
        child = Tracker(self.parent.uri if parent else None, config.tracking.experiment, flush_s=30.0)
        kind = "repeat" if record.is_repeat else "trial"
        child.start(
            f"{kind}-{record.task.key}", artifacts=self.job.store.path("mlflow-artifacts"), resume=record.mlflow,
            tags={"mlflow.parentRunId": str(parent), "distmil.job": "tune", "distmil.kind": kind},
        )  # fmt: skip
        child.log_values({**record.values, "training.seed": record.seed})
        record.mlflow = child.run_id
        self.children[record.task.key] = child

    def _row(self, record: TrialRecord) -> None:
        if child := self.children.get(record.task.key):
            child.log_metrics(record.rows[-1], step=len(record.rows) - 1)

    def end(self, record: TrialRecord) -> None:
        """Close a trial's run."""
        if child := self.children.pop(record.task.key, None):
            child.complete(record.rows)
            child.set_tags({"distmil.status": record.status})
            child.finish("FAILED" if record.status == "failed" else "FINISHED")

    def record(self, outcome: Outcome, folder: str) -> None:
        """Record the outcome in the parent run."""
        self.parent.log_metrics(outcome.numbers(), step=0)
        self.parent.set_tags({f"best.{key}": str(value) for key, value in outcome.winner.values.items()})
        self.parent.set_tags({"distmil.verdict": outcome.verdict})
        with tempfile.TemporaryDirectory(prefix="distmil-") as scratch:
            for name in self.job.store.names(folder):
                Path(scratch, name).write_bytes(self.job.store.read(f"{folder}/{name}"))
            self.parent.log_artifact(Path(scratch), "search")

    def finish(self, status: str) -> None:
        """Close every run that is still open."""
        for child in self.children.values():
            child.finish("KILLED" if status == "KILLED" else "FAILED")
        self.parent.attempt("the end of trials that were lost", self._close_lost)
        self.parent.finish(status)

    def _close_lost(self, client: Any, run_id: str) -> None:
        """Close children that a killed driver left open: FINISHED where their trial was over, else KILLED."""
        experiment = client.get_run(run_id).info.experiment_id
        is_open = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
        for lost in client.search_runs([experiment], is_open, max_results=MAX_LOST):
            client.set_terminated(lost.info.run_id, "FINISHED" if lost.info.run_id in self.over else "KILLED")


@dataclass
class _Progress:
    """Says how a trial ended."""

    book: Book
    total: int
    done: set[str] = field(default_factory=set)
    best: float | None = None

    def __call__(self, record: TrialRecord, *, was_over: bool) -> None:
        self.done.add(record.task.key)
        self.book.end(record)
        if record.status == "finished" and record.score is not None and not record.is_repeat:
            self.best = record.score if self.best is None else max(self.best, record.score)
        if was_over:
            self.book.over.add(record.mlflow)
            return
        score = "no score" if record.score is None else f"{record.score:.4f}"
        how = {"finished": "", "stopped": ", ended early", "failed": f", failed: {record.error}"}[record.status]
        best = "" if self.best is None else f"; best {self.best:.4f}"
        what = "training" if record.is_repeat else "trial"
        self.book.job.console.note(
            f"{what} {len(self.done)}/{self.total}: {score} after {len(record.rows)} epochs{how}{best}"
        )
