"""A pre-training in progress: the learner, its patches, its plan and its history. Torch, no Ray."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distmil.bags.bag import BagEntry, open_labels
from distmil.bags.source import Indices
from distmil.config.root import Config
from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.networks.patch_encoder import PatchEncoder
from distmil.encoders.registry import EncoderSpec, load_trainable
from distmil.encoders.trainable import set_trainable
from distmil.errors import EncoderError, TrainingError
from distmil.pretraining.checkpoints import load_checkpoint
from distmil.pretraining.history import History, Row
from distmil.pretraining.learner import Learner, learning_rate, make_learner, take_step
from distmil.pretraining.patches import Patches, shards_of
from distmil.pretraining.plan import Plan
from distmil.pretraining.probe import Sample, SlidePatches, draw_sample, measure
from distmil.pretraining.views import ViewSettings
from distmil.processes.background import read_ahead
from distmil.storage.store import Store
from distmil.training.workers import Workers

LEAST_PATCHES = 16
"""Fewest patches that are pre-trained on."""


@dataclass
class Run:
    """A pre-training."""

    config: Config
    learner: Learner
    patches: Patches
    plan: Plan
    sample: Sample
    views: ViewSettings
    history: History

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done and measured."""
        return self.history.epochs_done >= self.plan.num_epochs

    def advance(self, workers: Workers, after_step: Callable[[float], None]) -> Row:
        """Take the steps that are left of an epoch, measure the encoder, and return the new row of the history.

        Before the first epoch the encoder is measured as it began.

        Args:
            workers: The workers.
            after_step: Called after each step with its loss.

        Raises:
            TrainingError: If the loss is not finite.
            StorageError: If a shard is damaged or gone.
        """
        history = self.history
        if not history.rows:
            history.rows.append(self._measure(workers))
            return history.rows[-1]
        epoch = history.epochs_done
        self._take_steps(epoch, workers, after_step)
        losses = history.losses[epoch * self.plan.steps_per_epoch :]
        history.rows.append({"loss": float(np.mean(losses)), **self._measure(workers)})
        return history.rows[-1]

    def _take_steps(self, epoch: int, workers: Workers, after_step: Callable[[float], None]) -> None:
        settings, plan, learner = self.config.pretraining, self.plan, self.learner

        def load(batch: tuple[int, Indices]) -> tuple[int, int, torch.Tensor]:
            step, patches = batch
            own = patches[slice(*workers.piece(len(patches)))]
            return step, len(patches), self.patches.views(own, key=(settings.seed, epoch), settings=self.views)

        learner.encoder.train()
        for step, count, views in read_ahead(load, plan.batches(epoch, first=learner.steps_done)):
            rate = learning_rate(step, plan.num_steps, warmup_steps=settings.warmup_steps)
            loss = take_step(
                learner, views, count=count, num_steps=plan.num_steps, workers=workers, rate=rate, seed=settings.seed
            )
            self.history.losses.append(loss)
            after_step(loss)

    def _measure(self, workers: Workers) -> Row:
        """Embed the sample, each worker its piece, and measure it on all of them alike."""
        start, stop = workers.piece(len(self.sample.patch_N))
        mine_NE = self._embed(self.sample.patch_N[start:stop])
        embedding_NE = np.concatenate(workers.gather(mine_NE))
        row = measure(embedding_NE, self.sample) if workers.rank == 0 else None
        found: Row = workers.gather(row)[0]
        return found

    def _embed(self, patches: Indices) -> NDArray[np.float32]:
        encoder, size = self.learner.kept.eval(), self.learner.patches_per_pass
        pieces = np.array_split(patches, range(size, len(patches), size))
        made = [encoder.embed(self.patches.take(piece)) for piece in pieces if len(piece)]
        return np.concatenate(made) if made else np.empty((0, self.learner.width), np.float32)


def open_run(
    config: Config,
    entries: Sequence[BagEntry],
    spec: EncoderSpec,
    store: Store,
    *,
    name: str | None,
    device: torch.device,
    threads: int = 1,
) -> Run:
    """Resume a pre-training from its latest checkpoint, or start it.

    Args:
        config: The configuration.
        entries: The train slides with their patch shards.
        spec: The one encoder that is pre-trained.
        store: Where patches, weights and checkpoints are.
        name: The run's name; None for a run without checkpoints.
        device: Where the encoder is trained.
        threads: That make views.

    Raises:
        TrainingError: If there are too few patches.
        EncoderError: If the encoder has no such part to train.
        StorageError: If a committed checkpoint is damaged.
    """
    settings, plan = config.pretraining, plan_of(config, entries)
    encoder = encoder_to_train(config, spec, store)
    learner = make_learner(config, encoder, width=spec.dimension, device=device)
    history = None if name is None else load_checkpoint(store, name, learner)
    patches = Patches(store, shards_of(entries), threads)
    sample = _sample(config, entries, store)
    views = ViewSettings(
        view_edge(config, encoder.row), crop_scale=settings.crop_scale, stain_shift=settings.stain_shift
    )
    return Run(config, learner, patches, plan, sample, views, history or History(probe=sample.kind))


def plan_of(config: Config, entries: Sequence[BagEntry]) -> Plan:
    """Plan the steps on the patches of slides. Raises: TrainingError if there are too few patches."""
    settings, sizes = config.pretraining, [shard.part.rows for shard in shards_of(entries)]
    if sum(sizes) < LEAST_PATCHES:
        raise TrainingError(
            f"pre-training needs at least {LEAST_PATCHES} patches, the train slides have {sum(sizes)}; lower "
            "tiling.min_tissue or tiling.mpp, or add slides"
        )
    return Plan(sizes, settings.batch_patches, settings.seed, settings.epochs, settings.steps)


def encoder_to_train(config: Config, spec: EncoderSpec, store: Store) -> PatchEncoder:
    """Load the encoder with the part of it ready that is trained, and have it embed one view.

    Raises:
        EncoderError: If it has no such part, or takes no views of that size.
    """
    encoder = load_trainable(spec, store)
    assert isinstance(encoder, PatchEncoder)
    settings = config.pretraining
    trainable = True if settings.trained == "all" else settings.trained
    try:
        set_trainable(encoder, config.encoder.model_copy(update={"trainable": trainable, "name": spec.name}))
    except EncoderError as error:
        raise EncoderError(str(error).replace("encoder.trainable", "pretraining.trained")) from error
    if settings.view_px is not None and settings.view_px != encoder.row.input_px:
        _check_size(encoder, settings.view_px)
    return encoder


def _check_size(encoder: PatchEncoder, edge_px: int) -> None:
    """Have a network embed one view. Raises: EncoderError if it takes no views of that size."""
    try:
        with torch.inference_mode():
            encoder.eval().from_sized(torch.zeros(1, 3, edge_px, edge_px))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EncoderError(
            f"pretraining.view_px = {edge_px}: {encoder.row.name} takes no images of that size ({reason}); leave it out"
        ) from error


def view_edge(config: Config, row: EncoderRow) -> int:
    """Return the edge of views: as configured, else what the encoder takes, else the patches'."""
    return config.pretraining.view_px or row.input_px or config.tiling.patch_px


def _sample(config: Config, entries: Sequence[BagEntry], store: Store) -> Sample:
    settings, classes = config.pretraining, len(config.cohort.classes)
    bags = [open_labels(store, entry, num_classes=classes, form="class") for entry in entries]
    return draw_sample(
        [SlidePatches(bag.label, bag.label_N) for bag in bags], count=settings.probe_patches, seed=settings.seed
    )
