"""Tissue: none on an empty slide, all of a full one, and no tumour lost on real ones."""

import csv

import numpy as np
import pytest

from distmil.cohort import Slide
from distmil.config import TilingConfig
from distmil.shards import read_grid
from distmil.slides.tissue import bounding_box, detect_tissue
from distmil.storage import Part
from distmil.tiling import SlideTiler
from tests.slidemaking import tissue_image

SIZE = (300, 180)


def plain(colour, size=SIZE):
    return np.full((size[1], size[0], 3), colour, np.uint8)


def noisy(image, sigma=2.0, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("colour", [(255, 255, 255), (235, 235, 235), (245, 240, 248), (225, 228, 220)])
@pytest.mark.parametrize("sigma", [0, 2])
def test_an_empty_slide_holds_no_tissue(colour, sigma):
    assert not detect_tissue(noisy(plain(colour), sigma)).any()


def test_a_black_slide_holds_no_tissue():
    assert not detect_tissue(plain(0)).any()


def test_a_slide_full_of_tissue_is_nearly_all_tissue():
    assert detect_tissue(tissue_image(SIZE, seed=1)).mean() > 0.99


@pytest.mark.parametrize("background", [(255, 255, 255), (240, 238, 243), (222, 224, 226)])
@pytest.mark.parametrize("colour", [(170, 90, 160), (90, 60, 140), (235, 195, 220), (215, 160, 175)])
def test_tissue_is_found_where_it_is_whatever_its_shade(background, colour):
    image = plain(background)
    image[40:120, 60:240] = np.minimum(colour, background)
    image = noisy(image)
    found = detect_tissue(image)
    truth = np.zeros(image.shape[:2], bool)
    truth[40:120, 60:240] = True
    assert (found & truth).sum() > 0.95 * truth.sum()
    assert (found & ~truth).sum() < 0.05 * truth.sum()  # a pixel around it


def test_faint_tissue_is_found_beside_dark_tissue():
    # fat beside a dense lymph node: a threshold halfway between the two would lose it
    image = plain((245, 245, 245))
    image[20:160, 20:120] = (90, 50, 130)
    image[20:160, 160:280] = (232, 205, 222)
    assert detect_tissue(noisy(image))[25:155, 165:275].mean() > 0.97


def test_a_black_border_is_no_tissue():
    image = plain((245, 245, 245))
    image[:, :30] = image[:20] = 0
    image[80:120, 100:200] = (170, 90, 160)
    found = detect_tissue(image)
    assert found[82:118, 102:198].all()
    assert found[:, :25].sum() + found[:15].sum() == 0


def test_specks_are_dropped_and_small_tissue_is_kept():
    image = plain((245, 245, 245))
    image[30:33, 30:33] = (120, 60, 120)
    image[100:106, 200:207] = (120, 60, 120)
    found = detect_tissue(image)
    assert not found[25:40, 25:40].any()
    assert found[101:105, 201:206].all()


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
    plan = store.read_json(f"{tiler.folder}/plan.json")
    grid = read_grid(store, tiler.folder, Part(**plan["grid"]))
    found = set(zip(grid["x"].to_pylist(), grid["y"].to_pylist(), strict=True))
    assert tumour <= found
    # the canvas around the block is white
    assert len(found) <= 1.1 * len(cells)
