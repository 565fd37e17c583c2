"""The engine of an encoder, chosen on the cluster on patches of the cohort, once for a store."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmil.cohort import Slide
from distmil.encoders.embedder import decode_patches
from distmil.encoders.engines.choice import EngineChoice
from distmil.encoders.engines.stored import StoredEngine, sample_patches, sampled_shards
from distmil.encoders.registry import EncoderSpec
from distmil.errors import EncoderError
from distmil.pipeline.cluster import map_slides
from distmil.pipeline.job import Job
from distmil.pipeline.streaming.embedding import slides_with_pixels, uses_gpu
from distmil.storage.records import Part, Record
from distmil.tiling.pixels import open_pixels


def has_engine(job: Job, spec: EncoderSpec) -> bool:
    """Return whether this store's engine of an encoder is chosen, or none is needed. Raises: EncoderError."""
    return _stored(job, spec).read(device=_device(job, spec)) is not None


def with_engine(job: Job, slides: Sequence[Slide], patches: Mapping[str, Record], spec: EncoderSpec) -> EncoderSpec:
    """Return the encoder with the engine that makes its embeddings in this store, chosen on tiled patches if none was.

    Raises:
        EncoderError: If the engine that is asked for gives other embeddings, or is not here.
        StorageError: If the store cannot be read or written.
    """
    stored, device = _stored(job, spec), _device(job, spec)
    choices, shards = stored.read(device=device), sampled_shards(list(patches.values()))
    if choices is None and shards:
        job.console.note(f"choosing the engine of {spec.name}: each is compared with fp32 on patches of the cohort")
        arguments = {"stored": stored, "slides": slides_with_pixels(job, slides), "device": device}
        [(_, answer)] = map_slides([shards], _Chooser, num_gpus=int(device == "cuda"), **arguments)
        if isinstance(answer, EncoderError):
            raise answer
        choices = answer
        words = [f"{choice.words}; patches at once: {choice.batch_size}" for choice in choices]
        job.console.note(f"engine: {', and '.join(words)}")
    return replace(spec, engines=choices or ())


def _stored(job: Job, spec: EncoderSpec) -> StoredEngine:
    return StoredEngine(spec, job.config, job.store)


def _device(job: Job, spec: EncoderSpec) -> str:
    return "cuda" if uses_gpu(job, spec) else "cpu"


class _Chooser:
    """An actor that chooses the engine where it will run, on one core or GPU."""

    def __init__(self, stored: StoredEngine, slides: Mapping[str, Slide], device: str) -> None:
        self._stored, self._slides, self._device = stored, slides, device

    def __call__(self, shards: Sequence[tuple[Record, Part]]) -> tuple[EngineChoice, ...] | EncoderError:
        """Choose, or return why none is left; nothing is chosen where no patch can be read."""
        try:
            images_NHWC = sample_patches(self._stored.store, self._stored.config, shards, decode=self._decode)
            return self._stored.choose(images_NHWC, device=self._device) if len(images_NHWC) else ()
        except EncoderError as error:
            return error

    def _decode(self, patches: Record, table: pa.Table) -> NDArray[np.uint8]:
        """Decode rows of a shard; where the pixels are in the slide, open it. Raises: SlideError."""
        slide = self._slides.get(patches.name)
        if slide is None:
            return decode_patches(table)
        with open_pixels(slide, patches, self._stored.config.tiling) as decode:
            return decode(table)
