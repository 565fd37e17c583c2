"""Pixels to patch shards: plan a slide, write its chunks, commit it.

A slide is planned once (resolution, tissue, grid), cut into chunks of ``tiling.chunk_patches`` patches that any process
may write, and committed when every chunk is there. Each step is a function of the slide, the configuration and
FORMAT_VERSION, so that a step done twice writes the same bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distmil.cohort import Slide
from distmil.config import TilingConfig
from distmil.errors import NoTissue, SlideError, StorageError
from distmil.shards import GRID_FILE, encode_image, encode_shard, patches_folder, read_grid
from distmil.slides.grid import ReadPlan, box_fractions, lay_grid, plan_read
from distmil.slides.reader import SlideImage, open_slide, overview, resize, resolve_mpp
from distmil.slides.tissue import TISSUE_MAX_PX, TISSUE_MPP, bounding_box, detect_tissue
from distmil.storage import Part, Record, Store, source_key
from distmil.tables import GRID, PATCHES, TRANSIENT, to_ipc

_OVERVIEW_PX = 1024


@dataclass(frozen=True)
class SlideTiler:
    """Makes the patch shards of one slide."""

    slide: Slide
    config: TilingConfig
    store: Store

    @property
    def folder(self) -> str:
        """Return the slide's folder."""
        return f"{patches_folder(self.config)}/{self.slide.slide_id}"

    @property
    def record_name(self) -> str:
        """Return the name of the slide's commit record."""
        return f"{self.folder}/commit.json"

    def key(self) -> dict[str, Any]:
        """Return what the content depends on besides the configuration. Raises: OSError if the file is gone."""
        return {"source": source_key(self.slide.path), "mpp": self.slide.mpp, "default_mpp": self._default_mpp}

    def finished(self) -> Record | None:
        """Return the slide's record if it is done and still true of the file, else None."""
        record = self.store.read_record(self.record_name)
        try:
            matches = record is not None and record.key == self.key()
        except OSError:
            return None
        return record if record is not None and matches and record.status not in TRANSIENT else None

    def plan(self) -> int:
        """Lay the slide's grid and return its number of chunks.

        Raises:
            SlideError: If the slide cannot be used; ``fail`` makes the record of it.
        """
        key = self.key()
        with open_slide(self.slide.path, reader=self.config.reader) as image:
            info, read, grid = self._survey(image)
        self.store.delete(self.record_name)
        num_patches = grid.num_rows
        part = self.store.write_part(self.folder, GRID_FILE, to_ipc(grid), rows=num_patches)
        chunks: int = math.ceil(num_patches / self.config.chunk_patches)
        plan = {"key": key, "info": info, "read": vars(read), "grid": vars(part), "chunks": chunks}
        self.store.write_json(f"{self.folder}/plan.json", plan)
        return chunks

    def write_chunk(self, chunk: int) -> Part:
        """Write one shard if it is not there, and return its entry.

        Raises:
            SlideError: If pixels cannot be read, or the file is not the planned one any more.
        """
        plan = self.store.read_json(f"{self.folder}/plan.json")
        if plan["key"] != self.key():
            raise SlideError(f"{self.slide.slide_id}: the file was replaced while it was tiled; run the job again")
        receipt = f"{self.folder}/part-{chunk:05d}.json"
        made_from = {"plan": plan["key"], "grid": plan["grid"]}
        done = self.store.read_receipt(receipt, made_from)
        if done:
            return done
        start = chunk * self.config.chunk_patches
        grid = read_grid(self.store, self.folder, Part(**plan["grid"])).slice(start, self.config.chunk_patches)
        with open_slide(self.slide.path, reader=self.config.reader) as image:
            table = self._cut(image, ReadPlan(**plan["read"]), grid)
        part = self.store.write_part(self.folder, f"part-{chunk:05d}.parquet", encode_shard(table), rows=table.num_rows)
        self.store.write_receipt(receipt, made_from, part)
        return part

    def commit(self, parts: Sequence[Part]) -> Record:
        """Commit the slide with its parts, in order, and take away what the work left."""
        plan = self.store.read_json(f"{self.folder}/plan.json")
        if len(parts) != plan["chunks"] or sum(part.rows for part in parts) != plan["grid"]["rows"]:
            raise StorageError(f"{self.slide.slide_id}: {len(parts)} of {plan['chunks']} chunks are there")
        info = plan["info"] | {"grid": plan["grid"], "extent_px": plan["read"]["extent_px"]}
        record = Record(slide_id=self.slide.slide_id, key=plan["key"], parts=tuple(parts), info=info)
        self.store.write_record(self.record_name, record)
        self.store.keep_only(self.folder, {"commit.json", GRID_FILE, *(part.name for part in parts)})
        return record

    def fail(self, error: Exception) -> Record:
        """Return the record of a slide that cannot be used, committed unless another try may go better."""
        status = error.status if isinstance(error, SlideError) else "failed"
        text = str(error) if isinstance(error, SlideError) else f"{type(error).__name__}: {error}"
        try:
            key = self.key()
        except OSError:
            key, status = {}, "missing"
        text = text.replace(f"{Path(self.slide.path).parent}/", "")  # folders name people and projects
        record = Record(slide_id=self.slide.slide_id, key=key, status=status, error=text)
        if status not in TRANSIENT:
            self.store.write_record(self.record_name, record)
        return record

    @property
    def _default_mpp(self) -> float | None:
        return None if self.slide.mpp else self.config.default_mpp

    def _survey(self, image: SlideImage) -> tuple[dict[str, Any], ReadPlan, pa.Table]:
        """Return the slide's properties, how its patches are read, and its grid."""
        config = self.config
        mpp = self._mpp(image)
        read = plan_read(
            image.downsamples,
            slide_mpp=mpp,
            mpp=config.mpp,
            tolerance=config.mpp_tolerance,
            patch_px=config.patch_px,
            stride_px=config.stride,
        )
        reduced = max(image.size) * mpp / TISSUE_MPP if mpp else _OVERVIEW_PX
        picture, scale = overview(image, max_px=int(np.clip(reduced, _OVERVIEW_PX, TISSUE_MAX_PX)))
        mask = detect_tissue(picture)
        box = bounding_box(mask, scale=scale, size=image.size) if config.strategy == "foreground" else None
        x, y = lay_grid(
            image.size, strategy=config.strategy, extent_px=read.extent_px, stride=read.stride, foreground=box
        )
        tissue = box_fractions(mask, scale=(scale, scale), x=x, y=y, extent_px=read.extent_px)
        if config.strategy == "foreground":
            keep = (tissue >= config.min_tissue) & (tissue > 0)
            if not keep.any():
                raise NoTissue(
                    f"no patch holds {config.min_tissue:.0%} of tissue (the most is {tissue.max(initial=0):.0%}); "
                    "lower tiling.min_tissue, or tile all of it with tiling.strategy=crop"
                )
            x, y, tissue = x[keep], y[keep], tissue[keep]
        width, height = image.size
        info = {
            "width_px": width,
            "height_px": height,
            "mpp": mpp,
            "levels": len(image.downsamples),
            "vendor": image.vendor,
            "reader": image.reader,
        }
        columns = [[self.slide.slide_id] * len(x), x, y, np.full(len(x), read.extent_px, np.int32), tissue]
        return info, read, pa.table(columns, schema=GRID)

    def _mpp(self, image: SlideImage) -> float | None:
        if self.config.mpp is None:
            return self.slide.mpp or image.mpp
        return resolve_mpp(image, given=self.slide.mpp, default=self.config.default_mpp)

    def _cut(self, image: SlideImage, read: ReadPlan, grid: pa.Table) -> pa.Table:
        """Read and encode the patches of a grid."""
        size = (self.config.patch_px, self.config.patch_px)
        images = []
        for x, y in zip(grid["x"].to_pylist(), grid["y"].to_pylist(), strict=True):
            pixels = image.read(x, y, level=read.level, width=read.read_px, height=read.read_px)
            images.append(encode_image(resize(pixels, size), self.config))
        columns = {name: grid[name] for name in grid.column_names}
        columns["mpp"] = pa.array([read.mpp] * len(images), pa.float32())
        columns["image"] = pa.array(images, pa.binary())
        return pa.table([columns[name] for name in PATCHES.names], schema=PATCHES)


def tile_slide(slide: Slide, config: TilingConfig, store: Store) -> Record:
    """Make all shards of a slide in this process; a slide that cannot be used becomes a record too."""
    tiler = SlideTiler(slide, config, store)
    done = tiler.finished()
    if done:
        return done
    try:
        parts = [tiler.write_chunk(chunk) for chunk in range(tiler.plan())]
    except (SlideError, FileNotFoundError) as error:
        return tiler.fail(error)
    return tiler.commit(parts)


def slide_row(record: Record) -> dict[str, Any]:
    """Return a record as a row of the slides table."""
    names = ("width_px", "height_px", "mpp", "levels", "vendor", "reader")
    return {
        "slide_id": record.slide_id,
        "status": record.status,
        "error": record.error,
        **{name: record.info.get(name) for name in names},
        "num_patches": record.rows,
        "sha256": record.key.get("source", {}).get("sha256"),
    }
