"""The pre-training of a dry run: how long its steps would take here, tried on a few random patches."""

import importlib
from dataclasses import replace
from pathlib import Path

from distmil.pipeline.job import Job
from distmil.preflight.claims import run_id
from distmil.preflight.stages import EPOCH_EXTRA_S, GROUP_STARTS, Machine, Stage, Work
from distmil.preflight.timing import idle_clock
from distmil.storage.store import Store

TRIAL_PATCHES = 8
TRIALS = 2
"""Steps that are timed, after one that is slower."""


def pretrain_stage(job: Job, work: Work, machine: Machine, folder: Path) -> Stage:
    """Estimate the steps that are left of a pre-training.

    Args:
        job: The job.
        work: Its slides.
        machine: What it runs on.
        folder: Where the encoder's weights go.
    """
    settings, num_patches = job.config.pretraining, round(work.count(work.slides))
    plan = importlib.import_module("distmil.pretraining.plan").Plan(
        [num_patches], settings.batch_patches, settings.seed, settings.epochs, settings.steps
    )
    name = run_id("pretrain", settings.run)
    checkpoints = importlib.import_module("distmil.pretraining.checkpoints")
    progress = checkpoints.read_progress(job.store, name) if name else None
    done = min(progress[1], plan.num_steps) if progress else 0
    todo = plan.num_steps - done if num_patches else 0
    seconds = 0.0
    if todo:
        patch_s = _seconds_of_a_patch(job, machine, Store(str(folder)))
        measures = (plan.num_epochs + 1) * settings.probe_patches / 4  # a pass without gradients, and one view
        patches = todo * min(num_patches, settings.batch_patches) + measures
        seconds = patches * patch_s / (job.config.training.num_workers if machine.gpus else 1)
        seconds += GROUP_STARTS * machine.start_s + plan.num_epochs * EPOCH_EXTRA_S
    workers = f"{job.config.training.num_workers} worker(s)"
    return Stage("pretrain", "steps", done, todo, workers, 0.0, seconds)


def _seconds_of_a_patch(job: Job, machine: Machine, scratch: Store) -> float:
    """Take a few steps of few random patches, and return the seconds of each patch."""
    torch = importlib.import_module("torch")
    runs, learners = (importlib.import_module(f"distmil.pretraining.{name}") for name in ("run", "learner"))
    views, workers = (importlib.import_module(f"distmil.{name}") for name in ("pretraining.views", "training.workers"))
    registry = importlib.import_module("distmil.encoders.registry")
    encoder = job.config.encoder.only(job.config.encoder.part_with_weights)
    config = job.config.model_copy(update={"encoder": encoder})
    spec = registry.prepare_encoder(encoder, scratch)
    is_gpu = machine.gpus > 0 and config.training.use_gpu is not False
    net = runs.encoder_to_train(config, spec, scratch)
    device = torch.device("cuda" if is_gpu else "cpu")
    learner = learners.make_learner(config, net, width=spec.dimension, device=device)
    learner = replace(learner, patches_per_pass=2 * TRIAL_PATCHES)
    settings = config.pretraining
    seen = views.ViewSettings(runs.view_edge(config, net.row), settings.crop_scale, settings.stain_shift)
    edge = config.tiling.patch_px
    before, started = torch.get_num_threads(), 0.0
    torch.set_num_threads(machine.cpus)
    for step in range(1 + TRIALS):
        if step == 1:
            started = idle_clock()
        image = torch.randint(256, (edge, edge, 3), dtype=torch.uint8).numpy()
        made = [views.two_views(image, key=(step, number), settings=seen) for number in range(TRIAL_PATCHES)]
        learners.take_step(
            learner, torch.stack(made, dim=1), count=TRIAL_PATCHES, num_steps=1 + TRIALS, workers=workers.Workers(),
            rate=0.0, seed=0,
        )  # fmt: skip
    torch.set_num_threads(before)
    repeated = 1.0 if 2 * settings.batch_patches <= config.encoder.patches_per_pass else 4 / 3  # passes without graphs
    return repeated * (idle_clock() - started) / (TRIALS * TRIAL_PATCHES)
