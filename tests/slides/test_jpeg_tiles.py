"""The file's own tiles: OpenSlide's pixels to the last bit, with every trap that scanners set."""

import itertools

import cv2
import numpy as np
import pytest

from distmil.errors import MissingSlide, UnreadableSlide
from distmil.slides.image import overview
from distmil.slides.jpeg_tiles import LevelPlace, TileLevel, agrees, can_reduce, open_level, read_tile_table
from distmil.slides.reader import open_slide
from tests.support.jpeg_tiff import RGB, YCBCR, save_jpeg_tiff
from tests.support.slides import save_pyramid, tissue_image

SIZE = (500, 300)
PIXELS = cv2.GaussianBlur(tissue_image(SIZE, seed=2, box=(30, 20, 480, 290)), (0, 0), 1.2)


def level_of(path, *, number=0, **place):
    """Level ``number`` of a file by its tiles, and the file through OpenSlide."""
    image = open_slide(path)
    size, downsample = image.level_sizes[number], image.downsamples[number]
    return open_level(path, LevelPlace(size, downsample, **place), size=image.size), image


def places(size, edge, *, num, seed=0):
    """Random corners, some of them so that the region reaches past the image."""
    rng = np.random.default_rng(seed)
    return [(int(rng.integers(0, size[0] - 1)), int(rng.integers(0, size[1] - 1))) for _ in range(num)]


@pytest.mark.parametrize(("photometric", "has_tables"), list(itertools.product((YCBCR, RGB), (False, True))))
@pytest.mark.parametrize("missing", [(), ((1, 2), (0, 0))])
@pytest.mark.parametrize("shape", [((64, 64), (2, 2)), ((64, 48), (1, 1)), ((128, 64), (2, 1))])
def test_pixels_are_openslides_to_the_last_bit(tmp_path, photometric, has_tables, missing, shape):
    tile, subsampling = shape
    path = save_jpeg_tiff(
        tmp_path / "a.tif",
        PIXELS,
        tile=tile,
        photometric=photometric,
        has_tables=has_tables,
        missing=missing,
        subsampling=subsampling,
    )
    tiles, image = level_of(path, kept_tiles=3)
    assert image.reader == "openslide"
    for x, y in places(SIZE, 70, num=30):
        one = tiles.read(x, y, level=0, width=70, height=45)
        assert np.array_equal(one, image.read(x, y, level=0, width=70, height=45)), (x, y)


@pytest.mark.parametrize("reduction", [2, 4])
def test_a_reduced_level_is_the_average_of_the_full_one(tmp_path, reduction):
    path = save_jpeg_tiff(tmp_path / "a.tif", PIXELS[:-3, :-5], mpp=0.25)
    tiles, image = level_of(path, reduction=reduction)
    edge = 96
    for x, y in [(0, 0), (128, 64), (416, 224), (480, 288), (12 * reduction, 20 * reduction)]:
        full = image.read(x, y, level=0, width=edge * reduction, height=edge * reduction)
        expected = cv2.resize(full, (edge, edge), interpolation=cv2.INTER_AREA)
        assert np.array_equal(tiles.read(x, y, level=0, width=edge, height=edge), expected), (x, y)


def test_a_reduced_level_counts_its_started_pixels(tmp_path):
    # 499 x 301 halved: the last column and row are half image, half white
    path = save_jpeg_tiff(tmp_path / "a.tif", np.ascontiguousarray(np.pad(PIXELS, ((0, 1), (0, 0), (0, 0)))[:, :-1]))
    tiles, _ = level_of(path, reduction=2)
    assert tiles.level_sizes == ((250, 151),)
    picture, scale = overview(tiles, max_px=250)
    assert (picture.shape, scale) == ((151, 250, 3), 2)


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("max_px", [1, 3, 60, 62, 63, 124, 126, 250, 499, 500, 501, 4096])
def test_every_overview_that_is_asked_of_a_reduced_level_can_be_had(tmp_path, reduction, max_px):
    # coarser than asked for where the level is: 'max() arg is an empty sequence' once lost a quarter of all slides
    path = save_jpeg_tiff(tmp_path / "a.tif", PIXELS)
    tiles, image = level_of(path, reduction=reduction)
    picture, scale = overview(tiles, max_px=max_px)
    assert scale % reduction == 0
    assert picture.shape[:2] == tuple(-(-edge // int(scale)) for edge in SIZE[::-1])
    exact, _ = overview(image, max_px=max(picture.shape))
    if exact.shape == picture.shape:
        assert np.abs(exact.astype(int) - picture).mean() < 2


def test_a_level_scaled_as_it_is_decoded_is_near_the_average(tmp_path):
    path = save_jpeg_tiff(tmp_path / "a.tif", PIXELS, mpp=0.25, quality=95)
    exact, _ = level_of(path, reduction=2)
    quick, _ = level_of(path, reduction=2, by_dct=True)
    one, two = (tiles.read(0, 0, level=0, width=260, height=160).astype(int) for tiles in (exact, quick))
    assert np.abs(one - two).mean() < 2
    assert (two[150:] == 255).all()  # beyond the image
    assert (two[:, 250:] == 255).all()
    assert not (two[:149, :249] == 255).all(axis=2).all()


def test_a_coarser_level_is_found_by_its_size(tmp_path):
    path = save_jpeg_tiff(tmp_path / "a.tif", PIXELS, mpp=0.25, downsamples=(1, 2))
    tiles, image = level_of(path, number=1)
    for x, y in [(0, 0), (100, 40), (256, 128)]:
        expected = image.read(x, y, level=1, width=64, height=64)
        assert np.array_equal(tiles.read(x, y, level=0, width=64, height=64), expected)


def test_a_stored_tile_decodes_to_the_pixels_and_tells_nothing_else(tmp_path):
    marker = b"JOHN-DOE-1970"
    comment = b"\xff\xfe" + (len(marker) + 2).to_bytes(2, "big") + marker

    def marked(data):
        return data[:2] + comment + data[2:]

    path = save_jpeg_tiff(tmp_path / "a.tif", PIXELS, has_tables=True, photometric=RGB, change=marked)
    assert marker in path.read_bytes()
    tiles, image = level_of(path)
    stored = tiles.stored(128, 64, edge_px=64)
    assert marker not in stored
    expected = image.read(128, 64, level=0, width=64, height=64)
    # as any program decodes it, by what the JPEG itself says
    assert np.array_equal(cv2.cvtColor(cv2.imdecode(np.frombuffer(stored, np.uint8), 1), cv2.COLOR_BGR2RGB), expected)


def test_only_a_whole_tile_inside_the_image_is_stored(tmp_path):
    path = save_jpeg_tiff(tmp_path / "a.tif", PIXELS, missing=[(1, 1)])
    tiles, _ = level_of(path)
    assert tiles.stored(0, 0, edge_px=64)
    assert tiles.stored(64, 64, edge_px=64) is None  # the file has none
    assert tiles.stored(448, 0, edge_px=64) is None  # reaches past x = 500
    assert tiles.stored(0, 256, edge_px=64) is None  # past y = 300
    assert tiles.stored(32, 0, edge_px=64) is None  # off the grid
    assert tiles.stored(0, 0, edge_px=32) is None  # another size
    assert level_of(path, reduction=2)[0].stored(0, 0, edge_px=64) is None


@pytest.mark.parametrize("change", [lambda data: data[:-40], lambda data: data + b"more", lambda data: data[:60]])
def test_a_tile_that_does_not_end_as_it_should_is_not_stored(tmp_path, change):
    tiles, _ = level_of(save_jpeg_tiff(tmp_path / "a.tif", PIXELS, change=change))
    assert tiles.stored(0, 0, edge_px=64) is None


def test_a_damaged_tile_is_named(tmp_path):
    path = save_jpeg_tiff(tmp_path / "a.tif", PIXELS, change=lambda data: data[:-60])
    tiles, _ = level_of(path)
    with pytest.raises(UnreadableSlide, match=r"the slide is damaged in tile 2, 1 "):
        tiles.read(130, 70, level=0, width=20, height=20)


@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_other_codecs_are_left_to_openslide(tmp_path, compression):
    path = save_pyramid(tmp_path / "a.tif", PIXELS)
    assert read_tile_table(path, SIZE) is None
    assert read_tile_table(tmp_path / "none.tif", SIZE) is None
    (tmp_path / "text.tif").write_text("no TIFF at all")
    assert read_tile_table(tmp_path / "text.tif", SIZE) is None


def test_a_file_that_was_cut_off_is_left_to_openslide(tmp_path):
    path = save_jpeg_tiff(tmp_path / "a.tif", PIXELS)
    data = path.read_bytes()
    table = read_tile_table(path, SIZE)
    last = int(table.offsets.max())
    moved = data.replace(last.to_bytes(4, "little"), (len(data) + 5).to_bytes(4, "little"))
    assert moved != data
    path.write_bytes(moved)
    assert read_tile_table(path, SIZE) is None


def test_a_level_that_is_not_there_and_a_file_that_is_not_there_are_said(tmp_path):
    path = save_jpeg_tiff(tmp_path / "a.tif", PIXELS)
    with pytest.raises(UnreadableSlide, match="no level of 77 x 55 px"):
        open_level(path, LevelPlace((77, 55), 1.0), size=SIZE)
    with pytest.raises(MissingSlide, match="the slide's file is not there"):
        open_level(tmp_path / "b.tif", LevelPlace(SIZE, 1.0), size=SIZE)


def test_a_reader_that_gives_other_pixels_is_found(tmp_path):
    right = save_jpeg_tiff(tmp_path / "a.tif", PIXELS)
    other = save_jpeg_tiff(tmp_path / "b.tif", PIXELS[:, ::-1])
    tiles, image = level_of(right)
    assert agrees(tiles, image, level=0, places=[(40, 30), (200, 111)], edge_px=80)
    assert not agrees(level_of(other)[0], image, level=0, places=[(40, 30)], edge_px=80)
    shifted = PIXELS.copy()
    shifted[60, 70] = 0
    one_pixel = save_jpeg_tiff(tmp_path / "c.tif", shifted)
    assert not agrees(level_of(one_pixel)[0], image, level=0, places=[(40, 30)], edge_px=80)


def test_a_fractional_level_is_compared_as_a_picture(tmp_path):
    path = save_jpeg_tiff(tmp_path / "a.tif", PIXELS[:-2, :-3], mpp=0.25, downsamples=(1, 4))
    tiles, image = level_of(path, number=1)
    assert image.downsamples[1] != 4
    assert agrees(tiles, image, level=1, places=[(40, 30), (101, 57)], edge_px=48)
    other = save_jpeg_tiff(tmp_path / "b.tif", 255 - PIXELS[:-2, :-3], mpp=0.25, downsamples=(1, 4))
    assert not agrees(level_of(other, number=1)[0], image, level=1, places=[(40, 30)], edge_px=48)


def test_few_kept_tiles_give_the_same_pixels_as_many(tmp_path):
    path = save_jpeg_tiff(tmp_path / "a.tif", PIXELS)
    regions = []
    for kept in (1, 2, 1000):
        tiles, _ = level_of(path, kept_tiles=kept)
        regions.append([tiles.read(x, y, level=0, width=150, height=90).copy() for x, y in places(SIZE, 90, num=12)])
    for region in regions[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(regions[0], region, strict=True))


def test_whole_tiles_shrink_to_whole_tiles_only(tmp_path):
    table = read_tile_table(save_jpeg_tiff(tmp_path / "a.tif", PIXELS, tile=(48, 112)), SIZE)
    assert [factor for factor in (1, 2, 3, 4, 8) if can_reduce(table, factor)] == [2, 4, 8]
    odd = read_tile_table(save_jpeg_tiff(tmp_path / "b.tif", PIXELS, tile=(48, 80)), SIZE)
    assert can_reduce(odd, 8)
    twelve = read_tile_table(save_jpeg_tiff(tmp_path / "c.tif", PIXELS, tile=(48, 16 * 7)), SIZE)
    assert not can_reduce(twelve, 3)


def test_a_closed_level_may_be_closed_again(tmp_path):
    tiles, _ = level_of(save_jpeg_tiff(tmp_path / "a.tif", PIXELS))
    assert isinstance(tiles, TileLevel)
    tiles.close()
    tiles.close()


@pytest.mark.parametrize(
    "name", ["slides/CMU-1-Small-Region.svs", "pcam_cohort/slides/train_000.tif", "pcam_cohort/slides/val_003.tif"]
)
def test_real_files_give_openslides_pixels(data, name):
    tiles, image = level_of(data / name, kept_tiles=40)
    for x, y in places(image.size, 256, num=150, seed=1):
        one = tiles.read(x, y, level=0, width=256, height=224)
        assert np.array_equal(one, image.read(x, y, level=0, width=256, height=224)), (x, y)
