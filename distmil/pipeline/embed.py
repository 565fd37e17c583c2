"""Patch shards to embeddings, by actors that load the encoder once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from distmil.config.loading import build_config
from distmil.defects import attempt
from distmil.encoders.embedder import SlideEmbedder, embeddings_folder
from distmil.encoders.registry import EncoderSpec, load_encoder
from distmil.errors import StorageError
from distmil.pipeline.cluster import Row, calm_worker, stream_actors, wants_gpu
from distmil.pipeline.job import Job, check_bad_fraction, open_cohort, open_encoder, status_counts
from distmil.pipeline.tile import tile
from distmil.storage.store import Part, Record, Store
from distmil.tiling.shards import patches_folder

_Key = tuple[str, int]
"""Slide id and number of the view."""


def run(job: Job) -> dict[str, Any]:
    """Turn patch shards into embeddings; what is not tiled is tiled first."""
    cohort = open_cohort(job, needs_labels=False, needs_splits=False)
    spec = open_encoder(job)
    patches = tile(job, cohort.slides)
    records = patches | embed(job, patches, spec)
    job.ledger.add(patches)  # their doubts
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
    by_key = {_key(embedder): embedder for embedder in embedders}
    records = {key: record for key, embedder in by_key.items() if (record := embedder.finished())}
    todo = {key: embedder for key, embedder in by_key.items() if key not in records}
    if not todo:
        return records
    first = next(iter(todo.values()))
    what = "slides" if first.view == 0 else "views of slides"
    job.console.note(f"embedding {len(todo)} {what} with {first.spec.name} ({len(records)} are done)")
    items = [_item(embedder, part) for embedder in todo.values() for part in embedder.patches.parts]
    arguments = {"spec": asdict(first.spec), "root": job.store.root, "config": json.dumps(job.config.model_dump())}
    is_gpu = first.spec.weights_file is not None and wants_gpu(job.config)
    found: dict[_Key, dict[str, Part]] = {key: {} for key in todo}
    with job.console.progress("embed", len(items), "shards") as advance:
        for row in stream_actors(items, _Embedder, arguments | {"is_gpu": is_gpu}, num_gpus=1 if is_gpu else 0):
            advance()
            if row["fatal"]:
                raise StorageError(row["fatal"])
            key = row["slide_id"], row["view"]
            if row["failure"]:
                records[key] = Record.from_json(json.loads(row["failure"]))
                continue
            found[key][row["source"]] = Part(**json.loads(row["part"]))
            wanted = todo[key].patches.parts
            if key not in records and len(found[key]) == len(wanted):
                records[key] = todo[key].commit([found[key][part.name] for part in wanted])
    return records


def _key(embedder: SlideEmbedder) -> _Key:
    return embedder.patches.slide_id, embedder.view


def _item(embedder: SlideEmbedder, part: Part) -> Row:
    patches = json.dumps(embedder.patches.to_json())
    return {"patches": patches, "part": json.dumps(asdict(part)), "view": embedder.view}


class _Embedder:
    """An actor: one loaded encoder, one shard at a time."""

    def __init__(self, *, spec: dict[str, Any], root: str, config: str, is_gpu: bool) -> None:
        calm_worker()
        self._spec = EncoderSpec(**spec)
        self._store = Store(root)
        self._config = build_config(json.loads(config))
        self._encoder = load_encoder(self._spec, self._store, device="cuda" if is_gpu else "cpu")

    def __call__(self, row: Row) -> Row:
        patches, part = Record.from_json(json.loads(row["patches"])), Part(**json.loads(row["part"]))
        answer = {"slide_id": patches.slide_id, "view": row["view"], "source": part.name, "part": ""}
        answer |= {"failure": "", "fatal": ""}
        embedder = SlideEmbedder(patches, self._config, self._spec, self._store, row["view"])
        try:
            made, failure = attempt(
                lambda: embedder.write_shard(part, self._encoder), slide_id=embedder.patches.slide_id
            )
        except StorageError as error:
            return answer | {"fatal": str(error)}
        if failure:
            return answer | {"failure": json.dumps(failure.to_json())}
        return answer | {"part": json.dumps(made and asdict(made))}
