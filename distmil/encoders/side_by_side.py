"""Several encoders as one: their embeddings one behind another, each in its own unit.

N patches, E embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distmil.encoders.golden import rms_of
from distmil.encoders.registry import Encoder


@dataclass(frozen=True)
class SideBySide:
    """Encoders whose embeddings stand side by side.

    Each block is divided by the root mean square of its encoder's golden vector: blocks of like size without a look at
    the cohort, so that the same patch gets the same embedding everywhere.
    """

    parts: tuple[Encoder, ...]
    units: tuple[float, ...]
    """Of each part, in the same order."""

    @classmethod
    def of(cls, parts: Sequence[Encoder], goldens: Sequence[Tensor]) -> Self:
        """Put encoders side by side, each with its golden vector."""
        return cls(tuple(parts), tuple(rms_of(golden_E) for golden_E in goldens))

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return embeddings, N x E, of RGB patches."""
        blocks = [part.embed(images_NHWC) / unit for part, unit in zip(self.parts, self.units, strict=True)]
        return np.concatenate(blocks, axis=1).astype(np.float32)
