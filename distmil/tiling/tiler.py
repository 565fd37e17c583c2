"""Pixels to patch shards: plan a slide, write its chunks, commit it.

A slide is planned once (resolution, tissue, grid), cut into chunks of ``tiling.chunk_patches`` patches that any process
may write, and committed when every chunk is there. Each step is a function of the slide, the configuration and
FORMAT_VERSION, so that a step done twice writes the same bytes, and any number of processes may do it at once.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmil.annotations.reader import annotation_checksum
from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.defects import failure_record
from distmil.errors import ReplacedSlide, StorageError
from distmil.slides.file_version import has_checksum, is_same_version, is_unchanged, source_key
from distmil.slides.image import SlideImage
from distmil.slides.jpeg_tiles import TileLevel
from distmil.storage.records import Part, Record
from distmil.storage.schemas import TRANSIENT, to_ipc
from distmil.storage.store import RECORD_FILE, Committed, Store
from distmil.tiling.overview import encode_overview
from distmil.tiling.pixels import pixel_checksum, read_images, read_patch
from distmil.tiling.plan import Reading, open_reading, plan_tiling
from distmil.tiling.shards import (
    GRID_FILE,
    binary_array,
    decode_image,
    encode_image,
    encode_shard,
    patches_folder,
    read_grid,
    shard_schema,
)

PLAN_FILE = "plan.json"


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
    def committed(self) -> Committed:
        """Return where the shards and their record are."""
        return Committed(self.store, self.folder, self.slide.slide_id)

    def key(self, *, checksum: str = "none") -> dict[str, Any]:
        """Name everything but the configuration that the shards depend on. Raises: OSError if a file is gone."""
        path = self.slide.tissue_path
        return {
            "source": source_key(self.slide.path, checksum=checksum),
            "mpp": self.slide.mpp,
            "default_mpp": None if self.slide.mpp else self.config.default_mpp,
            "tissue": annotation_checksum(path) if path else None,
        }

    def finished(self) -> Record | None:
        """Read the slide's record if a quick look (size and time) still finds it true of the file, else None."""
        record = self._settled()
        if record is None or not has_checksum(record.key["source"], self.config.checksum):
            return None
        try:
            is_same = self._matches(record) and is_same_version(record.key["source"], self.slide.path)
        except OSError:
            return None
        return record if is_same else None

    def revived(self) -> Record | None:
        """Update the slide's record if a checksum shows that it is true of the file; else None.

        Such a file was copied or touched, or its record lacks the checksum that is configured now.
        """
        record = self._settled()
        if record is None:
            return None
        try:
            if not self._matches(record) or not is_unchanged(record.key["source"], self.slide.path):
                return None
            source = {**record.key["source"], **source_key(self.slide.path, checksum=self.config.checksum)}
        except OSError:
            return None
        record = replace(record, key={**record.key, "source": source})
        self.store.write_record(self.committed.record_name, record)
        return record

    def _settled(self) -> Record | None:
        """Read the slide's record, None if there is none, or one that another try may change."""
        record = self.committed.read()
        is_settled = record is not None and "source" in record.key and record.status not in TRANSIENT
        return record if is_settled else None

    def _matches(self, record: Record) -> bool:
        """Return whether a record was made from what would be used now, but for the file's time. Raises: OSError."""
        made, now = record.key, self.key()
        if made["source"]["size_bytes"] != now["source"]["size_bytes"]:
            return False
        needs_default = made["default_mpp"] is not None or record.status == "no_mpp"
        names = ("mpp", "tissue", *(["default_mpp"] if needs_default else []))
        return all(made[name] == now[name] for name in names)

    def plan(self) -> int:
        """Lay the slide's grid and return its number of chunks.

        Raises:
            SlideError: If the slide cannot be used; ``fail`` makes the record of it.
        """
        key = self.key(checksum=self.config.checksum)
        found = plan_tiling(self.slide, self.config)
        if not found.is_default_mpp:
            key["default_mpp"] = None
        if self.finished() is None:  # another process may have committed the slide meanwhile
            self.store.delete(self.committed.record_name)
        num_patches = found.grid.num_rows
        part = self.store.write_part(self.folder, GRID_FILE, to_ipc(found.grid), rows=num_patches)
        files, factor = encode_overview(found.overview, found.mask)
        pictures = [vars(self.store.write_part(self.folder, name, data, rows=0)) for name, data in files.items()]
        chunks: int = math.ceil(num_patches / self.config.chunk_patches)
        info = {**found.info, "extent_px": found.reading.plan.extent_px, "grid": vars(part)}
        info |= {"pictures": pictures, "picture_scale": found.scale * factor}
        reading = found.reading.to_json()
        if self.config.store == "coords":
            info["reading"] = reading
        plan = {"key": key, "info": info, "reading": reading, "chunks": chunks}
        self.store.write_checked(f"{self.folder}/{PLAN_FILE}", plan, owner=self.slide.slide_id, is_durable=False)
        return chunks

    def write_chunk(self, chunk: int) -> Part:
        """Write one shard if it is not there, and return its entry.

        Raises:
            SlideError: If pixels cannot be read, or the file is not the planned one any more.
            FileNotFoundError: If the slide is not planned.
        """
        plan = self.store.read_checked(f"{self.folder}/{PLAN_FILE}", owner=self.slide.slide_id)
        self._check_source(plan["key"])
        receipt = _receipt(chunk)
        made_from = {"plan": plan["key"], "grid": plan["info"]["grid"]}
        done = self.store.read_receipt(f"{self.folder}/{receipt}", made_from)
        if done and self.store.is_intact(self.folder, done):
            return done
        start = chunk * self.config.chunk_patches
        grid = read_grid(self.store, self.folder, Part(**plan["info"]["grid"])).slice(start, self.config.chunk_patches)
        reading = Reading.from_json(plan["reading"])
        size = (plan["info"]["width_px"], plan["info"]["height_px"])
        with open_reading(self.slide, reading, reader=self.config.reader, size=size) as image:
            table = cut_patches(image, reading, grid, self.config)
        self._check_source(plan["key"])
        name = f"part-{chunk:05d}.parquet"
        part = self.store.write_part(self.folder, name, encode_shard(table), rows=table.num_rows)
        self.store.write_receipt(f"{self.folder}/{receipt}", made_from, part)
        return part

    def commit_if_whole(self) -> Record | None:
        """Commit the slide if every chunk is there, and tidy its folder; None if a chunk is missing."""
        try:
            plan = self.store.read_checked(f"{self.folder}/{PLAN_FILE}", owner=self.slide.slide_id)
        except FileNotFoundError:
            return self.committed.read()  # another process committed it
        names = self.store.names(self.folder)
        made_from = {"plan": plan["key"], "grid": plan["info"]["grid"]}
        parts = []
        for chunk in range(plan["chunks"]):
            receipt = _receipt(chunk)
            part = self.store.read_receipt(f"{self.folder}/{receipt}", made_from) if receipt in names else None
            if part is None:
                return None
            parts.append(part)
        if sum(part.rows for part in parts) != plan["info"]["grid"]["rows"]:
            raise StorageError(f"{self.slide.slide_id}: its shards hold other patches than its grid; delete its folder")
        record = self.committed.commit(plan["key"], parts=parts, info=plan["info"])
        self.tidy(record)
        return record

    def tidy(self, record: Record) -> None:
        """Delete what work left beside a committed slide, as after a kill just behind the commit."""
        pictures = [picture["name"] for picture in record.info.get("pictures", ())]
        self.store.keep_only(self.folder, {RECORD_FILE, GRID_FILE, *pictures, *(part.name for part in record.parts)})

    def fail(self, error: Exception) -> Record:
        """Return the record of a slide that cannot be used, committed unless another try may go better."""
        path = self.slide.path
        made = failure_record(self.slide.slide_id, error, hidden=(path, self.slide.tissue_path))
        status, text = made.status, made.error
        try:
            key = self.key()
            if status == "unreadable":
                with Path(path).open("rb") as file:
                    file.read(1)
        except FileNotFoundError:
            key, status = {}, "missing"
        except OSError as refusal:
            key, status, text = {}, "failed", f"the slide cannot be read: {refusal.strerror}"
        record = replace(made, key=key, status=status, error=text)
        if status not in TRANSIENT:
            self.store.write_record(self.committed.record_name, record)
            self.store.keep_only(self.folder, {RECORD_FILE})
        return record

    def _check_source(self, planned: dict[str, Any]) -> None:
        if not is_same_version(planned["source"], self.slide.path):
            raise ReplacedSlide(f"{self.slide.slide_id}: the file was replaced while it was tiled; run the job again")


def cut_patches(image: SlideImage, reading: Reading, grid: pa.Table, config: TilingConfig) -> pa.Table:
    """Read and encode the patches of a grid, or take over the file's own tiles; or take the checksums of their pixels.

    Args:
        image: The slide, opened by ``open_reading``.
        reading: How its plan decided to read it.
        grid: Places of the patches, of the schema ``GRID``.
        config: Edge and encoding of the patches.

    Returns:
        The patches, of the schema that ``shard_schema`` gives, in the grid's order.

    Raises:
        UnreadableSlide: If pixels cannot be decoded.
    """
    schema, places = shard_schema(config), zip(grid["x"].to_pylist(), grid["y"].to_pylist(), strict=True)
    columns = {name: grid[name] for name in grid.column_names}
    columns["mpp"] = pa.array([reading.plan.mpp] * grid.num_rows, pa.float32())
    if config.store == "coords":
        checksums = [pixel_checksum(read_patch(image, reading, x, y, edge_px=config.patch_px)) for x, y in places]
        columns["checksum"] = pa.array(checksums, pa.uint32())
    else:
        columns["image"] = binary_array([_stored_image(image, reading, x, y, config) for x, y in places])
    return pa.table([columns[name] for name in schema.names], schema=schema)


def seen_images(grid: pa.Table, *, image: SlideImage, reading: Reading, config: TilingConfig) -> NDArray[np.uint8]:
    """Read the patches of a grid as embedding sees them, N x H x W x 3: stored and decoded, or as the slide has them.

    Raises:
        UnreadableSlide: If pixels cannot be decoded.
    """
    if config.store == "coords":
        return read_images(grid, image, reading, edge_px=config.patch_px)
    return np.stack([decode_image(data) for data in cut_patches(image, reading, grid, config)["image"].to_pylist()])


def _stored_image(image: SlideImage, reading: Reading, x: int, y: int, config: TilingConfig) -> bytes:
    """Take over the file's own tile where a patch is one, else read and encode the patch."""
    stored = None
    if reading.is_reused and isinstance(image, TileLevel):
        stored = image.stored(x, y, edge_px=config.patch_px)
    return stored or encode_image(read_patch(image, reading, x, y, edge_px=config.patch_px), config)


def _receipt(chunk: int) -> str:
    return f"part-{chunk:05d}.json"


def slide_row(record: Record) -> dict[str, Any]:
    """Return a record as a row of the slides table."""
    names = ("width_px", "height_px", "mpp", "levels", "vendor", "reader")
    return {
        "slide_id": record.name,
        "status": record.status,
        "error": record.error,
        **{name: record.info.get(name) for name in names},
        "num_patches": record.rows,
        "sha256": record.key.get("source", {}).get("sha256"),
    }
