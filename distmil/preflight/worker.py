"""The child processes that look at slides and annotations ahead: whatever a file holds, it costs them at most."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.defects import failure_record
from distmil.labels import annotation_worker
from distmil.preflight.timing import idle_clock
from distmil.slides.grid import plan_read
from distmil.slides.reader import open_slide, resolve_mpp
from distmil.tiling.plan import open_reading, plan_tiling
from distmil.tiling.shards import encode_shard
from distmil.tiling.tiler import cut_patches

Request = tuple[Slide, TilingConfig, int, str | None]
"""The slide, how it is tiled, the most patches to cut as a trial, and a file for them; 0: the slide is only opened."""


def look(request: Request) -> dict[str, Any]:
    """Look at a slide.

    Returns:
        ``status`` and ``error`` as tiling would give them, ``size`` and ``bounds`` where the file could be opened, its
        ``mpp``; and of a trial ``num_patches`` of the whole slide, ``num_cut``, their ``num_bytes``, and the seconds
        ``plan_s`` and ``cut_s``.
    """
    cv2.setNumThreads(1)
    slide, config, num_cut, file = request
    found: dict[str, Any] = {"status": "ok"}
    try:
        _open(slide, config, found)
        if num_cut:
            found |= _try(slide, config, num_cut, file)
    except Exception as error:  # noqa: BLE001 (what tiling makes of it, too)
        record = failure_record(slide.slide_id, error, hidden=(slide.path, slide.tissue_path))
        found |= {"status": record.status, "error": record.error}
    return found


def read(request: dict[str, Any]) -> dict[str, Any]:
    """Read an annotation as labelling does, and return the answer with its ``seconds``."""
    started = idle_clock()
    answer = annotation_worker.work(request)
    return answer | {"seconds": idle_clock() - started}


def _open(slide: Slide, config: TilingConfig, found: dict[str, Any]) -> None:
    """Open a slide into ``found``, and check its resolution. Raises: SlideError."""
    with open_slide(slide.path, reader=config.reader) as image:
        found |= {"size": list(image.size), "bounds": image.bounds and list(image.bounds)}
        if config.mpp is None:
            return
        found["mpp"] = resolve_mpp(image, given=slide.mpp, default=config.default_mpp)
        plan_read(
            image.downsamples,
            slide_mpp=found["mpp"],
            mpp=config.mpp,
            tolerance=config.mpp_tolerance,
            patch_px=config.patch_px,
            stride_px=config.stride,
        )


def _bytes_of_places(grid: pa.Table, config: TilingConfig) -> float:
    """Return the bytes of one patch in a shard without pixels: of the few that were cut most would be the header's."""
    grid = grid.slice(0, config.chunk_patches)
    checksums = np.random.default_rng(0).integers(0, 2**32, grid.num_rows, np.uint32)
    table = grid.append_column("mpp", pa.array([config.mpp] * grid.num_rows, pa.float32()))
    return float(len(encode_shard(table.append_column("checksum", pa.array(checksums)))) / grid.num_rows)


def _try(slide: Slide, config: TilingConfig, num_cut: int, file: str | None) -> dict[str, Any]:
    """Plan a slide and cut some of its patches, of its middle. Raises: SlideError."""
    started = idle_clock()
    plan = plan_tiling(slide, config)
    planned = idle_clock()
    size = (plan.info["width_px"], plan.info["height_px"])
    grid = plan.grid.slice(max(0, (plan.grid.num_rows - num_cut) // 2), num_cut)
    with open_reading(slide, plan.reading, reader=config.reader, size=size) as image:
        data = encode_shard(cut_patches(image, plan.reading, grid, config))
        cut = idle_clock()
        if file is not None:  # a trial of the encoder needs pixels, however patches are stored
            with_images = config.model_copy(update={"store": "image"})
            Path(file).write_bytes(encode_shard(cut_patches(image, plan.reading, grid, with_images)))
    return {
        "num_patches": plan.grid.num_rows,
        "num_cut": grid.num_rows,
        "num_bytes": len(data) if config.store == "image" else _bytes_of_places(plan.grid, config) * grid.num_rows,
        "plan_s": planned - started,
        "cut_s": cut - planned,
    }
