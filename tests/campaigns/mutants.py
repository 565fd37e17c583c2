"""Damaged slides: real files and small made ones, changed at random, through the child process that reads slides."""

import os
import resource
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.errors import UnreadableSlide
from distmil.storage.records import Record
from distmil.storage.schemas import STATUSES
from distmil.storage.store import Store
from distmil.tiling.shards import decode_image, read_patches
from distmil.tiling.tiler import SlideTiler
from distmil.tiling.verification import find_damage
from distmil.tiling.worker import SlideWorker
from tests.campaigns.accounts import Account
from tests.campaigns.forking import ForkFailed, ask
from tests.campaigns.job_runs import JobRuns
from tests.support.jobs import Done
from tests.support.jpeg_tiff import RGB, save_jpeg_tiff
from tests.support.slides import tissue_image

TIMEOUT_S = 20
STEP_LIMIT_S = 2 * TIMEOUT_S + 15  # a crash is tried once more, by a child that has to start
MEMORY_LIMIT_BYTES = 2 * 10**9
JOB_SLIDES = 40
_FORK_LIMIT_S = 7200.0
_MORE_CHANGES = 0.35  # share of the mutants that get one change more, and so on
_EXTREMES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)
Ranges = Sequence[tuple[int, int]]  # offset, length


@dataclass(frozen=True)
class Source:
    """A whole slide and where its parts stand in the file."""

    name: str
    data: bytes
    tile_px: int
    tags: Ranges
    """Entries of the directories."""
    values: Ranges
    """What does not fit an entry: tile offsets, byte counts, JPEG tables and the like."""
    tiles: Ranges

    def configs(self) -> list[TilingConfig]:
        """Return the ways to tile it: its own tiles as they are, and reduced by tissue."""
        common = {"chunk_timeout_s": TIMEOUT_S, "chunk_patches": 64}
        return [
            TilingConfig(strategy="crop", patch_px=self.tile_px, mpp=None, **common),
            TilingConfig(strategy="foreground", patch_px=self.tile_px // 2, mpp=1.0, default_mpp=0.5, **common),
        ]


def read_sources(data: Path, folder: Path) -> list[Source]:
    """Make small JPEG TIFFs, with their tables apart and without, and add the real slides that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = tissue_image((600, 380), seed=2)
    save_jpeg_tiff(folder / "tables.tif", pixels, has_tables=True, downsamples=(1, 2), mpp=0.5)
    save_jpeg_tiff(folder / "rgb.tif", pixels, photometric=RGB, mpp=0.5, missing=[(1, 1)])
    save_jpeg_tiff(folder / "larger.tif", pixels, tile=(128, 96), downsamples=(1, 4), mpp=0.5)
    real = [*data.glob("slides/*.svs"), data / "slides/boxes.tiff", *sorted(data.glob("pcam_cohort/slides/*.tif"))[:3]]
    return [_source(path) for path in [*sorted(folder.glob("*.tif")), *real] if path.exists()]


def _source(path: Path) -> Source:
    tags, values, tiles = [], [], []
    with tifffile.TiffFile(path) as file:
        entry = file.tiff.tagsize
        for page in file.pages:
            tiles += [span for span in zip(page.dataoffsets, page.databytecounts, strict=True) if span[1]]
            for tag in page.tags.values():
                tags.append((tag.offset, entry))
                if tag.valueoffset != tag.offset + entry - file.tiff.tagoffsetthreshold:
                    values.append((tag.valueoffset, tag.valuebytecount))
        tile_px = file.pages[0].tilewidth or 64
    return Source(path.name, path.read_bytes(), tile_px, tags, values, tiles)


# --- changes: each takes the slide, its places and a generator, and returns the damaged bytes


def _put(data: bytearray, at: int, new: bytes) -> bytearray:
    new = new[: max(0, len(data) - at)]
    data[at : at + len(new)] = new
    return data


def _bytes_in(data: bytearray, ranges: Ranges, rng: np.random.Generator) -> bytearray:
    """Change some bytes in one of the ranges, or put an extreme number there."""
    offset, length = ranges[rng.integers(len(ranges))] if ranges else (0, len(data))
    at = offset + int(rng.integers(max(1, length)))
    if rng.random() < 0.6:
        return _put(data, at, rng.bytes(int(2 ** rng.integers(5))))
    number = struct.pack("<I", _EXTREMES[rng.integers(len(_EXTREMES))])
    return _put(data, at - (at - offset) % 4, number)


def _span(data: bytearray, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a range, mostly a short one."""
    start = int(rng.integers(max(1, len(data))))
    return start, min(start + int(len(data) ** rng.random()) + 1, len(data))


def _zero(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, end = _span(data, rng)
    return _put(data, start, bytes(end - start))


def _overlay(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, end = _span(data, rng)
    return _put(data, int(rng.integers(len(data))), bytes(data[start:end]))


def _insert(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, end = _span(data, rng)
    return data[:end] + data[start:]


def _swap(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, end = _span(data, rng)
    end -= (end - start) % 2
    data[start:end:2], data[start + 1 : end : 2] = data[start + 1 : end : 2], data[start:end:2]
    return data


def _cut_off(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: int(rng.integers(len(data)))]


Change = Callable[[bytearray, Source, np.random.Generator], bytearray]
CHANGES: dict[str, tuple[float, Change]] = {
    "header": (0.05, lambda data, _, rng: _bytes_in(data, [(0, 16)], rng)),
    "tags": (0.2, lambda data, source, rng: _bytes_in(data, source.tags, rng)),
    "values": (0.2, lambda data, source, rng: _bytes_in(data, source.values, rng)),
    "tiles": (0.2, lambda data, source, rng: _bytes_in(data, source.tiles, rng)),
    "cut off": (0.05, lambda data, _, rng: _cut_off(data, rng)),
    "zeroed": (0.1, lambda data, _, rng: _zero(data, rng)),
    "doubled": (0.05, lambda data, _, rng: _insert(data, rng)),
    "overlaid": (0.05, lambda data, _, rng: _overlay(data, rng)),
    "swapped": (0.1, lambda data, _, rng: _swap(data, rng)),
}
"""Each with its share: what leaves no slide to open is rarer than what is found late."""


def mutate(source: Source, rng: np.random.Generator) -> tuple[bytes, str]:
    """Return a damaged copy and how it was damaged."""
    data, names, shares = bytearray(source.data), [], [share for share, _ in CHANGES.values()]
    while not names or rng.random() < _MORE_CHANGES:
        name = list(CHANGES)[rng.choice(len(CHANGES), p=shares)]
        data = CHANGES[name][1](data, source, rng) if data else data
        names.append(name)
    return bytes(data), " + ".join(names)


# --- through the worker


@dataclass
class Seen:
    """What became of the mutants of one source and setting."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def mutants(account: Account, sources: Sequence[Source], folder: Path, *, num: int, seed: int) -> None:
    """Tile damaged slides by a worker with a child process, and count how each ended."""
    account.add("sources", len(sources))
    settings = [(i, j) for i in range(len(sources)) for j in range(2)]
    shares = [len(part) for part in np.array_split(np.arange(num), len(settings))]
    slowest_s, peak_bytes, done = 0.0, 0.0, 0
    for (i, j), share in zip(settings, shares, strict=True):
        if not share:
            continue
        place = folder / f"{sources[i].name}-{j}"
        place.mkdir()
        try:
            seen = ask(_tile_all, sources[i], j, share, place, [seed, i, j], timeout_s=_FORK_LIMIT_S)
        except ForkFailed as error:
            account.fail(f"{sources[i].name}: the worker's caller died: {error}; see {place}")
            continue
        for what, number in seen["counts"].items():
            account.add(what, number)
        for text in seen["wrong"]:
            account.fail(f"{sources[i].name}, setting {j}: {text}")
        slowest_s, peak_bytes = max(slowest_s, seen["slowest_s"]), max(peak_bytes, seen["peak_bytes"])
        done += share
        account.progress(done, num)
    account.measured |= {"slowest step (s)": slowest_s, "peak memory of a child (MiB)": peak_bytes / 2**20}
    if peak_bytes > MEMORY_LIMIT_BYTES:
        account.fail(f"a child took {peak_bytes / 1e9:.1f} GB")


def _tile_all(source: Source, setting: int, num: int, folder: Path, seed: Sequence[int]) -> dict[str, Any]:
    """Tile mutants one after the other; runs in a fork, whose only children are the worker's."""
    noise = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT)
    os.dup2(noise, 2)
    config, store, seen = source.configs()[setting], Store(str(folder / "store")), Seen()
    worker = SlideWorker(config, store)
    try:
        for number in range(num):
            data, how = mutate(source, np.random.default_rng([*seed, number]))
            path = folder / f"mutant-{number}{Path(source.name).suffix}"
            path.write_bytes(data)
            wrong = _tile_one(worker, Slide(f"mutant-{number}", str(path)), config, store, seen)
            seen.wrong += [f"{text} ({how}); see {path}" for text in wrong]
            if not wrong:
                path.unlink()
    finally:
        worker.close()
    peak_bytes, own_bytes = (
        resource.getrusage(whose).ru_maxrss * 1024 for whose in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)
    )
    # Linux counts for a child what its parent held when it was started: no less can be told of it
    peak_bytes = peak_bytes if peak_bytes > own_bytes else 0
    return {"counts": seen.counts, "wrong": seen.wrong, "slowest_s": seen.slowest_s, "peak_bytes": peak_bytes}


def _tile_one(worker: SlideWorker, slide: Slide, config: TilingConfig, store: Store, seen: Seen) -> list[str]:
    """Tile one mutant by steps and return what should not be."""
    record, slowest_s, chunk, chunks, wrong = None, 0.0, None, 1, []
    while record is None and (chunk is None or chunk < chunks):
        started = time.monotonic()
        answer = worker.step(slide, chunk)
        slowest_s = max(slowest_s, time.monotonic() - started)
        if answer.fatal:
            return [f"the store was blamed: {answer.fatal}"]
        record, chunks = answer.record, answer.chunks if chunk is None else chunks
        chunk = 0 if chunk is None else chunk + 1
    seen.slowest_s = max(seen.slowest_s, slowest_s)
    if slowest_s > STEP_LIMIT_S:
        wrong.append(f"a step took {slowest_s:.0f} s")
    if record is None or record.status not in STATUSES:
        return [*wrong, f"it ended without a status: {record}"]
    _count(record, seen)
    if str(Path(slide.path).parent) in (record.error or ""):
        wrong.append(f"the error names the slide's folder: {record.error}")
    if not record.ok:
        return wrong
    undecodable = _num_undecodable(SlideTiler(slide, config, store), record)
    seen.counts["ok with patches that do not decode"] += undecodable > 0
    return wrong + [f"committed, but {text}" for text in find_damage(slide, config, store)]


def _count(record: Record, seen: Seen) -> None:
    error = record.error or ""
    seen.counts[record.status] += 1
    seen.counts["crashes"] += "crashed its reader" in error or "was killed twice" in error
    seen.counts["time-outs"] += "took more than tiling.chunk_timeout_s" in error
    if record.status == "failed" and (name := error.partition(":")[0]).isidentifier():
        seen.counts[f"failed by {name}"] += 1


def _num_undecodable(tiler: SlideTiler, record: Record) -> int:
    found = 0
    for part in record.parts:
        for image in read_patches(tiler.store, f"{tiler.folder}/{part.name}", columns=["image"])["image"].to_pylist():
            try:
                decode_image(image)
            except UnreadableSlide:
                found += 1
    return found


def job_of_mutants(account: Account, runs: JobRuns, sources: Sequence[Source], folder: Path, *, seed: int) -> None:
    """Run the real job over a manifest of mutants."""
    rows = ["slide_id,slide_path"]
    for number in range(JOB_SLIDES):
        source = sources[number % len(sources)]
        path = folder / f"mutant-{number}{Path(source.name).suffix}"
        path.write_bytes(mutate(source, np.random.default_rng([seed, 10**6, number]))[0])
        rows.append(f"mutant-{number},{path}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n")
    command = [
        f"cohort.manifest={manifest}", f"storage.root={folder / 'store'}", f"tiling.chunk_timeout_s={TIMEOUT_S}",
        "tiling.default_mpp=0.5", "tiling.patch_px=64", "tiling.mpp=1.0",
    ]  # fmt: skip
    account.add("mutants of the job", JOB_SLIDES)
    for allowed in (0.9, 0.0):
        done = runs.run(*command, f"tiling.max_bad_fraction={allowed}")
        wrong, statuses = _judge_job(done, is_strict=allowed == 0.0)
        for text in wrong:
            account.fail(f"tiling.max_bad_fraction={allowed}: {text}:\n{done.err[-3000:]}")
        for status, number in statuses.items():
            account.add(f"{status} in the job", number)


def _judge_job(done: Done, *, is_strict: bool) -> tuple[list[str], dict[str, int]]:
    """Return what is wrong with a job over mutants, and the statuses it counted if it was content with them."""
    wrong = ["it shows a traceback"] * ("Traceback" in done.out + done.err)
    if done.code == 0 and not is_strict:
        statuses = done.answer["slides"]
        if sum(statuses.values()) != JOB_SLIDES or not statuses.keys() <= set(STATUSES):
            wrong.append(f"it ended with {statuses}")
        return wrong, statuses
    if done.code != 1 or "tiling.max_bad_fraction" not in done.err:
        wrong.append(f"it ended in {done.code} without naming tiling.max_bad_fraction")
    return wrong, {}
