import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest

from distmil.slides import jpeg
from distmil.viewing.deep_zoom import DeepZoom
from distmil.viewing.tiles import SlideTiles
from tests.support.jpeg_tiff import RGB, YCBCR, save_jpeg_tiff
from tests.support.scale import cases
from tests.support.slides import save_image, save_pyramid, tissue_image


@pytest.mark.parametrize("seed", range(cases(60, full=2000)))
def test_tiles_cover_every_level_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 3000)), int(rng.integers(1, 900)))
    zoom = DeepZoom(size, int(rng.integers(16, 512)))
    assert zoom.num_levels == 1 + max(0, math.ceil(math.log2(max(size) / zoom.tile_px)))
    for level in range(zoom.num_levels):
        factor = 2 ** (zoom.num_levels - 1 - level)
        area = 0
        for column in range(-1, 200):
            box = zoom.box(level, column, 0)
            if box is None:
                assert column in {-1, math.ceil(size[0] / factor / zoom.tile_px)} or column > 0
                continue
            assert box.x == area
            area += box.width
        assert area == math.ceil(size[0] / factor)
        columns, rows = zoom.num_tiles(level)
        assert zoom.box(level, columns, 0) is None
        assert zoom.box(level, 0, rows) is None
        last = zoom.box(level, columns - 1, rows - 1)
        assert last is not None
        assert (last.x + last.width, last.y + last.height) == zoom.level_size(level)
    assert zoom.num_tiles(0) == (1, 1)
    assert zoom.box(zoom.num_levels, 0, 0) is None
    assert zoom.box(-1, 0, 0) is None


@pytest.mark.parametrize("seed", range(cases(12, full=300)))
def test_a_tile_has_the_means_of_the_slides_pixels(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(300, 900)), int(rng.integers(150, 600)))
    pixels = tissue_image(size, seed=seed)
    if rng.random() < 0.3:
        path = save_image(tmp_path / "s.png", pixels)
    else:
        downsamples = ((1,), (1, 2), (1, 4))[rng.integers(3)]
        size = tuple(edge // downsamples[-1] * downsamples[-1] for edge in size)  # else its levels are stretched
        pixels = np.ascontiguousarray(pixels[: size[1], : size[0]])
        path = save_pyramid(tmp_path / "s.tif", pixels, downsamples=downsamples)
    tiles = SlideTiles(str(path))
    assert tiles.size == size
    for _ in range(4):
        level = int(rng.integers(tiles.zoom.num_levels))
        columns, rows = tiles.zoom.num_tiles(level)
        column, row = int(rng.integers(columns)), int(rng.integers(rows))
        box = tiles.zoom.box(level, column, row)
        assert box is not None
        factor = tiles.zoom.downsample(level)
        made = tiles.pixels(box.x, box.y, width=box.width, height=box.height, downsample=factor)
        wide, high = size[0] // factor - box.x, size[1] // factor - box.y  # whole pixels; a started one has white in it
        wide, high = min(wide, box.width), min(high, box.height)
        part = pixels[box.y * factor : (box.y + high) * factor, box.x * factor : (box.x + wide) * factor]
        expected = part.reshape(high, factor, wide, factor, 3).mean(axis=(1, 3))
        # a level of the file was averaged and rounded before
        np.testing.assert_allclose(made[:high, :wide].astype(float), expected, atol=1.6)
        data = tiles.tile(level, column, row)
        assert data is not None
        decoded = jpeg.decode(data)
        assert decoded.shape == made.shape
        assert np.abs(decoded.astype(float).mean() - made.mean()) < 3
    tiles.close()


def test_a_tall_reduction_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = tissue_image((900, 500), seed=3)
    tiles = SlideTiles(str(save_pyramid(tmp_path / "s.tif", pixels)))
    whole = tiles.pixels(0, 0, width=112, height=62, downsample=8)
    monkeypatch.setattr("distmil.viewing.tiles._MAX_BLOCK_PX", 100)
    sizes = []
    with tiles._handle() as image:
        read = image.read
    monkeypatch.setattr(image, "read", lambda *a, **k: sizes.append((k["width"], k["height"])) or read(*a, **k))
    np.testing.assert_array_equal(tiles.pixels(0, 0, width=112, height=62, downsample=8), whole)
    assert max(max(size) for size in sizes) <= 100
    assert len(sizes) == 10 * 6


@pytest.mark.parametrize("photometric", [YCBCR, RGB])
@pytest.mark.parametrize("has_tables", [False, True])
def test_the_slides_own_tiles_go_out_untouched(photometric: int, has_tables: bool, tmp_path: Path) -> None:
    path = save_jpeg_tiff(
        tmp_path / "s.tif", tissue_image((1100, 1030), seed=1), tile=(256, 256), downsamples=(1, 4),
        photometric=photometric, has_tables=has_tables,
    )  # fmt: skip
    tiles, stored = SlideTiles(str(path)), path.read_bytes()
    slide = openslide.OpenSlide(path)
    untouched = set()
    for level in range(tiles.zoom.num_levels):
        factor = tiles.zoom.downsample(level)
        columns, rows = tiles.zoom.num_tiles(level)
        for column, row in ((i, j) for i in range(columns) for j in range(rows)):
            data = tiles.tile(level, column, row)
            assert data is not None
            if data[-400:] in stored:
                untouched.add((level, column, row))
                corner = (column * 256 * factor, row * 256 * factor)
                own = slide.get_best_level_for_downsample(factor + 0.01)
                expected = np.asarray(slide.read_region(corner, own, (256, 256)))[..., :3]
                np.testing.assert_array_equal(jpeg.decode(data), expected)
    finest = tiles.zoom.num_levels - 1
    assert untouched == {(finest, i, j) for i in range(4) for j in range(4)} | {(finest - 2, 0, 0)}
    tiles.close()


@pytest.mark.parametrize("seed", range(cases(12, full=300)))
def test_tiles_of_a_jpeg_slide_look_like_the_means_of_its_pixels(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    edge = int(rng.choice([128, 240, 256]))
    size = (int(rng.integers(300, 2300)), int(rng.integers(200, 1300)))
    smooth = cv2.GaussianBlur(tissue_image(size, seed=seed), (0, 0), 8)  # noise would be lost in the tile's own JPEG
    path = save_jpeg_tiff(
        tmp_path / "s.tif", smooth, tile=(edge, edge),
        downsamples=((1,), (1, 2), (1, 4))[rng.integers(3)], photometric=int(rng.choice([YCBCR, RGB])), quality=95,
    )  # fmt: skip
    tiles = SlideTiles(str(path))
    white = np.full((size[1] + 300, size[0] + 300, 3), 255, np.uint8)  # a tile that hangs over has white in it
    white[: size[1], : size[0]] = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, size))[..., :3]
    for level in range(tiles.zoom.num_levels - 1):
        factor = tiles.zoom.downsample(level)
        columns, rows = tiles.zoom.num_tiles(level)
        column, row = int(rng.integers(columns)), int(rng.integers(rows))
        box, data = tiles.zoom.box(level, column, row), tiles.tile(level, column, row)
        assert box is not None
        assert data is not None
        made = jpeg.decode(data).astype(float)
        assert made.shape == (box.height, box.width, 3)
        wide, high = size[0] // factor - box.x, size[1] // factor - box.y
        wide, high = min(wide, box.width), min(high, box.height)
        part = white[box.y * factor : (box.y + high) * factor, box.x * factor : (box.x + wide) * factor]
        expected = part.reshape(high, factor, wide, factor, 3).mean(axis=(1, 3))
        if min(high, wide) > 16:
            assert np.abs(made[:high, :wide] - expected)[:-8, :-8].mean() < 2  # at the slide's edge JPEG blurs white
    tiles.close()


def test_no_more_detail_is_lost_than_the_level_has_to_lose(tmp_path: Path) -> None:
    stripes = np.repeat(np.tile(np.repeat([40, 220], 4), 100), 3).reshape(1, 800, 3).astype(np.uint8)  # of 4 px
    path = save_jpeg_tiff(tmp_path / "s.tif", np.repeat(stripes, 500, axis=0), tile=(128, 128))
    tiles = SlideTiles(str(path))
    for factor, is_seen in ((1, True), (2, True), (8, False)):
        data = tiles.tile(tiles.zoom.num_levels - 1 - int(math.log2(factor)), 0, 0)
        spread = jpeg.decode(data or b"")[:40, :40].std(axis=1).mean()
        assert (spread > 60) == is_seen


def test_levels_that_are_far_coarser_than_the_file_come_from_the_kept_picture(tmp_path: Path) -> None:
    path = save_jpeg_tiff(tmp_path / "s.tif", tissue_image((4300, 2050), seed=1), tile=(128, 128))
    red = np.full((143, 300, 3), (200, 10, 10), np.uint8)
    tiles = SlideTiles(str(path), picture=lambda: red)
    plain = SlideTiles(str(path))

    def is_red(level: int) -> bool:
        data = tiles.tile(level, 0, 0)
        assert data is not None
        return bool(np.abs(jpeg.decode(data).astype(int) - (200, 10, 10)).max() < 12)

    # the coarsest levels are 68, 135, 269 and 538 px wide; the picture has 300 px
    assert [tiles.zoom.downsample(level) for level in range(tiles.zoom.num_levels)] == [64, 32, 16, 8, 4, 2, 1]
    assert [is_red(level) for level in range(7)] == [*[True] * 3, *[False] * 4]
    sizes = [[jpeg.decode(one.tile(0, 0, 0) or b"").shape for one in (tiles, plain)] for _ in range(2)]
    assert sizes[0][0] == sizes[0][1]


def test_a_tile_is_made_once_and_a_bounded_number_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_jpeg_tiff(tmp_path / "s.tif", tissue_image((2300, 1300), seed=1), tile=(128, 128))
    tiles = SlideTiles(str(path))
    made = []
    make = tiles._make
    monkeypatch.setattr(tiles, "_make", lambda *place: made.append(place[0]) or make(*place))
    level = tiles.zoom.num_levels - 2
    places = [(level, i, j) for i in range(9) for j in range(5)]
    first = [tiles.tile(*place) for place in places]
    assert [tiles.tile(*place) for place in places] == first
    assert len(made) == len(places)
    limit = sum(len(tile or b"") for tile in first) // 2
    monkeypatch.setattr("distmil.viewing.tiles._MAX_KEPT_BYTES", limit)
    assert [tiles.tile(*place) for place in places[::-1]][::-1] == first
    tiles.tile(level - 1, 0, 0)
    assert sum(map(len, tiles._made.values())) == tiles._made_bytes <= limit
    assert tiles.tile(*places[0]) == first[0]
    tiles.close()


def test_threads_get_the_same_tiles(tmp_path: Path) -> None:
    path = save_jpeg_tiff(tmp_path / "s.tif", tissue_image((2300, 1300), seed=1), tile=(128, 128))
    places = [(level, i, j) for level in range(4) for i in range(8) for j in range(4)]
    alone = SlideTiles(str(path))
    expected = [alone.tile(*place) for place in places]
    shared = SlideTiles(str(path))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda place: shared.tile(*place), places)) == expected


def test_tiles_that_the_slide_does_not_have(tmp_path: Path) -> None:
    tiles = SlideTiles(str(save_pyramid(tmp_path / "s.tif", tissue_image((600, 300)))))
    for place in ((0, 1, 0), (0, 0, 1), (3, 0, 0), (-1, 0, 0), (0, -1, 0), (2, 10**9, 0), (10**9, 0, 0)):
        assert tiles.tile(*place) is None


def test_a_slide_that_is_forgotten_is_closed(tmp_path: Path) -> None:
    path = save_jpeg_tiff(tmp_path / "s.tif", tissue_image((600, 300)), tile=(256, 256))

    def num_open() -> int:
        return sum(Path(file).resolve() == path for file in Path("/proc/self/fd").iterdir())

    tiles = SlideTiles(str(path))
    assert tiles.tile(tiles.zoom.num_levels - 1, 0, 0)
    assert num_open() > 0
    del tiles
    assert num_open() == 0
