"""What a format may need to know of a slide to bring outlines to its level-0 pixels: technical properties only."""

from collections.abc import Callable
from dataclasses import dataclass

Size = tuple[int, int]
"""Width and height in pixels."""
Bounds = tuple[int, int, int, int]
"""x, y, width and height of the scanned area in level-0 pixels."""


@dataclass(frozen=True)
class ScannerFrame:
    """Where a Hamamatsu scanner counts from, and in which steps."""

    centre_nm: tuple[float, float]
    """Offset of the image's centre from the slide's centre in nanometres, (x, y)."""
    pixel_nm: tuple[float, float]
    """Nanometres per level-0 pixel, (x, y)."""


@dataclass(frozen=True)
class SlideFacts:
    """Technical properties of a slide."""

    size: Size
    """Level-0 size."""
    mpp: float | None = None
    """um per level-0 pixel, None = unknown."""
    bounds: Bounds | None = None
    """The scanned area, None where the slide states none."""
    names: tuple[str, ...] = ()
    """The slide's id and its file's name, to find it in a file about many images; never part of a message."""
    look_up_scanner: Callable[[], ScannerFrame | None] = lambda: None
    """Reads the frame of a Hamamatsu scanner from the slide's file, for the one format that needs it."""
