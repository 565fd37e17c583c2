"""Where features lie on a slide, in level-0 pixels, and what contradicts the slide or the cohort.

N patches of the slide.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmil.config.features import FeaturesConfig
from distmil.errors import NoResolution, NoTissue
from distmil.features.contents import Contents, Header, odd

MPP_TOLERANCE = 0.25
"""Relative difference of a slide's um per pixel from the cohort's: magnifications are nominal, resolutions are not."""
_SAME = 0.03
_MAX_PX = 2**31 - 1


@dataclass(frozen=True)
class SlideFacts:
    """What is known of the slide itself, without its features."""

    size: tuple[int, int] | None = None
    """(width, height) in level-0 pixels."""
    mpp: float | None = None
    """Um per level-0 pixel."""
    bounds: tuple[int, int, int, int] | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlacedFeatures:
    """The patches of a slide in level-0 pixels."""

    x_N: NDArray[np.int32]
    y_N: NDArray[np.int32]
    extent_px: int
    size: tuple[int, int]
    mpp: float | None
    """Um per level-0 pixel."""
    patch_mpp: float | None
    """Um per pixel of the patches, as the encoder saw them."""


def place(contents: Contents, slide: SlideFacts, config: FeaturesConfig) -> PlacedFeatures:
    """Turn the coordinates of a file into level-0 pixels, and compare them with the slide.

    Args:
        contents: The open file.
        slide: What is known of its slide.
        config: What the user states.

    Raises:
        UnreadableSlide: If they contradict each other, or the slide.
        NoTissue: If there is no patch.
        NoResolution: If coordinates are in um, and nobody knows the slide's um per pixel.
    """
    header = contents.header
    if header.num_patches == 0:
        raise NoTissue("the features: there are none, the tool found no tissue")
    mpp = slide.mpp or header.slide_mpp
    if header.unit == "um" and mpp is None:
        raise NoResolution(
            "the features: their coordinates are in um, and nobody says how many um a pixel of the slide covers; give "
            "the column mpp in the manifest"
        )
    place_N2 = np.asarray(contents.places_N2, np.float64)
    if not np.isfinite(place_N2).all():
        raise odd("some coordinates are not finite")
    _check_unit(place_N2, header, mpp)
    scale = float(mpp) if header.unit == "um" and mpp else 1.0
    pixel_N2 = np.rint(place_N2 / scale)
    if header.unit == "px" and np.any(pixel_N2 != place_N2):
        raise odd("some coordinates are no whole pixels; are they um?")
    extent_px = _extent(header, scale, mpp, config)
    _check_places(pixel_N2, slide.size or header.size)
    x_N, y_N = (pixel_N2[:, axis].astype(np.int32) for axis in (0, 1))
    size = slide.size or header.size or (int(x_N.max()) + extent_px, int(y_N.max()) + extent_px)
    patch_px = header.patch_px or config.edge_px
    patch_mpp = mpp * extent_px / patch_px if mpp and patch_px else header.mpp or config.patch_mpp
    return PlacedFeatures(x_N, y_N, extent_px, size, mpp, patch_mpp)


def check_resolution(placed: PlacedFeatures, wanted: float | None) -> None:
    """Refuse patches of another resolution than the cohort's. Raises: UnreadableSlide."""
    found = placed.patch_mpp
    if not is_near(found, wanted):
        raise odd(f"their patches are of {found:.3g} um/px, those of the cohort or the bundle of {wanted:.3g}")


def is_near(mpp: float | None, other: float | None) -> bool:
    """Return whether two resolutions count as one; an unknown one counts as any."""
    return not (mpp and other) or abs(math.log(mpp / other)) <= math.log(1 + MPP_TOLERANCE)


def _extent(header: Header, scale: float, mpp: float | None, config: FeaturesConfig) -> int:
    """Find the edge of a patch in level-0 pixels. Raises: UnreadableSlide."""
    if header.extent is not None:
        extent = header.extent / scale
    elif config.extent_px is not None:
        extent = config.extent_px
    elif (edge := header.patch_px or config.edge_px) and config.patch_mpp and mpp:
        extent = edge * config.patch_mpp / mpp
    else:
        raise odd(
            "nobody says how large the patches are: keep the tool's folder patches beside them, or set "
            "features.extent_px (level-0 pixels), or features.edge_px and features.patch_mpp with mpp in the manifest"
        )
    if not 1 <= round(extent) <= _MAX_PX:
        raise odd(f"the edge of a patch would be {extent:.3g} level-0 pixels")
    return round(extent)


def _check_unit(place_N2: NDArray[np.float64], header: Header, mpp: float | None) -> None:
    """Refuse um that are taken for pixels, and pixels that are taken for um: the step of the grid tells. See _step."""
    edge = header.step or header.extent
    if edge is None or mpp is None or abs(math.log(mpp)) < 2 * _SAME:
        return
    step = _step(place_N2)
    if step is None or abs(step / edge - 1) < _SAME:
        return
    if header.unit == "px" and abs(step / edge / mpp - 1) < _SAME:
        raise odd(
            f"their coordinates are in um, not in level-0 pixels as {header.layout}'s are: neighbours lie {step:g} "
            f"apart, {edge:g} px are {edge * mpp:g} um at {mpp:g} um/px"
        )
    if header.unit == "um" and abs(step / edge * mpp - 1) < _SAME:
        raise odd(
            f"their coordinates are in pixels, not in um as their file says: neighbours lie {step:g} apart, {edge:g} "
            f"um are {edge / mpp:g} px at {mpp:g} um/px"
        )


def _step(place_N2: NDArray[np.float64]) -> float | None:
    """Measure the usual distance of neighbours in a row or column; None where no two patches share one."""
    steps = []
    for axis in (0, 1):
        order = np.lexsort((place_N2[:, 1 - axis], place_N2[:, axis]))
        same = np.diff(place_N2[order, axis]) == 0
        gaps = np.diff(place_N2[order, 1 - axis])[same]
        steps.append(gaps[gaps > 0])
    found = np.concatenate(steps)
    if not len(found):
        return None
    values, counts = np.unique(np.rint(found * 16) / 16, return_counts=True)
    return float(values[counts.argmax()])


def _check_places(pixel_N2: NDArray[np.float64], size: tuple[int, int] | None) -> None:
    """Refuse coordinates outside the slide, and two patches at one place. Raises: UnreadableSlide."""
    limits = np.asarray(size if size else (_MAX_PX, _MAX_PX))
    outside = np.flatnonzero(((pixel_N2 < 0) | (pixel_N2 >= limits)).any(axis=1))
    if len(outside):
        x, y = (f"{value:.0f}" for value in pixel_N2[outside[0]])
        where = f"the slide of {size[0]} x {size[1]} px" if size else "any slide"
        raise odd(
            f"{len(outside)} of {len(pixel_N2)} patches lie outside {where}, the first at ({x}, {y}); are they of "
            "another slide, or is its mpp wrong?"
        )
    _, counts = np.unique(pixel_N2, axis=0, return_counts=True)
    if (counts > 1).any():
        raise odd(f"{int((counts - 1).sum())} of {len(pixel_N2)} patches have a place that another one has")


def as_half(rows: Any, *, first: int) -> NDArray[np.float16]:
    """Turn embeddings into half precision. Raises: UnreadableSlide if some are not finite, or too large for it."""
    given = np.asarray(rows)
    with np.errstate(over="ignore"):
        half = given.astype(np.float16)
    bad = np.flatnonzero(~np.isfinite(half).all(axis=1))
    if len(bad):
        is_large = bool(np.isfinite(given[bad[0]]).all())
        what = "too large for half precision (65,504)" if is_large else "not finite"
        raise odd(f"the embedding of patch {first + int(bad[0])} is {what}, and of {len(bad) - 1} others near it")
    return half
