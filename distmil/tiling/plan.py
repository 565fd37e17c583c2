"""What tiling decides once per slide: its resolution, where tissue is, the grid, and how its patches are read."""

import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmil.annotations.coverage import mask_shares
from distmil.annotations.tissue_file import read_tissue
from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.errors import NoTissue, Reason, SlideError, UnreadableSlide
from distmil.slides.checks import GREY_DOUBT, is_glass, mpp_doubts, no_tissue
from distmil.slides.grid import Box, ReadPlan, banded, lay_grid, plan_read, snapped
from distmil.slides.image import SlideImage, overview, overview_level
from distmil.slides.jpeg_tiles import (
    REDUCTIONS,
    LevelPlace,
    TileLevel,
    TileTable,
    agrees,
    can_reduce,
    open_level,
    read_tile_table,
)
from distmil.slides.reader import open_slide, resolve_mpp
from distmil.slides.tissue import TISSUE_MAX_PX, TISSUE_MPP, Tissue, bounding_box, detect_tissue
from distmil.storage.schemas import GRID

logger = logging.getLogger(__name__)

MAX_PLACES = 20_000_000
"""Most places that a grid may have: a slide of 1,000,000 x 1,000,000 px, or a damaged header."""
MAX_READ_PX = 20_000
"""Longest edge that is read for one patch: 1.6 GB in OpenSlide's four bytes a pixel."""
BAND_PATCHES = 32
_OVERVIEW_PX = 1024
_CHECKED_PLACES, _CHECKED_PX = 2, 512
_OTHER_PIXELS = "its tiles do not decode to OpenSlide's pixels by themselves; it is read through OpenSlide"
_TOUCHED = 1e-6  # a smaller share is rounding
_COARSER = 1.35  # how much coarser than wanted an overview may be for the sake of speed


@dataclass(frozen=True)
class Reading:
    """How the patches of a slide are read."""

    plan: ReadPlan
    place: LevelPlace | None = None
    """The level whose own tiles are read; None leaves it to OpenSlide or Pillow."""
    is_reused: bool = False
    """Patches are whole tiles of the file, stored as they are."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {"plan": vars(self.plan), "place": self.place and vars(self.place), "is_reused": self.is_reused}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Reading":
        """Rebuild it."""
        place = values["place"] and LevelPlace(**{**values["place"], "size": tuple(values["place"]["size"])})
        return cls(ReadPlan(**values["plan"]), place, is_reused=values["is_reused"])


@dataclass(frozen=True)
class TilingPlan:
    """What is known of a slide before its patches are cut."""

    info: dict[str, Any]
    """Technical properties, and what a person should know of the slide."""
    reading: Reading
    grid: pa.Table
    overview: NDArray[np.uint8]
    """RGB, H x W x 3."""
    scale: float
    """Level-0 pixels per pixel of the overview."""
    mask: NDArray[np.bool_]
    """Tissue, H x W."""
    is_default_mpp: bool
    """``tiling.default_mpp`` was needed."""


@contextmanager
def open_reading(slide: Slide, reading: Reading, *, reader: str, size: tuple[int, int]) -> Iterator[SlideImage]:
    """Open a slide as its plan decided to read it."""
    if reading.place is None:
        with open_slide(slide.path, reader=reader, is_known=True) as image:
            yield image
    else:
        with open_level(slide.path, reading.place, size=size) as tiles:
            yield tiles


def plan_tiling(slide: Slide, config: TilingConfig) -> TilingPlan:
    """Look at a slide once.

    Raises:
        SlideError: If it cannot be used.
    """
    with open_slide(slide.path, reader=config.reader) as image:
        mpp = _mpp(image, slide, config)
        plan = plan_read(
            image.downsamples,
            slide_mpp=mpp,
            mpp=config.mpp,
            tolerance=config.mpp_tolerance,
            patch_px=config.patch_px,
            stride_px=config.stride,
        )
        _check_region(plan)
        look = _Look(slide, config, image, plan)
        table = look.tile_table(plan.level)
        picture, scale = look.overview(mpp)
        tissue = look.tissue(picture, scale)
        grid = look.grid(tissue.mask, scale, table)
        reading = look.reading(grid, table)
        info = {
            "width_px": image.size[0],
            "height_px": image.size[1],
            "mpp": mpp,
            "bounds": image.bounds and list(image.bounds),
            "levels": len(image.downsamples),
            "vendor": image.vendor,
            "reader": image.reader if reading.place is None else TileLevel.reader,
            "tissue_share": round(float(tissue.mask.mean()), 6),
            "doubts": [
                *(text for text in image.doubts if config.mpp or not image.is_plain or text != GREY_DOUBT),
                *mpp_doubts(image.resolution, given=slide.mpp),
                *tissue.doubts,
                *([_OTHER_PIXELS] if table is not None and reading.place is None else []),
            ],
            "reused": grid.num_rows if reading.is_reused else 0,
            "blank": look.num_blank(grid, table),
        }
        is_default_mpp = not (slide.mpp or image.mpp)
    return TilingPlan(info, reading, grid, picture, scale, tissue.mask, is_default_mpp)


def _check_region(plan: ReadPlan) -> None:
    """Refuse patches that would each fill the memory. Raises: SlideError."""
    if plan.read_px > MAX_READ_PX:
        raise SlideError(
            f"one patch takes {plan.read_px} x {plan.read_px} px of the file's nearest finer level, more than "
            f"{MAX_READ_PX} x {MAX_READ_PX}; lower tiling.mpp or tiling.patch_px, or give a file with coarser levels"
        )


def _mpp(image: SlideImage, slide: Slide, config: TilingConfig) -> float | None:
    if config.mpp is None:
        return slide.mpp or image.mpp
    return resolve_mpp(image, given=slide.mpp, default=config.default_mpp)


@dataclass(frozen=True)
class _Look:
    """The steps of a plan on an open slide."""

    slide: Slide
    config: TilingConfig
    image: SlideImage
    plan: ReadPlan

    def tile_table(self, level: int) -> TileTable | None:
        """Return a level's own tiles where they may be read directly."""
        if self.config.reader != "auto" or self.image.reader != "openslide":
            return None
        table = read_tile_table(Path(self.slide.path), self.image.level_sizes[level])
        if table is not None and level > 0 and (table.byte_counts == 0).any():
            return None  # OpenSlide draws such tiles from a finer level
        return table

    def tiles(self, table: TileTable, place: LevelPlace) -> TileLevel:
        """Open a level's tiles."""
        return TileLevel(Path(self.slide.path), place, table=table, size=self.image.size)

    def overview(self, mpp: float | None) -> tuple[NDArray[np.uint8], float]:
        """Return the picture that tissue is found on, and its reduction."""
        image = self.image
        reduced = max(image.size) * mpp / TISSUE_MPP if mpp else _OVERVIEW_PX
        max_px = int(np.clip(reduced, _OVERVIEW_PX, TISSUE_MAX_PX))
        level, wanted = overview_level(image, max_px=max_px)
        is_large = max(image.level_sizes[level]) >= 2 * max_px  # by its tiles it takes a tenth of the time
        table = self.tile_table(level) if is_large else None
        if table is not None:
            wanted /= image.downsamples[level]
            factors = [f for f in REDUCTIONS if can_reduce(table, f) and math.ceil(wanted / f) * f <= _COARSER * wanted]
            place = LevelPlace(table.size, image.downsamples[level], reduction=max(factors, default=1))
            try:
                with self.tiles(table, place) as tiles:
                    return overview(tiles, max_px=max_px)
            except UnreadableSlide as error:
                logger.info("%s: looked at through OpenSlide (%s)", self.slide.slide_id, error)
        return overview(image, max_px=max_px)

    def tissue(self, picture: NDArray[np.uint8], scale: float) -> Tissue:
        """Return the user's own tissue mask where there is one, else what is detected."""
        if self.slide.tissue_path is None:
            found, config = detect_tissue(picture), self.config
            is_slide = is_glass(is_plain=self.image.is_plain, mpp=config.mpp, strategy=config.strategy)
            return found if is_slide else replace(found, doubts=())
        shape, size = (picture.shape[0], picture.shape[1]), self.image.size
        mask, doubts = read_tissue(
            Path(self.slide.tissue_path),
            slide_size=size,
            shape=shape,
            scale=scale,
            bounds=self.image.bounds,
            picture=picture,
        )
        return Tissue(mask, doubts)

    def grid(self, mask: NDArray[np.bool_], scale: float, table: TileTable | None) -> pa.Table:
        """Lay the grid. Raises: NoTissue, TooSmall, UnreadableSlide if the size that the file states is absurd."""
        config, plan, size = self.config, self.plan, self.image.size
        places = (size[0] / plan.stride + 1) * (size[1] / plan.stride + 1)
        if places > MAX_PLACES:
            raise UnreadableSlide(
                f"{size[0]} x {size[1]} px at a stride of {plan.stride:g} px are {places:.3g} patches, more than "
                f"{MAX_PLACES}; is the file damaged, or tiling.stride_px too small?"
            )
        is_foreground = config.strategy == "foreground"
        box = self._foreground(mask, scale, table) if is_foreground else None
        x, y = lay_grid(size, strategy=config.strategy, extent_px=plan.extent_px, stride=plan.stride, foreground=box)
        extent_px = np.full(len(x), plan.extent_px, np.int32)
        share = mask_shares(mask, scale=(scale, scale), x=x, y=y, extent_px=extent_px).astype(np.float32)
        if is_foreground:
            keep = share >= config.min_tissue
            if not keep.any():
                raise no_tissue(float(share.max(initial=0)), min_tissue=config.min_tissue)
            x, y, share = x[keep], y[keep], share[keep]
        order = banded(x, y, width_px=BAND_PATCHES * plan.stride)
        columns = [[self.slide.slide_id] * len(x), x[order], y[order], extent_px[: len(x)], share[order]]
        return pa.table(columns, schema=GRID)

    def _foreground(self, mask: NDArray[np.bool_], scale: float, table: TileTable | None) -> Box:
        """Return the rectangle that holds the tissue. Raises: NoTissue."""
        box = bounding_box(mask, scale=scale, size=self.image.size)
        if box is None:
            text = "no tissue was found; tile all of it with tiling.strategy=crop, or give a tissue_path"
            raise NoTissue(text, reason=Reason("no tissue was found", "tiling.strategy", "crop"))
        if self.config.snap and table is not None:
            width, height = (edge * self.image.downsamples[self.plan.level] for edge in table.tile_size)
            box = snapped(box, tile=(width, height), size=self.image.size)
        return box

    def reading(self, grid: pa.Table, table: TileTable | None) -> Reading:
        """Decide how patches are read."""
        config, plan = self.config, self.plan
        if table is None:
            return Reading(plan)
        downsample = self.image.downsamples[plan.level]
        x, y = grid["x"].to_numpy(), grid["y"].to_numpy()
        if not self._is_same(LevelPlace(table.size, downsample), table, x, y):
            return Reading(plan)
        left, top = np.rint(x / downsample).astype(np.int64), np.rint(y / downsample).astype(np.int64)

        def is_multiple(width: int, height: int) -> bool:
            return not ((left % width).any() or (top % height).any() or plan.read_px % width or plan.read_px % height)

        factor = plan.read_px // config.patch_px
        is_reduced = plan.read_px == factor * config.patch_px and can_reduce(table, factor)
        reduction = factor if is_reduced and is_multiple(factor, factor) else 1
        on_tiles = is_multiple(*table.tile_size)
        columns, rows = (-(-plan.read_px // edge) + (not on_tiles) for edge in table.tile_size)
        if not on_tiles:
            columns += math.ceil(BAND_PATCHES * plan.stride / downsample / table.tile_size[0])
        by_dct = reduction > 1 and config.reduce == "dct"
        place = LevelPlace(table.size, downsample, reduction, by_dct=by_dct, kept_tiles=columns * rows)
        is_tile = table.tile_size == (config.patch_px, config.patch_px) and plan.read_px == config.patch_px
        level_plan = replace(plan, level=0, read_px=plan.read_px // reduction)
        return Reading(level_plan, place, is_reused=config.encode == "reuse" and is_tile and on_tiles)

    def _is_same(self, place: LevelPlace, table: TileTable, x: NDArray[np.int32], y: NDArray[np.int32]) -> bool:
        """Try the file's tiles on two patches against OpenSlide."""
        slide_id, edge_px = self.slide.slide_id, min(self.plan.read_px, _CHECKED_PX)
        drawn = np.random.default_rng(zlib.crc32(slide_id.encode())).choice(len(x), min(len(x), _CHECKED_PLACES))
        places = [(int(x[i]), int(y[i])) for i in drawn]
        try:
            with self.tiles(table, place) as tiles:
                return agrees(tiles, self.image, level=self.plan.level, places=places, edge_px=edge_px)
        except UnreadableSlide as error:
            logger.info("%s: read through OpenSlide (%s)", slide_id, error)
            return False

    def num_blank(self, grid: pa.Table, table: TileTable | None) -> int:
        """Return how many patches touch a tile that the file does not hold, and which is taken as white."""
        if table is None or not (blank := table.byte_counts == 0).any():
            return 0
        width, height = (edge * self.image.downsamples[self.plan.level] for edge in table.tile_size)
        x, y = grid["x"].to_numpy(), grid["y"].to_numpy()
        share = mask_shares(blank, scale=(width, height), x=x, y=y, extent_px=grid["extent_px"].to_numpy())
        return int((share > _TOUCHED).sum())
