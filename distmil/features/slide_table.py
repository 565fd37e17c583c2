"""What is exported of a slide.

N patches of the slide, E numbers a patch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SlideTable:
    """The embeddings of a slide, as they are exported."""

    slide_id: str
    x_N: NDArray[np.int32]
    y_N: NDArray[np.int32]
    embedding_NE: NDArray[np.float16]
    tissue_N: NDArray[np.float32]
    """Share of tissue of each patch."""
    extent_px: int
    """Patch edge in level-0 pixels."""
    patch_px: int
    size: tuple[int, int]
    """Slide (width, height) in level-0 pixels."""
    mpp: float | None
    """Um per level-0 pixel."""
    encoder: str
    stride_px: int | None = None
    """Distance of patches, in their own pixels; None where it is not known: taken as their edge."""

    @property
    def patch_mpp(self) -> float | None:
        """Compute um per pixel of the patches."""
        return self.mpp and self.mpp * self.extent_px / self.patch_px
