"""Tiling and embedding in one stream against two passes: the seconds of each pass, of the stream, and their ratios.

    python -m benchmarks.streaming [--slides 48] [--rounds 1] [--root FOLDER]

A machine without a GPU has one kind of core for both stages, so that a stream of them takes the sum of their work, as
two passes do: row `texture`. A GPU is stood in for by an encoder that waits, 0.5, 1 and 2 times as long as the tiling;
patches are still read by the cores that tile. In the rows `both wait`, tiling is a wait, too: what is left is the
pipeline itself, on a machine however busy.
"""

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.slidemaking import make_slide
from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.encoders.registry import EncoderSpec, prepare_encoder
from distmil.pipeline import embed as embed_job
from distmil.pipeline.cluster import cluster_resources, map_slides, start_ray, stop_ray
from distmil.pipeline.job import Job
from distmil.pipeline.streaming import stream
from distmil.pipeline.streaming.chain import Stage, chain_slides
from distmil.pipeline.streaming.embedding import Embedder, embedding_arguments
from distmil.pipeline.tile import tile
from distmil.storage.store import Store

SHARES = (0.5, 1.0, 2.0)
DISTINCT = 4
EDGE_PX = 6000
SLIDES, SHARDS, SLIDE_S = 40, 6, 1.5
"""Of the rows where both stages wait."""


class Waiting(Embedder):
    """An actor whose encoder waits in place of computing, as a core waits for a GPU."""

    def __init__(self, *, pause_s: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._encoder = Wait(pause_s)


@dataclass(frozen=True)
class Wait:
    """Waits for each patch."""

    pause_s: float

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return zeros after a while."""
        time.sleep(self.pause_s * len(images_NHWC))
        return np.zeros((len(images_NHWC), 4), np.float32)


@contextlib.contextmanager
def waiting(pause_s: float | None) -> Iterator[None]:
    """Embed by waiting; None: by the configured encoder."""
    if pause_s is None:
        yield
        return

    def arguments(*given: Any, **more: Any) -> dict[str, Any]:
        return embedding_arguments(*given, **more) | {"pause_s": pause_s}

    with contextlib.ExitStack() as stack:
        for module in (embed_job, stream):
            stack.enter_context(mock.patch.object(module, "Embedder", Waiting))
            stack.enter_context(mock.patch.object(module, "embedding_arguments", arguments))
        yield


def make_slides(folder: Path, count: int) -> list[Slide]:
    """Make slides, the first few of them distinct."""
    paths = [folder / f"s{number:03d}.tif" for number in range(count)]
    for number, path in enumerate(paths):
        if number < DISTINCT:
            make_slide(path, edge_px=EDGE_PX, mpp=0.5, seed=number)
        elif not path.exists():
            shutil.copyfile(paths[number % DISTINCT], path)
    return [Slide(path.stem, str(path)) for path in paths]


class Cut:
    """A first stage that waits for each slide, and has its shards follow."""

    def __init__(self, *, pause_s: float) -> None:
        self._pause_s = pause_s

    def __call__(self, slide: int) -> tuple[int, list[int]]:
        """Wait, and list the shards."""
        time.sleep(self._pause_s)
        return slide, list(range(SHARDS))


class Take:
    """A second stage that waits for each shard."""

    def __init__(self, *, pause_s: float) -> None:
        self._pause_s = pause_s

    def __call__(self, shard: int) -> int:
        """Wait."""
        time.sleep(self._pause_s)
        return shard


def both_wait(share: float) -> str:
    """Time two passes and a chain of stages that only wait, and return a row of the table."""
    shard_s = SLIDE_S * share / SHARDS
    first_s = seconds(lambda: list(map_slides(range(SLIDES), Cut, pause_s=SLIDE_S)))
    second_s = seconds(lambda: list(map_slides(range(SLIDES * SHARDS), Take, pause_s=shard_s)))
    stages = Stage(Cut, {"pause_s": SLIDE_S}), Stage(Take, {"pause_s": shard_s})
    chain_s = seconds(lambda: list(chain_slides(range(SLIDES), *stages, is_gpu=False)))
    return row(f"both wait, {share:g} x", SLIDES * SHARDS, first_s, second_s, chain_s)


def row(name: str, count: float, tile_s: float, embed_s: float, stream_s: float) -> str:
    """Return a row of the table."""
    return (
        f"| {name} | {count:.0f} | {tile_s:.1f} | {embed_s:.1f} | {stream_s:.1f} "
        f"| {stream_s / max(tile_s, embed_s):.2f} | {stream_s / (tile_s + embed_s):.2f} |"
    )


def job_in(root: Path, *, is_stream: bool) -> Job:
    """Make a job with a store of its own."""
    return Job(build_config({"tiling": {"mpp": 0.5, "encode": "jpeg", "stream": is_stream}}), Store(str(root)))


def seconds(work: Callable[[], object]) -> float:
    """Time some work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def two_passes(root: Path, slides: Sequence[Slide], spec: EncoderSpec, share: float | None) -> tuple[float, ...]:
    """Tile, then embed; return the seconds of both, the pause of a patch, and the number of patches."""
    job = job_in(root, is_stream=False)
    tile_s = seconds(lambda: tile(job, slides))
    patches = tile(job, slides).records
    count = sum(record.rows for record in patches.values())
    pause_s = None if share is None else share * tile_s * cluster_resources()["CPU"] / count
    with waiting(pause_s):
        embed_s = seconds(lambda: embed_job.embed(job, slides, patches, spec))
    return tile_s, embed_s, pause_s or 0.0, count


def one_stream(root: Path, slides: Sequence[Slide], spec: EncoderSpec, pause_s: float | None) -> float:
    """Tile and embed at the same time, and return the seconds."""
    job = job_in(root, is_stream=True)
    with waiting(pause_s):
        return seconds(lambda: stream.tile_ahead(job, slides, spec))


def measure(folder: Path, slides: Sequence[Slide], share: float | None, *, rounds: int) -> str:
    """Time both ways in turn, and return a row of the table."""
    spec = prepare_encoder(job_in(folder, is_stream=False).config.encoder, Store(str(folder)))
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as one, tempfile.TemporaryDirectory(dir=folder) as two:
            tile_s, embed_s, pause_s, count = two_passes(Path(two), slides, spec, share)
            stream_s = one_stream(Path(one), slides, spec, None if share is None else pause_s)
            found.append((tile_s, embed_s, stream_s))
    tile_s, embed_s, stream_s = (statistics.median(column) for column in zip(*found, strict=True))
    name = "texture" if share is None else f"waits {share:g} x the tiling"
    return row(name, count, tile_s, embed_s, stream_s)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=48, help="0: only the rows where both wait")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = options.root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        slides = make_slides(root, options.slides)
        start_ray()
        stack.callback(stop_ray)
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {len(slides)} slides")
        print("| embedding | patches or shards | tile, s | embed, s | one stream, s | / slower of the two | / sum |")
        print("|---|---|---|---|---|---|---|")
        for share in SHARES:
            print(both_wait(share), flush=True)
        for share in (*SHARES, None) if options.slides else ():
            print(measure(root, slides, share, rounds=options.rounds), flush=True)


if __name__ == "__main__":
    main()
