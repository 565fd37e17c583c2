"""Properties of the handcrafted encoder, on drawn patches that look like H&E from afar."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from distmil.encoders import texture as module
from distmil.encoders.texture import DIMENSION, texture

pytestmark = pytest.mark.filterwarnings("error")

Image = NDArray[np.uint8]
EOSIN_RGB = np.array([226, 170, 205], np.float32)
NUCLEUS_RGB = np.array([120, 80, 160], np.float32)


def draw(width: int, height: int, *, seed: int, darkness: float = 0.8, nuclei: int = 25) -> Image:
    """Draw round nuclei on pink tissue; darkness 0 leaves them pink, 1 makes them purple."""
    random = np.random.default_rng(seed)
    mask_HW = np.zeros((height, width), np.float32)
    for x, y, radius in zip(
        random.integers(width, size=nuclei),
        random.integers(height, size=nuclei),
        random.integers(3, 7, nuclei),
        strict=True,
    ):
        cv2.circle(mask_HW, (int(x), int(y)), int(radius), darkness, -1)
    soft_HW1 = cv2.GaussianBlur(mask_HW, (0, 0), 1.0)[..., None]
    image_HWC = EOSIN_RGB * (1 - soft_HW1) + NUCLEUS_RGB * soft_HW1 + random.normal(0, 4, (height, width, 3))
    clipped: Image = image_HWC.clip(0, 255).astype(np.uint8)
    return clipped


def photo(width: int, height: int) -> Image:
    """Draw smooth colours with hard edges: nothing like tissue."""
    row, column = np.mgrid[:height, :width]
    image_HWC = np.stack([row * 255 // height, column * 255 // width, (row // 9 + column // 7) % 2 * 255], axis=2)
    return image_HWC.astype(np.uint8)


def noise(width: int, height: int) -> Image:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def white(width: int, height: int) -> Image:
    return np.full((height, width, 3), 255, np.uint8)


def black(width: int, height: int) -> Image:
    return np.zeros((height, width, 3), np.uint8)


def red(width: int, height: int) -> Image:
    return np.broadcast_to(np.array([255, 0, 0], np.uint8), (height, width, 3))


def test_alone_as_in_a_batch_to_the_bit() -> None:
    images = np.stack([draw(96, 80, seed=seed) for seed in range(5)] + [white(96, 80)])
    together = texture(images)
    alone = np.concatenate([texture(image[None]) for image in images])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(texture(images[::-1])[::-1], together)


def test_the_bits_do_not_depend_on_where_arrays_lie() -> None:
    # cv2.magnitude failed this: its last bit changes with the alignment of its arrays
    images = draw(96, 80, seed=0)[None]
    random, kept, described = np.random.default_rng(0), [], set()
    for size in random.integers(1, 30000, 60):
        kept.append(np.empty(size, np.uint8))
        if len(kept) > 20:
            kept.pop(int(random.integers(20)))
        described.add(texture(images).tobytes())
    assert len(described) == 1


def test_memory_layout_does_not_matter() -> None:
    wide = draw(200, 120, seed=0)
    view = wide[10:106, 31:159][None]
    np.testing.assert_array_equal(texture(view), texture(view.copy()))
    mirrored = view[:, :, ::-1]
    np.testing.assert_array_equal(texture(mirrored), texture(mirrored.copy()))


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (96, 96), (300, 224)])
@pytest.mark.parametrize("make", [white, black, red, noise, photo, lambda width, height: draw(width, height, seed=1)])
def test_any_content_is_finite_and_fits_float16(make: Callable[[int, int], Image], size: tuple[int, int]) -> None:
    values = texture(make(*size)[None])
    assert values.shape == (1, DIMENSION)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 20
    np.testing.assert_allclose(values.astype(np.float16).astype(np.float32), values, rtol=1e-3, atol=1e-6)


def test_one_odd_pixel_on_white_is_finite() -> None:
    image = white(96, 64)
    image[20, 30] = 0
    assert np.isfinite(texture(image[None])).all()


def test_no_patches_give_no_rows() -> None:
    assert texture(np.zeros((0, 96, 96, 3), np.uint8)).shape == (0, DIMENSION)


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.rot90, lambda image: image.transpose(1, 0, 2)])
def test_flips_and_quarter_turns_change_next_to_nothing(turn: Callable[[Image], Image]) -> None:
    image, other = draw(120, 96, seed=2), draw(120, 96, seed=3)
    change = np.abs(texture(turn(image)[None]) - texture(image[None]))
    between = np.abs(texture(other[None]) - texture(image[None]))
    assert change.max() < 0.02
    assert change.mean() < 0.01 * between.mean()


def test_a_larger_patch_of_the_same_tissue_describes_alike() -> None:
    # the same tissue over and over: only the border differs, so size must not
    small, other = draw(128, 96, seed=4), draw(128, 96, seed=5, nuclei=60)
    large = np.tile(small, (2, 2, 1))
    change = np.abs(texture(large[None]) - texture(small[None]))
    between = np.abs(texture(other[None]) - texture(small[None]))
    assert change.mean() < 0.25 * between.mean()


def test_darker_nuclei_raise_hematoxylin() -> None:
    hematoxylin = [texture(draw(96, 128, seed=6, darkness=darkness)[None])[0, 0] for darkness in (0.0, 0.4, 0.7, 1.0)]
    assert (np.diff(hematoxylin) > 0.01).all()


def test_more_nuclei_raise_their_density() -> None:
    # the last ten values describe nuclei; the third is the root of their density
    few, many = (texture(draw(256, 192, seed=7, nuclei=nuclei)[None])[0, -8] for nuclei in (10, 60))
    assert many > 1.5 * few


def test_a_dark_disc_is_a_dark_blob_and_a_light_stripe_a_light_line() -> None:
    row, column = np.mgrid[:41, :61].astype(np.float32)
    disc = np.exp(-((row - 20) ** 2 + (column - 40) ** 2) / 18).astype(np.float32)
    stripe = -np.exp(-((column - 40) ** 2) / 18).astype(np.float32)
    codes = [module._basic_features(module._shape(density, 2.0), flat=0.02) for density in (disc, stripe)]
    assert [code[20, 40] for code in codes] == [3, 4]
    assert [code[20, 44] for code in codes] == [1, 1]
    assert codes[1][20, 5] == 0


def test_covariance_of_known_maps() -> None:
    # independent signs: a diagonal covariance of 4 and 0.25, whose logarithm is diagonal too
    sign = np.array([[1, -1], [1, -1]], np.float32)
    maps = module._Maps(2, 4)
    for map_HW in (2 * sign + 3, 0.5 * sign.T):
        maps.add(map_HW)
    mean, log = maps.covariance()
    np.testing.assert_allclose(mean, [12, 0])
    np.testing.assert_allclose(log, [np.log(4), 0, np.log(0.25)], atol=1e-4)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((96, 96, 3), np.uint8),
        np.zeros((1, 3, 96, 96), np.uint8),
        np.zeros((1, 96, 96, 4), np.uint8),
        np.zeros((1, 96, 96, 3), np.float32),
        np.zeros((1, 96, 15, 3), np.uint8),
    ],
)
def test_what_it_cannot_describe_is_refused(images: Image) -> None:
    with pytest.raises(ValueError, match=r"expected N x H x W x 3 of uint8 with edges of at least 16 px"):
        texture(images)


OF_VERSION_1 = [
    [0.36655, 0.07269, 0.01441, -0.1093, 0.02318, 0.01742, -11.36727, 0.52947, 0.01141, 0.11934, 0.09547, 0.3048],
    [0.34652, 0.0782, 0.01498, -0.11605, 0.02905, -0.00321, -11.36392, 0.55092, 0.0, 0.12706, 0.09816, 0.29675],
    [0.37753, 0.08331, 0.01677, -0.10444, 0.01011, 0.01638, -11.35134, 0.57881, 0.0, 0.12369, 0.09129, 0.29903],
]
"""Values as the first code of this version gave them, by which embeddings in stores were made."""


def test_values_stay_those_of_their_version() -> None:
    columns = [0, 3, 20, 40, 111, 200, 251, 400, 450, 500, 530, 560]
    found = texture(np.stack([draw(96, 80, seed=seed) for seed in range(3)]))[:, columns]
    np.testing.assert_allclose(found, OF_VERSION_1, atol=1e-4)


def test_room_for_maps_is_used_again_without_a_trace() -> None:
    image = draw(90, 70, seed=1)
    np.testing.assert_array_equal(texture(np.stack([noise(90, 70), image]))[1], texture(image[None])[0])
