"""Slides for the benchmarks, made from a seed: tissue of the demo's making with a camera's noise, as tiled JPEG."""

from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from distmil.demo.drawing import draw_slide
from distmil.slides import jpeg

Pixels = NDArray[np.uint8]
TILE_PX = 256
_PIECE_PX = 512
_NOISE = 8.0  # grey levels; with it a tile of tissue takes the bytes that it takes on a scanner, about 18 kB


def make_slide(path: Path, *, edge_px: int = 20_000, mpp: float = 0.25, seed: int = 0, tissue: float = 0.45) -> Path:
    """Write a slide of edge_px x 0.9 edge_px with levels 1, 4 and 16, if it is not there; tissue covers that share."""
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    width, height = edge_px, round(edge_px * 0.9)
    pixels = np.full((height, width, 3), 243, np.uint8)
    pieces = _pieces(rng)
    is_tissue = _blobs(rng, (-(-height // _PIECE_PX), -(-width // _PIECE_PX)), tissue)
    for row, column in zip(*np.nonzero(is_tissue), strict=True):
        piece = np.rot90(pieces[rng.integers(len(pieces))], rng.integers(4))
        spot = pixels[row * _PIECE_PX : (row + 1) * _PIECE_PX, column * _PIECE_PX : (column + 1) * _PIECE_PX]
        noise = rng.normal(0, _NOISE, (_PIECE_PX, _PIECE_PX, 1)).astype(np.int16)
        spot[...] = np.clip(piece + noise, 0, 255)[: spot.shape[0], : spot.shape[1]]
    partial = path.with_suffix(".partial")
    with tifffile.TiffWriter(partial, bigtiff=True) as file:
        for downsample in (1, 4, 16):
            size = (width // downsample, height // downsample)
            level = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if downsample > 1 else pixels
            file.write(
                level,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 80, "subsampling": (2, 2), "outcolorspace": "YCBCR"},
                resolution=(1e4 / mpp / downsample,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(downsample > 1),
                metadata=None,
            )
    partial.replace(path)
    return path


def make_giant(path: Path, *, edge_px: int = 100_000, mpp: float = 0.25, seed: int = 0) -> Path:
    """Write a slide of one level, if it is not there: a tenth of it tissue, and no tile for the rest."""
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    pieces = [cv2.resize(piece, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA) for piece in _pieces(rng)]
    coded = [jpeg.encode(piece, quality=80) for piece in pieces]
    tiles = -(-edge_px // TILE_PX)
    is_tissue = _blobs(rng, (tiles, tiles), 0.1)
    data = (coded[rng.integers(len(coded))] if found else b"" for found in is_tissue.ravel())
    partial = path.with_suffix(".partial")
    with tifffile.TiffWriter(partial, bigtiff=True) as file:
        file.write(
            data,
            shape=(edge_px, edge_px, 3),
            dtype="uint8",
            tile=(TILE_PX, TILE_PX),
            photometric="rgb",
            compression="zlib",  # put right below: the tiles come coded
            resolution=(1e4 / mpp, 1e4 / mpp),
            resolutionunit="CENTIMETER",
            metadata=None,
        )
    with tifffile.TiffFile(partial, mode="r+") as written:
        written.pages[0].tags["Compression"].overwrite(7)
        written.pages[0].tags["PhotometricInterpretation"].overwrite(6)
    partial.replace(path)
    return path


def _pieces(rng: np.random.Generator) -> list[Pixels]:
    """Return squares that are full of tissue."""
    found = []
    while len(found) < 24:
        drawn, _ = draw_slide(rng, is_positive=bool(rng.integers(2)), has_island=False)
        for row in range(0, drawn.shape[0] - _PIECE_PX, _PIECE_PX // 2):
            for column in range(0, drawn.shape[1] - _PIECE_PX, _PIECE_PX // 2):
                piece = drawn[row : row + _PIECE_PX, column : column + _PIECE_PX]
                if (piece.max(axis=2) > 235).mean() < 0.1:
                    found.append(piece)
    return found


def _blobs(rng: np.random.Generator, shape: tuple[int, int], share: float) -> NDArray[np.bool_]:
    """Return smooth blobs that cover a share of a grid, clear of its border."""
    field = cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), max(shape) / 12)
    field[[0, -1]] = field[:, [0, -1]] = field.min()
    return np.asarray(field > np.quantile(field, 1 - share))
