"""Small slides for the tests, never square: H&E-like tissue on white, as plain images and as tiled pyramids."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def tissue_image(size: tuple[int, int], *, seed: int = 0, box: tuple[int, int, int, int] | None = None) -> Pixels:
    """White, with purple noise in a box (left, top, right, bottom); everywhere without one."""
    width, height = size
    generator = np.random.default_rng(seed)
    left, top, right, bottom = box or (0, 0, width, height)
    image = np.full((height, width, 3), 255, np.uint8)
    noise = generator.integers(-40, 40, (bottom - top, right - left, 3))
    image[top:bottom, left:right] = (np.array([170, 90, 160]) + noise).astype(np.uint8)
    return image


def save_image(path: Path, pixels: Pixels, **options: Any) -> Path:
    """Save as a plain image by the path's extension."""
    Image.fromarray(pixels).save(path, **options)
    return path


def save_pyramid(
    path: Path, pixels: Pixels, *, mpp: float | None = None, downsamples: tuple[int, ...] = (1,), **options: Any
) -> Path:
    """Save as a tiled, lossless TIFF that OpenSlide reads, one page per level."""
    height, width = pixels.shape[:2]
    with tifffile.TiffWriter(path) as file:
        for downsample in downsamples:
            level = cv2.resize(pixels, (width // downsample, height // downsample), interpolation=cv2.INTER_AREA)
            resolution: dict[str, Any] = {}
            if mpp:
                resolution = {"resolution": (1e4 / (mpp * downsample),) * 2, "resolutionunit": "CENTIMETER"}
            file.write(
                level,
                tile=(64, 64),
                photometric="rgb",
                compression="deflate",
                subfiletype=int(downsample > 1),
                metadata=None,
                **resolution,
                **options,
            )
    return path
