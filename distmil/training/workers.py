"""The workers that train together, and what they tell each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distmil.errors import DistmilError

Result = TypeVar("Result")


class WorkersFailed(Exception):
    """A worker failed, and every one of them knows its error, which is the cause of this one."""


@dataclass(frozen=True)
class Workers:
    """The workers that train together, seen by one of them; one alone does not communicate."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Workers":
        """Return this process's place in the torch process group, or that of a worker alone."""
        if not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def together(self, work: Callable[[], Result]) -> Result:
        """Do a piece of work on every worker at once, and fail on all of them where it fails on one.

        Raises:
            WorkersFailed: From the first worker's error.
        """
        failure: DistmilError | None = None
        try:
            result = work()
        except DistmilError as error:
            failure = error
        first = next((found for found in self.gather(failure) if found is not None), None)
        if first is not None:
            raise WorkersFailed from first
        return result

    def on_rank_0(self, work: Callable[[], object]) -> None:
        """Do a piece of work on rank 0 while the others wait. Raises: WorkersFailed on all of them if it fails."""
        self.together(work if self.rank == 0 else lambda: None)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over the workers in one message; what has none on any worker has none afterwards, either.

        With a gradient of zeros the optimiser would decay it, other than with one worker.
        """
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        is_there = gradients[0].new_tensor([p.grad is not None for p in parameters])
        flat = self.sum(torch.cat([*(gradient.flatten() for gradient in gradients), is_there]))
        *pieces, counts = torch.split(flat, [*(p.numel() for p in parameters), len(parameters)])
        for parameter, piece, count in zip(parameters, pieces, counts.tolist(), strict=True):
            parameter.grad = piece.view_as(parameter).clone() if count else None

    def piece(self, count: int) -> tuple[int, int]:
        """Return this worker's even piece of ``count`` things: start and stop."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size
