"""Ways from a slide to patches in Parquet: distmil's, and the peers' libraries in a plain loop patch by patch.

Every way writes the same places, 1,024 patches to a shard, JPEG of quality 90 (unless it passes tiles through), each
shard hashed by SHA-256 and synced; a first shard is written before the clock starts. As a program it reads one job as
JSON and prints its figures as JSON: that is what ``tiling.py`` starts, one process for every figure.
"""

import hashlib
import io
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.slides.jpeg_tiles import LevelPlace, open_level
from distmil.storage.store import Store
from distmil.tiling.shards import grid_of
from distmil.tiling.tiler import SlideTiler
from tests.support.tiles import tile_slide

SHARD = 1024
QUALITY = 90
Place = tuple[int, int]


def tile_with_distmil(
    slide: str, folder: Path, values: dict[str, Any], *, is_warmed: bool = False
) -> tuple[int, float]:
    """Plan, write every chunk and commit; return patches and seconds of the chunk loop."""
    config = TilingConfig(**values)
    if is_warmed:
        warm = SlideTiler(Slide("slide", slide), config, Store(str(folder / "warm-up")))
        warm.plan()
        warm.write_chunk(0)
        shutil.rmtree(folder / "warm-up")
    tiler = SlideTiler(Slide("slide", slide), config, Store(str(folder)))
    chunks = tiler.plan()
    started = time.perf_counter()
    for chunk in range(chunks):
        tiler.write_chunk(chunk)
    record = tiler.commit_if_whole()
    assert record is not None
    assert record.ok
    return record.rows, time.perf_counter() - started


def places_of(slide: str, folder: Path, values: dict[str, Any]) -> tuple[list[Place], int]:
    """Return the level-0 corners and the extent of the patches that distmil tiles."""
    config, store = TilingConfig(**values), Store(str(folder))
    record = tile_slide(Slide("slide", slide), config, store)
    grid = grid_of(store, config, record)
    return list(zip(grid["x"].to_pylist(), grid["y"].to_pylist(), strict=True)), record.info["extent_px"]


def tile_by_patch(
    read: Callable[[int, int, int], Image.Image], places: list[Place], extent: int, patch_px: int, folder: Path
) -> tuple[int, float]:
    """Read, resample, encode and write patch by patch, as the peers do."""
    started = time.perf_counter()
    for shard, start in enumerate(range(0, len(places), SHARD)):
        rows = []
        for x, y in places[start : start + SHARD]:
            patch = read(x, y, extent)
            if extent != patch_px:
                patch = patch.resize((patch_px, patch_px), Image.Resampling.LANCZOS)
            data = io.BytesIO()
            patch.save(data, "JPEG", quality=QUALITY)
            rows.append({"x": x, "y": y, "image": data.getvalue()})
        path = folder / f"part-{shard:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
            os.fsync(file.fileno())
    return len(places), time.perf_counter() - started


def open_peer(name: str, slide: str) -> Callable[[int, int, int], Image.Image]:
    """Return a function from corner and extent to the patch at level 0. Raises: ImportError if it is not installed."""
    if name == "openslide":
        import openslide

        handle = openslide.OpenSlide(slide)
        return lambda x, y, edge: handle.read_region((x, y), 0, (edge, edge)).convert("RGB")
    if name == "tiffslide":
        import tiffslide

        tiff = tiffslide.TiffSlide(slide)
        return lambda x, y, edge: tiff.read_region((x, y), 0, (edge, edge)).convert("RGB")
    if name == "pyvips":
        import pyvips

        image = pyvips.Image.new_from_file(slide, access="random")
        padded = image.embed(0, 0, image.width + 1024, image.height + 1024, extend="white")
        region = pyvips.Region.new(padded)
        return lambda x, y, edge: Image.frombytes("RGB", (edge, edge), bytes(region.fetch(x, y, edge, edge)))
    from cucim.clara import CuImage

    cu_image = CuImage(slide)
    return lambda x, y, edge: Image.fromarray(np.asarray(cu_image.read_region((x, y), (edge, edge), level=0)))


def code_alone(slide: str, places: list[Place], extent: int) -> tuple[int, float]:
    """Decode the tiles of these places and encode them again with simplejpeg, nothing else."""
    with open_level(slide, LevelPlace(_size(slide), 1.0), size=_size(slide)) as tiles:
        stored = [data for x, y in places if (data := tiles.stored(x, y, edge_px=extent))]
    for data in stored[:SHARD]:
        simplejpeg.encode_jpeg(simplejpeg.decode_jpeg(data, "RGB"), QUALITY, "RGB")
    started = time.perf_counter()
    for data in stored:
        pixels = simplejpeg.decode_jpeg(data, "RGB")
        simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", colorsubsampling="420", fastdct=False)
    return len(stored), time.perf_counter() - started


def _size(slide: str) -> tuple[int, int]:
    import openslide

    with openslide.OpenSlide(slide) as handle:
        width, height = handle.dimensions
        return width, height


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run one way once."""
    cv2.setNumThreads(1)
    folder, values = Path(job["folder"]), dict(job["tiling"])
    if job["way"] == "distmil":
        patches, seconds = tile_with_distmil(job["slide"], folder, values, is_warmed=True)
    else:
        places = [tuple(place) for place in job["places"]]
        if job["way"] == "codec":
            patches, seconds = code_alone(job["slide"], places, job["extent"])
        else:
            read = open_peer(job["way"], job["slide"])
            tile_by_patch(read, places[:SHARD], job["extent"], values["patch_px"], folder)
            patches, seconds = tile_by_patch(read, places, job["extent"], values["patch_px"], folder)
    written = sum(path.stat().st_size for path in _files(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"patches": patches, "seconds": seconds, "mb": written / 1e6, "peak_mb": peak}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.parquet") if path.is_file())


if __name__ == "__main__":
    try:
        print(json.dumps(run(json.loads(sys.stdin.read()))))
    except ImportError as error:
        print(json.dumps({"missing": error.name}))
