"""Patch shards to embeddings, by actors that load the encoder once."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from distmil.configfile import build_config
from distmil.embedding import SlideEmbedder, embeddings_folder
from distmil.encoders import EncoderSpec, load_encoder, prepare_encoder
from distmil.errors import SlideError, StorageError
from distmil.shards import patches_folder
from distmil.stages.inputs import open_cohort
from distmil.stages.runtime import Job, Row, calm_worker, check_bad_fraction, status_counts, stream_actors, wants_gpu
from distmil.stages.tile import tile
from distmil.storage import Part, Record, Store


def run(job: Job) -> dict[str, Any]:
    """Turn patch shards into embeddings; what is not tiled is tiled first."""
    cohort = open_cohort(job, needs_labels=False, needs_splits=False)
    spec = prepare_encoder(job.config.encoder, job.store)
    patches = tile(job, cohort.slides)
    records = patches | embed(job, patches, spec)
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
    embedders = {i: SlideEmbedder(record, job.config, spec, job.store) for i, record in patches.items() if record.ok}
    records = {i: record for i, embedder in embedders.items() if (record := embedder.finished())}
    todo = {i: embedder for i, embedder in embedders.items() if i not in records}
    if not todo:
        return records
    items = [_item(embedder, part) for embedder in todo.values() for part in embedder.patches.parts]
    job.console.note(f"embedding {len(todo)} slides with {spec.name} ({len(records)} are done)")
    arguments = {"spec": asdict(spec), "root": job.store.root, "config": json.dumps(job.config.model_dump())}
    is_gpu = spec.weights_file is not None and wants_gpu(job.config)
    found: dict[str, dict[str, Part]] = {i: {} for i in todo}
    with job.console.progress("embed", len(items), "shards") as advance:
        for row in stream_actors(items, _Embedder, arguments | {"is_gpu": is_gpu}, num_gpus=1 if is_gpu else 0):
            advance()
            if row["fatal"]:
                raise StorageError(row["fatal"])
            slide_id = row["slide_id"]
            if row["error"]:
                records[slide_id] = Record(slide_id, {}, status=row["status"], error=row["error"])
                continue
            found[slide_id][row["source"]] = Part(**json.loads(row["part"]))
            wanted = todo[slide_id].patches.parts
            if slide_id not in records and len(found[slide_id]) == len(wanted):
                records[slide_id] = todo[slide_id].commit([found[slide_id][part.name] for part in wanted])
    return records


def _item(embedder: SlideEmbedder, part: Part) -> Row:
    return {"patches": json.dumps(embedder.patches.to_json()), "part": json.dumps(asdict(part))}


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
        answer = {"slide_id": patches.slide_id, "source": part.name, "part": "", "status": "", "error": "", "fatal": ""}
        try:
            made = SlideEmbedder(patches, self._config, self._spec, self._store).write_shard(part, self._encoder)
        except StorageError as error:
            return answer | {"fatal": str(error)}
        except SlideError as error:
            return answer | {"status": error.status, "error": str(error)}
        return answer | {"part": json.dumps(asdict(made))}
