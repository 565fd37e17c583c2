"""The engine of a job's encoder: the one that the store keeps, else chosen by an actor on patches that are tiled."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from distmil.encoders.engines.choice import EngineChoice
from distmil.encoders.engines.stored import StoredEngine, sample_patches, sampled_shards
from distmil.encoders.registry import EncoderSpec
from distmil.errors import EncoderError
from distmil.pipeline.cluster import map_slides, wants_gpu
from distmil.pipeline.job import Job
from distmil.storage.records import Part, Record


def with_engine(job: Job, patches: Mapping[str, Record], spec: EncoderSpec) -> EncoderSpec:
    """Return the encoder with the engine that makes its embeddings in this store, chosen on tiled patches if none was.

    Raises:
        EncoderError: If the engine that is asked for gives other embeddings, or is not here.
        StorageError: If the store cannot be read or written.
    """
    is_gpu = spec.weights_file is not None and wants_gpu(job.config)
    stored, device = StoredEngine(spec, job.config, job.store), "cuda" if is_gpu else "cpu"
    choices, shards = stored.read(device=device), sampled_shards(list(patches.values()))
    if choices is None and shards:
        job.console.note(f"choosing the engine of {spec.name}: each is compared with fp32 on patches of the cohort")
        [(_, answer)] = map_slides([shards], _Chooser, num_gpus=int(is_gpu), stored=stored, device=device)
        if isinstance(answer, EncoderError):
            raise answer
        choices = answer
        words = [f"{choice.words}; patches at once: {choice.batch_size}" for choice in choices]
        job.console.note(f"engine: {', and '.join(words)}")
    return replace(spec, engines=choices or ())


class _Chooser:
    """An actor that chooses the engine where it will run, on one core or GPU."""

    def __init__(self, stored: StoredEngine, device: str) -> None:
        self._stored, self._device = stored, device

    def __call__(self, shards: Sequence[tuple[Record, Part]]) -> tuple[EngineChoice, ...] | EncoderError:
        """Choose, or return why none is left; nothing is chosen where no patch can be read."""
        try:
            images_NHWC = sample_patches(self._stored.store, self._stored.config, shards)
            return self._stored.choose(images_NHWC, device=self._device) if len(images_NHWC) else ()
        except EncoderError as error:
            return error
