"""One training step of all workers: each worker's losses, one sum of gradients, one move of the weights.

T patches, C classes, L losses.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distmil.bags.bag import Bag
from distmil.bags.loader import Batch, load_batch
from distmil.bags.sampler import Step
from distmil.config.root import Config
from distmil.errors import TrainingError
from distmil.models.losses import LOSSES
from distmil.training.chunked_bag import ChunkedBag
from distmil.training.learner import Learner
from distmil.training.losses import LossSettings, packed_losses
from distmil.training.workers import Workers


@dataclass(frozen=True)
class StepResult:
    """Losses of a step; the numbers may still be on their way from the device."""

    numbers: Tensor
    """The losses and their weighted sum, summed over the workers, and the norm of the gradient."""
    is_there: torch.cuda.Event | None
    bags: Sequence[Bag]
    step: Step

    def losses(self) -> dict[str, float]:
        """Return the workers' losses, each unweighted, and their weighted sum as ``loss``; wait for them.

        Raises:
            TrainingError: If the loss or the gradient is not finite, naming the slides of the step.
        """
        if self.is_there is not None:
            self.is_there.synchronize()
        *found, norm = self.numbers.tolist()
        if not math.isfinite(found[-1] + norm):
            what, value = ("the gradient's norm", norm) if math.isfinite(found[-1]) else ("the loss", found[-1])
            involved = sorted({self.bags[i].slide_id for i in (*self.step.bags, *self.step.mixed_bag.tolist())})
            raise TrainingError(
                f"{what} is {value} in a step on slides {', '.join(involved[:20])}"
                f"{' and more' if len(involved) > 20 else ''}; lower training.lr, or look at these slides' embeddings"
            )
        return dict(zip([*LOSSES, "loss"], found, strict=True))


def take_step(
    learner: Learner,
    bags: Sequence[Bag],
    step: Step,
    config: Config,
    workers: Workers,
    *,
    rate: float,
    batch: Batch | None = None,
    class_weight_C: Tensor | None = None,
) -> StepResult:
    """Take one step, without waiting for the device. The caller must read the losses soon: they may be infinite.

    Args:
        learner: The learner.
        bags: All training bags.
        step: The workers' step.
        config: The configuration, with the loss weights of this step.
        workers: The workers.
        rate: Share of the peak learning rate.
        batch: This worker's share, if it is loaded already.
        class_weight_C: Weight of a slide of each class; None: 1.
    """
    num_slides, num_mixed = len(step.bags), len(step.mixed_bag)
    num_bags = num_slides + bool(config.losses.bag and config.bags.mixed_bag_loss and num_mixed)
    aim = LossSettings(config, num_slides, num_bags, num_mixed, class_weight_C)
    batch = batch or load_batch(bags, step, share_of(step, bags, workers), config.bags, learner.device)
    learner.optimizer.zero_grad(set_to_none=True)
    values = torch.zeros(len(LOSSES) + 1, dtype=torch.float64, device=learner.device)
    if step.is_chunked:
        chunked = step.bags[0]
        source, sample = step.source(bags, chunked), step.samples.get(chunked)
        found = ChunkedBag(learner, source, sample, label=bags[chunked].label or 0, aim=aim, workers=workers).backward()
        if found:
            values += torch.hstack(aim.weigh(found))
    if batch is not None:
        work, graphs = functools.partial(_packed, learner, aim), learner.graphs
        if graphs is None or step.is_chunked:  # a chunked bag has left gradients to add to
            numbers = work(batch)
        else:
            constants = (num_slides, num_bags, num_mixed, *(getattr(config.losses, name) for name in LOSSES))
            numbers = graphs.run(work, batch, learner.parameters, constants)
        if numbers is not None:
            values += numbers
    workers.sum_gradients(learner.parameters)
    norm = nn.utils.clip_grad_norm_(learner.parameters, config.training.clip_norm)
    learner.step(rate=rate)
    numbers = torch.cat([workers.sum(values), norm.to(values)[None]]).to("cpu", non_blocking=True)
    is_there = torch.cuda.current_stream(learner.device).record_event() if learner.device.type == "cuda" else None
    return StepResult(numbers, is_there, bags, step)


def _packed(learner: Learner, aim: LossSettings, batch: Batch) -> Tensor | None:
    """Add the gradients of a worker's share and return each loss and their weighted sum; None if there is no loss."""
    with learner.autocast():
        found = packed_losses(learner.head, learner.embed(batch.patches), batch, aim)
    if not found:
        return None
    each_L, loss = aim.weigh(found)
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.hstack([each_L, loss]).detach()


def share_of(step: Step, bags: Sequence[Bag], workers: Workers) -> list[int]:
    """List what this worker takes whole of a step."""
    return step.share(workers.rank, workers.size, {i: len(bags[i]) for i in step.bags})
