"""Tiling of slides of random size, pyramid and resolution: OpenSlide's pixels, at every wanted place, once."""

import math
import shutil

import cv2
import numpy as np
import pytest
import simplejpeg

from distmil.cohort import Slide
from distmil.storage.store import Store
from distmil.tiling import tiler as tiling
from distmil.tiling.plan import TilingPlan
from distmil.tiling.tiler import SlideTiler
from distmil.tiling.worker import do_step
from distmil.visualization.slide_maps import _thumbnail
from tests.support.geometry import Case, Truth, every_corner, random_case, save_case, share_of, wanted
from tests.support.scale import cases
from tests.support.tiles import images_of, patches_of

GROUP = 20
CHECKED = 12
"""Patches of a case whose pixels are compared."""


@pytest.mark.parametrize("first", range(0, cases(100, full=2000), GROUP))
def test_every_slide_is_tiled_as_openslide_shows_it(tmp_path, monkeypatch, first):
    found: list[TilingPlan] = []
    look = tiling.plan_tiling
    monkeypatch.setattr(tiling, "plan_tiling", lambda *given: found.append(look(*given)) or found[-1])
    wrong = []
    for seed in range(first, first + GROUP):
        case = random_case(seed)
        found.clear()
        try:
            check(case, tmp_path, found)
        except Exception as error:  # noqa: BLE001  # every failing seed is wanted, not the first alone
            wrong.append(f"seed {seed}: {type(error).__name__}: {error}\n  {case}")
    assert not wrong, f"{len(wrong)} of {GROUP} cases are wrong; check(random_case(SEED), ...) runs one:\n" + "\n".join(
        wrong
    )


@pytest.mark.parametrize("length", [12_100, 12_801, 14_000, 16_383, 16_384, 16_390])
def test_a_20x_slide_of_an_aperio_is_tiled_whatever_its_length(tmp_path, monkeypatch, length):
    # levels 1, 4 and 16; of these lengths the overview is best made from level 4, reduced fourfold to a little too much
    found: list[TilingPlan] = []
    look = tiling.plan_tiling
    monkeypatch.setattr(tiling, "plan_tiling", lambda *given: found.append(look(*given)) or found[-1])
    values = {"strategy": "foreground", "patch_px": 112, "stride_px": 448, "mpp": 0.5, "encode": "png"}
    case = Case(length, (length, 240), (4, 4), "floor", (240, 240), "jpeg", (2, 2), True, 0.5, values)
    check(case, tmp_path, found)
    assert found


def check(case, folder, found):
    """Tile a case and compare grid, overview and pixels."""
    path, config = save_case(case, folder), case.config
    truth = Truth(path, is_plain=case.is_plain)
    store = Store(str(folder / f"store{case.seed}"))
    tiler = SlideTiler(Slide("s1", str(path)), config, store)
    answer = do_step(tiler, None)
    for chunk in range(answer.chunks):
        answer = do_step(tiler, chunk)
    record = answer.record
    mpp = case.mpp or (config.default_mpp if config.mpp else None)
    plan = wanted(config, truth.downsamples, mpp)
    status = None
    if case.is_plain and config.reader == "openslide":
        status = "unreadable"
    elif config.mpp and not mpp:
        status = "no_mpp"
    elif plan is None:
        status = "too_coarse"
    elif record.status == "no_tissue" and config.strategy == "foreground":
        status = "no_tissue"
    elif config.strategy != "pad" and min(case.size) < plan.extent_px:
        status = "too_small"
    else:
        assert record.ok, f"{record.status}: {record.error}"
        [survey] = found
        check_overview(truth, survey)
        check_grid(case, plan, truth, survey)
        table = patches_of(store, config, record)
        assert table.select(["x", "y"]).equals(survey.grid.select(["x", "y"]))
        check_pixels(case, plan, truth, table, record)
        status = "ok"
    assert record.status == status, f"{record.status} in place of {status}: {record.error}"
    truth.close()
    path.unlink()
    shutil.rmtree(store.root)


def check_overview(truth, survey):
    """The overview is the slide reduced, whichever way it was made, and all of it."""
    rows, columns = survey.overview.shape[:2]
    for number, length in ((columns, truth.size[0]), (rows, truth.size[1])):
        assert number * survey.scale >= length - max(truth.downsamples), "the overview lacks its end"
        assert (number - 1) * survey.scale < length, "the overview goes on past its end"
    assert max(rows, columns) <= 4096
    apart = [
        np.abs(survey.overview.astype(int) - expected.astype(int)).mean()
        for expected in truth.reduced((rows, columns), survey.scale)
    ]
    assert min(apart) < 2.5, f"the overview is off by {min(apart):.2f}"


def check_grid(case, plan, truth, survey):
    """Every wanted patch is there once, and no other."""
    config, size, extent = case.config, truth.size, plan.extent_px
    box = (0, 0, *size)
    if config.strategy == "foreground":
        box = foreground(case, plan, truth, survey)
    is_whole = config.strategy == "crop"
    columns, rows = (
        every_corner(size[i], extent=extent, stride=plan.stride, start=box[i], stop=box[i + 2], is_whole=is_whole)
        for i in (0, 1)
    )
    shares = {(x, y): share_of(survey.mask, survey.scale, x, y, extent) for y in rows for x in columns}
    places = list(zip(survey.grid["x"].to_pylist(), survey.grid["y"].to_pylist(), strict=True))
    assert len(set(places)) == len(places)
    assert set(places) <= set(shares)
    stated = survey.grid["tissue_fraction"].to_numpy()
    assert np.allclose(stated, [shares[place] for place in places], atol=1e-4)
    if config.strategy == "foreground":
        must = {place for place, share in shares.items() if share >= config.min_tissue + 1e-4}
        may = {place for place, share in shares.items() if share >= config.min_tissue - 1e-4}
        assert must <= set(places) <= may
    else:
        assert set(places) == set(shares)
    assert survey.grid["extent_px"].unique().to_pylist() == [extent]


def foreground(case, plan, truth, survey):
    """The smallest rectangle around the mask, of whole tiles where that is asked for and the file has them."""
    rows, columns = np.nonzero(survey.mask)
    box = [math.floor(v.min() * survey.scale) for v in (columns, rows)]
    box += [min(math.ceil((v.max() + 1) * survey.scale), truth.size[i]) for i, v in enumerate((columns, rows))]
    is_jpeg = case.codec.startswith("jpeg") and not case.is_plain and case.config.reader == "auto"
    if case.config.snap and is_jpeg:
        for i in (0, 1):
            edge = case.layout[i] * plan.downsample
            box[i] = math.floor(math.floor(box[i] / edge) * edge)
            box[i + 2] = math.ceil(min(math.ceil(box[i + 2] / edge) * edge, truth.size[i]))
    return box


def check_pixels(case, plan, truth, table, record):
    """Patches are OpenSlide's pixels at their place: to the last bit, or within what resampling and JPEG add."""
    assert table.num_rows == record.rows
    config, edge = case.config, case.config.patch_px
    chosen = np.random.default_rng(case.seed).permutation(table.num_rows)[:CHECKED]
    part = table.take(np.sort(chosen))
    assert table["extent_px"].unique().to_pylist() == [plan.extent_px]
    for x, y, image in zip(part["x"].to_pylist(), part["y"].to_pylist(), images_of(part), strict=True):
        is_inside = x + plan.extent_px <= truth.size[0] and y + plan.extent_px <= truth.size[1]
        is_coded = config.encode != "png" and not (record.info["reused"] and is_inside)
        is_whole = plan.downsample == round(plan.downsample) and x % plan.downsample == 0 == y % plan.downsample
        is_scaled = config.reduce == "dct" and plan.factor > 1
        is_exact = is_whole and not is_scaled
        # off a level's pixels OpenSlide interpolates, where the file's tiles are read half a pixel apart at most
        shifts = [0] if is_whole else [-plan.downsample / 2, 0, plan.downsample / 2]
        # where a level is scaled as it is decoded, the last coded block holds some of what lies beyond the image
        block, last = 16 if is_coded else 1, max(1, plan.factor) * plan.downsample
        columns, rows = (
            edge
            if is_exact or at + plan.extent_px + last <= end
            else (int((end - at) / plan.extent_px * edge) - (8 // plan.factor if is_scaled else 1)) // block * block
            for at, end in zip((x, y), truth.size, strict=True)
        )
        if min(columns, rows) <= 0:
            continue
        apart = [
            np.abs(image.astype(int) - expected(truth, plan, (round(x + right), round(y + down)), edge, is_coded))
            for right in shifts
            for down in shifts
        ]
        least = min((one[:rows, :columns] for one in apart), key=np.mean)
        where = f"patch at {x}, {y}: off by {least.max()} at most, {least.mean():.2f} on average"
        # scaling in the DCT domain is softer; of a level where the tissue's structure is a pixel wide, by much
        limit = 8 if is_scaled else 5
        assert least.max() == 0 if is_exact else least.mean() < limit, where


def expected(truth, plan, corner, edge, is_coded):
    """A patch as OpenSlide gives it, averaged down, and through JPEG where it is stored so."""
    seen = truth.read(*corner, level=plan.level, edges=(plan.read_px, plan.read_px))
    if plan.read_px != edge:
        how = cv2.INTER_AREA if plan.read_px > edge else cv2.INTER_CUBIC
        seen = cv2.resize(seen, (edge, edge), interpolation=how)
    if is_coded:
        coded = simplejpeg.encode_jpeg(np.ascontiguousarray(seen), 90, colorsubsampling="420", fastdct=False)
        seen = simplejpeg.decode_jpeg(coded)
    return seen.astype(int)


def test_a_slide_that_is_gone_and_thin_has_maps_on_white():
    doubts: list[str] = []
    slide = Slide("s1", "/nowhere.tif")
    picture, scale = _thumbnail(slide, size=(100_000, 7), max_px=1000, reader="auto", doubts=doubts)
    assert (picture.shape, scale) == ((1, 1000, 3), 100)
    assert len(doubts) == 1
