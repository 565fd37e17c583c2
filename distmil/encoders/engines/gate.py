"""The gate: an engine is used only where its embeddings point where those of plain fp32 point.

N patches, E embedding.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_COSINE = 0.999
QUANTILE = 0.01


@dataclass(frozen=True)
class Agreement:
    """Cosines between the embeddings of an engine and those of plain fp32 over a sample of patches."""

    mean: float
    low: float
    """The 1 % quantile: 99 of 100 patches agree better. It decides: a good mean hides a few patches gone astray."""
    least: float

    @property
    def passes(self) -> bool:
        """Return whether the engine may be used."""
        return self.low >= LEAST_COSINE

    @property
    def words(self) -> str:
        """Word the figures."""
        return f"cosine {self.mean:.5f} to plain fp32 on average, {self.low:.5f} at the 1 % quantile"


def agreement(found_NE: NDArray[np.float32], plain_NE: NDArray[np.float32]) -> Agreement:
    """Compare embeddings of the same patches.

    Two zero vectors agree; a zero vector or a value that is not finite beside a proper one does not (cosine 0).

    Args:
        found_NE: The engine's, N x E, at least one row.
        plain_NE: Those of plain fp32.
    """
    found, plain = found_NE.astype(np.float64), plain_NE.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(plain, axis=1)
        cosine_N = np.where(lengths > 0, (found * plain).sum(axis=1) / lengths, 0.0)
    cosine_N[~found.any(axis=1) & ~plain.any(axis=1)] = 1.0
    cosine_N = np.nan_to_num(cosine_N, nan=0.0, posinf=0.0, neginf=0.0)
    return Agreement(float(cosine_N.mean()), float(np.quantile(cosine_N, QUANTILE)), float(cosine_N.min()))
