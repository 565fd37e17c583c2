"""The search job: searches K, the loss weights or any other key of the training, and checks the best values again."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distmil.bags.bag import Bag, open_all_bags
from distmil.bags.sampler import StepPlanner
from distmil.cohort import Cohort, Slide
from distmil.config.jobs import SearchConfig
from distmil.config.root import Config, fingerprint
from distmil.errors import ConfigError, TrainingError
from distmil.models.losses import LOSSES
from distmil.pipeline.cluster import start_ray, wants_gpu
from distmil.pipeline.job import Job, open_cohort, open_encoder
from distmil.pipeline.prepare import Prepared, prepare
from distmil.pipeline.results import show_record
from distmil.pipeline.training.claim import Claim, announce, check_classes
from distmil.pipeline.tuning.plan import SearchPlan, read_trial, read_trials
from distmil.pipeline.tuning.record import SearchRecord
from distmil.pipeline.tuning.trial_records import TrialRecords
from distmil.pipeline.tuning.trials import HELD_OUT
from distmil.pipeline.tuning.tune_adapter import concurrency, run_trials, trial_resources
from distmil.preflight.claims import search_settings
from distmil.search.comparison import Spread, ablations, repeat_trials, spread_of
from distmil.search.folds import check_labels, check_metric, patient_folds
from distmil.search.queue import TrialQueue
from distmil.search.report import Outcome, write_report
from distmil.search.samplers import OptunaSampler, distinct, draw_ahead
from distmil.search.space import Domain, Values, check_folds, default_values, read_space, with_values
from distmil.search.trial import Row, Trial, best_trial
from distmil.tracking.server import closing_run, resolve_uri
from distmil.tracking.system_metrics import system_metrics
from distmil.tracking.tracker import Tracker
from distmil.training.engine import active_config
from distmil.training.ownership import take_over
from distmil.training.run import trained_encoder
from distmil.training.run_files import run_file, search_folder

FoldIds = tuple[list[str], list[str]]
NEEDED = ("default", "best")
FIRST_REPEAT = 1
"""Seeds of the comparison are training.seed plus this and on: none that the search was run with."""


def run(job: Job) -> dict[str, Any]:
    """Search, then train the best and the default values with fresh seeds and compare them."""
    check_folds(job.config)
    space = read_space(job.config)
    cohort = open_cohort(job, needs_labels=True, needs_splits=True)
    _check_val(job.config.search, cohort)
    uri = resolve_uri(job.config.tracking.uri, job.store.root)
    record = SearchRecord(job, Tracker(uri, job.config.tracking.experiment))
    with closing_run(record.finish):
        answer = _run(job, cohort, space, record)
    show_record(job, record.parent)
    return answer | {"tracking": record.parent.place}


def _check_val(search: SearchConfig, cohort: Cohort) -> None:
    """Refuse val slides of one class before anything is tiled. Raises: ConfigError."""
    labels = [slide.label for slide in cohort.of_split("val") if slide.label is not None and not slide.is_pseudo]
    if search.folds == 0 and labels:
        check_labels(labels, search.metric, where="val")


def _run(job: Job, cohort: Cohort, space: dict[str, Domain], record: SearchRecord) -> dict[str, Any]:
    search = job.config.search
    spec = open_encoder(job)
    trained_encoder(job.config, spec, job.store)  # what cannot be trained is refused before hours of tiling
    claim = Claim(job, spec, cohort, search.run, "tune", more=search_settings(job.config.search))
    claim.check()
    if job.config.training.use_gpu is True or job.config.training.num_workers > 1:
        concurrency(job.config, trial_resources(job.config, is_gpu=wants_gpu(job.config)))
    used = cohort.of_split("train", "val", "test")
    prepared = prepare(job, used, spec, with_labels=True, learns=True)
    check_classes(prepared, cohort)
    folds, held_out = _split(search, used, prepared, job.config)
    classes, form = len(cohort.classes), job.config.labels.form
    bags = {bag.slide_id: bag for bag in open_all_bags(job.store, prepared.entries, num_classes=classes, form=form)}
    metric = _metric(job, [[bags[i] for i in validation] for _, validation in folds])
    run = replace(claim, more=identity(search, folds, held_out)).take(prepared)
    space = _without_inactive(job, announce(job, prepared, cohort), space)
    start_ray()
    plan = SearchPlan(
        run=run, root=job.store.root, config=job.config, spec=spec, metric=metric,
        is_gpu=wants_gpu(job.config), folds=folds, held_out=held_out, seed=job.config.training.seed,
        claim=fingerprint(job.store.read_checked(run_file(run, "run"), owner=run)),
        lease=take_over(job.store, search_folder(run), run=run),
    )  # fmt: skip
    record.open(plan, space, cohort)
    outcome = _outcome(job, plan, space, [bag for bag in bags.values() if bag.split == "train"], record)
    answer = write_report(outcome, job.config, job.store, job.console, folder=search_folder(run))
    record.record(outcome, search_folder(run))
    return answer


def _outcome(
    job: Job, plan: SearchPlan, space: dict[str, Domain], learning: Sequence[Bag], record: SearchRecord
) -> Outcome:
    """Search, and compare the best values with the default ones. Raises: TrainingError if no trial has a score."""
    with system_metrics(record.parent, is_wanted=job.config.tracking.system_metrics):
        records = _search(job, plan, space, record)
        winner = best_trial(records)
        if winner is None:
            raise TrainingError(f"no trial has a {plan.metric} after its last epoch: nothing to compare")
        default = default_values(job.config, space)
        best = f"{plan.metric} {winner.score:.4f} with {_words(winner.values)}"
        job.console.note(f"best of {len(records)} trials: {best}")
        repeats = _repeat(job, plan, _settings(job.config, winner.values, default, learning), record)
    return Outcome(
        run=plan.run, metric=plan.metric, space=space, default=default, winner=winner, records=records,
        spreads=repeats.spreads, held_out=repeats.held_out, failed=repeats.failed,
        seconds=sum(record.seconds for record in records),
    )  # fmt: skip


def identity(search: SearchConfig, folds: Sequence[FoldIds], held_out: Sequence[str]) -> dict[str, Any]:
    """List the settings and slides that a search depends on; more trials or repeats go on with it."""
    return search_settings(search) | {"slides of the folds": fingerprint({"folds": folds, "held_out": held_out})}


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
    """List each fold's slides to train on and to validate on, and the slides that no trial sees.

    Raises:
        ConfigError: If there is no slide to validate on, or the folds cannot be made.
    """
    ids: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for entry in prepared.entries:
        ids[entry.split or "train"].append(entry.slide_id)
    if search.folds == 0:
        if not ids["val"]:
            raise ConfigError(
                "search.folds = 0: the manifest has no val slide to compare trials on; set search.folds=5"
            )
        return [(ids["train"], ids["val"])], ids["test"]
    known = set(ids["train"])
    learning = [slide for slide in slides if slide.slide_id in known]
    return patient_folds(learning, count=search.folds, seed=config.cohort.split_seed), ids["val"] + ids["test"]


def _metric(job: Job, folds: Sequence[Sequence[Bag]]) -> str:
    """Choose the metric that trials are compared by: as configured, or of slides where no patch label is positive.

    Raises:
        ConfigError: If a fold cannot tell trials apart by it.
    """
    metric = job.config.search.metric
    scored = [bag for bags in folds for bag in bags if not bag.is_pseudo]
    if metric.startswith("patch") and not any((bag.label_N > 0).any() for bag in scored):
        job.console.note(f"note: no positive patch label for {metric}; trials are compared by slide_auc")
        metric = "slide_auc"
    check_metric(folds, metric)
    return metric


def _search(job: Job, plan: SearchPlan, space: Mapping[str, Domain], record: SearchRecord) -> list[Trial]:
    """Run the trials and return them, in their order."""
    search = job.config.search
    queue = search_queue(job.config, plan, space)
    at_once = concurrency(job.config, trial_resources(job.config, is_gpu=plan.is_gpu))
    if search.algorithm != "grid" and queue.total < search.trials:
        job.console.note(
            f"the space has {queue.total} settings, fewer than search.trials = {search.trials}: all are tried"
        )
    job.console.note(
        f"search {plan.run}: {queue.total} trials ({search.algorithm}), {min(at_once, queue.total)} at once on "
        f"{'GPU' if plan.is_gpu else 'CPU'}, {job.config.training.epochs} epochs"
        + (f" on {len(plan.folds)} folds" if search.folds else "")
        + (", those behind are ended early" if search.stopping == "asha" else "")
    )
    records = TrialRecords(plan, queue, record)
    run_trials(plan, records, stops_early=True)
    if last := queue.reopen(records.trials.values()):  # each was behind one that was lost, and started again behind it
        job.console.note(f"every trial was ended early; the best of them, {last.score:.4f}, trains to its end")
        run_trials(plan, records, stops_early=False)
    trials = sorted(records.trials.values(), key=lambda trial: trial.number)
    if trials and all(trial.status == "failed" for trial in trials):
        raise TrainingError(f"every trial failed; the first: {trials[0].error}")
    return trials


def search_queue(config: Config, plan: SearchPlan, space: Mapping[str, Domain]) -> TrialQueue:
    """Build the queue of the search: settings drawn ahead that no earlier call finished, then those of Optuna."""
    search, default = config.search, default_values(config, space)
    settings, count = draw_ahead(
        space, default, algorithm=search.algorithm, count=search.trials, seed=config.training.seed
    )
    known, sampler = read_trials(plan), None
    if search.algorithm == "optuna" and len(settings) < count:
        earlier = sorted((r for r in known.values() if not r.is_repeat), key=lambda trial: trial.number)
        settings = distinct([*settings, *(trial.values for trial in earlier)], count)
        results = [trial for trial in earlier if trial.is_over]
        sampler = OptunaSampler(space, seed=config.training.seed, results=results)
    make = functools.partial(Trial, seed=plan.seed, claim=plan.claim)
    return TrialQueue(
        list(map(make, settings)), known=known, max_lost=search.max_failures, sampler=sampler, make=make, count=count
    )


@dataclass
class Repeats:
    """Scores of the settings that were trained again, by setting."""

    spreads: dict[str, Spread] = field(default_factory=dict)
    held_out: dict[str, Spread] = field(default_factory=dict)
    """Scores on slides that no trial sees."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a setting is not compared."""


def _repeat(job: Job, plan: SearchPlan, settings: Mapping[str, Values], record: SearchRecord) -> Repeats:
    """Train settings with fresh seeds. Raises: TrainingError if the best or the default values fail."""
    seeds = [plan.seed + FIRST_REPEAT + i for i in range(job.config.search.repeats)]
    found = Repeats()
    if not seeds:
        return found
    trials = repeat_trials(settings, seeds, claim=plan.claim)
    job.console.note(f"comparing {len(settings)} settings over {len(seeds)} seeds: {len(trials)} trainings")
    queue = TrialQueue(trials, known=read_trials(plan), max_lost=job.config.search.max_failures)
    run_trials(plan, TrialRecords(plan, queue, record), stops_early=False)
    for name, values in settings.items():
        try:
            rows = [_last_row(plan, trial) for trial in repeat_trials({name: values}, seeds, claim=plan.claim)]
        except TrainingError as error:
            if name in NEEDED:
                raise
            found.failed[name] = str(error)
            job.console.note(f"{name} is not compared: {error}")
            continue
        if spread := spread_of(rows, plan.metric):
            found.spreads[name] = spread
        if unseen := spread_of(rows, plan.metric, HELD_OUT):
            found.held_out[name] = unseen
    return found


def _settings(config: Config, winner: Values, default: Values, learning: Sequence[Bag]) -> dict[str, Values]:
    """List the settings to compare by name: the default and the best values, and the best without each loss."""
    settings: dict[str, Values] = {"default": default, "best": winner}
    if config.search.ablations:
        best = with_values(config, winner)
        planner = StepPlanner(learning, best.bags, num_classes=len(config.cohort.classes), seed=config.training.seed)
        active, _ = active_config(best, planner)
        settings |= {f"best without {name}": values for name, values in ablations(active, winner).items()}
    return settings


def _last_row(plan: SearchPlan, trial: Trial) -> Row:
    """Read the last row of a setting that was trained again. Raises: TrainingError if it failed."""
    record = read_trial(plan, trial)
    if record is None or not record.is_over or record.score is None:
        raise TrainingError(
            f"a training of the comparison has no {plan.metric}: {(record and record.error) or 'lost'}; "
            f"training.seed={trial.seed}, {_words(trial.values)}; the same command tries it again"
        )
    return record.rows[-1]


def _words(values: Values) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )
