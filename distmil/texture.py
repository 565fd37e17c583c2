"""A handcrafted patch encoder that needs no weights: stain, colour and texture of one H&E patch at a time.

Legend: N patches, H rows, W columns, C channels, P pixels (H x W).

Values are means over the patch, or functions of such means, so that patches of different size compare at equal um/px; all are
O(1) for float16. Each patch is computed alone and gets the same bits in any batch. Flips and quarter turns change
nothing but rounding.
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
Codes = NDArray[np.uint8]
Values = NDArray[np.float64]

_MIN_EDGE_PX = 16
_SCALES_PX = (1.0, 2.0, 4.0)  # sigma of the Gaussian derivatives

# Ruifrok & Johnston 2001: optical density of pure hematoxylin, eosin and a residual stain in (R, G, B)
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_UNMIX = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)).T.astype(np.float32)
_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)


@dataclass(frozen=True)
class _Stain:
    """Optical densities of one patch: hematoxylin, eosin and residual, each H x W, and the mean over R, G and B."""

    hematoxylin: Map
    eosin: Map
    residual: Map
    density: Map


@dataclass(frozen=True)
class _Shape:
    """Scale-normalised Gaussian derivatives of one map at one sigma, each H x W, whatever the rotation."""

    gradient: Map  # magnitude of the first derivative
    laplacian: Map  # sum of the Hessian's eigenvalues: positive in a valley
    anisotropy: Map  # difference of the Hessian's eigenvalues, >= 0


def _stain(image_HWC: Codes) -> _Stain:
    """Separate the stains of an RGB patch (Ruifrok & Johnston 2001), with fixed stain vectors."""
    density_HWC = _DENSITY[image_HWC]
    hematoxylin, eosin, residual = cv2.split(cv2.transform(density_HWC, _UNMIX))
    mean = cv2.transform(density_HWC, np.full((1, 3), 1 / 3, np.float32))
    return _Stain(_map(hematoxylin), _map(eosin), _map(residual), _map(mean))


def _map(array: object) -> Map:
    """Give an OpenCV result its type."""
    return np.asarray(array, np.float32)


def _shape(stain_HW: Map, sigma_px: float) -> _Shape:
    """Differentiate at one scale; sigma and its square make scales comparable (Lindeberg 1998)."""
    smooth = cv2.GaussianBlur(stain_HW, (0, 0), sigma_px)
    x, y = (cv2.Sobel(smooth, -1, dx, 1 - dx, scale=sigma_px / 8) for dx in (1, 0))
    xx, yy, xy = (cv2.Sobel(smooth, -1, dx, 2 - dx, scale=sigma_px**2 / 4) for dx in (2, 0, 1))
    return _Shape(_map(cv2.magnitude(x, y)), _map(xx + yy), _map(cv2.magnitude(xx - yy, 2 * xy)))


def _frequencies(codes: Codes, bins: int) -> Values:
    """Count codes; the square root makes distances those of Hellinger and lifts rare codes."""
    return np.sqrt(np.bincount(codes.ravel(), minlength=bins) / codes.size)


def _binned(values_HW: Map, low: float, high: float, bins: int) -> Codes:
    """Number the bin of each value; what lies outside falls in the first or the last."""
    return np.clip((values_HW - low) * (bins / (high - low)), 0, bins - 1).astype(np.uint8)


def _colours(image_HWC: Codes, stain: _Stain) -> list[Values]:
    """Histograms of hue (weighted by saturation, from cyan to red), saturation, and the optical densities."""
    hue, saturation, _ = cv2.split(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2HSV))
    weight = np.bincount(np.asarray(hue).ravel() // 6, np.asarray(saturation).ravel() / 255.0, minlength=30)
    return [
        np.sqrt(weight[15:30] / hue.size),
        _frequencies(np.asarray(saturation, np.uint8) // 26, 10),
        _frequencies(_binned(stain.hematoxylin, -0.1, 0.9, 12), 12),
        _frequencies(_binned(stain.eosin, -0.2, 0.6, 12), 12),
        _frequencies(_binned(stain.density, 0, 1, 12), 12),
    ]


_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))  # (dy, dx), around the ring


def _uniform_codes() -> Codes:
    """Map 8-bit ring patterns to the number of set bits where uniform (at most two changes), else to 9."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    changes = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), 9).astype(np.uint8)


_UNIFORM = _uniform_codes()


def _binary_patterns(stain_HW: Map, radius: int, sigma_px: float) -> Values:
    """Rotation-invariant uniform local binary patterns (Ojala 2002), split by a centre above or below the mean.

    Departures: whole-pixel neighbours instead of interpolated ones; a tolerance of 0.01 against noise in blank areas.
    """
    smooth = _map(cv2.GaussianBlur(stain_HW, (0, 0), sigma_px)) if sigma_px else stain_HW
    rows, columns = (edge - 2 * radius for edge in smooth.shape)
    centre = smooth[radius : radius + rows, radius : radius + columns]
    threshold = centre + np.float32(0.01)
    code = np.zeros(centre.shape, np.uint8)
    diagonal = max(1, round(radius * 0.7071))
    for bit, (dy, dx) in enumerate(_NEIGHBOURS):
        reach = diagonal if dy and dx else radius
        top, left = radius + dy * reach, radius + dx * reach
        code |= (smooth[top : top + rows, left : left + columns] >= threshold).view(np.uint8) << bit
    return _frequencies(_UNIFORM[code] + (centre > centre.mean()) * np.uint8(10), 20)


def _basic_features(shape: _Shape, flat: float) -> Codes:
    """Name each pixel's local symmetry (Crosier & Griffin 2010): the largest of seven scores.

    0 flat, 1 slope, 2 and 3 dark and light blob, 4 and 5 dark and light line, 6 saddle. The weaker sign of a blob or line never wins, so that
    one score with the sign of the Laplacian stands for both.
    """
    blob = np.abs(shape.laplacian)
    sign = (shape.laplacian < 0).view(np.uint8)
    best, code = np.full(blob.shape, flat, np.float32), np.zeros(blob.shape, np.uint8)
    line = (shape.anisotropy + blob) * np.float32(0.5**0.5)
    for score, name in ((2 * shape.gradient, 1), (blob, 2 + sign), (line, 4 + sign), (shape.anisotropy, 6)):
        code = np.where(score > best, np.uint8(name), code)
        best = np.maximum(best, score)
    return code


def _symmetries(shapes: list[_Shape]) -> list[Values]:
    """Frequencies of basic image features at each scale and jointly at neighbouring scales (Crosier & Griffin 2010)."""
    codes = [_basic_features(shape, flat=0.02) for shape in shapes]
    pairs = [fine * np.uint8(7) + coarse for fine, coarse in pairwise(codes)]
    return [_frequencies(code, 7) for code in codes] + [_frequencies(pair, 49) for pair in pairs]


def _covariance(maps: list[Map]) -> list[Values]:
    """Means of maps, and the matrix logarithm of their covariance (region covariance, Tuzel 2006; Arsigny 2006)."""
    map_CP = np.stack([each.ravel() for each in maps]).astype(np.float64)
    mean_C = map_CP.mean(axis=1)
    map_CP -= mean_C[:, None]
    value_C, vector_CC = np.linalg.eigh(map_CP @ map_CP.T / map_CP.shape[1])
    log_CC = (vector_CC * np.log(np.maximum(value_C, 0) + 1e-5)) @ vector_CC.T
    return [4 * mean_C, log_CC[np.triu_indices(len(maps))]]


def _blobs(hematoxylin_HW: Map, mask_HW: Codes) -> Values:
    """Count, size, shape and darkness of connected blobs, the nuclei of a thresholded hematoxylin map."""
    _, _, table, _ = cv2.connectedComponentsWithStats(mask_HW, connectivity=4)
    box, area = np.asarray(table[1:, 2:4], np.float64), np.asarray(table[1:, 4], np.float64)
    large = area >= 8
    box, area = box[large], area[large]
    if not len(area):
        return np.zeros(9)
    log_area = np.log(area) / 4
    inside = hematoxylin_HW[mask_HW > 0]
    depth = np.minimum(cv2.distanceTransform(mask_HW, cv2.DIST_L2, 3), 16)  # without bound where all is inside
    return np.array(
        [
            mask_HW.mean(),
            np.sqrt(100 * len(area) / mask_HW.size),
            log_area.mean(),
            log_area.std(),
            (area * log_area).sum() / area.sum(),
            (area / box.prod(axis=1)).mean(),
            (box.min(axis=1) / box.max(axis=1)).mean(),
            np.log1p(depth.sum() / mask_HW.sum()),
            inside.mean(),
        ]
    )


def _nuclei(hematoxylin_HW: Map) -> list[Values]:
    """Describe blobs above Otsu's threshold, above two fixed ones, and above the surroundings."""
    smooth = _map(cv2.GaussianBlur(hematoxylin_HW, (0, 0), 1.0))
    surroundings = _map(cv2.GaussianBlur(hematoxylin_HW, (0, 0), 8.0))
    otsu, _ = cv2.threshold(_binned(smooth, 0, 1, 256), 0, 255, cv2.THRESH_OTSU)
    masks = (smooth > otsu / 255, smooth > 0.25, smooth > 0.4, smooth - surroundings > 0.05)
    return [np.array([otsu / 255])] + [_blobs(hematoxylin_HW, mask.astype(np.uint8)) for mask in masks]


def _patch(image_HWC: Codes) -> Map:
    """Describe one patch."""
    stain = _stain(np.ascontiguousarray(image_HWC))
    shapes_h, shapes_e = ([_shape(each, sigma) for sigma in _SCALES_PX] for each in (stain.hematoxylin, stain.eosin))
    maps = [stain.hematoxylin, stain.eosin, stain.residual]
    maps += [each for shape in shapes_h + shapes_e for each in (shape.gradient, shape.laplacian)]
    groups = [
        *_colours(image_HWC, stain),
        *(_binary_patterns(stain.hematoxylin, radius, sigma) for radius, sigma in ((1, 0.0), (2, 1.0), (4, 2.0))),
        *_symmetries(shapes_h),
        *_covariance(maps),
        *_nuclei(stain.hematoxylin),
    ]
    return np.concatenate(groups).astype(np.float32)


DIMENSION = len(_patch(np.zeros((_MIN_EDGE_PX, _MIN_EDGE_PX, 3), np.uint8)))


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
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or min(shape[1:3]) < _MIN_EDGE_PX:
        raise ValueError(
            f"patches of shape {shape} and type {dtype}; expected N x H x W x 3 of uint8 with edges of at least {_MIN_EDGE_PX} px"
        )
    return np.array([_patch(image_HWC) for image_HWC in images_NHWC], np.float32).reshape(-1, DIMENSION)
