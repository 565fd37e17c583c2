"""Patch shards to embeddings, by actors that load the encoder once; outlines to label tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from distmil.cohort import Slide
from distmil.config import build_config
from distmil.embedding import SlideEmbedder
from distmil.encoders import EncoderSpec, load_encoder
from distmil.errors import SlideError, StorageError
from distmil.labelling import SlideLabeller
from distmil.stages.runtime import Job, Row, calm_worker, stream, stream_actors, wants_gpu
from distmil.storage import Part, Record, Store


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


def label(job: Job, slides: Sequence[Slide], patches: Mapping[str, Record]) -> dict[str, Record]:
    """Make the label table of every tiled slide that is not done, and return the record of each by slide id."""
    labellers = {
        slide.slide_id: SlideLabeller(slide, job.config, job.store, patches[slide.slide_id])
        for slide in slides
        if patches[slide.slide_id].ok and slide.label is not None
    }
    records = {i: record for i, labeller in labellers.items() if (record := labeller.finished())}
    todo = [labeller for i, labeller in labellers.items() if i not in records]
    if todo:
        job.console.note(f"labelling {len(todo)} slides ({len(records)} are done)")
        with job.console.progress("label", len(todo), "slides") as advance:
            for row in stream([_label_item(labeller) for labeller in todo], _label):
                advance()
                if row["fatal"]:
                    raise StorageError(row["fatal"])
                records[row["slide_id"]] = Record.from_json(json.loads(row["record"]))
    _report_labels(job, records)
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


def _label_item(labeller: SlideLabeller) -> Row:
    values = {
        "slide": asdict(labeller.slide),
        "config": labeller.config.model_dump(),
        "root": labeller.store.root,
        "patches": labeller.patches.to_json(),
    }
    return {"labeller": json.dumps(values)}


def _label(row: Row) -> Row:
    """Label one slide; an annotation that cannot be used is its status."""
    values = json.loads(row["labeller"])
    slide = Slide(**values["slide"])
    patches = Record.from_json(values["patches"])
    labeller = SlideLabeller(slide, build_config(values["config"]), Store(values["root"]), patches)
    answer = {"slide_id": slide.slide_id, "record": "", "fatal": ""}
    try:
        record = labeller.label()
    except StorageError as error:
        return answer | {"fatal": str(error)}
    except Exception as error:  # noqa: BLE001 (one bad annotation is one status row)
        record = Record(slide.slide_id, {}, status="failed", error=f"labels: {type(error).__name__}: {error}")
    return answer | {"record": json.dumps(record.to_json())}


def _report_labels(job: Job, records: Mapping[str, Record]) -> None:
    """Say what a user should know about annotations: repairs, groups that mean nothing, targets without patches."""
    infos = {i: record.info for i, record in records.items() if record.ok}
    repaired = sum(info["repaired"] for info in infos.values())
    if repaired:
        job.console.note(f"annotations: {repaired} invalid outlines were repaired")
    groups = sorted({name for info in infos.values() for name in info["unmapped"]})
    if groups:
        job.console.note(
            f"annotations: groups {', '.join(map(repr, groups))} are not in labels.groups; what they touch is unknown"
        )
    missed = sorted(i for i, info in infos.items() if info["is_target_missed"])
    if missed:
        job.console.note(
            f"annotations: no patch holds any target of {', '.join(missed[:10])}{' ...' if len(missed) > 10 else ''}; "
            "look at tiling.min_tissue, or at the outlines' scale"
        )
