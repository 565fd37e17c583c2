"""Lesion FROC against a plain rendering of CAMELYON16's evaluation, slow and on whole rasters, and hand-made cases."""

import numpy as np
import pytest
import shapely
from scipy import ndimage

from distmil.annotations.regions import MaskRegions, OutlineRegions
from distmil.evaluation.froc import FALSE_POSITIVES, Detections, detect, froc_of, neighbours, peaks
from distmil.evaluation.intervals import Bootstrap
from distmil.evaluation.lesions import GROWTH_UM, ISOLATED, ISOLATED_UM, OUTSIDE, PIXEL_UM, Lesions, lesions_of
from tests.support.scale import cases

MPP = 0.5
PIXEL_PX = PIXEL_UM / MPP
EMPTY = shapely.MultiPolygon()


def outlined(*targets, mpp=MPP):
    """The lesions of polygons in um."""
    regions = OutlineRegions(
        target_groups=("tumor",),
        targets={1: shapely.transform(shapely.union_all(targets), lambda point: point / mpp)},
        normal=EMPTY,
        unclear=EMPTY,
    )
    return lesions_of(regions, mpp=mpp)


def at_um(lesions, *points, mpp=MPP):
    return lesions.at(*(np.array(points, float).T / mpp)).tolist()


def evaluation_mask(marked_HW):
    """Grow, fill and label as CAMELYON16's computeEvaluationMask, and list the isolated labels."""
    distance = ndimage.distance_transform_edt(~marked_HW)
    filled = ndimage.binary_fill_holes(distance < GROWTH_UM / PIXEL_UM)
    label_HW, _ = ndimage.label(filled, structure=np.ones((3, 3)))
    isolated = []
    for label, place in enumerate(ndimage.find_objects(label_HW), start=1):
        spread = np.cov(np.argwhere(label_HW[place] == label).T, bias=True)
        if 4 * np.sqrt(np.linalg.eigvalsh(spread)[-1]) * PIXEL_UM < ISOLATED_UM:
            isolated.append(label)
    return label_HW, isolated


def plain_peaks(centre_N2, score_N, radius):
    """Go through the patches by falling score, and strike out what is near."""
    value_N, kept = score_N.astype(float), []
    while len(value_N) and value_N.max() >= 0:
        kept.append(int(value_N.argmax()))
        value_N[np.hypot(*(centre_N2 - centre_N2[kept[-1]]).T) <= radius] = -1
    return sorted(kept)


def plain_detections(centre_N2, score_N, peak, label_HW, isolated):
    """As compute_FP_TP_Probs; a missed lesion has the score 0."""
    false, best = [], np.zeros(label_HW.max())
    for i in peak:
        column, row = (int(value // PIXEL_PX) for value in centre_N2[i])
        label = label_HW[row, column]
        if label == 0:
            false.append(float(score_N[i]))
        elif label not in isolated:
            best[label - 1] = max(best[label - 1], score_N[i])
    return false, [best[label - 1] for label in range(1, label_HW.max() + 1) if label not in isolated]


def plain_froc(slides):
    """As computeFROC and computeFROCScore, with every score as a threshold."""
    false = np.concatenate([np.array(pair[0]) for pair in slides])
    true = np.concatenate([np.array(pair[1]) for pair in slides])
    if not len(true):
        return None
    thresholds = [value for value in sorted({*false, *true}) if value > 0]
    total_false = [(false >= value).sum() / len(slides) for value in thresholds] + [0]
    sensitivity = [(true >= value).sum() / len(true) for value in thresholds] + [0]
    return np.interp(FALSE_POSITIVES, total_false[::-1], sensitivity[::-1])


def random_slide(rng):
    """A wide slide's polygons in um, its patches in level-0 px, and its size in px."""
    width, height = int(rng.integers(1500, 4000)), int(rng.integers(800, 2000))  # um
    targets = []
    for _ in range(int(rng.integers(0, 6))):
        centre = rng.uniform((270, 270), (width - 270, height - 270))
        blob = shapely.Point(centre).buffer(rng.uniform(15, 220))
        blob = shapely.affinity.scale(blob, 1, rng.uniform(0.3, 1.0))
        if rng.random() < 0.3:
            blob = blob.difference(shapely.Point(centre).buffer(rng.uniform(10, 90)))
        # what falls between the pixels' centres is marked all the same, but not by contains_xy
        targets += [part for part in shapely.get_parts(blob) if not part.buffer(-PIXEL_UM).is_empty]
    extent = int(rng.integers(100, 400))
    stride = extent if rng.random() < 0.7 else extent // 2
    x, y = (grid.ravel() for grid in np.meshgrid(
        np.arange(0, width / MPP - extent, stride), np.arange(0, height / MPP - extent, stride)
    ))  # fmt: skip
    kept = rng.random(len(x)) < 0.8
    order = rng.permutation(int(kept.sum()))
    return targets, x[kept][order].astype(np.int32), y[kept][order].astype(np.int32), extent, (width, height)


def test_froc_is_camelyons_on_random_cohorts():
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(cases(100, full=1000)):
        mine, theirs = [], []
        for _ in range(int(rng.integers(2, 5))):
            targets, x, y, extent, (width, height) = random_slide(rng)
            digits = int(rng.integers(1, 4))  # few distinct scores: ties
            score = np.clip(rng.random(len(x)).round(digits), 0.001, 1).astype(np.float32)
            shape = (int(height // PIXEL_UM) + 1, int(width // PIXEL_UM) + 1)
            column, row = np.meshgrid(*((np.arange(length) + 0.5) * PIXEL_UM for length in shape[::-1]))
            marked = shapely.contains_xy(shapely.union_all(targets), column, row)
            label_HW, isolated = evaluation_mask(marked) if marked.any() else (np.zeros(shape, int), [])
            centre = np.stack([x, y], axis=1) + extent / 2
            peak = plain_peaks(centre, score, 1.5 * extent)
            theirs.append(plain_detections(centre, score, peak, label_HW, isolated))
            lesions = outlined(*targets) if targets else Lesions.none()
            assert lesions.num_isolated == len(isolated)
            (found,) = detect(x, y, np.full(len(x), extent, np.int32), [score], lesions)
            assert sorted(found.false_F.tolist()) == sorted(theirs[-1][0])
            assert sorted(np.nan_to_num(found.lesion_L).tolist()) == sorted(theirs[-1][1])
            mine.append(found)
        expected = plain_froc(theirs)
        froc = froc_of(mine, Bootstrap.of([f"p{i}" for i in range(len(mine))], draws=2))
        assert (froc is None) == (expected is None)
        if froc:
            assert froc.sensitivities == pytest.approx(expected, abs=1e-9)
            assert froc.score == pytest.approx(expected.mean(), abs=1e-9)
            compared += 1
    assert compared > 50


def test_near_targets_are_one_lesion_and_far_ones_are_two():
    """A gap of 60 um closes, one of 110 um does not: each side grows by 37.5 um."""
    near = outlined(shapely.box(200, 200, 600, 300), shapely.box(660, 200, 1000, 300))
    far = outlined(shapely.box(200, 200, 600, 300), shapely.box(710, 200, 1000, 300))
    assert (near.num_lesions, far.num_lesions) == (1, 2)
    assert at_um(near, (400, 250), (630, 250), (900, 250)) == [0, 0, 0]
    assert at_um(far, (655, 250)) == [OUTSIDE]


def test_a_ring_is_filled():
    ring = shapely.Point(800, 600).buffer(400).difference(shapely.Point(800, 600).buffer(250))
    assert at_um(outlined(ring), (800, 600)) == [0]
    opened = ring.difference(shapely.box(800, 500, 1300, 700))  # too wide to close by growing
    assert at_um(outlined(opened), (800, 600)) == [OUTSIDE]


def test_isolated_cells_neither_count_nor_cost():
    """Grown by 37.5 um a side, a disk of 180 um spans 255 um, and one of 220 um spans 295 um."""
    small, large = shapely.Point(400, 400).buffer(90), shapely.Point(1600, 400).buffer(110)
    lesions = outlined(small, large)
    assert (lesions.num_lesions, lesions.num_isolated) == (1, 1)
    assert at_um(lesions, (400, 400), (1600, 400), (1000, 400)) == [ISOLATED, 0, OUTSIDE]
    x, y = np.array([750, 3150, 1950], np.int32), np.full(3, 750, np.int32)
    (found,) = detect(x, y, np.full(3, 100, np.int32), [np.array([0.9, 0.5, 0.7], np.float32)], lesions)
    assert found.false_F.tolist() == pytest.approx([0.7])
    assert found.lesion_L.tolist() == [0.5]


def test_um_not_pixels_count():
    """The same outline is isolated cells at 0.25 um per pixel, and a lesion at 0.5."""
    disk = shapely.Point(2000, 1500).buffer(300)
    found = [
        lesions_of(OutlineRegions(target_groups=(), targets={1: disk}, normal=EMPTY, unclear=EMPTY), mpp=mpp)
        for mpp in (0.25, 0.5)
    ]
    assert [(lesions.num_lesions, lesions.num_isolated) for lesions in found] == [(0, 1), (1, 0)]


@pytest.mark.parametrize("scale", [(8.0, 8.0), (40.0, 24.0)])
def test_a_mask_is_read_as_the_same_boxes_outlined(scale):
    rng = np.random.default_rng(1)
    for _ in range(20):
        mask = np.zeros((int(3000 / scale[1]), int(5000 / scale[0])), np.uint8)
        boxes = []
        for _ in range(int(rng.integers(1, 4))):
            row, column = (int(rng.integers(5, length // 2)) for length in mask.shape)
            height, width = (int(rng.integers(3, length // 2 - 5)) for length in mask.shape)
            mask[row : row + height, column : column + width] = 3
            boxes.append(shapely.box(column, row, column + width, row + height))
        regions = MaskRegions(target_groups=("3",), mask=mask, scale=scale, meaning={3: 1})
        found = lesions_of(regions, mpp=MPP)
        target = shapely.transform(shapely.union_all(boxes), lambda point: point * scale)
        grown = target.buffer(GROWTH_UM / MPP + 2 * max(PIXEL_PX, *scale))
        core = target.buffer(-2 * max(PIXEL_PX, *scale))
        point = rng.uniform((0, 0), (5000, 3000), (300, 2))
        hit = found.at(*point.T) != OUTSIDE
        assert hit[shapely.contains_xy(core, *point.T)].all()
        filled = shapely.union_all([shapely.Polygon(part.exterior) for part in shapely.get_parts(grown)])
        assert not hit[~shapely.contains_xy(filled, *point.T)].any()
        assert found.at(np.array([-500.0]), np.array([-500.0])) == [OUTSIDE]


def test_a_mask_without_a_target_has_no_lesion():
    regions = MaskRegions(target_groups=(), mask=np.full((4, 9), 2, np.uint8), scale=(32, 32), meaning={2: 0})
    assert lesions_of(regions, mpp=MPP).num_lesions == 0


def test_suppression_keeps_what_going_by_falling_score_keeps():
    rng = np.random.default_rng(2)
    for _ in range(cases(50, full=2000)):
        centre = rng.integers(0, 12, (int(rng.integers(0, 60)), 2)).astype(float)
        score = rng.random(len(centre)).round(1).astype(np.float32)
        radius = float(rng.uniform(0, 4))
        assert peaks(score, neighbours(centre, radius=radius)).tolist() == plain_peaks(centre, score, radius)


def test_a_missed_lesion_lowers_the_sensitivity_and_false_positives_push_it_to_the_right():
    # one slide, two lesions, of which one is found at 0.6, below three false positives
    slide = Detections(np.array([0.9, 0.8, 0.7, 0.1], np.float32), np.array([0.6, np.nan], np.float32))
    froc = froc_of([slide], Bootstrap.of(["a"], draws=3))
    assert froc.sensitivities == pytest.approx((0, 0, 0, 0, 0.5, 0.5))
    assert froc.score_interval is None
    # beside three slides without lesions there are 3/4 false positives a slide at its score
    none = Detections(np.empty(0, np.float32), np.empty(0, np.float32))
    froc = froc_of([slide, none, none, none], Bootstrap.of(list("abcd"), draws=3))
    assert froc.sensitivities == pytest.approx((0, 0, 0.5, 0.5, 0.5, 0.5))


def test_intervals_are_those_of_copied_patients():
    rng = np.random.default_rng(3)
    slides = [
        Detections(
            rng.random(int(rng.integers(0, 6))).round(2).astype(np.float32),
            np.where(rng.random(2) < 0.3, np.nan, rng.random(2).round(2)).astype(np.float32)[: int(rng.integers(0, 3))],
        )
        for _ in range(9)
    ]
    patients = ["a", "a", "b", "c", "c", "c", "d", "e", "f"]
    bootstrap = Bootstrap.of(patients, draws=60)
    drawn = []
    for weight_P in bootstrap.weight_PD.T:
        copies = [slides[i] for i, name in enumerate(patients) for _ in range(int(weight_P["abcdef".index(name)]))]
        values = plain_froc([(slide.false_F, np.nan_to_num(slide.lesion_L)) for slide in copies])
        drawn.append(np.full(6, np.nan) if values is None else values)
    low, high = np.nanpercentile(np.mean(drawn, axis=1), [2.5, 97.5])
    assert froc_of(slides, bootstrap).score_interval == pytest.approx((low, high), abs=1e-9)


def test_slides_without_lesions_have_no_froc():
    assert froc_of([Detections(np.array([0.5], np.float32), np.empty(0, np.float32))], Bootstrap.of(["a"])) is None
