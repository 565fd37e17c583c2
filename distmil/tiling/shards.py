"""Patch shards as files: how patches are encoded, stored and read back. Needs no slide reader."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distmil.config.data import TilingConfig
from distmil.config.root import fingerprint
from distmil.errors import StorageError, UnreadableSlide
from distmil.slides import jpeg
from distmil.storage.records import Part, Record
from distmil.storage.schemas import COORDS, PATCHES, to_parquet
from distmil.storage.store import Store

FORMAT_VERSION = 3
GRID_FILE = "grid.arrow"
Decode = Callable[[pa.Table], NDArray[np.uint8]]
"""From rows of a patches table to their pixels, N x H x W x 3."""
_ROW_GROUP = 512
_MARGIN_BYTES = 2**20


def patches_folder(config: TilingConfig, *, version: int = FORMAT_VERSION) -> str:
    """Return the stage's folder, named by everything that decides its content."""
    return f"patches/{fingerprint({**config.identity(), 'format_version': version})}"


def shard_schema(config: TilingConfig) -> pa.Schema:
    """Return the schema of a patch shard: with images, or with their checksums."""
    return COORDS if config.store == "coords" else PATCHES


def outdated_folders(config: TilingConfig, store: Store) -> list[str]:
    """Find the folders of patches that earlier versions of distmil made under the same configuration."""
    folders = [patches_folder(config, version=version) for version in range(1, FORMAT_VERSION)]
    return [folder for folder in folders if store.exists(f"{folder}/slides.parquet")]


def read_grid(store: Store, folder: str, part: Part) -> pa.Table:
    """Read a slide's grid: the patches table without pixels. Raises: StorageError if the grid is damaged or gone."""
    with pa.ipc.open_file(pa.BufferReader(store.read_part(folder, part))) as reader:
        return reader.read_all()


def grid_of(store: Store, config: TilingConfig, record: Record) -> pa.Table:
    """Return the grid that a committed slide's patches lie on."""
    folder = f"{patches_folder(config)}/{record.name}"
    grid = read_grid(store, folder, Part(**record.info["grid"]))
    check_slide(grid, record.name, where=store.path(folder))
    return grid


def check_slide(table: pa.Table, slide_id: str, *, where: str) -> None:
    """Compare the slide of every row with the wanted one.

    Raises:
        StorageError: If the table holds patches of another slide.
    """
    others = [found for found in pc.unique(table["slide_id"]).to_pylist() if found != slide_id]
    if others:
        raise StorageError(
            f"{where} should hold the slide {slide_id} and holds {others[0]}: delete it and run the same command again"
        )


def read_patches(
    store: Store,
    name: str,
    *,
    columns: Sequence[str] | None = None,
    schema: pa.Schema = PATCHES,
    part: Part | None = None,
    kept_as: Part | None = None,
) -> pa.Table:
    """Read a patch shard, its page checksums verified.

    Args:
        store: Where it is.
        name: Its name.
        columns: What is read of it; None: everything.
        schema: Of the whole shard; see ``shard_schema``.
        part: Entry of the shard in its record, to verify the whole file by.
        kept_as: As ``part``, for a shard that is read again and again: a copy of it is kept on this machine.

    Raises:
        StorageError: If the shard is damaged or gone.
    """
    try:
        if kept_as is not None:
            data = pa.memory_map(str(store.local_copy(name, kept_as))).read_buffer()
        elif part is not None:
            data = store.open_part(name.rpartition("/")[0], part)
        else:
            data = store.open_buffer(name)
        table = pq.read_table(pa.BufferReader(data), columns=columns, page_checksum_verification=True)
        if not table.schema.equals(pa.schema([schema.field(column) for column in columns or schema.names])):
            raise pa.ArrowInvalid(f"its columns are {', '.join(table.column_names)}")  # the footer has no checksum
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{store.path(name)} is damaged or gone ({error}); delete its folder and run again"
        ) from error
    return table


def encode_image(pixels: NDArray[np.uint8], config: TilingConfig) -> bytes:
    """Encode an RGB patch as PNG, else as JPEG, without any metadata."""
    if config.encode == "png":
        return bytes(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1])
    return jpeg.encode(pixels, quality=config.jpeg_quality)


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode a stored patch to RGB, H x W x 3. Raises: UnreadableSlide."""
    if data.startswith(jpeg.SOI):
        try:
            return jpeg.decode(data)
        except ValueError as error:
            raise UnreadableSlide(f"a stored patch cannot be decoded: {error}") from error
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if pixels is None:
        raise UnreadableSlide("a stored patch cannot be decoded")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def binary_array(values: Sequence[bytes]) -> pa.Array:
    """Return values as one Arrow array by a single copy. Raises: StorageError if they are more than it can hold."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise StorageError(
            f"{len(values)} patches take {offsets[-1]} bytes, too many for a shard: lower tiling.chunk_patches"
        )
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)


def encode_shard(table: pa.Table) -> pa.Buffer:
    """Encode a patch shard as Parquet: pixels as they are, places compressed, every page with its checksum."""
    places = {name: "zstd" for name in table.column_names if name != "image"}
    return to_parquet(
        table,
        max_bytes=table.nbytes + _MARGIN_BYTES,
        compression={**places, **({"image": "none"} if "image" in table.column_names else {})},
        use_dictionary=["slide_id"],
        write_statistics=False,
        row_group_size=_ROW_GROUP,
    )
