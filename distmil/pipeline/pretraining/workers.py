"""The workers of a pre-training: from its committed state to its end."""

from collections.abc import Sequence

import ray

from distmil.bags.bag import BagEntry
from distmil.encoders.registry import EncoderSpec
from distmil.errors import TrainingError
from distmil.pace import Pace
from distmil.pipeline.cluster import start_ray
from distmil.pipeline.job import Job
from distmil.pipeline.pretraining.progress import Progress
from distmil.pipeline.pretraining.worker import pretrain_worker
from distmil.pipeline.training.attempts import run_attempts
from distmil.pipeline.training.monitor import MetricsCallback, watching
from distmil.pipeline.training.workers import make_workers, starts_of, workers_in_words
from distmil.preflight.claims import PRETRAINING
from distmil.pretraining.checkpoints import read_progress
from distmil.pretraining.run import plan_of
from distmil.tracking.tracker import Tracker
from distmil.training.ownership import take_over
from distmil.training.run_files import checkpoint_folder


def fit(job: Job, run: str, spec: EncoderSpec, entries: Sequence[BagEntry], tracker: Tracker) -> None:
    """Run the workers to the end of the pre-training.

    Raises:
        ConfigError: If what workers need is not there.
        TrainingError: If the loss is not finite, the workers failed more often than they may, or another job took the
            run over.
        StorageError: If the store cannot be written or read.
    """
    config, name = job.config, run.removeprefix(PRETRAINING)
    plan = plan_of(config, entries)
    done = read_progress(job.store, run)
    rows, steps = (len(done[0].rows), done[1]) if done else (0, 0)
    if rows > plan.num_epochs:
        job.console.note(f"run {name} is pre-trained already ({plan.num_epochs} epochs)")
        return
    if done is not None:
        job.console.note(f"run {name} goes on after step {steps} of {plan.num_steps}")
    lease = take_over(job.store, checkpoint_folder(run), run=run)
    start_ray()
    job.console.note(
        f"pre-training {spec.name}, {name}: {workers_in_words(config)}, {plan.num_patches} patches, "
        f"{plan.num_epochs} epochs, {plan.num_steps} steps"
    )
    settings = {"spec": vars(spec), "lease": vars(lease)}
    show = Progress(job, run, plan, rows, Pace(plan.num_steps - steps))
    needed = config.training.min_workers or config.training.num_workers

    def attempt() -> ray.train.Result:
        trainer = make_workers(
            pretrain_worker, settings, store=job.store, config=config, run=run, callbacks=[MetricsCallback(tracker)]
        )
        with watching(job, trainer.scaling_config.resources_per_worker, show, needed=needed):
            return trainer.fit()

    run_attempts(attempt, starts=starts_of(config), note=job.console.note)
    done = read_progress(job.store, run)
    if done is None or len(done[0].rows) <= plan.num_epochs:
        raise TrainingError(
            f"run {name} ended after {done[1] if done else 0} of {plan.num_steps} steps, and nothing is made of it; "
            "the same command goes on. Does another job pre-train a run of this name, or were its files deleted?"
        )
