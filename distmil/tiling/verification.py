"""What was committed, checked again: every byte by its checksum, and every shard against its grid."""

import pyarrow as pa
import pyarrow.compute as pc

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.errors import SlideError, StorageError
from distmil.slides.file_version import is_intact
from distmil.storage.records import Part, Record
from distmil.storage.schemas import GRID
from distmil.storage.store import Store
from distmil.tiling.pixels import open_pixels
from distmil.tiling.shards import read_grid, read_patches, shard_schema
from distmil.tiling.tiler import SlideTiler

_ROWS = 64
"""Patches whose pixels are held at a time."""


def find_damage(slide: Slide, config: TilingConfig, store: Store) -> list[str]:
    """List the damage of a slide's committed patches, and of its file where its checksum is known.

    A slide that was never committed has no damage.
    """
    tiler = SlideTiler(slide, config, store)
    record = store.read_record(tiler.committed.record_name)
    if record is None:
        return ["its commit record cannot be read"] if store.exists(tiler.committed.record_name) else []
    if record.name != slide.slide_id:
        return [f"its commit record is that of the slide {record.name}"]
    found = _damaged_source(slide, record)
    if not record.ok:
        return found
    parts = [*record.parts, Part(**record.info["grid"]), *(Part(**picture) for picture in record.info["pictures"])]
    damaged = [error for part in parts if (error := _damaged_part(store, tiler.folder, part))]
    damaged = damaged or _contradictions(store, tiler.folder, record, config)
    return found + (damaged or _changed_pixels(slide, store, tiler.folder, record, config))


def _damaged_source(slide: Slide, record: Record) -> list[str]:
    """Compare the slide's file with the checksum that was taken of it."""
    try:
        is_same = is_intact(record.key["source"], slide.path) if record.key else None
    except OSError as error:
        return [f"the slide cannot be read: {error.strerror}"]
    return ["the slide is not the file that was tiled: its checksum differs"] if is_same is False else []


def _damaged_part(store: Store, folder: str, part: Part) -> str | None:
    """Compare a file with its committed checksum."""
    try:
        store.read_part(folder, part)
    except StorageError as error:
        return str(error)
    return None


def _changed_pixels(slide: Slide, store: Store, folder: str, record: Record, config: TilingConfig) -> list[str]:
    """Compare the slide's pixels with the checksums of its patches, where it alone holds them."""
    if config.store == "image":
        return []
    try:
        with open_pixels(slide, record, config) as read:
            for part in record.parts:
                table = read_patches(store, f"{folder}/{part.name}", schema=shard_schema(config))
                for start in range(0, table.num_rows, _ROWS):
                    read(table.slice(start, _ROWS))
    except SlideError as error:
        return [str(error)]
    return []


def _contradictions(store: Store, folder: str, record: Record, config: TilingConfig) -> list[str]:
    """Compare whole shards with the grid: every patch there once, in its place, with pixels."""
    places = read_grid(store, folder, Part(**record.info["grid"]))
    start, found = 0, []
    for part in record.parts:
        try:
            table = read_patches(store, f"{folder}/{part.name}", schema=shard_schema(config))
        except StorageError as error:
            found.append(str(error))
            continue
        wanted = places.slice(start, part.rows)
        if not table.select(GRID.names).cast(pa.schema(GRID)).equals(wanted.combine_chunks()):
            found.append(f"{store.path(f'{folder}/{part.name}')} holds other patches than the grid")
        elif config.store == "image" and pc.min(pc.binary_length(table["image"])).as_py() == 0:
            found.append(f"{store.path(f'{folder}/{part.name}')} holds a patch without pixels")
        start += part.rows
    if start != places.num_rows:
        found.append(f"{store.path(folder)} holds {start} patches, its grid {places.num_rows}")
    return found
