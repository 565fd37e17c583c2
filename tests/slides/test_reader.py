"""Files to pixels: real scanner files, broken ones, ordinary images, and the overview."""

import os
import shutil
import socket
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from distmil.errors import MissingSlide, NoResolution, UnreadableSlide
from distmil.slides import image as slide_image
from distmil.slides.file_version import source_key
from distmil.slides.image import overview, overview_level, resize
from distmil.slides.reader import open_slide, resolve_mpp
from tests.support.slides import save_image, save_pyramid, tissue_image

SIZE = (173, 97)


@pytest.fixture
def pixels():
    return tissue_image(SIZE, seed=1, box=(20, 10, 150, 90))


def everything(image, level=0):
    width, height = image.size
    return image.read(0, 0, level=level, width=width, height=height)


# --- real files


@pytest.mark.parametrize(
    ("name", "expected", "mpp"),
    [
        ("CMU-1-Small-Region.svs", ((2220, 2967), 1, "aperio", "openslide"), 0.499),
        ("tiny-16px.svs", ((16, 16), 1, "aperio", "openslide"), 0.499),
        ("boxes.tiff", ((300, 250), 4, "generic-tiff", "openslide"), None),
    ],
)
def test_a_scanners_file_states_what_it_is(data, name, expected, mpp):
    with open_slide(data / "slides" / name) as image:
        assert (image.size, len(image.downsamples), image.vendor, image.reader) == expected
        assert image.mpp == (None if mpp is None else pytest.approx(mpp))


def test_a_region_is_the_same_wherever_it_is_read_from(data):
    with open_slide(data / "slides" / "CMU-1-Small-Region.svs") as image:
        whole = everything(image)
        part = image.read(650, 1450, level=0, width=410, height=177)
    assert np.array_equal(part, whole[1450:1627, 650:1060])
    assert part.std() > 10


@pytest.mark.parametrize("name", ["broken.svs", "unopenable.tiff"])
@pytest.mark.parametrize("kind", ["auto", "openslide"])
def test_a_broken_file_is_unreadable(data, name, kind):
    with pytest.raises(UnreadableSlide, match="the slide") as caught:
        open_slide(data / "broken_slides" / name, reader=kind)
    assert str(data) not in str(caught.value)
    assert name not in str(caught.value)


@pytest.mark.parametrize("length", [0, 100, 5_000, 200_000])
def test_a_cut_off_file_is_unreadable(data, tmp_path, length):
    path = tmp_path / "cut.svs"
    path.write_bytes((data / "slides" / "CMU-1-Small-Region.svs").read_bytes()[:length])
    with pytest.raises(UnreadableSlide, match="cut off") as caught, open_slide(path) as image:
        everything(image)
    assert path.name not in str(caught.value)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(MissingSlide, match="the slide's file is not there") as caught:
        open_slide(tmp_path / "none.svs")
    assert caught.value.status == "missing"


def test_a_slide_reads_on_after_a_damaged_tile(data, tmp_path):
    source = data / "pcam_cohort" / "slides" / "train_000.tif"
    path = tmp_path / "damaged.tif"
    shutil.copy(source, path)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        edge_x, edge_y = page.tilewidth, page.tilelength
        across = -(-page.imagewidth // edge_x)
        at = across * (600 // edge_y) + 600 // edge_x
        offset, count = page.dataoffsets[at], page.databytecounts[at]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * count)
    x, y = 600 // edge_x * edge_x, 600 // edge_y * edge_y
    region = {"level": 0, "width": 90, "height": 60}
    with open_slide(source) as whole, open_slide(path) as image:
        for _ in range(2):
            with pytest.raises(UnreadableSlide, match=rf"the slide is damaged at x={x}, y={y}, level 0"):
                image.read(x, y, **region)
            assert np.array_equal(image.read(x - 100, y - 70, **region), whole.read(x - 100, y - 70, **region))


# --- ordinary images


def test_a_slide_that_vanishes_while_it_is_read_is_unreadable_and_closes(tmp_path, pixels):
    path = save_pyramid(tmp_path / "a.tif", pixels)
    image = open_slide(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UnreadableSlide, match="the slide cannot be opened"):
        image.read(0, 0, level=0, width=200, height=150)
    image.close()
    image.close()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".PNG"])
def test_a_plain_image_is_its_pixels(tmp_path, pixels, suffix):
    with open_slide(save_image(tmp_path / f"plain{suffix}", pixels)) as image:
        assert (image.size, image.reader, image.downsamples) == (SIZE, "image", (1.0,))
        assert np.array_equal(everything(image), pixels)


def test_a_jpeg_is_close_to_its_pixels(tmp_path):
    smooth = cv2.GaussianBlur(tissue_image(SIZE, seed=1), (0, 0), 8)
    with open_slide(save_image(tmp_path / "a.jpg", smooth, quality=95)) as image:
        assert np.abs(everything(image).astype(int) - smooth).max() < 12


def test_a_plain_image_is_refused_where_only_openslide_may_read(tmp_path, pixels):
    with pytest.raises(UnreadableSlide):
        open_slide(save_image(tmp_path / "a.png", pixels), reader="openslide")


def test_a_file_that_lies_about_its_kind_is_unreadable(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("no image")
    with pytest.raises(UnreadableSlide, match="no whole-slide format"):
        open_slide(path)


@pytest.mark.parametrize("mode", ["palette", "rgba", "la", "palette with transparency"])
def test_other_colour_modes_come_as_rgb_over_white(tmp_path, pixels, mode):
    alpha = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    alpha[:, 40:] = 128
    alpha[:, 80:] = 255
    if mode == "palette":
        stored = Image.fromarray(pixels).quantize(16)
        expected = np.asarray(stored.convert("RGB"))
    elif mode == "palette with transparency":
        stored = Image.fromarray((np.arange(SIZE[0])[None] // 60 * np.ones((SIZE[1], 1))).astype(np.uint8), "P")
        stored.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
        expected = np.array([[255, 255, 255], [0, 100, 0], [0, 0, 50]], np.uint8)[np.asarray(stored)]
    else:
        colour = pixels if mode == "rgba" else np.repeat(pixels[..., :1], 3, axis=2)
        stored = Image.fromarray(np.dstack([colour if mode == "rgba" else colour[..., :1], alpha]), mode.upper())
        share = alpha[..., None] / 255
        expected = np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)
    options = {"transparency": 0} if mode == "palette with transparency" else {}
    stored.save(tmp_path / "a.png", **options)
    with open_slide(tmp_path / "a.png") as image:
        assert np.array_equal(everything(image), expected)


def test_a_photograph_lies_as_its_orientation_says(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    with open_slide(save_image(tmp_path / "a.png", pixels, exif=exif)) as image:
        assert image.size == (SIZE[1], SIZE[0])
        assert np.array_equal(everything(image), np.rot90(pixels, -1))


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_8_bit_is_refused(tmp_path, kind):
    tifffile.imwrite(tmp_path / "a.tif", np.full((30, 50), 7, kind))
    with pytest.raises(UnreadableSlide, match="8 bit"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [(20_000, 3, 0.5), (50_800, 2, 0.5), (72, 2, None), (20_000, 1, None), (None, None, None)],
)
def test_a_tiff_states_its_resolution_in_its_tags(tmp_path, pixels, resolution, unit, mpp):
    options = {} if unit is None else {"tiffinfo": {282: resolution, 283: resolution, 296: unit}}
    with open_slide(save_image(tmp_path / "a.tif", pixels, **options)) as image:
        assert image.mpp == (None if mpp is None else pytest.approx(mpp))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_screen_resolution_is_no_resolution(tmp_path, pixels, name):
    with open_slide(save_image(tmp_path / name, pixels, dpi=(96, 96))) as image:
        assert image.mpp is None


@pytest.mark.parametrize(
    ("stated", "mpp"),
    [((0.4, 0.5, 0.6), 0.4), ((None, 0.5, 0.6), 0.5), ((None, None, 0.6), 0.6), ((0.4, None, None), 0.4)],
)
def test_the_manifest_counts_before_the_file_and_the_default(tmp_path, pixels, stated, mpp):
    given, in_file, default = stated
    with open_slide(save_pyramid(tmp_path / "a.tif", pixels, mpp=in_file)) as image:
        assert image.mpp == (None if in_file is None else pytest.approx(in_file))
        assert resolve_mpp(image, given=given, default=default) == pytest.approx(mpp)


def test_a_file_without_a_resolution_says_how_to_give_one(tmp_path, pixels):
    with (
        open_slide(save_image(tmp_path / "a.png", pixels)) as image,
        pytest.raises(NoResolution, match=r"manifest or tiling\.default_mpp") as caught,
    ):
        resolve_mpp(image, given=None, default=None)
    assert caught.value.status == "no_mpp"


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a", "JPEG", None),
        ("a.tif", "PNG", None),
        ("a.bmp", "BMP", None),
        ("a.doe", "PNG", None),
        ("a.svs", "JPEG", "the slide's content is JPEG, its name says .svs"),
        ("a.NDPI", "PNG", "the slide's content is PNG, its name says .ndpi"),
        ("a.MRXS", "PNG", r"OpenSlide wants the suffix \.mrxs in small letters"),
        ("a.png", "GIF", "no whole-slide format that OpenSlide knows, and no PNG, JPEG, BMP or TIFF"),
    ],
)
def test_a_picture_is_known_by_its_content(tmp_path, pixels, name, kind, expected):
    path = save_image(tmp_path / name, pixels, format=kind)
    if expected is None:
        with open_slide(path) as image:
            assert (image.size, image.vendor) == (SIZE, kind.lower())
        return
    with pytest.raises(UnreadableSlide, match=expected) as caught:
        open_slide(path)
    assert name not in str(caught.value)


@pytest.mark.parametrize("codec", ["webp", "jpegxl"])
def test_a_compression_that_cannot_be_decoded_is_named(tmp_path, pixels, codec):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, compression=codec, rowsperstrip=32, photometric="rgb", metadata=None)
    with pytest.raises(UnreadableSlide, match=rf"compression is {codec.upper()}: save it as JPEG or LZW") as caught:
        open_slide(path)
    assert str(tmp_path) not in str(caught.value)


def fifo(path):
    os.mkfifo(path)


def socket_file(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (fifo, "is a FIFO, not a file"),
        (socket_file, "is a socket, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: path.mkdir(), "is a folder, not a file"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path, make, expected):
    make(tmp_path / "a.tif")
    with pytest.raises(UnreadableSlide, match=f"the slide {expected}"):
        open_slide(tmp_path / "a.tif")
    with pytest.raises(OSError, match=expected):
        source_key(tmp_path / "a.tif", checksum="full")


def test_a_slide_that_this_user_may_not_read_is_refused(tmp_path, pixels, monkeypatch):
    path = save_image(tmp_path / "a.tif", pixels)
    monkeypatch.setattr(os, "access", lambda *args, **options: False)
    with pytest.raises(UnreadableSlide, match="the slide cannot be read: permission denied"):
        open_slide(path)


# --- regions beyond the border, on both readers


@pytest.fixture(params=["image", "openslide"])
def slide(request, tmp_path, pixels):
    save = save_image if request.param == "image" else save_pyramid
    with open_slide(save(tmp_path / "slide.tif", pixels)) as image:
        assert image.reader == request.param
        yield image


@pytest.mark.parametrize(
    "box",
    [
        (30, 20, 50, 40),
        (-17, -9, 60, 40),
        (150, 80, 60, 33),
        (-5, 50, 300, 7),
        (-200, 10, 30, 30),
        (173, 0, 20, 10),
        (10, 500, 9, 5),
        (-40, -30, 300, 200),
    ],
)
def test_beyond_the_border_everything_is_white(slide, pixels, box):
    x, y, width, height = box
    frame = np.full((1000, 1000, 3), 255, np.uint8)
    frame[300 : 300 + SIZE[1], 300 : 300 + SIZE[0]] = pixels
    region = slide.read(x, y, level=0, width=width, height=height)
    assert np.array_equal(region, frame[300 + y : 300 + y + height, 300 + x : 300 + x + width])


# --- overview


def reduced(pixels, factor):
    """The area average of an image laid on white up to a multiple of the factor."""
    high, wide = (-(-edge // factor) for edge in pixels.shape[:2])
    frame = np.full((high * factor, wide * factor, 3), 255, np.uint8)
    frame[: pixels.shape[0], : pixels.shape[1]] = pixels
    return cv2.resize(frame, (wide, high), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("reduction", [(173, 1), (172, 2), (60, 3), (25, 7), (1000, 1)])
@pytest.mark.parametrize("block", [4096, 64, 7])
def test_the_overview_is_the_area_average_without_seams(slide, pixels, monkeypatch, reduction, block):
    max_px, factor = reduction
    monkeypatch.setattr(slide_image, "_BLOCK_PX", block)
    picture, scale = overview(slide, max_px=max_px)
    assert scale == factor
    assert max(picture.shape[:2]) <= max_px
    assert np.array_equal(picture, reduced(pixels, factor))


def test_the_overview_of_a_pyramid_starts_from_the_nearest_finer_level(tmp_path, pixels, monkeypatch):
    path = save_pyramid(tmp_path / "a.tif", tissue_image((1600, 640), seed=2), downsamples=(1, 2, 8))
    with open_slide(path) as image:
        levels = []
        read = image.read
        monkeypatch.setattr(
            image, "read", lambda *at, level, **more: (levels.append(level), read(*at, level=level, **more))[1]
        )
        for max_px, level, shape, factor in [
            (1600, 0, (640, 1600), 1),
            (400, 1, (160, 400), 4),
            (190, 2, (80, 200), 8),
        ]:
            levels.clear()
            picture, scale = overview(image, max_px=max_px)
            assert set(levels) == {level}
            if max_px == 190:  # eight times and more: the level of 8 is halved
                assert (scale, picture.shape[:2]) == (16, (40, 100))
            else:
                assert (scale, picture.shape[:2]) == (factor, shape)


def test_there_is_a_level_for_every_overview():
    rng = np.random.default_rng(3)
    for _ in range(2000):
        downsamples = tuple(np.sort(rng.uniform(0.5, 64, rng.integers(1, 6))).tolist())
        size, max_px = (int(edge) for edge in rng.integers(1, 200_000, 2)), int(rng.integers(1, 5000))
        image = SimpleNamespace(size=tuple(size), downsamples=downsamples)
        level, reduction = overview_level(image, max_px=max_px)
        assert reduction == max(1, max(image.size) / max_px)
        finer = [downsample for downsample in downsamples if downsample <= reduction]
        assert downsamples[level] == (finer[-1] if finer else downsamples[0])


def test_resizing_averages_down_and_keeps_what_fits(pixels):
    assert resize(pixels, SIZE) is pixels
    blocks = pixels[:96, :172].reshape(48, 2, 86, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize(pixels[:96, :172], (86, 48)) - blocks).max() <= 0.5
    assert resize(pixels, (300, 200)).shape == (200, 300, 3)
