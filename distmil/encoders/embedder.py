"""Patch shards to embedding shards: one in, one out, committed by slide."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmil.config.root import Config, fingerprint
from distmil.encoders.augmentation import generator_of
from distmil.encoders.registry import Encoder, EncoderSpec
from distmil.encoders.stains import shift_stains
from distmil.errors import SlideError, StorageError
from distmil.processes.background import read_ahead
from distmil.storage.records import Part, Record
from distmil.storage.schemas import embeddings_schema, to_ipc
from distmil.storage.store import Committed, Store
from distmil.tiling.shards import Decode, check_slide, decode_image, patches_folder, read_patches, shard_schema

FORMAT_VERSION = 1
DECODED_AHEAD = 64
"""Patches that are decoded at once; a larger batch is decoded whole."""


def embeddings_folder(config: Config, spec: EncoderSpec, *, view: int = 0) -> str:
    """Return the stage's folder, named by everything that decides its content; each view has its own."""
    values = {"encoder": spec.identity(), "patches": patches_folder(config.tiling), "format_version": FORMAT_VERSION}
    if not all(choice.is_plain for choice in spec.engines):  # without: as before there were engines
        values["engines"] = [choice.identity() for choice in spec.engines]
    if view:
        values["view"] = {"number": view, "stain_shift": config.encoder.stain_shift}
    return f"embeddings/{fingerprint(values)}"


def patches_per_pass(config: Config, spec: EncoderSpec) -> int:
    """Return the patches per forward pass: as configured, else as measured with the engine."""
    if config.encoder.batch_size == "auto" and spec.engines:
        return min(choice.batch_size for choice in spec.engines)
    return config.encoder.patches_per_pass


@dataclass(frozen=True)
class SlideEmbedder:
    """Makes the embedding shards of one tiled slide: of its patches, or of a view of them with shifted stains."""

    patches: Record
    config: Config
    spec: EncoderSpec
    store: Store
    view: int = 0
    """Number of the view; 0: the patches as they are."""

    @property
    def folder(self) -> str:
        """Return the slide's folder."""
        return f"{embeddings_folder(self.config, self.spec, view=self.view)}/{self.patches.name}"

    @property
    def committed(self) -> Committed:
        """Return where the shards and their record are."""
        return Committed(self.store, self.folder, self.patches.name)

    @property
    def batch_size(self) -> int:
        """Return the patches per forward pass."""
        return patches_per_pass(self.config, self.spec)

    def key(self) -> dict[str, Any]:
        """Name everything but the configuration that the embeddings depend on."""
        return {"patches": self.patches.digest}

    def finished(self) -> Record | None:
        """Return the slide's record if it is done and still true, else None."""
        record = self.committed.finished(self.key())
        return record if record is not None and record.ok else None

    def write_shard(
        self, part: Part, encoder: Encoder, *, pixels: AbstractContextManager[Decode] | None = None
    ) -> Part:
        """Embed one patch shard, unless that was done for the same shard, and return the new shard's entry.

        Args:
            part: The patch shard.
            encoder: What embeds it.
            pixels: Opens what reads its pixels; None: they are in the shard itself.

        Raises:
            SlideError: If an embedding is not finite, or the pixels are in the slide and it changed.
        """
        stem = part.name.removesuffix(".parquet")
        receipt = f"{self.folder}/{stem}.json"
        done = self.store.read_receipt(receipt, self.key())
        if done and self.store.is_intact(self.folder, done):
            return done
        folder = f"{patches_folder(self.config.tiling)}/{self.patches.name}"
        table = read_patches(self.store, f"{folder}/{part.name}", schema=shard_schema(self.config.tiling), part=part)
        check_slide(table, self.patches.name, where=self.store.path(folder))
        with pixels or nullcontext(decode_patches) as decode:
            images = partial(self._images, decode=decode)
            embedding_NE = embed_patches(table, encoder, batch_size=self.batch_size, decode=images)
        schema = embeddings_schema(embedding_NE.shape[1])
        flat = pa.array(embedding_NE.ravel(), pa.float16())
        columns = [table[name] for name in schema.names[:-1]]
        columns.append(pa.FixedSizeListArray.from_arrays(flat, embedding_NE.shape[1]))
        shard = pa.table(columns, schema=schema).combine_chunks()
        made = self.store.write_part(self.folder, f"{stem}.arrow", to_ipc(shard), rows=shard.num_rows)
        self.store.write_receipt(receipt, self.key(), made)
        return made

    def commit(self, parts: Sequence[Part]) -> Record:
        """Commit the slide's shards, in order, and delete the receipts."""
        if sum(part.rows for part in parts) != self.patches.rows:
            raise StorageError(f"{self.patches.name}: embeddings of {self.patches.rows} patches are not all there")
        info = {name: self.patches.info[name] for name in ("width_px", "height_px", "mpp", "extent_px")}
        committed = self.committed
        record = committed.commit(self.key(), parts=parts, info=info)
        self.store.keep_only(self.folder, {committed.file, *(part.name for part in parts)})
        return record

    def _images(self, table: pa.Table, *, decode: Decode) -> NDArray[np.uint8]:
        """Return the patches of some rows, N x H x W x 3; a view shifts each by its slide and place alone."""
        if self.view == 0:
            return decode(table)
        places = zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)
        spread = self.config.encoder.stain_shift
        return np.stack([
            shift_stains(image, generator_of(self.view, self.patches.name, place), spread=spread)
            for image, place in zip(decode(table), places, strict=True)
        ])  # fmt: skip


def decode_patches(table: pa.Table) -> NDArray[np.uint8]:
    """Decode the pixels of a patches table, N x H x W x 3. Raises: UnreadableSlide."""
    return np.stack([decode_image(data) for data in table["image"].to_pylist()])


def embed_patches(
    table: pa.Table,
    encoder: Encoder,
    *,
    batch_size: int,
    decode: Callable[[pa.Table], NDArray[np.uint8]] = decode_patches,
) -> NDArray[np.float16]:
    """Embed the patches of one shard; the next ones are decoded while the encoder works.

    Args:
        table: The patches, of the schema ``PATCHES``.
        encoder: What embeds them.
        batch_size: Patches per forward pass.
        decode: From rows of the table to pixels, N x H x W x 3.

    Returns:
        Embeddings, N x E.

    Raises:
        SlideError: If an embedding is not finite.
    """
    block = batch_size * max(1, DECODED_AHEAD // batch_size)
    rows = [table.slice(start, block) for start in range(0, table.num_rows, block)]
    with np.errstate(over="ignore"):
        embedding_NE = np.concatenate([
            encoder.embed(images_NHWC[start : start + batch_size])
            for images_NHWC in read_ahead(decode, rows)
            for start in range(0, len(images_NHWC), batch_size)
        ]).astype(np.float16)  # fmt: skip
    bad = np.flatnonzero(~np.isfinite(embedding_NE).all(axis=1))
    if len(bad):
        raise SlideError(
            f"{len(bad)} embeddings are not finite in half precision, the first of patch {bad[0]}; "
            "check the encoder's weights"
        )
    return embedding_NE
