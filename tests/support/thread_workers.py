"""Training workers that are threads of one process."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from distmil.training.workers import Workers

Result = TypeVar("Result")


class ThreadWorkers(Workers):
    """Workers that are threads of this process."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: dict[int, Any]) -> None:
        super().__init__(rank, size)
        object.__setattr__(self, "barrier", barrier)
        object.__setattr__(self, "board", board)

    def gather(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.barrier.wait()
        values = [self.board[rank] for rank in range(self.size)]
        self.barrier.wait()
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values.copy_(torch.stack(self.gather(values.clone())).sum(0))


def run_as_workers(size: int, work: Callable[[Workers], Result]) -> list[Result]:
    """Run ``work`` once for every worker and return the results by rank."""
    barrier, board = threading.Barrier(size, timeout=60), {}
    places = [ThreadWorkers(rank, size, barrier, board) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, places))
