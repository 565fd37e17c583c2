"""Tiled JPEG TIFFs with the traps that scanners set: tables apart, RGB that does not say so, missing tiles."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
YCBCR, RGB = 6, 2
_TABLES = {0xDB, 0xC4}
_APPLICATION = set(range(0xE0, 0xF0))


def save_jpeg_tiff(
    path: Path,
    pixels: Pixels,
    *,
    tile: tuple[int, int] = (64, 64),
    mpp: float | None = None,
    downsamples: Sequence[int] = (1,),
    photometric: int = YCBCR,
    subsampling: tuple[int, int] = (2, 2),
    has_tables: bool = False,
    missing: Collection[tuple[int, int]] = (),
    change: Callable[[bytes], bytes] = lambda data: data,
    quality: int = 80,
    tags: Sequence[tuple[int, int, int, str, bool]] = (),
) -> Path:
    """Save a pyramid of JPEG tiles.

    Args:
        path: The file.
        pixels: Level 0.
        tile: Width and height.
        mpp: Resolution of level 0.
        downsamples: Of the levels.
        photometric: YCBCR, or RGB: then no marker in the tiles says that they hold RGB.
        subsampling: Of YCbCr tiles, horizontal and vertical.
        has_tables: Keep quantisation and Huffman tables in the JPEGTables tag, as Aperio does.
        missing: (row, column) of the tiles that no level holds.
        change: What happens to every coded tile.
        quality: Of the tiles.
        tags: More tags of level 0, as tifffile takes them.
    """
    with tifffile.TiffWriter(path) as file:
        for downsample in downsamples:
            size = (pixels.shape[1] // downsample, pixels.shape[0] // downsample)
            level = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            coded = [encode_tile(part, photometric, subsampling, quality) for part in _cut(level, tile)]
            tables = _only(coded[0], _TABLES) if has_tables else b""
            columns = -(-size[0] // tile[0])
            data = [
                b"" if divmod(i, columns) in missing else change(_without(one, _TABLES) if has_tables else one)
                for i, one in enumerate(coded)
            ]
            resolution: dict[str, Any] = {}
            if mpp:
                resolution = {"resolution": (1e4 / (mpp * downsample),) * 2, "resolutionunit": "CENTIMETER"}
            file.write(
                iter(data),
                shape=level.shape,
                dtype="uint8",
                tile=(tile[1], tile[0]),
                photometric="rgb",
                compression="zlib",  # tags that are put right below: the tiles come coded
                subfiletype=int(downsample > 1),
                metadata=None,
                extratags=[
                    *([(347, 7, len(tables), tables, True)] if tables else []),
                    *(tags if downsample == 1 else []),
                ],
                **resolution,
            )
    with tifffile.TiffFile(path, mode="r+") as written:
        for page in written.pages:
            page.tags["Compression"].overwrite(7)
            page.tags["PhotometricInterpretation"].overwrite(photometric)
    return path


def encode_tile(pixels: Pixels, photometric: int, subsampling: tuple[int, int], quality: int) -> bytes:
    """Encode one tile, without the markers that say its colours."""
    colours = {"colorspace": "RGB", "outcolorspace": "RGB" if photometric == RGB else "YCBCR"}
    chroma = (1, 1) if photometric == RGB else subsampling
    coded = imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), quality, subsampling=chroma, **colours)
    return _without(bytes(coded), _APPLICATION)


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and bytes of every segment before the scan; what follows comes last, as the scan's."""
    position = 2
    while True:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            yield marker, data[position:]
            return
        yield marker, data[position : position + 2 + length]
        position += 2 + length


def _without(data: bytes, markers: set[int]) -> bytes:
    return data[:2] + b"".join(part for marker, part in segments(data) if marker not in markers)


def _only(data: bytes, markers: set[int]) -> bytes:
    return data[:2] + b"".join(part for marker, part in segments(data) if marker in markers) + b"\xff\xd9"


def _cut(level: Pixels, tile: tuple[int, int]) -> Iterator[Pixels]:
    """Yield tiles row by row, the last ones padded by their edge."""
    width, height = tile
    rows, columns = -(-level.shape[0] // height), -(-level.shape[1] // width)
    down, right = rows * height - level.shape[0], columns * width - level.shape[1]
    padded = np.pad(level, ((0, down), (0, right), (0, 0)), mode="edge")
    for row in range(0, padded.shape[0], height):
        for column in range(0, padded.shape[1], width):
            yield padded[row : row + height, column : column + width]
