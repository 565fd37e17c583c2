"""Scores as small pictures of one channel, a pixel a patch, which the browser colours. Arrays are [row, column]."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from distmil.exporting.frame import Frame
from distmil.exporting.maps import step_of, values_of
from distmil.exporting.scores import ScoredPatches


@dataclass(frozen=True)
class ValueMaps:
    """The maps of one slide, cut to the patches."""

    patches: ScoredPatches
    """At least one."""

    @cached_property
    def step(self) -> float:
        """Level-0 pixels per pixel of the maps."""
        return step_of(self.patches)

    @property
    def corner(self) -> tuple[int, int]:
        """(x, y) of the maps' first pixel in level-0 pixels."""
        return int(self.patches.x_N.min()), int(self.patches.y_N.min())

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) of the maps in pixels."""
        ends = (int(self.patches.x_N.max()), int(self.patches.y_N.max()))
        width, height = (round((end - start) / self.step) + 1 for start, end in zip(self.corner, ends, strict=True))
        return width, height

    def values(self, name: str) -> NDArray[np.float32]:
        """Return a score, height x width, NaN where no patch lies."""
        # half a pixel less than the last one ends: a started pixel counts
        width, height = (int((count - 0.5) * self.step) for count in self.size)
        frame = Frame(*self.corner, max(1, width), max(1, height))
        return values_of(self.patches, name, frame, step=self.step)

    def png(self, name: str) -> bytes:
        """Encode a score: its value from 0 to 255 in red, green and blue, and no opacity where no patch lies."""
        return encode_values(self.values(name))


def encode_values(values: NDArray[np.float32]) -> bytes:
    """Encode values within 0 and 1 as PNG of 8 bit, transparent where they are NaN."""
    has_patch = ~np.isnan(values)
    grey = np.rint(np.where(has_patch, values, 0) * 255).astype(np.uint8)
    pixels = np.dstack([grey, grey, grey, np.where(has_patch, 255, 0).astype(np.uint8)])
    return bytes(cv2.imencode(".png", pixels)[1])
