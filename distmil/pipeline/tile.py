"""Slides to patch shards in parallel: whole slides first, then the chunks that are left of the large ones.

Committed patches are checked again here too, where ``tiling.verify`` asks for it.
"""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.defects import attempt
from distmil.errors import DamagedStore, StorageError
from distmil.pipeline.cluster import cluster_resources, map_slides, start_ray
from distmil.pipeline.job import Job, Tiled, check_bad_fraction, open_cohort, status_counts
from distmil.pipeline.tile_report import say_unusable, write_report
from distmil.storage.records import Record
from distmil.storage.schemas import SLIDES, to_parquet
from distmil.storage.store import Store
from distmil.tiling.shards import outdated_folders, patches_folder
from distmil.tiling.tiler import SlideTiler, slide_row
from distmil.tiling.verification import find_damage
from distmil.tiling.worker import Answer, SlideWorker

MOST_CHUNKS = 16
"""Chunks of one slide that a worker writes in a row, if every CPU has a slide; the others are shared out afterwards."""
WINDOW = 4096
"""Chunks that are handed out at a time."""

Piece = tuple[Slide, int | None]
"""A slide, and the chunk to write; None: its plan, and then as many chunks as one worker should write."""
Done = tuple[Answer, float]
"""The answer to a piece of work, and the seconds that it took."""


class Ask(Protocol):
    """Has pieces of work done by the cluster."""

    def __call__(self, pieces: Sequence[Piece], *, most_chunks: int) -> Iterable[tuple[Piece, Done]]:
        """Give each piece with its answer, in any order."""


def run(job: Job) -> dict[str, Any]:
    """Cut the slides of a manifest into patch shards."""
    cohort = open_cohort(job, needs_labels=False, needs_splits=False)
    verified = {}
    if job.config.tiling.verify:
        num_damaged = verify(job, cohort.slides)
        verified = {"verified": len(cohort.slides), "repaired": num_damaged}
    tiled = tile(job, cohort.slides)
    records = tiled.records
    folder, unusable = write_report(job, cohort.slides, tiled)
    report = job.store.path(f"{folder}/summary.html")
    job.console.note(f"report: {report}")
    say_unusable(job, unusable)
    check_bad_fraction(job, records)
    folder = patches_folder(job.config.tiling)
    return verified | {
        "report": report,
        "patches": job.store.path(folder),
        "slides_table": job.store.path(f"{folder}/slides.parquet"),
        "num_patches": sum(record.rows for record in records.values()),
        "slides": status_counts(records),
    }


def tile(job: Job, slides: Sequence[Slide], *, found: tuple[Tiled, list[Slide]] | None = None) -> Tiled:
    """Tile every slide that is not done, and write the slides table of this manifest beside the patches.

    Args:
        job: Configuration, store and console.
        slides: The slides wanted.
        found: As of ``find_tiled``, where it was asked already.

    Raises:
        StorageError: If the store cannot be written.
    """
    tiled, todo = found or find_tiled(job, slides)
    tile_some(job, todo, tiled)
    write_slides_table(job, slides, tiled)
    return tiled


def tile_some(job: Job, slides: Sequence[Slide], tiled: Tiled) -> None:
    """Tile slides that are left into ``tiled``. Raises: StorageError if the store cannot be written."""
    tile_all(job, slides, tiled, partial(_ask, job))


def find_tiled(job: Job, slides: Sequence[Slide]) -> tuple[Tiled, list[Slide]]:
    """Find the slides that are tiled, and those that are left."""
    found = ((slide.slide_id, SlideTiler(slide, job.config.tiling, job.store).finished()) for slide in slides)
    done = {slide_id: record for slide_id, record in found if record}
    return Tiled(dict(done)), [slide for slide in slides if slide.slide_id not in done]


def tile_all(job: Job, slides: Sequence[Slide], tiled: Tiled, ask: Ask) -> None:
    """Tile slides into ``tiled``: whole slides first, then the chunks that are left, then what vanished meanwhile.

    Args:
        job: Configuration, store and console.
        slides: Those that are left.
        tiled: Holds the others.
        ask: Has pieces of work done by the cluster.

    Raises:
        StorageError: If the store cannot be written.
    """
    if not slides:
        return
    started = time.monotonic()
    job.console.note(f"tiling {len(slides)} {job.outcomes.noun}s ({len(tiled.records)} are done)")
    for folder in outdated_folders(job.config.tiling, job.store):
        job.console.note(
            f"patches of an earlier version of distmil in {job.store.path(folder)} are not used, as slides are read "
            "with more care now; the folder may be deleted"
        )
    start_ray()
    most = MOST_CHUNKS if len(slides) >= cluster_resources().get("CPU", 1) else 1
    with job.console.progress("tile", len(slides), f"{job.outcomes.noun}s") as advance:
        chunks = _work(ask, [(slide, None) for slide in slides], tiled, advance, most_chunks=most)
        large = [slide for slide in slides if slide.slide_id not in tiled.records]
        left = ((slide, chunk) for slide in large for chunk in range(most, chunks[slide.slide_id]))
        while window := list(islice(left, WINDOW)):
            _work(ask, window, tiled, advance, most_chunks=1)
        vanished = [(slide, None) for slide in large if slide.slide_id not in tiled.records]
        _work(ask, vanished, tiled, advance, most_chunks=sys.maxsize)
    missing = [slide.slide_id for slide in slides if slide.slide_id not in tiled.records]
    if missing:
        raise StorageError(f"shards of {', '.join(missing[:5])} vanished while they were made; run the job again")
    tiled.wall_s = time.monotonic() - started


def write_slides_table(job: Job, slides: Sequence[Slide], tiled: Tiled) -> None:
    """Write the slides table of this manifest beside the patches."""
    table = pa.Table.from_pylist([slide_row(tiled.records[slide.slide_id]) for slide in slides], schema=SLIDES)
    job.store.write(f"{patches_folder(job.config.tiling)}/slides.parquet", to_parquet(table))


def _ask(job: Job, pieces: Sequence[Piece], *, most_chunks: int) -> Iterable[tuple[Piece, Done]]:
    return map_slides(pieces, Tiler, config=job.config.tiling, store=job.store, most_chunks=most_chunks)


def _work(
    ask: Ask, pieces: Sequence[Piece], tiled: Tiled, advance: Callable[[], None], *, most_chunks: int
) -> dict[str, int]:
    """Have pieces of work done into ``tiled``, and return the number of chunks of each planned slide."""
    chunks = {}
    for (slide, chunk), (answer, seconds) in ask(pieces, most_chunks=most_chunks):
        tiled.seconds[slide.slide_id] = tiled.seconds.get(slide.slide_id, 0.0) + seconds
        if chunk is None:
            chunks[slide.slide_id] = answer.chunks
        if answer.record and slide.slide_id not in tiled.records:
            tiled.records[slide.slide_id] = answer.record
            advance()
    return chunks


class Tiler:
    """Does pieces of work in its own child process."""

    def __init__(self, config: TilingConfig, store: Store, most_chunks: int) -> None:
        self._worker = SlideWorker(config, store)
        self._most_chunks = most_chunks

    def __call__(self, piece: Piece) -> Done:
        """Do one piece, and return the answer and the seconds it took. Raises: StorageError."""
        slide, chunk = piece
        started = time.monotonic()
        if chunk is None:
            answer = self._worker.tile(slide, most_chunks=self._most_chunks)
        else:
            answer = self._worker.step(slide, chunk)
        if answer.fatal:
            raise StorageError(answer.fatal)
        return answer, time.monotonic() - started


def verify(job: Job, slides: Sequence[Slide]) -> int:
    """Check the committed patches of these slides, and return how many slides were damaged and may now be tiled again.

    Raises:
        DamagedStore: If something is damaged and ``tiling.verify`` is not ``repair``.
        StorageError: If the store cannot be read.
    """
    damaged: list[tuple[str, str]] = []
    with job.console.progress("verify", len(slides), "slides") as advance:
        for slide, found in map_slides(slides, _verifier, config=job.config.tiling, store=job.store):
            if isinstance(found, Record):
                job.outcomes.note_failure(found, "it cannot be verified")
            else:
                damaged += [(slide.slide_id, text) for text in found]
            advance()
    bad = {slide_id for slide_id, _ in damaged}
    job.console.note(f"verified {len(slides)} slides, {len(bad)} damaged")
    if not bad:
        return 0
    job.console.table(f"{len(bad)} of {len(slides)} slides are damaged", ("slide", "what"), sorted(damaged))
    if job.config.tiling.verify != "repair":
        raise DamagedStore(f"{len(bad)} of {len(slides)} slides are damaged; tiling.verify=repair tiles them again")
    for slide in slides:
        if slide.slide_id in bad:
            job.store.delete(SlideTiler(slide, job.config.tiling, job.store).committed.record_name)
    return len(bad)


def _verifier(config: TilingConfig, store: Store) -> Callable[[Slide], list[str] | Record]:
    """Make the function that lists a slide's damage, or returns its record if it cannot be checked."""

    def check(slide: Slide) -> list[str]:
        """List what is damaged, and tidy the slide's folder where nothing is."""
        tiler = SlideTiler(slide, config, store)
        damage = find_damage(slide, config, store)
        record = None if damage else tiler.finished()
        if record:
            tiler.tidy(record)
        return damage

    return lambda slide: attempt(lambda: check(slide), slide_id=slide.slide_id, hidden=(slide.path, slide.tissue_path))
