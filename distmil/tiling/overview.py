"""The small picture of a slide with its tissue mask that is kept beside its patches, for reports."""

import cv2
import numpy as np
from numpy.typing import NDArray

from distmil.errors import StorageError
from distmil.slides import jpeg

OVERVIEW_FILE, TISSUE_FILE = "overview.jpg", "tissue.png"
MAX_PX = 1024
_QUALITY = 85


def encode_overview(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> tuple[dict[str, bytes], float]:
    """Return the files of a picture (RGB, H x W x 3) and its mask (H x W), and how much smaller they were made."""
    height, width = mask.shape
    factor = max(1.0, max(width, height) / MAX_PX)
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    covered = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    png = cv2.imencode(".png", np.where(covered >= 128, 255, 0).astype(np.uint8))[1]
    return {OVERVIEW_FILE: jpeg.encode(small, quality=_QUALITY), TISSUE_FILE: bytes(png)}, width / size[0]


def decode_overview(overview: bytes, tissue: bytes) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the picture and the mask of their files. Raises: StorageError if they are damaged."""
    mask = cv2.imdecode(np.frombuffer(tissue, np.uint8), cv2.IMREAD_GRAYSCALE) if tissue else None
    try:
        picture = jpeg.decode(overview)
    except ValueError as error:
        raise StorageError(f"a stored overview cannot be decoded: {error}") from error
    if mask is None or mask.shape != picture.shape[:2]:
        raise StorageError("a stored tissue mask cannot be decoded")
    return picture, mask > 0
