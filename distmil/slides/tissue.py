"""Where tissue is: optical density against the slide's own glass, on a small image, in two passes.

Missed tissue is the costly error: thresholds lean towards tissue, the clean-up takes specks only, and the vetoes (pen
ink, the black around a scan) ask for what stained tissue is not. Areas are pixels of about ``TISSUE_MPP`` um. Density
is log10(glass / pixel) of the densest channel (Beer-Lambert); tint is the densest less the least dense channel, so that
1 - 10^-tint is the HSV saturation on white glass.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from distmil.slides.grid import Box

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Ranges = Sequence[tuple[tuple[int, int, int], tuple[int, int, int]]]  # lowest, highest hue / 2 deg, saturation, value

TISSUE_MPP = 8.0
TISSUE_MAX_PX = 4096
_UNIT = 500  # levels per unit of density, which is clipped at 0.51
_FIRST = (0.04, 0.03)  # density and tint that pass 1 takes for tissue, so that the rest is surely glass
_BOUNDS = ((0.035, 0.07), (0.03, 0.05))  # of both thresholds in pass 2; the upper ones keep fat and mucin
_SPECK_PX, _HOLE_PX, _INK_PX = 25, 256, 256  # smaller pieces are dropped, smaller holes filled, smaller ink is none
_EVEN_GLASS, _EVEN_INK, _GREY = 8, 12, 25  # largest range of grey in 5 x 5 px, and of a glass's colour channels
_YELLOW, _TINT = (60, 0.05), (45, 0.2)  # tinted glass: largest range of its channels, least share of the picture
_EVEN_TINT, _WHITE = (
    12,
    254,
)  # largest spread of a tinted glass's channels (8 in 10 pixels); beyond them a colour is not glass
_SAMPLE_PX = 2**18
_5_PX, _7_PX, _9_PX = (np.ones((edge, edge), np.uint8) for edge in (5, 7, 9))

# Green, blue without violet and the most vivid red: hues that haematoxylin, eosin, DAB and their mixtures do not reach.
_REDS: Ranges = (((173, 204, 150), (179, 255, 255)), ((0, 204, 150), (6, 255, 255)))
_INKS: Ranges = (((35, 75, 40), (95, 255, 255)), ((96, 128, 40), (117, 255, 255)), *_REDS)
_BLACKS: Ranges = (((0, 0, 0), (179, 72, 80)), ((0, 0, 0), (179, 255, 24)))
_SOFT_INKS: Ranges = tuple(((low[0], 12, 0), high) for low, high in _INKS)  # a stroke's edge
_SOFT_BLACKS: Ranges = (((0, 0, 0), (179, 24, 255)), *_BLACKS)


@dataclass(frozen=True)
class Tissue:
    """Where tissue is (H x W, True = tissue), and why a person should look at the slide, with the numbers."""

    mask: Mask
    doubts: tuple[str, ...] = ()


def detect_tissue(image: Bytes) -> Tissue:
    """Find the tissue on a slide's overview.

    Tinted glass, as of aged slides, is first balanced to grey, tissue with it, so that both lie as on a clear slide.
    Pass 1 takes the brightest even grey for glass and what is denser or more tinted for tissue, permissively. Pass 2
    measures the glass and its noise on the rest and divides again by Otsu's thresholds, held between bounds so that no
    empty or full slide tips over and faint tissue beside dark tissue is kept. Then gaps and holes of up to 128 um
    across (``_HOLE_PX``) are closed, larger lumina stay holes, and ink, black and specks are taken out.

    Args:
        image: RGB, H x W x 3, at about ``TISSUE_MPP`` um per pixel.

    Source: Otsu 1979 on Beer-Lambert densities.
    """
    smooth = np.asarray(cv2.GaussianBlur(image, (3, 3), 0), np.uint8)
    relief = _relief(smooth)
    tint = _tinted_glass(smooth, relief)
    if tint is not None:
        smooth = _balanced(smooth, tint)
        relief = _relief(smooth)
    ink, void = _vetoes(smooth, relief)
    usable = ~(ink | void)
    found, glass, otsu = _divide(smooth, relief, usable) if usable.any() else (usable, 255.0, 1.0)
    closed = cv2.morphologyEx(found.view(np.uint8), cv2.MORPH_CLOSE, _5_PX) > 0
    filled = ~_pieces(~closed, least_px=_HOLE_PX + 1, connectivity=4)[0] & usable
    mask, number, dropped_px = _pieces(filled, least_px=_SPECK_PX)
    tissue, inked, black = mask.mean(), (ink & found).mean(), void.mean()
    doubts = {
        f"tissue covers {tissue:.1%} of the overview, which leaves hardly any glass to compare it with": tissue > 0.9,
        f"only {tissue:.3%} of the overview is tissue": 0 < tissue < 0.001,
        f"tissue and glass hardly differ, in density by {otsu:.3f}": tissue > 0 and otsu < _BOUNDS[0][0],
        f"the glass is tinted, {_rgb(tint)} in red, green and blue; is it tissue?": tint is not None,
        f"the glass is dark, {glass:.0f} of 255 and usually above 180": glass < 180,
        f"{number} specks of {dropped_px} px in all were dropped": number > 100 and dropped_px > mask.sum() / 4,
        f"pen ink was taken out on {inked:.1%} of the overview": inked > 0.01,
        f"{black:.1%} of the overview is black": black > 0.5,
    }
    return Tissue(mask, tuple(text for text, holds in doubts.items() if holds))


def bounding_box(mask: NDArray[np.bool_], *, scale: float, size: tuple[int, int]) -> Box | None:
    """Find the smallest level-0 rectangle (left, top, right, bottom) that holds the mask, or None if it is empty.

    Args:
        mask: H x W.
        scale: Level-0 pixels per mask pixel.
        size: Slide (width, height), which bounds the rectangle.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    left, top = int(columns[0] * scale), int(rows[0] * scale)
    right, bottom = int(np.ceil((columns[-1] + 1) * scale)), int(np.ceil((rows[-1] + 1) * scale))
    return left, top, min(right, size[0]), min(bottom, size[1])


def _divide(smooth: Bytes, relief: Bytes, usable: Mask) -> tuple[Mask, float, float]:
    """Find the pixels denser or more tinted than the glass, the glass's brightness, and Otsu's density."""
    step = math.ceil(math.sqrt(usable.size / _SAMPLE_PX))
    sample, is_usable = smooth[::step, ::step], usable[::step, ::step]
    glass = _first_glass(sample[is_usable], relief[::step, ::step][is_usable] <= _EVEN_GLASS)
    density, tint = _densities(sample, glass)
    likely = ((density > _FIRST[0] * _UNIT) | (tint > _FIRST[1] * _UNIT)).view(np.uint8)
    rest = is_usable & (cv2.dilate(likely, _5_PX) == 0) & (sample <= glass + 2 * _EVEN_GLASS).all(axis=2)
    glass = np.median(sample[rest], axis=0) if rest.any() else glass
    found, otsus = np.zeros_like(usable), []
    for levels, bounds in zip(_densities(smooth, glass), _BOUNDS, strict=True):
        values = levels[::step, ::step]
        otsus.append(cv2.threshold(values[is_usable], 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0] / _UNIT)
        steps = np.abs(np.diff(values.astype(np.int16), axis=1))[rest[:, 1:] & rest[:, :-1]]
        noise = 7.4 * np.median(steps) / _UNIT if len(steps) else 0  # five sigma; neighbours, as glass varies slowly
        found |= levels > np.clip(max(otsus[-1], noise), *bounds) * _UNIT
    return found, float(glass.mean()), otsus[0]


def _relief(smooth: Bytes) -> Bytes:
    """Measure the range of grey around every pixel."""
    grey = cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, _5_PX), np.uint8)


def _tinted_glass(smooth: Bytes, relief: Bytes) -> NDArray[np.float64] | None:
    """Find the colour of glass that is not grey: the brightest even one, where there is no white.

    Yellow is how slides age. Other tints may as well be pale tissue, and count only where they fill a fifth of the
    picture. Nothing may be brighter, as tissue takes light away from glass in every channel.
    """
    step = math.ceil(math.sqrt(relief.size / _SAMPLE_PX))
    colours, is_even = smooth[::step, ::step].reshape(-1, 3), relief[::step, ::step].ravel() <= _EVEN_GLASS
    level = colours.mean(axis=1)
    is_white = level >= _WHITE
    if is_white.mean() >= _YELLOW[1]:
        return None
    brightest = np.percentile(level[~is_white], 95)
    is_glass = is_even & ~is_white & (level >= max(180, brightest - 2 * _EVEN_GLASS))
    near = np.convolve(np.bincount(level[is_glass].astype(int), minlength=256), np.ones(7), "same")
    peak = np.flatnonzero(near >= _YELLOW[1] * len(level))
    if not len(peak):
        return None
    found = colours[is_glass & (np.abs(level - peak[-1]) <= _EVEN_GLASS)]
    glass = np.median(found, axis=0)
    is_yellow = glass[0] >= glass[1] - 4 and glass[1] > glass[2]
    largest, least = _YELLOW if is_yellow else _TINT
    is_narrow = (np.percentile(found, 90, axis=0) - np.percentile(found, 10, axis=0) <= _EVEN_TINT).all()
    is_brightest = (colours > glass + 2 * _EVEN_GLASS).any(axis=1).mean() < 0.03
    fits = _GREY < np.ptp(glass) <= largest and len(found) >= least * len(level) and is_narrow and is_brightest
    return np.asarray(glass) if fits else None


def _balanced(smooth: Bytes, glass: NDArray[np.float64]) -> Bytes:
    """Brighten channels so that the glass is grey."""
    table = np.rint(np.arange(256)[:, None] * (glass.max() / glass)).clip(0, 255)
    return np.asarray(cv2.LUT(smooth, table.astype(np.uint8)[None]))


def _rgb(colour: NDArray[np.float64] | None) -> str:
    return "" if colour is None else " / ".join(f"{value:.0f}" for value in colour)


def _first_glass(colours: Bytes, is_even: Mask) -> NDArray[np.float64]:
    """Find the colour of the brightest even grey that fills 3 % of N x 3 pixels, pure white only for want of another.

    White fills what scanners left out, glass is seldom as bright; 245 stands for glass that is not to be seen.
    """
    is_grey = np.ptp(colours, axis=1) <= _GREY
    level = colours.mean(axis=1)
    brightest = np.percentile(level[level < 254], 95) if (level < 254).any() else 255
    for top in (254, 256):
        is_glass = is_even & is_grey & (level >= max(100, brightest - 2 * _EVEN_GLASS)) & (level < top)
        near = np.convolve(np.bincount(level[is_glass].astype(int), minlength=256), np.ones(7), "same")
        if near.max() >= 0.03 * len(level):
            peak = np.flatnonzero(near >= 0.03 * len(level))[-1]
            return np.asarray(np.median(colours[is_glass & (np.abs(level - peak) <= _EVEN_GLASS)], axis=0))
    return np.full(3, 245.0)


def _densities(smooth: Bytes, glass: NDArray[np.float64]) -> tuple[Bytes, Bytes]:
    """Convert to density and tint, as levels of 1 / _UNIT."""
    table = np.log10((glass + 1) / np.arange(1, 257)[:, None]) * _UNIT
    red, green, blue = cv2.split(cv2.LUT(smooth, np.rint(table).clip(0, 255).astype(np.uint8)[None]))
    most, least = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    return np.asarray(most, np.uint8), np.asarray(most - least, np.uint8)


def _vetoes(smooth: Bytes, relief: Bytes) -> tuple[Mask, Mask]:
    """Find pen ink (wide, even strokes, black or in colours that are no stain's) and black that reaches an edge."""
    hsv = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV)
    framed = cv2.copyMakeBorder(_within(hsv, _BLACKS).view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    cv2.floodFill(framed, None, (0, 0), 2)
    void = _spread(framed[1:-1, 1:-1] == 2, hsv, _SOFT_BLACKS)
    ink = np.zeros_like(void)
    for strong, soft in ((_INKS, _SOFT_INKS), (_BLACKS, _SOFT_BLACKS)):
        even = (_within(hsv, strong) & (relief <= _EVEN_INK)).view(np.uint8)
        strokes, *_ = _pieces(cv2.morphologyEx(even, cv2.MORPH_OPEN, _7_PX) > 0, least_px=_INK_PX)
        ink |= _spread(strokes, hsv, soft)
    return ink & ~void, void


def _within(hsv: Bytes, ranges: Ranges) -> Mask:
    return np.asarray(functools.reduce(cv2.bitwise_or, [cv2.inRange(hsv, *pair) for pair in ranges]) > 0)


def _spread(core: Mask, hsv: Bytes, soft: Ranges) -> Mask:
    """Add the soft edge around a core, up to 12 px wide."""
    if core.any():
        edge = _within(hsv, soft)
        for _ in range(3):
            core = core | ((cv2.dilate(core.view(np.uint8), _9_PX) > 0) & edge)
    return core


def _pieces(mask: Mask, *, least_px: int, connectivity: int = 8) -> tuple[Mask, int, int]:
    """Keep the connected pieces of at least ``least_px``, and the number and pixels of the others."""
    if not mask.any():
        return mask, 0, 0
    _, pieces = cv2.connectedComponents(mask.view(np.uint8), connectivity=connectivity)
    areas = np.bincount(pieces.ravel())[1:]
    is_large = areas >= least_px
    return np.concatenate([[False], is_large])[pieces], int((~is_large).sum()), int(areas[~is_large].sum())
