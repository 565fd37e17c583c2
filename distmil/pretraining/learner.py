"""An encoder in pre-training, and one step of all workers.

Each worker embeds its piece of the batch; then all of them hold the embeddings of the whole batch, and compute its loss
alike. A step is therefore the same for any number of workers but for rounding, and no loss needs to know of workers.

V views, N patches of a worker, B of a batch, E embedding, P edge of a view.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distmil.config.root import Config
from distmil.encoders.networks.patch_encoder import PatchEncoder
from distmil.encoders.trainable import parameter_groups
from distmil.errors import TrainingError
from distmil.pretraining.methods import Objective, make_objective
from distmil.training.learner import is_half_precision, mix_seed
from distmil.training.workers import Workers

CLIP_NORM = 3.0
"""Largest gradient norm."""


@dataclass
class Learner:
    """An encoder in pre-training."""

    encoder: PatchEncoder
    objective: Objective
    teacher: PatchEncoder | None
    """The moving average of the encoder, where the objective needs one; then it is what is kept."""
    optimizer: torch.optim.Optimizer
    device: torch.device
    width: int
    """E."""
    patches_per_pass: int
    is_half: bool = False
    """The encoder runs in bf16."""
    steps_done: int = 0

    @property
    def kept(self) -> PatchEncoder:
        """Take the encoder that is measured and kept."""
        return self.teacher or self.encoder

    @property
    def modules(self) -> nn.ModuleDict:
        """Gather the modules of a checkpoint by the first part of their tensors' names."""
        found = {"encoder": self.encoder, "objective": self.objective, "teacher": self.teacher}
        return nn.ModuleDict({name: module for name, module in found.items() if module is not None})

    @property
    def frozen(self) -> set[str]:
        """Name the tensors that stay as the encoder's stored weights have them."""
        names = [name for name, parameter in self.encoder.named_parameters() if not parameter.requires_grad]
        return {f"{module}.{name}" for module in ("encoder", "teacher") for name in names}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """List every parameter that is trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def forward(self, encoder: PatchEncoder, images: Tensor) -> Tensor:
        """Embed views, N x E, float32, of uint8 images N x 3 x P x P."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.is_half):
            return encoder.from_sized(images.to(self.device).float().div(255)).float()


def make_learner(config: Config, encoder: PatchEncoder, *, width: int, device: torch.device) -> Learner:
    """Return a learner whose encoder has the part ready that is trained.

    Args:
        config: The configuration.
        encoder: One encoder.
        width: E.
        device: Where it is trained.
    """
    settings = config.pretraining
    objective = make_objective(settings, width=width).to(device)
    encoder = encoder.to(device).train()
    teacher = copy.deepcopy(encoder).eval() if objective.has_teacher else None
    groups = parameter_groups(encoder, config.encoder, rate=settings.learning_rate)
    projector = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    groups.append({"params": projector, "lr": objective.projector_rate * settings.learning_rate})
    for group in groups:
        group["peak_lr"] = group["lr"]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    return Learner(
        encoder, objective, teacher, optimizer, device, width, config.encoder.patches_per_pass,
        is_half=is_half_precision(config.training, device),
    )  # fmt: skip


def take_step(
    learner: Learner, views_VN3PP: Tensor, *, count: int, num_steps: int, workers: Workers, rate: float, seed: int
) -> float:
    """Take one step of all workers and return the loss of the batch.

    Args:
        learner: The learner.
        views_VN3PP: Views of this worker's piece of the batch, uint8.
        count: B.
        num_steps: Steps of the whole pre-training, for the teacher.
        workers: The workers.
        rate: Share of the peak learning rate.
        seed: For the draws of networks with dropout.

    Raises:
        TrainingError: If the loss or the gradient is not finite.
    """
    objective, optimizer, step = learner.objective, learner.optimizer, learner.steps_done
    optimizer.zero_grad(set_to_none=True)
    start, stop = workers.piece(count)
    flat, views = views_VN3PP.flatten(0, 1), len(views_VN3PP)
    passes = _Passes(learner, flat, seeds=(seed, step, workers.rank))

    def whole(own_XE: Tensor) -> Tensor:
        return _of_all(own_XE.view(views, stop - start, learner.width), count, start, workers)

    wanted = None if learner.teacher is None else whole(passes.embed(learner.teacher))
    loss = objective(whole(passes.embedding), wanted)
    loss.backward()
    passes.backward()
    for parameter in objective.parameters():
        if parameter.grad is not None:
            parameter.grad /= workers.size  # every worker computed it whole
    workers.sum_gradients(learner.parameters)
    norm = float(nn.utils.clip_grad_norm_(learner.parameters, CLIP_NORM))
    value = float(loss.detach())
    if not math.isfinite(value + norm):
        what, found = ("the gradient's norm", norm) if math.isfinite(value) else ("the loss", value)
        raise TrainingError(f"{what} of pre-training is {found} in step {step + 1}; lower pretraining.learning_rate")
    for options in optimizer.param_groups:
        options["lr"] = rate * options["peak_lr"]
    optimizer.step()
    if learner.teacher is not None:
        objective.follow(learner.encoder, learner.teacher, step=step, num_steps=num_steps)
    learner.steps_done += 1
    return value


def learning_rate(step: int, num_steps: int, *, warmup_steps: int) -> float:
    """Return the share of the peak rate in a step: linear warm-up, and a cosine over all steps."""
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    return warm * 0.5 * (1 + math.cos(math.pi * step / num_steps))


class _Passes:
    """The embeddings of images that pass the encoder some at a time, with exact gradients.

    Only where one pass is enough are its intermediate values kept. Otherwise the images pass again when the gradient of
    the embeddings is known: the memory is that of one pass, whatever the batch.

    Source: Gao et al. 2021 (GradCache).
    """

    def __init__(self, learner: Learner, images: Tensor, *, seeds: tuple[int, ...]) -> None:
        self._learner, self._seeds = learner, seeds
        self._pieces = torch.split(images, learner.patches_per_pass)
        self._is_kept = len(self._pieces) == 1
        with torch.set_grad_enabled(self._is_kept):
            self._made = self._all(learner.encoder)
        self.embedding = torch.cat(self._made).detach().requires_grad_()
        """Of all images, a leaf whose gradient ``backward`` hands on."""

    def embed(self, encoder: PatchEncoder) -> Tensor:
        """Embed the images by another encoder, without gradients."""
        with torch.no_grad():
            return torch.cat(self._all(encoder))

    def backward(self) -> None:
        """Add the gradients of the encoder."""
        if self.embedding.grad is None or not len(self.embedding):
            return
        gradients = torch.split(self.embedding.grad, self._learner.patches_per_pass)
        for number, gradient in enumerate(gradients):
            made = self._made[number] if self._is_kept else self._one(self._learner.encoder, number)
            made.backward(gradient)  # type: ignore[no-untyped-call]

    def _all(self, encoder: PatchEncoder) -> list[Tensor]:
        return [self._one(encoder, number) for number in range(len(self._pieces))]

    def _one(self, encoder: PatchEncoder, number: int) -> Tensor:
        torch.manual_seed(mix_seed(*self._seeds, number))
        learner, images = self._learner, self._pieces[number]
        if not len(images):  # more workers than patches
            return torch.zeros(0, learner.width, device=learner.device)
        return learner.forward(encoder, images)


def _of_all(own_VNE: Tensor, count: int, start: int, workers: Workers) -> Tensor:
    """Put the embeddings of all workers together, V x B x E; the gradient reaches one's own."""
    if workers.size == 1:
        return own_VNE
    views, own, width = own_VNE.shape
    all_VBE = own_VNE.new_zeros(views, count, width)
    all_VBE[:, start : start + own] = own_VNE.detach()
    workers.sum(all_VBE)
    return torch.cat([all_VBE[:, :start], own_VNE, all_VBE[:, start + own :]], dim=1)
