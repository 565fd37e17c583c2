"""The part of a slide that another program shows, and where its (0, 0) is.

Source: QuPath's OpenslideImageServer, which crops a slide to OpenSlide's bounds where these are smaller than the slide
in both directions, and counts from their corner.
"""

from dataclasses import dataclass
from typing import Literal

Origin = Literal["auto", "slide", "bounds"]


@dataclass(frozen=True)
class Frame:
    """A rectangle of a slide in level-0 pixels: its corner is the (0, 0) of what is exported."""

    x: int
    y: int
    width: int
    height: int

    def map_size(self, px: float) -> tuple[int, int]:
        """Compute (width, height) of a map whose pixels are ``px`` level-0 pixels wide; a started pixel counts."""
        return max(1, -int(-self.width // px)), max(1, -int(-self.height // px))


def frame_of(size: tuple[int, int], bounds: tuple[int, int, int, int] | None, *, origin: Origin) -> Frame:
    """Choose the frame.

    Args:
        size: Slide (width, height) in level-0 pixels.
        bounds: The scanned area (x, y, width, height), None where the slide states none.
        origin: ``slide``: the whole slide; ``bounds``: the scanned area; ``auto``: as QuPath shows the slide.
    """
    if bounds is None or origin == "slide":
        return Frame(0, 0, *size)
    is_cropped = bounds[2] != size[0] and bounds[3] != size[1]
    return Frame(*bounds) if origin == "bounds" or is_cropped else Frame(0, 0, *size)
