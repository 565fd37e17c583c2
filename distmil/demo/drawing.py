"""Slides that look like H&E, drawn from a random generator alone.

A slide is drawn as two stains, haematoxylin (nuclei) and eosin (the rest), and coloured by Beer and Lambert's law in a
shade of its own. Glands and lymphocytes crowd their nuclei too, so a lesion shows in the size, shape and order of its
nuclei, not in its colour. Points are level-0 px of 0.5 um; a WORK or COARSE array holds one element per so many px.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

WORK, COARSE = 2, 8
STAINS = np.array([[0.72, 0.12], [0.88, 0.95], [0.42, 0.33]])  # R, G, B density of haematoxylin and eosin
FULL_STAIN, FULL_DENSITY = 2.0, 2.5  # what 255 stands for: a concentration, an optical density (natural logarithm)

Points = NDArray[np.float64]  # n x 2 (x, y), level-0 px
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

# Round things: ranges of half the length in px, of breadth over length and of the stain value; depth of the dents.
Kind = tuple[tuple[float, float], tuple[float, float], tuple[float, float], float]
GLAND: Kind = (42, 68), (0.7, 1), (0, 0), 0.07
GLANDULAR: Kind = (6, 8), (0.55, 0.8), (125, 170), 0.05
SPINDLE: Kind = (6, 9.5), (0.3, 0.5), (130, 175), 0.05
LYMPHOCYTE: Kind = (4, 5.2), (0.85, 1), (165, 215), 0.03
TUMOUR: Kind = (6, 11.5), (0.55, 0.95), (120, 200), 0.16
NUCLEOLUS: Kind = (1.6, 2.4), (0.8, 1), (225, 245), 0


class Lesion(NamedTuple):
    """A lesion's outline, open, and that of a normal island in it, if there is one."""

    outline: Points
    island: Points | None


def draw_slide(rng: Generator, *, is_positive: bool, has_island: bool) -> tuple[Pixels, list[Lesion]]:
    """Draw one slide, H x W x 3 uint8 RGB, and return it with its lesions (none on a negative slide)."""
    is_wide = rng.random() < 0.7
    width = int(rng.integers(2200, 3000) if is_wide else rng.integers(2000, 2300))
    height = int(width * (rng.uniform(0.62, 0.82) if is_wide else rng.uniform(1.12, 1.3)))
    mask = _tissue(rng, (math.ceil(height / COARSE), math.ceil(width / COARSE)))
    lesions = _lesions(rng, mask, has_island=has_island) if is_positive else []
    lesion = _fill([each.outline for each in lesions], mask.shape, COARSE)
    lesion &= ~_fill([each.island for each in lesions if each.island is not None], mask.shape, COARSE)
    nest = lesion & (np.abs(_noise(rng, mask.shape, 20)) > 0.13)
    glands = _glands(rng, mask & ~lesion)
    stroma = mask & ~nest & ~_fill(glands, mask.shape, COARSE)
    along, across = _flow(rng, mask.shape)
    ground = _ground(rng, mask, nest, glands, (along, across))
    nuclei = _nuclei(rng, stroma, nest, glands, across)
    return _stain(rng, ground[:height, :width], nuclei[:height, :width]), lesions


def _noise(rng: Generator, shape: tuple[int, ...], cell: float) -> Floats:
    """Draw smooth noise, H x W, about standard normal, with features ``cell`` elements wide."""
    rows, columns = (math.ceil(3 * length / cell) + 1 for length in shape)
    lattice = rng.standard_normal((rows, columns), dtype=np.float32)
    smooth = cv2.GaussianBlur(lattice, (0, 0), 1.5) * 5.3  # 2 sqrt(pi) sigma, which brings the variance back to 1
    fine = cv2.resize(smooth, None, fx=cell / 3, fy=cell / 3, interpolation=cv2.INTER_CUBIC)
    return np.asarray(fine[: shape[0], : shape[1]])


def _tissue(rng: Generator, shape: tuple[int, int]) -> Mask:
    """Draw one or two ragged pieces of tissue, at COARSE, clear of the slide's edges."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape[::-1]))
    ragged = 0.1 * _noise(rng, shape, 50) + 0.04 * _noise(rng, shape, 12)
    ragged += 9 * (np.maximum(np.abs(x), np.abs(y)) - 0.83).clip(0)
    breadth, height = rng.uniform(0.75, 0.87, 2)
    if rng.random() < 0.4:  # two pieces, along the longer side
        x, y = (np.abs(x) - 0.47, y) if shape[1] > shape[0] else (np.abs(y) - 0.47, x)
        breadth /= 2
    return np.asarray(np.hypot(x / breadth, y / height) + ragged < 1)


def _blob(rng: Generator, inside: Mask, centre: tuple[int, int], radius: float) -> Points | None:
    """Outline an irregular part of a COARSE mask around ``centre`` (row, column); None if it is tiny."""
    rows, columns = np.ogrid[: inside.shape[0], : inside.shape[1]]
    reach = np.hypot(rows - centre[0], columns - centre[1]) / radius
    bent = 0.25 * _noise(rng, inside.shape, max(8.0, radius)) + 0.1 * _noise(rng, inside.shape, max(5.0, radius / 4))
    blob = inside & (reach + bent < 1)
    smooth = cv2.medianBlur(blob.astype(np.uint8), 7)  # no spikes: an outline must not cross itself
    outlines, _ = cv2.findContours(smooth, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(outlines, key=cv2.contourArea, default=None)
    if largest is None or cv2.contourArea(largest) < radius**2:
        return None
    return np.asarray((cv2.approxPolyDP(largest, 0.8, True)[:, 0] + 0.5) * COARSE, np.float64)


def _lesions(rng: Generator, mask: Mask, *, has_island: bool) -> list[Lesion]:
    """Place one to three lesions inside the tissue, the first in its thickest part and with the island if wanted."""
    free = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
    lesions: list[Lesion] = []
    number = int(rng.integers(1, 4))
    for _ in range(24):  # a blob may turn out too small for itself or for its island
        depth = cv2.distanceTransform(free, cv2.DIST_L2, 5)
        centre = rng.choice(np.argwhere(depth >= min(depth.max() * 0.8, 22 if lesions else math.inf)))
        outline = _blob(rng, free > 0, centre, rng.uniform(26, 44) if lesions else rng.uniform(46, 60))
        if outline is None:
            continue
        area = _fill([outline], mask.shape, COARSE).astype(np.uint8)
        island = None
        if has_island and not lesions:
            depth = cv2.distanceTransform(area, cv2.DIST_L2, 5)
            island = _blob(rng, depth > 5, divmod(int(depth.argmax()), depth.shape[1]), 0.5 * float(depth.max()))
            if island is None:
                continue
        lesions.append(Lesion(outline, island))
        if len(lesions) == number:
            break
        free[cv2.dilate(area, np.ones((25, 25), np.uint8)) > 0] = 0
    return lesions


def _fill(outlines: Iterable[Points], shape: tuple[int, ...], scale: int) -> Mask:
    """Fill outlines on an array of ``shape`` that holds one element per ``scale`` px."""
    area = np.zeros(shape, np.uint8)
    for outline in outlines:
        cv2.fillPoly(area, [np.rint(outline / scale * 16 - 8).astype(np.int32)], 1, shift=4)
    return area > 0


def _scatter(rng: Generator, where: Mask, spacing: float, share: float) -> Points:
    """Scatter points over a COARSE mask: a jittered grid of which a share is kept."""
    height, width = (length * COARSE for length in where.shape)
    grid = np.stack(np.meshgrid(np.arange(0, width, spacing), np.arange(0, height, spacing)), axis=-1).reshape(-1, 2)
    points = grid + rng.uniform(0, spacing, grid.shape)
    points = points[(points < (width, height)).all(axis=1) & (rng.random(len(points)) < share)]
    return points[where[_element(points)]]


def _element(points: Points) -> tuple[NDArray[np.intp], ...]:
    """Index the elements of a COARSE array that points lie in."""
    return tuple((points // COARSE).astype(np.intp).T[::-1])


def _glands(rng: Generator, normal: Mask) -> Points:
    """Outline glands, G x 24 x 2, in normal tissue, clear of its edges and of each other."""
    room = COARSE * cv2.distanceTransform(normal.astype(np.uint8), cv2.DIST_L2, 5)
    centres = np.zeros((0, 2))
    for point in _scatter(rng, room > 70, 120, rng.uniform(0.3, 1)):
        if (np.hypot(*(centres - point).T) > 155).all():
            centres = np.concatenate([centres, point[None]])
    return _outlines(rng, centres, GLAND, rng.uniform(0, np.pi, len(centres)))


def _flow(rng: Generator, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Lay the fibres' course at COARSE: how far, in px, each element lies along and across them."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) * COARSE
    turn = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return x * cos + y * sin + 40 * _noise(rng, shape, 45), y * cos - x * sin + 90 * _noise(rng, shape, 45)


def _ground(rng: Generator, mask: Mask, nest: Mask, glands: Points, flow: Sequence[Floats]) -> Pixels:
    """Paint everything but nuclei: H x W x 2 stain values, haematoxylin and eosin, at level 0."""
    shape = (mask.shape[0] * COARSE // WORK, mask.shape[1] * COARSE // WORK)
    soft = (cv2.resize(area.astype(np.float32), shape[::-1]) for area in (mask, nest))
    inside, nest = (cv2.GaussianBlur(area, (9, 9), 0) > 0.5 for area in soft)
    along, across = (cv2.resize(course, shape[::-1]) for course in flow)
    strand = rng.standard_normal((256, 256), dtype=np.float32)
    fibre = cv2.remap(strand, along / 26 % 256, across / 3.2 % 256, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    patchy, fine = _noise(rng, shape, 90), _noise(rng, shape, 8)
    stain = np.stack([0.04 + 0.02 * patchy, 0.4 + 0.09 * fibre + 0.07 * patchy], -1)
    stain[fibre + patchy > rng.uniform(2.2, 3.0)] = 0.03  # clefts between fibres
    gland = _fill(glands, shape, WORK)
    stain[gland] = np.stack([0.13 + 0.03 * fine, 0.33 + 0.04 * fine], -1)[gland]
    stain[nest] = np.stack([0.12 + 0.04 * fine, 0.36 + 0.06 * fine + 0.04 * patchy], -1)[nest]
    middle = glands.mean(axis=1, keepdims=True)
    lumina = middle + rng.uniform(0.25, 0.6, (len(glands), 1, 1)) * (glands - middle)
    stain[~inside | _fill(lumina, shape, WORK) | (nest & (_noise(rng, shape, 24) > 2.1))] = 0
    values = cv2.GaussianBlur((stain * (255 / FULL_STAIN)).clip(0, 255).astype(np.uint8), (3, 3), 0)
    return np.asarray(cv2.resize(values, None, fx=WORK, fy=WORK))


def _nuclei(rng: Generator, stroma: Mask, nest: Mask, glands: Points, across: Floats) -> Pixels:
    """Stamp all nuclei: H x W values of haematoxylin at level 0, 0 between them."""
    layer = np.zeros((stroma.shape[0] * COARSE, stroma.shape[1] * COARSE), np.uint8)
    points = _scatter(rng, stroma, 31, rng.uniform(0.4, 0.7))
    down, right = np.gradient(across)
    _stamp(rng, layer, points, SPINDLE, np.arctan2(-right, down)[_element(points)] + rng.normal(0, 0.2, len(points)))
    spokes = glands - glands.mean(axis=1, keepdims=True)
    lining = glands - spokes * rng.uniform(0.08, 0.28, (*spokes.shape[:2], 1))
    _stamp(rng, layer, lining.reshape(-1, 2), GLANDULAR, np.arctan2(spokes[..., 1], spokes[..., 0]).ravel())
    crowd = stroma & (_noise(rng, stroma.shape, 26) > rng.uniform(1.2, 2.4))
    points = np.concatenate([_scatter(rng, crowd, 13, 0.8), _scatter(rng, stroma, 60, 0.4)])
    _stamp(rng, layer, points, LYMPHOCYTE, np.zeros(len(points)))
    points = _scatter(rng, nest, rng.uniform(19, 26), 0.9)
    _stamp(rng, layer, points, TUMOUR, rng.uniform(0, np.pi, len(points)))
    _stamp(rng, layer, points + 2, NUCLEOLUS, np.zeros(len(points)))
    grain = cv2.resize(rng.integers(165, 256, (layer.shape[0] // 2, layer.shape[1] // 2), np.uint8), None, fx=2, fy=2)
    return np.asarray(cv2.GaussianBlur(cv2.multiply(layer, grain, scale=1 / 255), (3, 3), 0))


def _outlines(rng: Generator, points: Points, kind: Kind, angle: Points) -> Points:
    """Outline a thing of one kind at each point, turned by its angle: n x 24 x 2."""
    size, roundness, _, dents = kind
    turn, one_each = np.linspace(0, 2 * np.pi, 24, endpoint=False), (len(points), 1)
    bent = np.sin(2 * turn + rng.uniform(0, 6.3, one_each)) + np.sin(3 * turn + rng.uniform(0, 6.3, one_each))
    radius = rng.uniform(*size, one_each) * (1 + dents * bent)
    x, y = radius * np.cos(turn), radius * np.sin(turn) * rng.uniform(*roundness, one_each)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return points[:, None] + np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)


def _stamp(rng: Generator, layer: Pixels, points: Points, kind: Kind, angle: Points) -> None:
    """Draw a nucleus of one kind at each point, turned by its angle, in place."""
    outlines = np.rint(_outlines(rng, points, kind, angle) * 8).astype(np.int32)
    for outline, value in zip(outlines, rng.uniform(*kind[2], len(points)), strict=True):
        cv2.fillPoly(layer, [outline], float(value), cv2.LINE_AA, 3)


def _stain(rng: Generator, ground: Pixels, nuclei: Pixels) -> Pixels:
    """Turn stain values into RGB, H x W x 3, in this slide's own shade."""
    grain = rng.integers(0, 7, ground.shape, dtype=np.uint8)
    values = cv2.add(cv2.merge([cv2.max(ground[..., 0], nuclei), ground[..., 1]]), grain)
    shade = (STAINS + rng.normal(0, 0.04, STAINS.shape)) * rng.uniform(0.75, 1.25, 2)
    density = cv2.transform(values, shade * (FULL_STAIN / FULL_DENSITY))
    light = rng.uniform(240, 250) + rng.uniform(-2, 2, 3)
    table = light * np.exp(-np.arange(256)[:, None] / 255 * FULL_DENSITY)
    return np.asarray(cv2.LUT(density, table.astype(np.uint8)[None]))
