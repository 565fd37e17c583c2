"""Slides of random geometry, each made from its seed alone, and what must come of tiling them by brute force."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from PIL import Image

from distmil.config.data import TilingConfig

Pixels = NDArray[np.uint8]
STEPS = ((), (2,), (4,), (2, 2), (2, 2, 2), (4, 4), (4, 4, 2), (2, 4), (4, 2), (3,), (3, 2), (8,))
CODECS = ("jpeg", "jpeg", "jpeg", "jpeg rgb", "deflate", "lzw", "none")
SUBSAMPLING = ((1, 1), (2, 1), (2, 2))
MOST_PATCHES = 120
_GLASS, _TISSUE = (240, 242, 241), (176, 96, 160)


@dataclass(frozen=True)
class Case:
    """A slide's geometry, and how it is tiled."""

    seed: int
    size: tuple[int, int]
    steps: tuple[int, ...]
    """Reduction of each level from the one before."""
    rounding: str
    """How a level's size is made whole: floor, ceil or round."""
    layout: tuple[int, int] | int
    """Width and height of a tile, or rows of a strip."""
    codec: str
    subsampling: tuple[int, int]
    is_aperio: bool
    mpp: float | None
    tiling: dict[str, Any]

    @property
    def config(self) -> TilingConfig:
        """Return how it is tiled."""
        return TilingConfig(**self.tiling)

    @property
    def is_plain(self) -> bool:
        """Return whether OpenSlide does not know it: a TIFF in strips."""
        return isinstance(self.layout, int)


def random_case(seed: int) -> Case:
    """Draw a case."""
    rng = np.random.default_rng(seed)
    size = _size(rng)
    is_plain = rng.random() < 0.1
    steps = () if is_plain else STEPS[rng.integers(len(STEPS))]
    codec = "none" if is_plain and rng.random() < 0.5 else str(rng.choice(CODECS))
    tile = int(rng.choice([16, 48, 64, 112, 128, 240, 256]))
    is_square = rng.random() < 0.7
    layout = int(rng.choice([1, 7, 64])) if is_plain else (tile, tile if is_square else int(rng.choice([32, 96, 128])))
    if codec == "none" and not is_plain:
        codec = "deflate"  # tifffile pads bare tiles, and libtiff refuses their length
    mpp = None if rng.random() < 0.1 else float(rng.choice([0.1214, 0.2425, 0.25, 0.252, 0.4990, 0.5, 1.0, 8.0]))
    subsampling = SUBSAMPLING[rng.integers(3)]
    rounding = str(rng.choice(["floor", "ceil", "round"]))
    is_aperio = not is_plain and rng.random() < 0.5
    tiling = _tiling(rng, size=size, steps=steps, mpp=mpp, tile=tile)
    return Case(seed, size, steps, rounding, layout, codec, subsampling, is_aperio, mpp, tiling)


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Draw width and height: small, middling, or large enough that its overview is made from the file's tiles."""
    kind = rng.random()
    if kind < 0.05:
        long, short = int(rng.integers(1, 60)), int(rng.integers(1, 60))
    elif kind < 0.4:
        long, short = int(rng.integers(60, 1500)), int(rng.integers(60, 900))
    elif kind < 0.95:
        long, short = int(rng.integers(2048, 5000)), int(rng.integers(40, 500))
    else:
        long, short = int(rng.integers(6000, 20000)), int(rng.integers(1, 120))
    return (long, short) if rng.random() < 0.5 else (short, long)


def _tiling(
    rng: np.random.Generator, *, size: tuple[int, int], steps: tuple[int, ...], mpp: float | None, tile: int
) -> dict[str, Any]:
    patch_px = int(rng.choice([tile, tile, 8, 32, 50, 64, 96, 224]))
    factor = {0: 1.0, 1: 0.5, 2: 2.0, 3: 1.37, 4: 0.33}[int(rng.choice([0, 0, 0, 1, 2, 3, 4]))]
    values: dict[str, Any] = {
        "patch_px": patch_px,
        "stride_px": None if factor == 1.0 else max(1, round(patch_px * factor)),
        "mpp": _wanted(rng, steps=steps, mpp=mpp),
        "default_mpp": None if mpp or rng.random() < 0.5 else 0.5,
        "strategy": str(rng.choice(["foreground", "crop", "pad"])),
        "snap": bool(rng.random() < 0.3),
        "min_tissue": float(rng.choice([0.0, 0.1, 0.5])),
        "reduce": str(rng.choice(["area", "area", "dct"])),
        "encode": str(rng.choice(["png", "png", "jpeg", "reuse"])),
        "reader": str(rng.choice(["auto"] * 5 + ["openslide"])),
        "chunk_patches": int(rng.choice([16, 64, 1024])),
    }
    scale = values["mpp"] / (mpp or 0.5) if values["mpp"] else 1.0
    if min(size) < patch_px * scale and rng.random() < 0.8:
        values["strategy"] = "pad"  # the others refuse it: some of these are enough
    # no more patches than can be looked at in no time
    stride = values["stride_px"] or patch_px
    many = (size[0] / (scale * stride) + 1) * (size[1] / (scale * stride) + 1)
    if many > MOST_PATCHES:
        values["stride_px"] = int(np.ceil(stride * np.sqrt(many / MOST_PATCHES)))
    return values


def _wanted(rng: np.random.Generator, *, steps: tuple[int, ...], mpp: float | None) -> float | None:
    """Draw a resolution: a level's, its two- or four-fold, one in between, too fine a one, or none."""
    kind = rng.random()
    if kind < 0.15:
        return None
    own = (mpp or 0.5) * float(np.prod(steps[: int(rng.integers(0, len(steps) + 1))]))
    if kind < 0.45:
        return own * float(rng.choice([1.0, 1.0, 0.985, 1.015]))
    if kind < 0.65:
        return own * float(rng.choice([2, 4]))
    return own * float(rng.uniform(0.9, 5))


# --- the file


def save_case(case: Case, folder: Path) -> Path:
    """Write the slide."""
    path = folder / f"{case.seed}.{'svs' if case.is_aperio else 'tif'}"
    pixels = _picture(case)
    sizes = level_sizes(case)
    with tifffile.TiffWriter(path) as file:
        for number, size in enumerate(sizes):
            level = pixels if number == 0 else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            file.write(level.reshape(size[1], size[0], 3), **_tags(case, number, case.size[0] / size[0]))
    return path


def level_sizes(case: Case) -> list[tuple[int, int]]:
    """Return the width and height of each level; a level of no pixel is left out."""
    whole = {"floor": np.floor, "ceil": np.ceil, "round": np.rint}[case.rounding]
    sizes = [case.size]
    for step in case.steps:
        width, height = (int(whole(edge / step)) for edge in sizes[-1])
        if min(width, height) < 1:
            break
        sizes.append((width, height))
    return sizes


def _tags(case: Case, number: int, downsample: float) -> dict[str, Any]:
    tags: dict[str, Any] = {"photometric": "rgb", "metadata": None, "compression": case.codec}
    if case.codec == "none":
        tags["compression"] = None
    if case.codec.startswith("jpeg"):
        is_rgb = case.codec == "jpeg rgb"
        tags |= {"compression": "jpeg", "compressionargs": {"level": 90}}
        if is_rgb:
            tags["compressionargs"]["outcolorspace"] = "rgb"
        else:
            tags["subsampling"] = case.subsampling  # tifffile turns RGB into YCbCr then
    if isinstance(case.layout, int):
        tags["rowsperstrip"] = case.layout if case.codec != "jpeg" else 8 * case.layout
    else:
        tags["tile"] = (case.layout[1], case.layout[0])
    if case.is_aperio:
        stated = f"|MPP = {case.mpp}" if case.mpp else ""
        tags["description"] = f"Aperio Image Library v12\n{case.size[0]}x{case.size[1]}{stated}"
    elif case.mpp:
        tags |= {"resolution": (1e4 / (case.mpp * downsample),) * 2, "resolutionunit": "CENTIMETER"}
    if number and not case.is_aperio:
        tags["subfiletype"] = 1
    return tags


def _picture(case: Case) -> Pixels:
    """Draw tissue with soft structure on glass, over some part of the slide."""
    rng = np.random.default_rng([case.seed, 1])
    width, height = case.size
    small = rng.normal(0, 16, (max(2, height // 12), max(2, width // 12), 3)).astype(np.float32)
    structure = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, 3)
    left, top = (int(rng.uniform(-0.2, 0.5) * edge) for edge in case.size)
    right, bottom = (int(rng.uniform(0.6, 1.2) * edge) for edge in case.size)
    tissue = np.zeros((height, width, 1), bool)
    if rng.random() < 0.97:
        tissue[max(0, top) : max(1, bottom), max(0, left) : max(1, right)] = True
    return np.where(tissue, np.array(_TISSUE) + structure, np.array(_GLASS)).clip(0, 255).astype(np.uint8)


# --- what must come of it


@dataclass(frozen=True)
class Wanted:
    """How patches are to be read, by brute force over levels and reductions."""

    level: int
    factor: int
    """Whole-number reduction of the level; 0: resampled to whatever is wanted."""
    read_px: int
    extent_px: int
    stride: float
    downsample: float


class Truth:
    """The slide as OpenSlide or Pillow themselves give it."""

    def __init__(self, path: Path, *, is_plain: bool) -> None:
        self._plain = np.asarray(Image.open(path).convert("RGB")) if is_plain else None
        self._slide = None if is_plain else openslide.OpenSlide(path)
        if self._slide is not None:
            self.size: tuple[int, int] = self._slide.dimensions
            self.downsamples: tuple[float, ...] = self._slide.level_downsamples
            stated = self._slide.properties.get("openslide.mpp-x")
            self.mpp = float(stated) if stated else None
        else:
            assert self._plain is not None
            self.size, self.downsamples = (self._plain.shape[1], self._plain.shape[0]), (1.0,)

    def read(self, x: int, y: int, *, level: int, edges: tuple[int, int]) -> Pixels:
        """Read a region of a level, white beyond the image."""
        width, height = edges
        if self._slide is not None:
            seen = np.asarray(self._slide.read_region((x, y), level, edges)).astype(np.float64)
            share = seen[..., 3:] / 255
            return np.floor(seen[..., :3] * share + 255 * (1 - share) + 0.5).astype(np.uint8)
        assert self._plain is not None
        region = np.full((height, width, 3), 255, np.uint8)
        for row in range(max(0, -y), min(height, self.size[1] - y)):
            first, last = max(0, -x), min(width, self.size[0] - x)
            if last > first:
                region[row, first:last] = self._plain[y + row, x + first : x + last]
        return region

    def reduced(self, shape: tuple[int, int], scale: float) -> list[Pixels]:
        """Return the slide averaged to rows x columns of ``scale`` level-0 pixels each, from every level that may do.

        OpenSlide has one downsample for both axes, so that levels of a long, thin slide lie a little apart.
        """
        pictures = []
        for level, downsample in enumerate(self.downsamples):
            edges = (round(shape[1] * scale / downsample), round(shape[0] * scale / downsample))
            if edges >= shape[::-1]:
                seen = self.read(0, 0, level=level, edges=edges)
                picture = cv2.resize(seen, shape[::-1], interpolation=cv2.INTER_AREA)
                pictures.append(np.asarray(picture).reshape(*shape, 3))
        return pictures

    def close(self) -> None:
        """Close it."""
        if self._slide is not None:
            self._slide.close()


def wanted(config: TilingConfig, downsamples: tuple[float, ...], mpp: float | None) -> Wanted | None:
    """Return how patches are to be read; None where the slide is too coarse."""
    patch, stride = config.patch_px, config.stride_px or config.patch_px
    if config.mpp is None or mpp is None:
        return Wanted(0, 1, patch, patch, stride, 1.0)
    near = [
        (factor, abs(np.log(mpp * downsample * factor / config.mpp)), level)
        for factor in (1, 2, 4)
        for level, downsample in enumerate(downsamples)
        if abs(mpp * downsample * factor / config.mpp - 1) <= config.mpp_tolerance + 1e-9
    ]
    if near:
        factor, _, level = min(near)
        scale = downsamples[level] * factor
        return Wanted(level, factor, patch * factor, round(patch * scale), stride * scale, downsamples[level])
    finer = [(downsample, level) for level, downsample in enumerate(downsamples) if mpp * downsample < config.mpp]
    if not finer:
        return None
    downsample, level = max(finer)
    extent = round(patch * config.mpp / mpp)
    return Wanted(level, 0, max(1, round(extent / downsample)), extent, stride * config.mpp / mpp, downsample)


def every_corner(length: int, *, extent: int, stride: float, start: float, stop: float, is_whole: bool) -> list[int]:
    """Return the corners of one axis: those inside the image, or the fewest of the grid that cover [start, stop)."""
    grid = [round(i * stride) for i in range(int(length / stride) + 3)]
    if is_whole:
        return [corner for corner in grid if corner + extent <= length]
    first = max(i for i, corner in enumerate(grid) if corner <= start)
    last = next(i for i in range(first, len(grid)) if grid[i] + extent >= stop)
    return grid[first : last + 1]


def share_of(mask: NDArray[np.bool_], scale: float, x: int, y: int, extent: int) -> float:
    """Return which share of a patch the mask's pixels cover, pixel by pixel."""
    rows, columns = (np.arange(edge) * scale for edge in mask.shape)
    high = (np.minimum(rows + scale, y + extent) - np.maximum(rows, y)).clip(0)
    wide = (np.minimum(columns + scale, x + extent) - np.maximum(columns, x)).clip(0)
    return float(high @ mask @ wide) / extent**2
