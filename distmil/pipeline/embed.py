"""Patch shards to embeddings, by actors that load the encoder once."""

from collections.abc import Mapping, Sequence
from typing import Any

from distmil.config.root import Config
from distmil.defects import attempt
from distmil.encoders.embedder import SlideEmbedder, embeddings_folder
from distmil.encoders.engines.stored import load_engine
from distmil.encoders.registry import EncoderSpec
from distmil.pipeline.cluster import check_gpus, map_slides, wants_gpu
from distmil.pipeline.job import Job, check_bad_fraction, open_cohort, open_encoder, status_counts
from distmil.pipeline.streaming.engine import with_engine
from distmil.pipeline.tile import tile
from distmil.storage.records import Part, Record
from distmil.storage.store import Store
from distmil.tiling.shards import patches_folder

_Key = tuple[str, int]
"""Slide id and number of the view."""


def run(job: Job) -> dict[str, Any]:
    """Turn patch shards into embeddings; what is not tiled is tiled first."""
    cohort = open_cohort(job, needs_labels=False, needs_splits=False)
    spec = open_encoder(job)
    if spec.weights_file is not None:
        check_gpus(job.config)
    patches = tile(job, cohort.slides).records
    spec = with_engine(job, patches, spec)
    records = patches | embed(job, patches, spec)
    job.outcomes.add(patches)  # their doubts
    check_bad_fraction(job, records)
    return {
        "patches": job.store.path(patches_folder(job.config.tiling)),
        "embeddings": job.store.path(embeddings_folder(job.config, spec)),
        "dimension": spec.dimension,
        "num_patches": sum(record.rows for record in records.values()),
        "slides": status_counts(records),
    }


def embed(job: Job, patches: Mapping[str, Record], spec: EncoderSpec) -> dict[str, Record]:
    """Embed every tiled slide that is not done, and return the record of each by slide id.

    Raises:
        StorageError: If the store cannot be written, or a patch shard is damaged.
    """
    found = _embed(
        job, [SlideEmbedder(record, job.config, spec, job.store) for record in patches.values() if record.ok]
    )
    return {slide_id: record for (slide_id, _), record in found.items()}


def embed_views(job: Job, patches: Mapping[str, Record], spec: EncoderSpec) -> dict[str, list[Record]]:
    """Embed every view of tiled slides as ``embed`` does, and return the records by slide id, in the views' order."""
    found = _embed(job, [
        SlideEmbedder(record, job.config, spec, job.store, view)
        for record in patches.values() if record.ok for view in range(1, job.config.encoder.views + 1)
    ])  # fmt: skip
    views: dict[str, list[Record]] = {slide_id: [] for slide_id in patches}
    for (slide_id, _), record in sorted(found.items()):
        views[slide_id].append(record)
    return views


def _embed(job: Job, embedders: Sequence[SlideEmbedder]) -> dict[_Key, Record]:
    """Do what is not done, shard by shard on the cluster, and return each record."""
    by_key = {(embedder.patches.name, embedder.view): embedder for embedder in embedders}
    records = {key: record for key, embedder in by_key.items() if (record := embedder.finished())}
    todo = {key: embedder for key, embedder in by_key.items() if key not in records}
    if not todo:
        return records
    first = next(iter(todo.values()))
    noun = f"{job.outcomes.noun}s"
    what = noun if first.view == 0 else f"views of {noun}"
    job.console.note(f"embedding {len(todo)} {what} with {first.spec.name} ({len(records)} are done)")
    items = [(embedder.patches, embedder.view, part) for embedder in todo.values() for part in embedder.patches.parts]
    is_gpu = first.spec.weights_file is not None and wants_gpu(job.config)
    found: dict[_Key, dict[str, Part]] = {key: {} for key in todo}
    num_patches = sum(part.rows for _, _, part in items)
    with job.console.progress("embed", len(items), "shards", work=num_patches, work_unit="patches") as advance:
        arguments = {"config": job.config, "store": job.store, "spec": first.spec, "is_gpu": is_gpu}
        for (patches, view, source), made in map_slides(items, _Embedder, num_gpus=int(is_gpu), **arguments):
            advance(source.rows)
            key = patches.name, view
            if isinstance(made, Record):
                records[key] = made
                continue
            found[key][source.name] = made
            if key not in records and len(found[key]) == len(patches.parts):
                records[key] = todo[key].commit([found[key][part.name] for part in patches.parts])
    return records


class _Embedder:
    """An actor: one loaded encoder, one shard at a time."""

    def __init__(self, config: Config, store: Store, spec: EncoderSpec, is_gpu: bool) -> None:
        self._config, self._store, self._spec = config, store, spec
        device, patch_px = "cuda" if is_gpu else "cpu", config.tiling.patch_px
        self._encoder = load_engine(spec, store, patch_px=patch_px, device=device)

    def __call__(self, item: tuple[Record, int, Part]) -> Part | Record:
        """Embed one shard, and return the new shard's entry, or the slide's record if it fails."""
        patches, view, part = item
        embedder = SlideEmbedder(patches, self._config, self._spec, self._store, view)
        return attempt(lambda: embedder.write_shard(part, self._encoder), slide_id=patches.name)
