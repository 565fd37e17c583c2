"""Patch shards to embeddings, by actors that load the encoder once."""

from collections.abc import Mapping, Sequence
from typing import Any

from distmil.cohort import Slide
from distmil.encoders.embedder import SlideEmbedder, embeddings_folder
from distmil.encoders.registry import EncoderSpec
from distmil.pipeline.cluster import check_gpus, map_slides
from distmil.pipeline.job import Job, check_bad_fraction, open_cohort, open_encoder, status_counts
from distmil.pipeline.streaming.embedding import Embedder, Gathered, Key, embedding_arguments, shards_of, uses_gpu
from distmil.pipeline.streaming.engine import with_engine
from distmil.pipeline.streaming.stream import tile_ahead
from distmil.storage.records import Record
from distmil.tiling.shards import patches_folder


def run(job: Job) -> dict[str, Any]:
    """Turn patch shards into embeddings; what is not tiled is tiled first."""
    cohort = open_cohort(job, needs_labels=False, needs_splits=False)
    spec = open_encoder(job)
    if spec.weights_file is not None:
        check_gpus(job.config)
    patches, embedded, spec = tile_and_embed(job, cohort.slides, spec)
    records = patches | embedded
    job.outcomes.add(patches)  # their doubts
    check_bad_fraction(job, records)
    return {
        "patches": job.store.path(patches_folder(job.config.tiling)),
        "embeddings": job.store.path(embeddings_folder(job.config, spec)),
        "dimension": spec.dimension,
        "num_patches": sum(record.rows for record in records.values()),
        "slides": status_counts(records),
    }


def tile_and_embed(
    job: Job, slides: Sequence[Slide], spec: EncoderSpec
) -> tuple[dict[str, Record], dict[str, Record], EncoderSpec]:
    """Tile and embed what is not done; return both records of each slide by id, and the encoder with its engine.

    Raises:
        EncoderError: If the engine that is asked for gives other embeddings, or is not here.
        StorageError: If the store cannot be written, or a patch shard is damaged.
    """
    tiled, ahead = tile_ahead(job, slides, spec)
    spec = with_engine(job, slides, tiled.records, spec)
    return tiled.records, embed(job, slides, tiled.records, spec, known=ahead), spec


def embed(
    job: Job,
    slides: Sequence[Slide],
    patches: Mapping[str, Record],
    spec: EncoderSpec,
    *,
    known: Mapping[str, Record] | None = None,
) -> dict[str, Record]:
    """Embed every tiled slide that is not done, and return the record of each by slide id.

    Args:
        job: Configuration, store and console.
        slides: The slides.
        patches: Records of the tiling by slide id.
        spec: The encoder.
        known: Records of embeddings that were made just now.

    Raises:
        StorageError: If the store cannot be written, or a patch shard is damaged.
    """
    known = dict(known or {})
    left = [record for slide_id, record in patches.items() if record.ok and slide_id not in known]
    embedders = [SlideEmbedder(record, job.config, spec, job.store) for record in left]
    found = _embed(job, slides, embedders, num_done=len(known))
    return known | {slide_id: record for (slide_id, _), record in found.items()}


def embed_views(
    job: Job, slides: Sequence[Slide], patches: Mapping[str, Record], spec: EncoderSpec
) -> dict[str, list[Record]]:
    """Embed every view of tiled slides as ``embed`` does, and return the records by slide id, in the views' order."""
    found = _embed(job, slides, [
        SlideEmbedder(record, job.config, spec, job.store, view)
        for record in patches.values() if record.ok for view in range(1, job.config.encoder.views + 1)
    ])  # fmt: skip
    views: dict[str, list[Record]] = {slide_id: [] for slide_id in patches}
    for (slide_id, _), record in sorted(found.items()):
        views[slide_id].append(record)
    return views


def _embed(
    job: Job, slides: Sequence[Slide], embedders: Sequence[SlideEmbedder], *, num_done: int = 0
) -> dict[Key, Record]:
    """Do what is not done, shard by shard on the cluster, and return each record."""
    found = ((embedder, embedder.finished()) for embedder in embedders)
    gathered = Gathered()
    for embedder, record in found:
        if record is not None:
            gathered.records[embedder.patches.name, embedder.view] = record
        else:
            gathered.expect(embedder)
    todo = [embedder for key, embedder in gathered.embedders.items() if key not in gathered.records]
    if not todo:
        return gathered.records
    noun = f"{job.outcomes.noun}s"
    what = noun if todo[0].view == 0 else f"views of {noun}"
    num_done += len(gathered.records)
    job.console.note(f"embedding {len(todo)} {what} with {todo[0].spec.name} ({num_done} are done)")
    items = [shard for embedder in todo for shard in shards_of(embedder.patches, embedder.view)]
    is_gpu = uses_gpu(job, todo[0].spec)
    work = sum(embedder.patches.rows for embedder in todo)
    with job.console.progress("embed", len(items), "shards", work=work, work_unit="patches") as advance:
        arguments = embedding_arguments(job, todo[0].spec, slides, is_gpu=is_gpu)
        for shard, made in map_slides(items, Embedder, num_gpus=int(is_gpu), **arguments):
            advance(gathered.embedders[shard.key].patches.parts[shard.part].rows)
            gathered.add(shard, made)
    return gathered.records
