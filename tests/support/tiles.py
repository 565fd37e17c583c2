"""Slides tiled in the tests, and what came of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.errors import SlideError, StorageError
from distmil.storage.records import Record
from distmil.storage.store import Store
from distmil.tiling.shards import decode_image, patches_folder, read_patches
from distmil.tiling.tiler import SlideTiler
from tests.support.slides import save_image, save_pyramid, tissue_image

SIZE = (700, 420)
PIXELS = tissue_image(SIZE, seed=4, box=(90, 60, 610, 390))


def tiling(**values):
    """Lossless small patches of everything, in pixels, sixteen to a shard."""
    defaults = {"strategy": "crop", "patch_px": 64, "mpp": None, "encode": "png", "chunk_patches": 16}
    return TilingConfig(**defaults | values)


def make_slide(tmp_path, *, pixels=PIXELS, name="slide.tif", mpp=None, **values):
    path = tmp_path / name
    if name.endswith(".png"):
        save_image(path, pixels)
    else:
        save_pyramid(path, pixels, mpp=mpp)
    return Slide("s1", str(path), **values)


def tile_slide(slide: Slide, config: TilingConfig, store: Store) -> Record:
    """Make all shards of a slide in this process; a slide that cannot be used becomes a record too."""
    tiler = SlideTiler(slide, config, store)
    done = tiler.finished() or tiler.revived()
    if done:
        return done
    try:
        for chunk in range(tiler.plan()):
            tiler.write_chunk(chunk)
    except (SlideError, FileNotFoundError) as error:
        return tiler.fail(error)
    record = tiler.commit_if_whole()
    if record is None:
        raise StorageError(f"{slide.slide_id}: its shards vanished while it was tiled; does something clean the store?")
    return record


def patches_of(store, config, record):
    folder = f"{patches_folder(config)}/{record.name}"
    return pa.concat_tables([read_patches(store, f"{folder}/{part.name}") for part in record.parts])


def images_of(table):
    return [decode_image(data) for data in table["image"].to_pylist()]


def framed(pixels, margin):
    """An image on white, and how far its corner moved."""
    height, width = pixels.shape[:2]
    frame = np.full((height + 2 * margin, width + 2 * margin, 3), 255, np.uint8)
    frame[margin : margin + height, margin : margin + width] = pixels
    return frame


def contents(root):
    """Every file of a store and its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
