"""The training loop: an epoch, an evaluation, and a run's history. Torch only.

T patches, C classes.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from distmil.bags.bag import Bag
from distmil.bags.loader import Batch, load_ahead, load_batch, make_resident
from distmil.bags.sampler import Step, StepPlanner
from distmil.config.root import Config
from distmil.errors import TrainingError
from distmil.evaluation.calibration import choose_temperatures
from distmil.evaluation.metrics import choose_thresholds, label_scores, summarise
from distmil.inference.scoring import SCORE_CHUNK, BagScores, score_bag
from distmil.models.baselines import NETWORKS
from distmil.models.losses import LOSSES
from distmil.models.regions import PatchEvidence, ScoreGrid, fit_evidence, fitted_slides
from distmil.training.learner import Learner, embed, learning_rate, mix_seed
from distmil.training.step import StepResult, share_of, take_step
from distmil.training.workers import Workers

logger = logging.getLogger(__name__)

RESIDENT_SHARE = 0.5


def train_epoch(
    learner: Learner, bags: Sequence[Bag], planner: StepPlanner, config: Config, *, epoch: int, workers: Workers
) -> dict[str, float]:
    """Train on every bag once and return the mean losses of the epoch.

    The order, the draws and the dropout follow from ``training.seed`` and the epoch, so that a resumed run is the
    unbroken one.
    """
    learner.train()
    class_weight_C = class_weights(config, planner)
    if class_weight_C is not None:
        class_weight_C = class_weight_C.to(learner.device)
    slides = planner.slides(epoch)
    rows: list[dict[str, float]] = []
    earlier: StepResult | None = None
    for i, (step, batch) in enumerate(_loaded(slides, bags, planner, learner, config, epoch=epoch, workers=workers)):
        progress = epoch + i / len(slides)
        torch.manual_seed(mix_seed(config.training.seed, epoch, workers.rank, i))
        now, rate = ramped(config, progress), learning_rate(config, progress, learner)
        result = take_step(learner, bags, step, now, workers, rate=rate, batch=batch, class_weight_C=class_weight_C)
        if earlier is not None:
            rows.append(earlier.losses())  # while the device computes this step
        earlier = result
    if earlier is not None:
        rows.append(earlier.losses())
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _loaded(
    slides: Sequence[Sequence[int]],
    bags: Sequence[Bag],
    planner: StepPlanner,
    learner: Learner,
    config: Config,
    *,
    epoch: int,
    workers: Workers,
) -> Iterator[tuple[Step, Batch | None]]:
    """Yield an epoch's steps with this worker's share, drawn and read while the steps before are computed."""
    with_mixed, with_slides = uses_patch_labels(config), bool(config.losses.bag or config.losses.topk)

    def load(numbered: tuple[int, Sequence[int]]) -> tuple[Step, Batch | None]:
        step = planner.step(epoch, *numbered, with_mixed=with_mixed, with_slides=with_slides)
        is_padded = learner.graphs is not None
        mine = share_of(step, bags, workers)
        return step, load_batch(bags, step, mine, config.bags, learner.device, is_padded=is_padded)

    return load_ahead(load, enumerate(slides), learner.device)


def ramped(config: Config, progress: float) -> Config:
    """Set the loss weights for a number of epochs done, with a fraction: those with a ramp grow from 0."""
    weights = config.losses
    grown: dict[str, float] = {
        name: getattr(weights, name) * min(1.0, progress / epochs) for name, epochs in weights.ramp.items() if epochs
    }
    return config.model_copy(update={"losses": weights.model_copy(update=grown)}) if grown else config


def class_weights(config: Config, planner: StepPlanner) -> Tensor | None:
    """Compute the weight of a slide of each class, C, mean 1 over the slides; None where all are equal."""
    if config.losses.class_weights == "none":
        return None
    counts = torch.as_tensor(planner.num_of_class).clamp(min=1)
    return counts.sum() / (len(counts) * counts)


def uses_patch_labels(config: Config) -> bool:
    """Check whether a loss looks at mixed bags."""
    return bool(config.losses.patch or config.losses.attention or (config.losses.bag and config.bags.mixed_bag_loss))


def active_config(config: Config, planner: StepPlanner) -> tuple[Config, list[str]]:
    """Switch off losses that the network or the labels do not support, with a note for each.

    Without any positive patch label L1 and L4 on negatives alone do harm: they push attention to zero everywhere.

    Raises:
        TrainingError: If no loss is left.
    """
    notes, weights, bags = [], config.losses.model_dump(), config.bags
    learns_from = NETWORKS[config.model.name].losses
    if learns_from != set(LOSSES):
        weights |= dict.fromkeys(set(LOSSES) - learns_from, 0.0)
        bags = bags.model_copy(update={"mixed_bag_loss": False})
        notes.append(f"model.name = {config.model.name} learns from the loss {', '.join(sorted(learns_from))} alone")
    uses_labels = weights["patch"] or weights["attention"] or bags.mixed_bag_loss
    if uses_labels and planner.num_positive == 0:
        weights |= {"patch": 0.0, "attention": 0.0}
        bags = bags.model_copy(update={"mixed_bag_loss": False})
        notes.append("no positive patch label in train: L1 (patch) and L4 (attention) are switched off")
    if not any(weights[name] for name in LOSSES):
        raise TrainingError(
            f"no loss is left for model.name = {config.model.name}: the cohort has {planner.num_positive} positive "
            "patch labels, and the weights of the other losses are 0; annotate some slides, or set losses.bag=1"
        )
    return config.model_copy(update={"losses": config.losses.model_copy(update=weights), "bags": bags}), notes


def keep_resident(bags: Sequence[Bag], config: Config, device: torch.device) -> list[Bag]:
    """Copy the bags' embeddings into the GPU's memory, if that is wanted and they fit.

    On a CPU they stay memory-mapped: the page cache keeps them.
    """
    wanted = config.training.resident
    if wanted is False or device.type != "cuda" or config.encoder.trainable:
        return list(bags)
    first = bags[0].source.take(slice(0, 1))
    size = sum(len(bag) * (1 + len(bag.views)) for bag in bags) * first.nbytes
    free, _ = torch.cuda.mem_get_info(device)
    if wanted == "auto" and size > RESIDENT_SHARE * free:
        logger.info("embeddings of %.1f GB stay on disk: %.1f GB of GPU memory are free", size / 1e9, free / 1e9)
        return list(bags)
    logger.info("embeddings of %.1f GB go into GPU memory", size / 1e9)
    return make_resident(bags, device)


def evaluate(learner: Learner, bags: Sequence[Bag], config: Config, *, workers: Workers) -> dict[str, float | None]:
    """Score bags without gradients, each whole, shared over the workers, and return the metrics on every worker.

    The thresholds and temperatures that these slides suggest are beside the metrics, and the evidence of the read-out
    ``regions`` as evidence_slope and evidence_offset; the accuracy is that of 0.5. Pseudo-labelled slides take part in
    training only.
    """
    learner.eval_model.train(False)
    labelled = [bag for bag in bags if bag.label is not None and not bag.is_pseudo]
    mine = range(workers.rank, len(labelled), workers.size)
    scores = [_score(learner, labelled[i], config) for i in mine]
    evidence = _evidence(labelled, dict(zip(mine, scores, strict=True)), workers)
    rows = [
        label_scores(
            _with_regions(one, labelled[i], evidence), label=labelled[i].label or 0, label_N=labelled[i].label_N
        )
        for i, one in zip(mine, scores, strict=True)
    ]
    gathered = [row for part in workers.gather(rows) for row in part]
    fitted = {} if evidence is None else {f"evidence_{name}": value for name, value in asdict(evidence).items()}
    chosen = choose_thresholds(gathered, aim=config.training.threshold_aim) | choose_temperatures(gathered)
    return summarise(gathered) | chosen | fitted


def _evidence(bags: Sequence[Bag], scores: Mapping[int, BagScores], workers: Workers) -> PatchEvidence | None:
    """Fit the evidence of the read-out ``regions`` on the workers' slides; None where that cannot be done.

    Args:
        bags: All slides that are evaluated.
        scores: This worker's, by their place in that list.
        workers: The workers.
    """
    places = [bag.places for bag in bags if bag.places is not None]
    if len(places) < len(bags):
        return None
    fitted = fitted_slides([bool(bag.label) for bag in bags])
    chosen = [i for i in scores if i in fitted]
    grids = [ScoreGrid.of(scores[i].fused_N, places[i]) for i in chosen]
    return fit_evidence(grids, [bool(bags[i].label) for i in chosen], workers.gather)


def _with_regions(scores: BagScores, bag: Bag, evidence: PatchEvidence | None) -> BagScores:
    return scores if bag.places is None else scores.with_regions(bag.places, evidence)


def _score(learner: Learner, bag: Bag, config: Config) -> BagScores:
    """Score a bag. Raises: TrainingError if its scores are not finite."""
    nets = learner.eval_model
    scores = score_bag(
        nets.head,
        bag.source,
        lambda patches: embed(patches, nets.encoder, learner.device),
        top_k=config.bags.top_k,
        top_k_share=config.bags.top_k_share,
        chunk=config.encoder.patches_per_pass if config.encoder.trainable else SCORE_CHUNK,
    )
    if not (np.isfinite(scores.bag) and np.isfinite(scores.fused_N).all()):
        raise TrainingError(f"{bag.slide_id}: scores are not finite; look at this slide's embeddings")
    return scores


@dataclass
class History:
    """Metrics of a run's epochs, for early stopping and for its checkpoint."""

    rows: list[dict[str, float | None]] = field(default_factory=list)
    best_epoch: int = -1

    def add(self, row: dict[str, float | None], *, select_by: str) -> bool:
        """Add an epoch's metrics and return whether it is the best so far; ties go to the lower slide loss."""
        self.rows.append(row)
        is_best = self.best_epoch < 0 or self._rank(row, select_by) > self._rank(self.rows[self.best_epoch], select_by)
        if is_best:
            self.best_epoch = len(self.rows) - 1
        return is_best

    def is_stale(self, patience: int) -> bool:
        """Check whether the last ``patience`` epochs brought no better one."""
        return patience > 0 and len(self.rows) - 1 - self.best_epoch >= patience

    @staticmethod
    def _rank(row: Mapping[str, float | None], select_by: str) -> tuple[float, float]:
        """Compute the rank of an epoch; by the training loss where there was no validation."""
        loss = row.get("val_slide_loss", row.get("loss"))
        lower = -math.inf if loss is None else -loss
        value = row.get(f"val_{select_by}")
        return (lower if select_by == "loss" or value is None else value), lower
