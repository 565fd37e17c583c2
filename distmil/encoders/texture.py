"""A handcrafted patch encoder that needs no weights: stain, colour and texture of one H&E patch at a time.

Legend: N patches, H rows, W columns, C channels, P pixels (H x W).

Every value is a mean over the patch or a function of such means, so patches of any size compare at equal um/px; all are
O(1) for float16. Each patch is computed alone: it gets the same bits in any batch. Flips and quarter turns change
nothing but rounding. Column 0 is the mean optical density of hematoxylin, times 4.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from distmil.encoders.stains import DENSITY, UNMIX

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Values = NDArray[np.float64]

DIMENSION = 561
MIN_EDGE_PX = 16

_TO_STAIN = np.vstack([UNMIX.T, np.full(3, 1 / 3)]).astype(np.float32)  # the fourth row is the mean density

_SCALES_PX = (1.0, 2.0, 4.0)  # sigma of the Gaussian derivatives
_NUM_MAPS = 3 + 2 * 3 * len(_SCALES_PX)  # three densities; three derivatives of hematoxylin and eosin at each scale


@dataclass(frozen=True)
class _Shape:
    """Scale-normalised Gaussian derivatives of an optical density at one sigma, each H x W, blind to rotation."""

    gradient: Floats  # its length
    laplacian: Floats  # sum of the Hessian's eigenvalues: above 0 where lighter than the surroundings
    anisotropy: Floats  # difference of the Hessian's eigenvalues, never negative


def texture(images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe H&E patches by stain, colour and texture, without weights.

    Args:
        images_NHWC: RGB patches, N x H x W x 3, uint8, both edges at least 16 px.

    Returns:
        N x DIMENSION, finite, O(1).

    Raises:
        ValueError: If the array is not N x H x W x 3 of uint8, or an edge is too short.
    """
    shape, dtype = images_NHWC.shape, images_NHWC.dtype
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or min(shape[1:3]) < MIN_EDGE_PX:
        raise ValueError(
            f"patches are {shape} of {dtype}; expected N x H x W x 3 of uint8 with edges of at least {MIN_EDGE_PX} px: "
            "tile with a larger patch_px, or convert to RGB bytes"
        )
    maps = _Maps(_NUM_MAPS, shape[1] * shape[2])
    described = [_describe(np.ascontiguousarray(image_HWC), maps) for image_HWC in images_NHWC]
    return np.array(described, np.float32).reshape(-1, DIMENSION)


def _describe(image_HWC: Bytes, maps: "_Maps") -> Floats:
    """Describe one patch by all groups of values; ``maps`` is room for its maps, used again for each patch."""
    hematoxylin_HW, eosin_HW, residual_HW, total_HW = _densities(image_HWC)
    maps.clear()
    for density_HW in (hematoxylin_HW, eosin_HW, residual_HW):
        maps.add(density_HW)
    groups = [
        *_symmetries(hematoxylin_HW, flat=0.04, maps=maps),  # both thresholds chosen on folds inside train
        *_symmetries(total_HW, flat=0.02),
        *_colours(image_HWC, hematoxylin_HW, eosin_HW, total_HW),
        _nuclei(hematoxylin_HW),
    ]
    for sigma_px in _SCALES_PX:
        maps.add_shape(_shape(eosin_HW, sigma_px))
    return np.concatenate([*maps.covariance(), *groups]).astype(np.float32)


def _densities(image_HWC: Bytes) -> list[Floats]:
    """Optical density of hematoxylin, eosin and residual (Ruifrok & Johnston 2001), and the mean of R, G and B."""
    stain_HWC = cv2.transform(cv2.LUT(image_HWC, DENSITY), _TO_STAIN)
    return [_floats(density_HW) for density_HW in cv2.split(stain_HWC)]


def _floats(array: object) -> Floats:
    """Give what OpenCV returns its type."""
    return np.asarray(array, np.float32)


def _shape(density_HW: Floats, sigma_px: float) -> _Shape:
    """Differentiate at one scale; sigma and its square make scales comparable (Lindeberg 1998)."""
    size_px = 2 * math.ceil(3 * sigma_px) + 1
    smooth_HW = cv2.GaussianBlur(density_HW, (size_px, size_px), sigma_px)
    x, y = (_floats(cv2.Sobel(smooth_HW, -1, dx, 1 - dx, scale=sigma_px / 8)) for dx in (1, 0))
    xx, yy = (_floats(cv2.Sobel(smooth_HW, -1, dx, 2 - dx, scale=sigma_px**2 / 4)) for dx in (2, 0))
    twice_xy = _floats(cv2.Sobel(smooth_HW, -1, 1, 1, scale=sigma_px**2 / 2))
    laplacian = xx + yy
    xx -= yy
    return _Shape(gradient=_length(x, y), laplacian=laplacian, anisotropy=_length(xx, twice_xy))


def _length(x_HW: Floats, y_HW: Floats) -> Floats:
    """Length of a vector, in place of ``x_HW``; ``y_HW`` is spoilt.

    Not cv2.magnitude: its last bit depends on where the arrays happen to lie in memory.
    """
    np.multiply(x_HW, x_HW, out=x_HW)
    np.multiply(y_HW, y_HW, out=y_HW)
    np.add(x_HW, y_HW, out=x_HW)
    return np.sqrt(x_HW, out=x_HW)


class _Maps:
    """Collects C maps of a patch, each centred while the processor's cache still holds it."""

    def __init__(self, num_maps: int, num_pixels: int) -> None:
        self._centred_CP = np.zeros((-(-num_maps // 8) * 8, num_pixels), np.float32)  # products like whole eights
        self._means: list[float] = []

    def clear(self) -> None:
        """Make room for another patch."""
        self._means.clear()

    def add(self, map_HW: Floats) -> None:
        """Take a map."""
        mean = cv2.mean(map_HW)[0]
        np.subtract(map_HW.ravel(), np.float32(mean), out=self._centred_CP[len(self._means)])
        self._means.append(mean)

    def add_shape(self, shape: _Shape) -> None:
        """Take the three maps of a shape."""
        for map_HW in (shape.gradient, shape.laplacian, shape.anisotropy):
            self.add(map_HW)

    def covariance(self) -> list[Values]:
        """Means of the maps, and the C (C + 1) / 2 values of the matrix logarithm of their covariance.

        Source: Tuzel 2006 (region covariance), Arsigny 2006 (its logarithm). Departures: Gaussian derivatives at three
        scales, no pixel positions, and 1e-5 added to the eigenvalues, so that a blank patch has a logarithm.
        """
        map_CP, count = self._centred_CP, len(self._means)
        covariance_CC = (map_CP @ map_CP.T)[:count, :count].astype(np.float64) / map_CP.shape[1]
        value_C, vector_CC = np.linalg.eigh(covariance_CC)
        log_CC = (vector_CC * np.log(np.maximum(value_C, 0) + 1e-5)) @ vector_CC.T
        return [4 * np.array(self._means), log_CC[np.triu_indices(count)]]


def _symmetries(density_HW: Floats, *, flat: float, maps: _Maps | None = None) -> list[Values]:
    """Frequencies of basic image features at each scale, and jointly at neighbouring scales.

    Source: Crosier & Griffin 2010. Departure: pairs of neighbouring scales instead of columns through all scales.

    Args:
        density_HW: An optical density.
        flat: Score of a flat place.
        maps: Takes the derivatives too.
    """
    codes = []
    for sigma_px in _SCALES_PX:
        shape = _shape(density_HW, sigma_px)
        if maps is not None:
            maps.add_shape(shape)
        codes.append(_basic_features(shape, flat=flat))
    pairs = [_counts(fine_HW * np.uint8(7) + coarse_HW, 49).reshape(7, 7) for fine_HW, coarse_HW in pairwise(codes)]
    singles = [*(pair.sum(axis=1) for pair in pairs), pairs[-1].sum(axis=0)]
    return [np.sqrt(counts.ravel() / density_HW.size) for counts in (*singles, *pairs)]


def _basic_features(shape: _Shape, *, flat: float) -> Bytes:
    """Name each pixel's local symmetry by the largest of seven scores (Crosier & Griffin 2010), H x W.

    0 flat, 1 slope, 2 and 3 light and dark blob, 4 and 5 light and dark line, 6 saddle. Of each blob and line only
    the sign of the Laplacian can win, so five scores do. Names rise with the tests: the largest is the last winner.
    """
    slope_HW, blob_HW = 2 * shape.gradient, np.abs(shape.laplacian)
    line_HW = shape.anisotropy + blob_HW
    line_HW *= np.float32(0.5**0.5)
    dark_HW = (shape.laplacian < 0).view(np.uint8)
    best_HW, code_HW = np.full(blob_HW.shape, flat, np.float32), np.zeros(blob_HW.shape, np.uint8)
    scores = ((slope_HW, 1), (blob_HW, 2 + dark_HW), (line_HW, 4 + dark_HW), (shape.anisotropy, 6))
    for score_HW, name in scores:
        is_better_HW = (score_HW > best_HW).view(np.uint8)
        np.maximum(code_HW, is_better_HW * np.uint8(name), out=code_HW)
        np.maximum(best_HW, score_HW, out=best_HW)
    return code_HW


def _colours(image_HWC: Bytes, hematoxylin_HW: Floats, eosin_HW: Floats, total_HW: Floats) -> list[Values]:
    """Histograms of hue (blue to red, weighted by saturation), saturation, and optical densities."""
    hsv_HWC = np.asarray(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2HSV), np.uint8)
    count_HS = np.asarray(cv2.calcHist([hsv_HWC], [0, 1], None, [30, 256], [0, 180, 0, 256]), np.float64)
    weight = count_HS[15:] @ np.arange(256) / 255
    saturation = np.add.reduceat(count_HS.sum(axis=0), np.arange(0, 256, 26))
    return [
        np.sqrt(weight / total_HW.size),
        np.sqrt(saturation / total_HW.size),
        _frequencies(_bins(hematoxylin_HW, low=-0.1, high=0.9, count=12), 12),
        _frequencies(_bins(eosin_HW, low=-0.2, high=0.6, count=12), 12),
        _frequencies(_bins(total_HW, low=0.0, high=1.0, count=12), 12),
    ]


def _bins(values_HW: Floats, *, low: float, high: float, count: int) -> Bytes:
    """Number the bin of each value; what lies outside falls into the first or the last."""
    scaled_HW = values_HW - np.float32(low)
    scaled_HW *= np.float32(count / (high - low))
    np.clip(scaled_HW, 0, count - 1, out=scaled_HW)
    return scaled_HW.astype(np.uint8)


def _frequencies(code_HW: Bytes, count: int) -> Values:
    """Count codes; the square root makes distances those of Hellinger and lifts what is rare."""
    return np.sqrt(_counts(code_HW, count) / code_HW.size)


def _counts(code_HW: Bytes, count: int) -> Values:
    """Count how often each code from 0 on is there."""
    return np.asarray(cv2.calcHist([code_HW], [0], None, [count], [0, count]), np.float64).ravel()


def _nuclei(hematoxylin_HW: Floats) -> Values:
    """Threshold (Otsu 1979), density, size, shape and darkness of the hematoxylin blobs of at least 8 px."""
    smooth_HW = _bins(_floats(cv2.GaussianBlur(hematoxylin_HW, (0, 0), 1.0)), low=0.0, high=1.0, count=256)
    otsu, mask = cv2.threshold(smooth_HW, 0, 1, cv2.THRESH_OTSU)
    mask_HW = np.asarray(mask, np.uint8)
    blobs = np.asarray(cv2.connectedComponentsWithStats(mask_HW, connectivity=4)[2], np.float64)[1:]
    blobs = blobs[blobs[:, cv2.CC_STAT_AREA] >= 8]
    if not len(blobs):
        return np.append(otsu / 255, np.zeros(9))
    area, edges = blobs[:, cv2.CC_STAT_AREA], blobs[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
    log_area = np.log(area) / 4
    depth_HW = np.minimum(cv2.distanceTransform(mask_HW, cv2.DIST_L2, 3), MIN_EDGE_PX)  # has no bound of its own
    described = [
        otsu / 255,
        mask_HW.mean(),
        np.sqrt(100 * len(area) / mask_HW.size),
        log_area.mean(),
        log_area.std(),
        (area * log_area).sum() / area.sum(),  # size of the blob that a dark pixel is in
        (area / edges.prod(axis=1)).mean(),  # how much of its box a blob fills
        (edges.min(axis=1) / edges.max(axis=1)).mean(),  # how round it is
        np.log1p(depth_HW.sum() / mask_HW.sum()),
        hematoxylin_HW[mask_HW > 0].mean(),
    ]
    return np.array(described, np.float64)
