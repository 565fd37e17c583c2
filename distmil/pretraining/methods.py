"""What two views of a patch are to fulfil: VICReg, SimCLR and DINO, by lightly's losses and projectors.

Each sees the embeddings of the whole batch, whichever worker made them.

V views, B patches of a batch, E embedding.
"""

import warnings
from collections.abc import Callable

import torch
from lightly.loss.dino_loss import DINOLoss
from lightly.loss.ntx_ent_loss import NTXentLoss
from lightly.loss.vicreg_loss import VICRegLoss
from lightly.models.modules.heads import DINOProjectionHead, SimCLRProjectionHead, VICRegProjectionHead
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from distmil.config.pretraining import Method, PretrainingConfig

TEMPERATURE = 0.2
"""Of SimCLR."""
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.04, 0.1
MOMENTUM = 0.99
"""Of DINO's teacher at the start; it grows to 1 by a cosine. Source: 0.996 for runs of 100 epochs of ImageNet; the
teacher of a run of few steps would stay where it began."""
BOTTLENECK = 256
"""Width before DINO's prototypes."""


class Objective(nn.Module):
    """A projector and a loss."""

    has_teacher = False
    """Whether the loss needs the embeddings of a moving average of the encoder."""
    projector_rate = 10.0
    """The projector's learning rate as a multiple of the encoder's: it begins anew."""

    def forward(self, embedding_VBE: Tensor, teacher_VBE: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch."""
        raise NotImplementedError

    def follow(self, encoder: nn.Module, teacher: nn.Module, *, step: int, num_steps: int) -> None:
        """Move the teacher after the encoder; does nothing where there is none."""


class VicReg(Objective):
    """Source: Bardes et al. 2022, with the published weights 25, 25 and 1 of the three terms."""

    def __init__(self, width: int, config: PretrainingConfig) -> None:
        super().__init__()
        self.projector = VICRegProjectionHead(width, config.hidden_dim, config.projection_dim)
        self.loss = VICRegLoss()

    def forward(self, embedding_VBE: Tensor, teacher_VBE: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch."""
        loss: Tensor = self.loss(*(self.projector(view_BE) for view_BE in embedding_VBE))
        return loss


class SimClr(Objective):
    """Source: Chen et al. 2020; every other patch of the batch is a negative."""

    def __init__(self, width: int, config: PretrainingConfig) -> None:
        super().__init__()
        self.projector = SimCLRProjectionHead(width, config.hidden_dim, config.projection_dim)
        self.loss = NTXentLoss(TEMPERATURE)

    def forward(self, embedding_VBE: Tensor, teacher_VBE: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch."""
        loss: Tensor = self.loss(*(self.projector(view_BE) for view_BE in embedding_VBE))
        return loss


class Dino(Objective):
    """Source: Caron et al. 2021.

    Departures: two large views, and no small ones, which few networks take; batch norm in the projector, without which
    its answers to all patches of a small run stay alike.
    """

    has_teacher = True
    projector_rate = 1.0  # a faster one finds one prototype for all patches before the teacher's centre moves

    def __init__(self, width: int, config: PretrainingConfig) -> None:
        super().__init__()

        def head() -> DINOProjectionHead:
            with warnings.catch_warnings():  # lightly normalises weights in torch's older way
                warnings.simplefilter("ignore", FutureWarning)
                return DINOProjectionHead(width, config.hidden_dim, BOTTLENECK, config.projection_dim, batch_norm=True)

        self.projector, self.teacher = head(), head()
        self.teacher.load_state_dict(self.projector.state_dict())
        self.teacher.requires_grad_(requires_grad=False)
        self.loss = DINOLoss(config.projection_dim, teacher_temp=TEACHER_TEMPERATURE, student_temp=STUDENT_TEMPERATURE)

    def forward(self, embedding_VBE: Tensor, teacher_VBE: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch, and move the centre of the teacher's answers."""
        assert teacher_VBE is not None
        with torch.no_grad():
            wanted = [self.teacher(view_BE) for view_BE in teacher_VBE]
        loss: Tensor = self.loss(wanted, [self.projector(view_BE) for view_BE in embedding_VBE])
        return loss

    def follow(self, encoder: nn.Module, teacher: nn.Module, *, step: int, num_steps: int) -> None:
        """Move the teacher and its projector after the student."""
        momentum = cosine_schedule(step, num_steps, MOMENTUM, 1.0)
        for mean, module in ((teacher, encoder), (self.teacher, self.projector)):
            _follow(mean, module, momentum)


def _follow(mean: nn.Module, module: nn.Module, momentum: float) -> None:
    """Move a module towards another, but for what is not trained, which stays equal to the last digit."""
    with torch.no_grad():
        for kept, value in zip(mean.parameters(), module.parameters(), strict=True):
            if value.requires_grad:
                kept.lerp_(value, 1 - momentum)


_OBJECTIVES: dict[Method, Callable[[int, PretrainingConfig], Objective]] = {
    "vicreg": VicReg,
    "simclr": SimClr,
    "dino": Dino,
}


def make_objective(config: PretrainingConfig, *, width: int) -> Objective:
    """Make the objective of ``pretraining.method`` for embeddings of a width; its values follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _OBJECTIVES[config.method](width, config)
