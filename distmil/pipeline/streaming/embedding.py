"""The two sides of embedding: actors that load the encoder once, and the driver, which commits whole slides."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.defects import attempt
from distmil.encoders.embedder import SlideEmbedder
from distmil.encoders.engines.stored import load_engine
from distmil.encoders.registry import EncoderSpec
from distmil.errors import ReplacedSlide
from distmil.pipeline.cluster import wants_gpu
from distmil.pipeline.job import Job
from distmil.storage.records import Part, Record
from distmil.storage.store import RECORD_FILE, Committed, Store
from distmil.tiling.pixels import open_pixels
from distmil.tiling.shards import patches_folder

SEEN_WITHIN_S = 5.0
"""A network folder may show a new record a little later on other machines."""
_DIGITS = 12

Key = tuple[str, int]
"""Slide id and number of the view."""


class Shard(NamedTuple):
    """One patch shard to embed: ids alone, for a million of them pass through the driver."""

    slide_id: str
    version: str
    """The start of the digest of the slide's patches."""
    part: int
    view: int = 0

    @property
    def key(self) -> Key:
        """Name what the shard is a part of."""
        return self.slide_id, self.view


def shards_of(patches: Record, view: int = 0) -> list[Shard]:
    """List the patch shards of a slide."""
    return [Shard(patches.name, patches.digest[:_DIGITS], part, view) for part in range(len(patches.parts))]


def uses_gpu(job: Job, spec: EncoderSpec) -> bool:
    """Return whether embedding asks for GPUs."""
    return spec.weights_file is not None and wants_gpu(job.config)


def embedding_arguments(job: Job, spec: EncoderSpec, slides: Iterable[Slide], *, is_gpu: bool) -> dict[str, Any]:
    """Put together what an ``Embedder`` is made of; it needs slides where the pixels are in them alone."""
    needed = slides_with_pixels(job, slides)
    return {"config": job.config, "store": job.store, "spec": spec, "slides": needed, "is_gpu": is_gpu}


def slides_with_pixels(job: Job, slides: Iterable[Slide]) -> dict[str, Slide]:
    """List the slides whose pixels are in no shard, by id."""
    return {slide.slide_id: slide for slide in slides} if job.config.tiling.store == "coords" else {}


@dataclass
class Gathered:
    """The driver's side of embedding: shards as they come, and each slide committed with its last one."""

    embedders: dict[Key, SlideEmbedder] = field(default_factory=dict)
    records: dict[Key, Record] = field(default_factory=dict)
    """Of the slides that are committed, or cannot be embedded."""
    _parts: dict[Key, dict[int, Part]] = field(default_factory=dict)
    when_done: Callable[[], None] = lambda: None
    """Called for every record that was added."""

    def expect(self, embedder: SlideEmbedder) -> None:
        """Take note of a tiled slide; its shards may be there already."""
        key = embedder.patches.name, embedder.view
        self.embedders[key] = embedder
        self._commit_if_whole(key)

    def add(self, shard: Shard, made: Part | Record) -> None:
        """Take an embedded shard, or the record of a slide that cannot be embedded."""
        if isinstance(made, Record):
            if shard.key not in self.records:
                self._settle(shard.key, made)
            return
        self._parts.setdefault(shard.key, {})[shard.part] = made
        self._commit_if_whole(shard.key)

    def _commit_if_whole(self, key: Key) -> None:
        embedder, parts = self.embedders.get(key), self._parts.get(key, {})
        if embedder is None or len(parts) < max(1, len(embedder.patches.parts)):
            return
        failed = key in self.records and not self.records[key].ok
        if not failed:  # a shard that was done twice left a receipt, which a second commit clears away
            record = embedder.commit([parts[part] for part in range(len(embedder.patches.parts))])
            self._settle(key, record)

    def _settle(self, key: Key, record: Record) -> None:
        is_new = key not in self.records
        self.records[key] = record
        if is_new:
            self.when_done()


class Embedder:
    """An actor: one loaded encoder, one shard at a time."""

    def __init__(
        self, config: Config, store: Store, spec: EncoderSpec, slides: Mapping[str, Slide], *, is_gpu: bool
    ) -> None:
        self._config, self._store, self._spec, self._slides = config, store, spec, slides
        device, patch_px = "cuda" if is_gpu else "cpu", config.tiling.patch_px
        self._encoder = load_engine(spec, store, patch_px=patch_px, device=device)
        self._patches: Record | None = None

    def __call__(self, shard: Shard) -> Part | Record:
        """Embed one shard, and return the new shard's entry, or the slide's record if it fails."""
        slide = self._slides.get(shard.slide_id)
        hidden = (slide.path, slide.tissue_path) if slide else ()
        return attempt(lambda: self._embed(shard, slide), slide_id=shard.slide_id, hidden=hidden)

    def _embed(self, shard: Shard, slide: Slide | None) -> Part:
        patches = self._read_patches(shard)
        embedder = SlideEmbedder(patches, self._config, self._spec, self._store, shard.view)
        pixels = open_pixels(slide, patches, self._config.tiling) if slide else None
        return embedder.write_shard(patches.parts[shard.part], self._encoder, pixels=pixels)

    def _read_patches(self, shard: Shard) -> Record:
        """Read the record of a shard's slide, or take the last one. Raises: ReplacedSlide if it is another one now."""
        folder = f"{patches_folder(self._config.tiling)}/{shard.slide_id}"
        deadline = time.monotonic() + SEEN_WITHIN_S
        while not _is_of(self._patches, shard):
            self._patches = Committed(self._store, folder, shard.slide_id, RECORD_FILE).read()
            if not _is_of(self._patches, shard):
                if time.monotonic() > deadline:
                    raise ReplacedSlide(
                        f"{shard.slide_id}: it was tiled anew while it was embedded; run the same command again"
                    )
                time.sleep(0.2)
        assert self._patches is not None
        return self._patches


def _is_of(patches: Record | None, shard: Shard) -> bool:
    return patches is not None and patches.name == shard.slide_id and patches.digest.startswith(shard.version)
