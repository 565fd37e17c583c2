"""Slides to patch shards in parallel: whole slides first, then the chunks that are left of the large ones."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.errors import StorageError
from distmil.pipeline.cluster import Row, cluster_resources, start_ray, stream_actors
from distmil.pipeline.job import Job, Tiled, check_bad_fraction, open_cohort, status_counts
from distmil.pipeline.tile_report import write_report
from distmil.pipeline.verify import verify
from distmil.storage.schemas import SLIDES
from distmil.storage.store import Record, Store
from distmil.tiling.shards import outdated_folders, patches_folder
from distmil.tiling.tiler import SlideTiler, slide_row
from distmil.tiling.worker import Answer, SlideWorker

MOST_CHUNKS = 16
"""Chunks of one slide that a worker does in a row, if there is a slide for each; the rest is shared out afterwards."""
WINDOW = 4096
"""Chunks that are handed out at a time."""
_ALL = -1

Piece = tuple[Slide, int]
"""A slide, and the chunk to do of it; _ALL: its plan, and then as much as one worker should do."""


def run(job: Job) -> dict[str, Any]:
    """Cut the slides of a manifest into patch shards."""
    cohort = open_cohort(job, needs_labels=False, needs_splits=False)
    verified = {}
    if job.config.tiling.verify:
        num_damaged = verify(job, cohort.slides)
        verified = {"verified": len(cohort.slides), "repaired": num_damaged}
    tiled = tile_timed(job, cohort.slides)
    records = tiled.records
    report = job.store.path(f"{write_report(job, cohort.slides, tiled)}/summary.html")
    job.console.note(f"report: {report}")
    check_bad_fraction(job, records)
    folder = patches_folder(job.config.tiling)
    return verified | {
        "report": report,
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
    return tile_timed(job, slides).records


def tile_timed(job: Job, slides: Sequence[Slide]) -> Tiled:
    """Tile every slide that is not done; see ``tile``."""
    started = time.monotonic()
    config, store = job.config.tiling, job.store
    found = ((slide.slide_id, SlideTiler(slide, config, store).finished()) for slide in slides)
    done = {slide_id: record for slide_id, record in found if record}
    todo = [slide for slide in slides if slide.slide_id not in done]
    tiled = Tiled(dict(done))
    if todo:
        job.console.note(f"tiling {len(todo)} slides ({len(done)} are done)")
        for folder in outdated_folders(config, store):
            job.console.note(
                f"patches of an earlier version of distmil in {store.path(folder)} are not used, as slides are read "
                "with more care now; the folder may be deleted"
            )
        _tile(job, todo, tiled)
    _gather(store, config, [tiled.records[slide.slide_id] for slide in slides])
    tiled.wall_s = time.monotonic() - started
    return tiled


def _tile(job: Job, slides: Sequence[Slide], tiled: Tiled) -> None:
    """Tile slides into ``tiled``."""
    start_ray()
    most = MOST_CHUNKS if len(slides) >= cluster_resources().get("CPU", 1) else 1
    chunks: dict[str, int] = {}
    with job.console.progress("tile", len(slides), "slides") as advance:

        def take(pieces: Iterable[Piece], most_chunks: int) -> None:
            for row in _work(job, pieces, most_chunks=most_chunks):
                slide_id, answer = row["slide_id"], Answer.from_json(json.loads(row["answer"]))
                if answer.fatal:
                    raise StorageError(answer.fatal)
                tiled.seconds[slide_id] = tiled.seconds.get(slide_id, 0.0) + row["seconds"]
                if row["chunk"] == _ALL:
                    chunks[slide_id] = answer.chunks
                if answer.record and slide_id not in tiled.records:
                    tiled.records[slide_id] = answer.record
                    advance()

        take(((slide, _ALL) for slide in slides), most)
        large = [slide for slide in slides if slide.slide_id not in tiled.records]
        left = ((slide, chunk) for slide in large for chunk in range(most, chunks[slide.slide_id]))
        while window := list(islice(left, WINDOW)):
            take(window, 1)
        take(((slide, _ALL) for slide in large if slide.slide_id not in tiled.records), 1_000_000)
    missing = [slide.slide_id for slide in slides if slide.slide_id not in tiled.records]
    if missing:
        raise StorageError(f"shards of {', '.join(missing[:5])} vanished while they were made; run the job again")


def _work(job: Job, pieces: Iterable[Piece], *, most_chunks: int) -> Iterator[Row]:
    """Do pieces of work on the cluster and yield a row for each, in any order."""
    rows = [{"slide": json.dumps(asdict(slide)), "chunk": chunk} for slide, chunk in pieces]
    if rows:
        arguments = {"config": job.config.tiling, "store": job.store, "most_chunks": most_chunks}
        yield from stream_actors(rows, Tiler, arguments)


class Tiler:
    """Does pieces of work in its own child process."""

    def __init__(self, config: TilingConfig, store: Store, most_chunks: int) -> None:
        self._worker = SlideWorker(config, store)
        self._most_chunks = most_chunks

    def __call__(self, row: Mapping[str, Any]) -> Row:
        """Do one piece."""
        slide, chunk = Slide(**json.loads(row["slide"])), row["chunk"]
        started = time.monotonic()
        if chunk == _ALL:
            answer = self._worker.tile(slide, most_chunks=self._most_chunks)
        else:
            answer = self._worker.step(slide, chunk)
        return {
            "slide_id": slide.slide_id,
            "chunk": chunk,
            "answer": json.dumps(answer.to_json()),
            "seconds": time.monotonic() - started,
        }


def _gather(store: Store, config: TilingConfig, records: Sequence[Record]) -> None:
    """Write the slides table of this manifest beside the patches."""
    table = pa.Table.from_pylist([slide_row(record) for record in records], schema=SLIDES)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.write(f"{patches_folder(config)}/slides.parquet", sink.getvalue())
