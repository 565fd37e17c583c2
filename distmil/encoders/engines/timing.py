"""How fast engines are on patches of a cohort, and which batch is the fastest.

N patches, E embedding.
"""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from distmil.encoders.registry import Encoder

ROUNDS = 5
"""Timings of each engine, in turn with the others: a busy neighbour slows all alike."""
_SMALLER = 0.97
"""Share of the best rate that is good enough: the smallest such batch is taken."""
_MAX_GROWTH_BYTES = 2**30
_TIMING_S = 0.3


def rates_in_turns(engines: Sequence[Encoder], batches: Sequence[NDArray[np.uint8]]) -> list[float]:
    """Time engines in turn, each on its batch, and return each one's median rate in images/s."""
    seconds: list[list[float]] = [[] for _ in engines]
    for _ in range(ROUNDS):
        for taken, engine, batch in zip(seconds, engines, batches, strict=True):
            taken.append(_seconds(partial(engine.embed, batch)))
    return [len(batch) / statistics.median(taken) for taken, batch in zip(seconds, batches, strict=True)]


def fastest_batch(engine: Encoder, images_NHWC: NDArray[np.uint8], *, most: int) -> int:
    """Find the smallest batch that is within 3 % of the fastest, doubling while memory allows.

    A batch is not tried if the one before let the process grow by half a GiB, or did not fit the GPU.

    Args:
        engine: An engine that ran already.
        images_NHWC: Patches, repeated where a batch needs more.
        most: Largest batch.
    """
    rates: dict[int, float] = {}
    size, growth = 1, 0
    while size <= most and 2 * growth < _MAX_GROWTH_BYTES:
        batch_NHWC = filled(images_NHWC, size)
        before = _peak_bytes()
        try:
            engine.embed(batch_NHWC)
        except torch.OutOfMemoryError:
            break
        growth = _peak_bytes() - before
        taken = [_seconds(partial(engine.embed, batch_NHWC))]
        while sum(taken) < _TIMING_S:
            taken.append(_seconds(partial(engine.embed, batch_NHWC)))
        rates[size] = size / min(taken)
        size *= 2
    best = max(rates.values(), default=1.0)
    return next((size for size, rate in rates.items() if rate >= _SMALLER * best), 1)


def filled(images_NHWC: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return a batch of some size, with patches repeated where there are fewer."""
    return np.resize(images_NHWC, (count, *images_NHWC.shape[1:]))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _peak_bytes() -> int:
    """Return the most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
