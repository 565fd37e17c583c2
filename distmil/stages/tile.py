"""Slides to patch shards in parallel: each slide's plan and first chunk, then the other chunks of large slides."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distmil.cohort import Slide
from distmil.config import TilingConfig
from distmil.errors import StorageError
from distmil.shards import patches_folder
from distmil.stages.inputs import open_cohort
from distmil.stages.runtime import Job, Row, calm_worker, check_bad_fraction, status_counts, stream
from distmil.storage import Part, Record, Store
from distmil.tables import SLIDES
from distmil.tiling import SlideTiler, slide_row


def run(job: Job) -> dict[str, Any]:
    """Cut the slides of a manifest into patch shards."""
    cohort = open_cohort(job, needs_labels=False, needs_splits=False)
    records = tile(job, cohort.slides)
    check_bad_fraction(job, records)
    folder = patches_folder(job.config.tiling)
    return {
        "patches": job.store.path(folder),
        "slides_table": job.store.path(f"{folder}/slides.parquet"),
        "num_patches": sum(record.rows for record in records.values()),
        "slides": status_counts(records),
    }


def tile(job: Job, slides: Sequence[Slide]) -> dict[str, Record]:
    """Tile every slide that is not done, and return the record of each by slide id.

    Raises:
        StorageError: If the store cannot be written.
    """
    config, store = job.config.tiling, job.store
    tilers = {slide.slide_id: SlideTiler(slide, config, store) for slide in slides}
    records = {slide_id: record for slide_id, tiler in tilers.items() if (record := tiler.finished())}
    todo = [tiler for slide_id, tiler in tilers.items() if slide_id not in records]
    if todo:
        job.console.note(f"tiling {len(todo)} slides ({len(records)} are done)")
        records |= _tile(job, todo)
    _gather(store, config, [records[slide.slide_id] for slide in slides])
    return records


def _tile(job: Job, tilers: Sequence[SlideTiler]) -> dict[str, Record]:
    """Run both passes and commit."""
    records: dict[str, Record] = {}
    parts: dict[str, dict[int, Part]] = {}
    chunks: dict[str, int] = {}
    by_id = {tiler.slide.slide_id: tiler for tiler in tilers}
    with job.console.progress("tile", len(tilers), "slides") as advance:

        def take(row: Row) -> None:
            if row["fatal"]:
                raise StorageError(row["fatal"])
            slide_id = row["slide_id"]
            if slide_id in records:
                return
            if row["record"]:
                records[slide_id] = Record.from_json(json.loads(row["record"]))
            else:
                found = parts.setdefault(slide_id, {})
                found[row["chunk"]] = Part(**json.loads(row["part"]))
                if len(found) < chunks.setdefault(slide_id, row["chunks"]):
                    return
                records[slide_id] = by_id[slide_id].commit([found[i] for i in sorted(found)])
            advance()

        for row in stream([_item(tiler, 0) for tiler in tilers], _first_chunk):
            take(row)
        rest = [_item(by_id[slide_id], i) for slide_id, count in chunks.items() for i in range(1, count)]
        for row in stream(rest, _one_chunk):
            take(row)
    return records


def _item(tiler: SlideTiler, chunk: int) -> Row:
    values = {"slide": asdict(tiler.slide), "config": tiler.config.model_dump(), "root": tiler.store.root}
    return {"tiler": json.dumps(values), "chunk": chunk}


def _tiler(row: Row) -> SlideTiler:
    values = json.loads(row["tiler"])
    return SlideTiler(Slide(**values["slide"]), TilingConfig(**values["config"]), Store(values["root"]))


def _first_chunk(row: Row) -> Row:
    """Plan a slide and write its first chunk; commit it if that was all."""
    tiler = _tiler(row)

    def work() -> Row:
        chunks = tiler.plan()
        part = tiler.write_chunk(0)
        if chunks == 1:
            return _answer(tiler, record=tiler.commit([part]))
        return _answer(tiler, part=part, chunks=chunks)

    return _guarded(tiler, work)


def _one_chunk(row: Row) -> Row:
    """Write one chunk of a planned slide."""
    tiler = _tiler(row)
    return _guarded(tiler, lambda: _answer(tiler, part=tiler.write_chunk(row["chunk"]), chunk=row["chunk"]))


def _guarded(tiler: SlideTiler, work: Callable[[], Row]) -> Row:
    """Turn whatever goes wrong with a slide into its record; only a store that fails stops the job."""
    calm_worker()
    try:
        return work()
    except StorageError as error:
        return _answer(tiler, fatal=str(error))
    except Exception as error:  # noqa: BLE001 (one bad slide is one status row)
        return _answer(tiler, record=tiler.fail(error))


def _answer(
    tiler: SlideTiler,
    *,
    record: Record | None = None,
    part: Part | None = None,
    chunk: int = 0,
    chunks: int = 0,
    fatal: str = "",
) -> Row:
    """Return a row of plain values."""
    return {
        "slide_id": tiler.slide.slide_id,
        "record": json.dumps(record.to_json()) if record else "",
        "part": json.dumps(asdict(part)) if part else "",
        "chunk": chunk,
        "chunks": chunks,
        "fatal": fatal,
    }


def _gather(store: Store, config: TilingConfig, records: Sequence[Record]) -> None:
    """Write the slides table of this manifest beside the patches."""
    table = pa.Table.from_pylist([slide_row(record) for record in records], schema=SLIDES)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.write(f"{patches_folder(config)}/slides.parquet", sink.getvalue())
