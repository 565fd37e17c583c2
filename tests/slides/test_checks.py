"""Pixels that are not what they seem: each file is read right by every reader, or refused with what to do."""

import itertools

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from distmil.errors import NoResolution, UnreadableSlide
from distmil.slides.checks import mpp_doubts, resolution_of
from distmil.slides.reader import open_slide, resolve_mpp
from distmil.slides.tiff_pages import MAX_PAGES, read_pages
from tests.support.scale import cases
from tests.support.slides import save_image, tissue_image

SIZE = (173, 97)


@pytest.fixture
def pixels():
    return tissue_image(SIZE, seed=1, box=(20, 10, 150, 90))


def everything(path):
    with open_slide(path) as image:
        width, height = image.size
        return image.read(0, 0, level=0, width=width, height=height), image.doubts


def layout(is_tiled):
    return {"tile": (64, 64), "compression": "deflate"} if is_tiled else {"rowsperstrip": 20}


def save_tiff(path, data, *, is_tiled, **options):
    tifffile.imwrite(path, data, **{"metadata": None, "photometric": "rgb", **layout(is_tiled), **options})
    return path


def tag(path, code, value):
    """Set a tag of the first page."""
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[code].overwrite(value)


# --- random ways of keeping colours


def random_tiff(path, rng):
    """Save an image in a random way, and return what it shows, or None where no reader needs to read it."""
    pixels = tissue_image(SIZE, seed=int(rng.integers(100)), box=(20, 10, 150, 90))
    kind = rng.choice(
        ["rgb", "planar rgb", "grey", "white is zero", "palette", "alpha", "grey channels", "deep", "odd"]
    )
    is_tiled, grey = bool(rng.random() < 0.5), pixels[..., 1]
    if kind == "rgb":
        save_tiff(path, pixels, is_tiled=is_tiled)
    elif kind == "planar rgb":
        save_tiff(path, np.moveaxis(pixels, -1, 0), is_tiled=is_tiled, planarconfig="separate")
    elif kind in {"grey", "white is zero"}:
        photometric = "minisblack" if kind == "grey" else "miniswhite"
        save_tiff(path, grey, is_tiled=is_tiled, photometric=photometric)
        pixels = np.dstack([grey if kind == "grey" else 255 - grey] * 3)
    elif kind == "palette":
        colours = rng.integers(0, 256, (3, 256)).astype(np.uint16) * 257
        save_tiff(path, grey, is_tiled=is_tiled, photometric="palette", colormap=colours)
        pixels = (colours // 257).astype(np.uint8).T[grey]
    elif kind == "alpha":
        alpha = rng.integers(0, 256, pixels.shape[:2]).astype(np.uint8)
        stored = np.dstack([pixels, alpha])
        save_tiff(path, stored, is_tiled=is_tiled, extrasamples=["unassalpha"])
        share = alpha[..., None] / 255
        pixels = np.rint(pixels * share + 255 * (1 - share)).astype(np.uint8)
    elif kind == "grey channels":
        number = int(rng.integers(2, 6))
        way = rng.choice(["pages", "ome", "samples", "planes"])
        planes = rng.integers(0, 256, (number, *pixels.shape[:2])).astype(np.uint8)
        if way == "pages":
            for i, plane in enumerate(planes):
                save_tiff(path, plane, is_tiled=is_tiled, photometric="minisblack", append=i > 0)
        elif way == "ome":
            meta = {"ome": True, "metadata": {"axes": "CYX"}}
            path = path.with_suffix(".ome.tif")
            save_tiff(path, planes, is_tiled=is_tiled, photometric="minisblack", **meta)
        else:
            planar = "contig" if way == "samples" else "separate"
            data = np.moveaxis(planes, 0, -1) if way == "samples" else planes
            save_tiff(path, data, is_tiled=is_tiled, photometric="minisblack", planarconfig=planar)
        pixels = None
    elif kind == "deep":
        deep = pixels.astype(rng.choice([np.uint16, np.int16, np.uint32, np.float32, np.int8]))
        is_grey = rng.random() < 0.5
        save_tiff(
            path, deep[..., 0] if is_grey else deep, is_tiled=is_tiled, photometric="minisblack" if is_grey else "rgb"
        )
        pixels = None
    else:
        save_tiff(path, np.dstack([pixels, grey]), is_tiled=is_tiled, photometric="separated")
        pixels = None
    return path, str(kind), pixels


@pytest.mark.parametrize("start", range(4))
def test_however_colours_are_kept_they_are_right_or_refused(tmp_path, start):
    for seed in range(start * 1000, start * 1000 + cases(30, full=400)):
        path, kind, expected = random_tiff(tmp_path / f"{seed}.tif", np.random.default_rng(seed))
        try:
            seen, doubts = everything(path)
        except UnreadableSlide as error:
            refusal = str(error)
        else:
            refusal = ""
        if refusal:
            assert expected is None, (seed, kind, refusal)
            assert any(word in refusal for word in ("save it", "convert", "merge")), (seed, kind)
            assert path.stem not in refusal
            continue
        assert expected is not None, (seed, kind)
        assert np.abs(seen.astype(int) - expected).max() <= (1 if kind == "alpha" else 0), (seed, kind)
        assert any("grey" in doubt for doubt in doubts) is (kind in {"grey", "white is zero"}), (seed, kind)


@pytest.mark.parametrize(("is_tiled", "orientation"), [*itertools.product([True, False], range(10))])
def test_a_turned_tiff_is_refused_by_every_reader(tmp_path, pixels, is_tiled, orientation):
    path = save_tiff(tmp_path / "a.tif", pixels, is_tiled=is_tiled, extratags=[(274, 3, 1, orientation, True)])
    if orientation in {0, 1, 9}:  # 0 and 9 are no orientations
        assert np.array_equal(everything(path)[0], pixels)
        return
    with pytest.raises(UnreadableSlide, match=rf"Orientation tag is {orientation}: .* save it upright"):
        open_slide(path)


TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize(("suffix", "orientation"), [*itertools.product(["png", "jpg"], TURNS)])
def test_a_turned_photograph_is_upright(tmp_path, suffix, orientation):
    pixels = np.zeros((48, 80, 3), np.uint8)
    pixels[:16, :32] = (200, 30, 60)  # no turn looks like another
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    seen, _ = everything(save_image(tmp_path / f"a.{suffix}", pixels, exif=exif, **options))
    assert seen.shape == TURNS[orientation](pixels).shape
    assert np.abs(seen.astype(int) - TURNS[orientation](pixels)).max() < 8


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_colours_of_print_are_refused(tmp_path, pixels, mode, suffix):
    if (mode, suffix) == ("LAB", "jpg"):
        return
    image = Image.fromarray(pixels)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    else:
        image = image.convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    with pytest.raises(UnreadableSlide, match="save it as RGB"):
        open_slide(tmp_path / f"a.{suffix}")


def test_a_png_of_16_bit_is_refused(tmp_path, pixels):

    cv2.imwrite(str(tmp_path / "a.png"), pixels.astype(np.uint16) * 16)
    with pytest.raises(UnreadableSlide, match="16 bit; convert them to 8 bit"):
        open_slide(tmp_path / "a.png")


def test_a_fourth_sample_without_a_meaning_is_refused(tmp_path, pixels):
    data = np.dstack([pixels, pixels[..., 0]])
    for is_tiled in (True, False):
        path = save_tiff(tmp_path / "a.tif", data, is_tiled=is_tiled, extrasamples=["unspecified"])
        with pytest.raises(UnreadableSlide, match="4 samples per pixel, 3 of which are colours"):
            open_slide(path)


@pytest.mark.parametrize("is_tiled", [True, False])
def test_of_several_images_of_one_size_the_first_is_read_with_a_doubt(tmp_path, pixels, is_tiled):
    for i in range(3):
        save_tiff(tmp_path / "a.tif", pixels[::-1] if i else pixels, is_tiled=is_tiled, append=i > 0)
    seen, doubts = everything(tmp_path / "a.tif")
    assert np.array_equal(seen, pixels)
    assert doubts == ("the file holds 3 images of the slide's size, focal planes perhaps; the first is read",)


def test_a_grey_photograph_is_used_with_a_doubt(tmp_path, pixels):
    seen, doubts = everything(save_image(tmp_path / "a.png", pixels[..., 0]))
    assert np.array_equal(seen, np.dstack([pixels[..., 0]] * 3))
    assert doubts == ("the file is grey: it holds no colours of a stain",)


def test_a_plain_tiff_whose_first_page_is_a_thumbnail_is_refused(tmp_path, pixels):
    save_tiff(tmp_path / "a.tif", pixels[::4, ::4], is_tiled=False)
    save_tiff(tmp_path / "a.tif", pixels, is_tiled=False, append=True)
    with pytest.raises(UnreadableSlide, match="first page is 44 x 25 px, another one 173 x 97 px"):
        open_slide(tmp_path / "a.tif")


def test_pages_in_a_circle_end(tmp_path, pixels):
    path = save_tiff(tmp_path / "a.tif", pixels, is_tiled=False)
    with tifffile.TiffFile(path) as file:
        first = file.pages[0].offset
    data = bytearray(path.read_bytes())
    number = int.from_bytes(data[first : first + 2], "little")
    data[first + 2 + 12 * number :][:4] = first.to_bytes(4, "little")
    at = first + 2 + 12 * number
    data[at : at + 4] = first.to_bytes(4, "little")
    path.write_bytes(data)
    assert len(read_pages(path)) == 1


def test_a_file_of_many_pages_is_read_to_a_limit(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for _ in range(MAX_PAGES + 20):
            file.write(np.zeros((1, 1, 3), np.uint8), photometric="rgb", metadata=None)
    assert len(read_pages(tmp_path / "a.tif")) == MAX_PAGES


# --- resolution


@pytest.mark.parametrize("is_tiled", [True, False])
@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((20_000, 20_000), "CENTIMETER", 0.5),
        ((50_800, 50_800), "INCH", 0.5),
        ((20_000, 19_900), "CENTIMETER", 0.50126),
        ((20_000, 20_000), "NONE", None),
        ((72, 72), "INCH", None),
        ((96, 96), "INCH", None),
        ((300, 300), "INCH", None),
        ((20_000, 10_000), "CENTIMETER", None),
    ],
)
def test_resolution_tags_mean_the_same_to_every_reader(tmp_path, is_tiled, resolution, unit, mpp):
    path = save_tiff(
        tmp_path / "a.tif", tissue_image(SIZE), is_tiled=is_tiled, resolution=resolution, resolutionunit=unit
    )
    with open_slide(path) as image:
        assert image.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-4))


@pytest.mark.parametrize("is_tiled", [True, False])
def test_pixels_that_are_not_square_are_refused_until_the_manifest_decides(tmp_path, pixels, is_tiled):
    options = {"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER"}
    with open_slide(save_tiff(tmp_path / "a.tif", pixels, is_tiled=is_tiled, **options)) as image:
        for default in (None, 0.5):
            with pytest.raises(NoResolution, match=r"not square, 0\.5 x 1 um; resample .* or set mpp in the manifest"):
                resolve_mpp(image, given=None, default=default)
        assert resolve_mpp(image, given=0.5, default=None) == 0.5
        assert image.doubts == ("the pixels are not square, 0.5 x 1 um",)


@pytest.mark.parametrize(
    ("stated", "mpp", "doubts"),
    [
        ("MPP = 0.252", 0.252, ()),
        ("AppMag = 20", 0.5, ("the file states no um-per-pixel; 0.5 is taken, by its objective power of 20x",)),
        ("MPP = 0.252|AppMag = 20", 0.252, ()),
        ("MPP = 300", None, ()),
        ("Left = 3", None, ()),
    ],
)
def test_a_scanners_resolution_is_judged_too(tmp_path, pixels, stated, mpp, doubts):
    path = tmp_path / "a.svs"
    text = f"Aperio Image Library v11\r\n173x97 (64x64) JPEG/RGB Q=30|{stated}"
    tifffile.imwrite(
        path, pixels, tile=(64, 64), photometric="rgb", compression="jpeg", description=text, metadata=None
    )
    with open_slide(path) as image:
        assert (image.vendor, image.mpp, image.doubts) == ("aperio", mpp, doubts)


@pytest.mark.parametrize("is_tiled", [True, False])
@pytest.mark.parametrize(
    ("size", "unit", "mpp"),
    [
        (0.5, "µm", 0.5),
        (250.0, "nm", 0.25),
        (0.0005, "mm", 0.5),
        (0.00005, "cm", 0.5),
        (1e-5, "in", 0.254),
        (0.5, "pixel", None),
        (0.5, "reference frame", None),
        (0.5, None, 0.5),
        (0, "µm", None),
        (3.0, "mm", None),
    ],
)
def test_ome_states_the_size_of_a_pixel(tmp_path, is_tiled, size, unit, mpp):
    pixels = tissue_image(SIZE)
    sides = {f"PhysicalSize{axis}": size for axis in "XY"}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XY"} if unit else {}
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"photometric": "rgb", **layout(is_tiled)}
        file.write(pixels, subifds=1, metadata={"axes": "YXS", **sides, **units}, **options)
        file.write(pixels[::2, ::2], subfiletype=1, **options)
    with open_slide(path) as image:
        assert image.mpp == (None if mpp is None else pytest.approx(mpp))
        assert image.doubts == ()


def test_a_resolution_is_judged():
    rng = np.random.default_rng(2)
    for _ in range(cases(500, full=5000)):
        width, height = (float(side) for side in np.exp(rng.uniform(-7, 5, 2)))
        if rng.random() < 0.5:
            height = width * float(rng.uniform(0.9, 1.1))
        found = resolution_of((width, height))
        is_sensible = min(width, height) >= 0.01 and max(width, height) <= 20
        is_square = abs(width / height - 1) <= 0.05
        assert (found.mpp is not None) is (is_sensible and is_square)
        assert bool(found.refusal) is (is_sensible and not is_square)
        assert bool(found.ignored) is not is_sensible
        if found.mpp is not None:
            assert min(width, height) <= found.mpp <= max(width, height)
            assert bool(found.doubts) is (abs(width / height - 1) > 0.02)


@pytest.mark.parametrize(
    ("in_file", "given", "expected"),
    [
        (0.5, 0.25, ["the manifest says 0.25 um/px, the file 0.5 um/px; the manifest counts"]),
        (0.5, 0.51, []),
        (0.5, None, []),
        (352.8, None, ["the file states pixels of 352.8 x 352.8 um, which no microscope makes, and does not count"]),
        (352.8, 0.5, []),
    ],
)
def test_a_manifest_that_contradicts_the_file_is_a_doubt(in_file, given, expected):
    assert mpp_doubts(resolution_of((in_file, in_file)), given=given) == expected
