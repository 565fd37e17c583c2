"""Tissue: none on an empty slide, all of a full one, no ink or black, and no tumour lost on real ones."""

import csv
import re

import cv2
import numpy as np
import pytest

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.slides.image import overview
from distmil.slides.reader import open_slide
from distmil.slides.tissue import bounding_box, detect_tissue
from distmil.storage.records import Part
from distmil.tiling.shards import read_grid
from distmil.tiling.tiler import SlideTiler
from tests.support.scale import cases
from tests.support.slides import tissue_image

SIZE = (300, 180)


def plain(colour, size=SIZE):
    return np.full((size[1], size[0], 3), colour, np.uint8)


def noisy(image, sigma=2.0, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("colour", [(255, 255, 255), (235, 235, 235), (245, 240, 248), (225, 228, 220)])
@pytest.mark.parametrize("sigma", [0, 2])
def test_an_empty_slide_holds_no_tissue(colour, sigma):
    found = detect_tissue(noisy(plain(colour), sigma))
    assert not found.mask.any()
    assert found.doubts == ()


def test_a_black_slide_holds_no_tissue():
    found = detect_tissue(plain(0))
    assert not found.mask.any()
    assert found.doubts == ("100.0% of the overview is black",)


def test_a_slide_full_of_tissue_is_nearly_all_tissue():
    found = detect_tissue(tissue_image(SIZE, seed=1))
    assert found.mask.mean() > 0.99
    assert "tissue covers 100.0% of the overview" in found.doubts[0]


@pytest.mark.parametrize("background", [(255, 255, 255), (240, 238, 243), (222, 224, 226)])
@pytest.mark.parametrize("colour", [(170, 90, 160), (90, 60, 140), (235, 195, 220), (215, 160, 175)])
def test_tissue_is_found_where_it_is_whatever_its_shade(background, colour):
    image = plain(background)
    image[40:120, 60:240] = np.minimum(colour, background)
    image = noisy(image)
    found = detect_tissue(image).mask
    truth = np.zeros(image.shape[:2], bool)
    truth[40:120, 60:240] = True
    assert (found & truth).sum() > 0.95 * truth.sum()
    assert (found & ~truth).sum() < 0.05 * truth.sum()  # a pixel around it


def test_faint_tissue_is_found_beside_dark_tissue():
    # fat beside a dense lymph node: a threshold halfway between the two would lose it
    for faint in [(232, 205, 222), (240, 213, 230), (206, 206, 206)]:
        image = plain((245, 245, 245))
        image[20:160, 20:120] = (90, 50, 130)
        image[20:160, 160:280] = faint
        assert detect_tissue(noisy(image)).mask[25:155, 165:275].mean() > 0.97


def test_a_black_border_is_no_tissue():
    image = plain((245, 245, 245))
    image[:, :30] = image[:20] = 0
    image[80:120, 100:200] = (170, 90, 160)
    found = detect_tissue(image).mask
    assert found[82:118, 102:198].all()
    assert found[:, :25].sum() + found[:15].sum() == 0


def test_specks_are_dropped_and_small_tissue_is_kept():
    image = plain((245, 245, 245))
    image[30:33, 30:33] = (120, 60, 120)
    image[100:104, 200:205] = (120, 60, 120)
    found = detect_tissue(image).mask
    assert not found[25:40, 25:40].any()
    assert found[100:104, 200:205].all()


PLACE = np.s_[100:200, 60:220]
WIDE = (480, 320)


def slide(*, glass=(245, 244, 246), seed=1):
    """Return a clean slide: textured tissue at PLACE on glass."""
    image = plain(glass, WIDE)
    image[PLACE] = tissue_image((160, 100), seed=seed)
    return noisy(image)


def with_stroke(image, colour, *, width=24, softness=1.5):
    """Draw a pen stroke right and below of the tissue, as ink absorbs; return the image and where the stroke is."""
    stroke = np.zeros(image.shape[:2], np.float32)
    cv2.polylines(stroke, [np.array([(300, 40), (420, 110), (330, 260), (60, 280)])], False, 1.0, width, cv2.LINE_AA)
    stroke = cv2.GaussianBlur(stroke, (0, 0), softness)
    inked = image * (np.divide(colour, 255) ** stroke[..., None])
    return noisy(inked, 1), stroke > 0.02


def around(mask, by_px=4):
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by_px + 1,) * 2)) > 0


def is_place(image):
    place = np.zeros(image.shape[:2], bool)
    place[PLACE] = True
    return place


def test_a_clean_slide_leaves_no_doubt():
    found = detect_tissue(slide())
    assert found.mask[PLACE].mean() > 0.999
    assert not found.mask[~around(is_place(found.mask))].any()
    assert found.doubts == ()


INKS = {
    "blue": (40, 70, 165),
    "light blue": (70, 150, 215),
    "green": (40, 130, 75),
    "teal": (20, 110, 120),
    "red": (215, 28, 40),
    "black": (38, 36, 40),
    "grey black": (66, 64, 68),
}


@pytest.mark.parametrize("softness", [0.5, 1.5, 4])
@pytest.mark.parametrize("ink", INKS)
def test_pen_ink_is_taken_out_and_the_tissue_beside_it_stays(ink, softness):
    clean = slide()
    inked, stroke = with_stroke(clean, INKS[ink], softness=softness)
    found = detect_tissue(inked)
    assert found.mask[PLACE].mean() > 0.999
    assert (found.mask & stroke).sum() < 0.02 * stroke.sum()
    assert not found.mask[~around(is_place(clean))].sum() > 0.02 * stroke.sum()
    (doubt,) = found.doubts
    share = float(re.fullmatch(r"pen ink was taken out on (.*)% of the overview", doubt).group(1)) / 100
    assert share == pytest.approx(stroke.mean(), rel=0.2)


def test_pen_ink_round_the_tissue_leaves_the_tissue_inside():
    image = slide()
    cv2.ellipse(image, (140, 150), (125, 90), 0, 0, 360, (30, 60, 160), 16)
    found = detect_tissue(noisy(image, 1)).mask
    assert found[PLACE].mean() > 0.999
    assert not found[~around(is_place(image))].any()


STAINS = {
    "haematoxylin": (90, 60, 140),
    "dark haematoxylin": (45, 30, 80),
    "bluish haematoxylin": (60, 50, 150),
    "a fold": (50, 36, 52),
    "eosin": (225, 110, 160),
    "blood": (185, 55, 65),
    "dark blood": (150, 35, 45),
    "DAB": (130, 85, 50),
    "dark DAB": (70, 40, 18),
    "counterstain beside DAB": (150, 160, 200),
    "melanin": (62, 46, 36),
}


@pytest.mark.parametrize("stain", STAINS)
def test_stained_tissue_is_no_ink_even_where_it_is_as_even_as_ink(stain):
    image = slide()
    image[230:300, 250:450] = STAINS[stain]
    found = detect_tissue(noisy(image, 1))
    assert found.mask[230:300, 250:450].mean() > 0.999
    assert found.doubts == ()


def test_ink_on_tissue_that_is_speckled_narrow_or_small_is_left_alone():
    # margins are painted, and lungs hold soot: neither is a pen stroke on the glass
    image = slide()
    image[PLACE][::6, ::5] = (20, 18, 20)
    image[100:109, 60:220] = image[150:166, 100:116] = (20, 110, 100)
    found = detect_tissue(image)
    assert found.mask[PLACE].mean() > 0.995
    assert found.doubts == ()


def test_black_amid_the_slide_that_reaches_no_edge_is_taken_out_too():
    image = slide()
    image[220:300, 260:400] = 0
    assert detect_tissue(image).mask[210:310, 250:410].sum() == 0


def test_a_border_of_black_and_gaps_of_white_hide_nothing():
    # void is black with some scanners and pure white with others, glass is neither
    for void in (0, 255):
        image = np.full((440, 760, 3), void, np.uint8)
        image[50:370, 90:570] = slide(glass=(212, 213, 216))
        found = detect_tissue(image).mask[50:370, 90:570]
        assert found[PLACE].mean() > 0.999
        assert detect_tissue(image).mask.sum() < 1.06 * is_place(found).sum()


def test_a_tinted_or_uneven_glass_is_no_tissue():
    for glass in [(232, 226, 209), (205, 208, 218)]:
        assert detect_tissue(slide(glass=glass)).mask.mean() == pytest.approx(is_place(slide()).mean(), rel=0.06)
    image = slide().astype(np.float32) * np.linspace(1.0, 0.86, WIDE[0])[None, :, None]
    assert detect_tissue(image.astype(np.uint8)).mask.mean() == pytest.approx(is_place(slide()).mean(), rel=0.06)


def aged(image, factors):
    return (image * np.array(factors)).astype(np.uint8)


def mixed_slide(rng):
    """Return a slide of dense, faint and fatty tissue on glass, textured and even."""
    glass = int(rng.integers(232, 249))
    image = plain(glass, WIDE)
    dense = tissue_image((160, 100), seed=int(rng.integers(1000)))
    image[100:200, 60:220] = dense
    image[40:90, 250:400] = np.array([(232, 205, 222), (225, 190, 215), (glass - 46,) * 3][rng.integers(3)])
    image[220:290, 300:420] = rng.integers([150, 80, 140], [200, 130, 180], (70, 120, 3))
    return noisy(image, float(rng.uniform(0.5, 3)), seed=int(rng.integers(1000)))


@pytest.mark.parametrize("start", range(3))
def test_a_tint_of_the_whole_slide_leaves_the_tissue_as_it_is(start):
    for seed in range(start * 1000, start * 1000 + cases(25, full=300)):
        rng = np.random.default_rng(seed)
        image, factors = mixed_slide(rng), rng.uniform(0.85, 1, 3)
        if rng.random() < 0.5:
            factors = np.sort(factors)[::-1]  # yellow to brown, as slides age
        clear, tinted = (detect_tissue(picture).mask for picture in (image, aged(image, factors)))
        assert 0.9 < tinted.sum() / clear.sum() < 1.1, (seed, factors)
        assert (clear & tinted).sum() > 0.95 * clear.sum(), (seed, factors)


@pytest.mark.parametrize("factors", [(1, 0.98, 0.87), (1, 0.95, 0.85), (0.97, 0.92, 0.8)])
def test_yellow_glass_is_no_tissue_and_is_said(factors):
    found = detect_tissue(aged(slide(), factors))
    assert found.mask[PLACE].mean() > 0.999
    assert not found.mask[~around(is_place(found.mask))].any()
    assert [doubt.partition(",")[0] for doubt in found.doubts] == ["the glass is tinted"]


@pytest.mark.parametrize("colour", [(235, 195, 220), (232, 205, 222), (215, 160, 175), (225, 205, 180)])
@pytest.mark.parametrize("ground", [(255, 255, 255), (245, 244, 246)])
def test_even_pale_tissue_on_clear_glass_is_never_taken_for_it(colour, ground):
    image = plain(ground, WIDE)
    image[30:290, 30:450] = colour
    assert detect_tissue(image).mask[35:285, 35:445].mean() > 0.99
    assert detect_tissue(noisy(image)).mask[35:285, 35:445].mean() > 0.99


def test_glass_of_two_shades_is_no_tissue():
    # beside the coverslip it is brighter
    image = plain((230, 230, 230), WIDE)
    image[:, :40] = 250
    assert not detect_tissue(noisy(image, 1)).mask.any()


def test_a_blurred_grey_amid_tissue_is_not_taken_for_glass():
    image = tissue_image(WIDE, seed=2)
    image[50:270, 40:200] = (112, 110, 114)
    assert detect_tissue(image).mask.mean() > 0.99


def test_the_threshold_rises_with_the_noise_of_the_glass():
    image = plain((210, 210, 210), (900, 600))
    image[PLACE] = (197, 180, 191)
    found = detect_tissue(noisy(image, 16)).mask
    assert found[PLACE].mean() > 0.97
    assert found[~around(is_place(image))].sum() < 50


def test_tissue_of_an_ink_s_colour_is_known_by_its_texture():
    # collagen in a trichrome stain is as blue as a pen
    image = slide().astype(np.float64)
    grain = np.random.default_rng(5).normal(1, 0.25, (50, 80, 1)).repeat(2, axis=0).repeat(2, axis=1)
    image[PLACE] = np.multiply(INKS["blue"], grain)
    found = detect_tissue(image.clip(0, 255).astype(np.uint8))
    assert found.mask[PLACE].mean() > 0.99
    assert found.doubts == ()


def test_faint_tissue_alone_is_found():
    for colour in [(238, 224, 233), (236, 212, 228)]:
        image = plain((245, 245, 245), WIDE)
        image[PLACE] = colour
        assert detect_tissue(noisy(image)).mask[PLACE][1:-1, 1:-1].mean() > 0.99


def test_small_holes_are_filled_and_large_ones_stay():
    image = slide()
    image[110:124, 70:84] = image[110:150, 120:160] = image[170:172, 100:200] = (245, 244, 246)
    found = detect_tissue(noisy(image)).mask
    assert found[105:129, 65:89].all()
    assert found[168:174, 95:205].all()
    assert not found[113:147, 123:157].any()


def dust(image):
    for row, column in np.argwhere(np.ones((30, 24))) * 10 + (4, 236):
        image[row : row + 3, column : column + 3] = (150, 110, 150)
    return image


def underexposed(image):
    return (image * 0.6).astype(np.uint8)


def pale(image):
    return noisy(np.where(is_place(image)[..., None], (241, 222, 234), 245), 1)


def tiny(image):
    return np.where(np.indices(image.shape[:2]).sum(axis=0)[..., None] < 170, image, 245).astype(np.uint8)


def framed(image):
    return cv2.copyMakeBorder(image, 100, 100, 140, 140, cv2.BORDER_CONSTANT, value=(4, 2, 3))


@pytest.mark.parametrize(
    ("spoil", "doubt"),
    [
        (dust, "specks of"),
        (underexposed, r"the glass is dark, 146 of 255"),
        (pale, r"tissue and glass hardly differ, in density by 0\.0[12]"),
        (tiny, r"only 0\.0\d+% of the overview is tissue"),
        (framed, r"6\d\.\d% of the overview is black"),
        (lambda image: image[105:195, 70:210], r"tissue covers (9\d\.\d|100\.0)% of the overview"),
    ],
)
def test_what_is_odd_about_a_slide_is_said(spoil, doubt):
    assert detect_tissue(slide()).doubts == ()
    found = detect_tissue(spoil(slide()))
    (said,) = found.doubts
    assert re.search(doubt, said), said
    assert found.mask.any()


@pytest.mark.parametrize("name", ["pcam_cohort/slides/val_000.tif", "slides/CMU-1-Small-Region.svs"])
def test_a_real_slide_leaves_no_doubt(data, name):
    with open_slide(data / name) as image:
        found = detect_tissue(overview(image, max_px=1024)[0])
    assert found.doubts == ()
    assert 0.3 < found.mask.mean() < 0.5


def test_the_box_holds_the_mask_and_nothing_to_spare():
    mask = np.zeros((18, 30), bool)
    mask[4:7, 10:22] = True
    assert bounding_box(mask, scale=10.5, size=(312, 187)) == (105, 42, 231, 74)
    mask[17, 29] = True
    assert bounding_box(mask, scale=10.5, size=(312, 187)) == (105, 42, 312, 187)
    assert bounding_box(np.zeros((18, 30), bool), scale=10.5, size=(312, 187)) is None


@pytest.mark.parametrize("slide_id", ["train_000", "train_002", "train_020", "train_044"])
def test_no_tumour_is_lost_on_a_real_slide(data, store, slide_id):
    folder = data / "pcam_cohort"
    with (folder / "truth.csv").open() as file:
        cells = [row for row in csv.DictReader(file) if row["slide_id"] == slide_id]
    tumour = {(int(row["x"]), int(row["y"])) for row in cells if row["label"] == "1"}
    assert 0 < len(tumour) < len(cells)
    config = TilingConfig(patch_px=96, mpp=0.972, min_tissue=0.1)
    tiler = SlideTiler(Slide(slide_id, str(folder / "slides" / f"{slide_id}.tif")), config, store)
    tiler.plan()
    plan = store.read_checked(f"{tiler.folder}/plan.json", owner=tiler.slide.slide_id)
    grid = read_grid(store, tiler.folder, Part(**plan["info"]["grid"]))
    found = set(zip(grid["x"].to_pylist(), grid["y"].to_pylist(), strict=True))
    assert tumour <= found
    # the canvas around the block is white
    assert len(found) <= 1.1 * len(cells)
