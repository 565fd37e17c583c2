"""Covered shares against a raster of 4 x 4 samples a pixel, within the raster's own error."""

import numpy as np
import pytest
import shapely

from distmil.annotations.outlines import Annotation
from distmil.annotations.regions import IGNORE, Grid, read_regions
from distmil.labels.rules import EXCLUDE, LabelRule, label_patches
from tests.support.scale import cases

SIZE = (96, 64)
FINE = 4
EXTENT = 16
GROUPS = {"adenoma": 1, "carcinoma": 2, "normal": 0, "exclude": EXCLUDE, "ignored": IGNORE}
NUM_CLASSES = 3


def ring(rng):
    """A star-shaped ring that may reach beyond the slide; concave as a rule."""
    num = rng.integers(3, 12)
    turn = np.sort(rng.uniform(0, 2 * np.pi, num))
    reach = rng.uniform(5, 24) * rng.uniform(0.3, 1, num)
    centre = rng.uniform(-5, np.array(SIZE) + 5)
    return np.column_stack([centre[0] + reach * np.cos(turn), centre[1] + reach * np.sin(turn)])


def crossings(ring_N2, x, y):
    """Count the edges left of each point, by numpy alone: odd is inside."""
    count = np.zeros(x.shape, int)
    for (x0, y0), (x1, y1) in zip(ring_N2, np.roll(ring_N2, -1, axis=0), strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            count += ((y0 > y) != (y1 > y)) & (x > (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return count


def cells_touched(rings):
    """Mark the samples' cells that a border crosses, and their neighbours by rounding."""
    touched = np.zeros((SIZE[1] * FINE, SIZE[0] * FINE), bool)
    for ring_N2 in rings:
        for start, end in zip(ring_N2, np.roll(ring_N2, -1, axis=0), strict=True):
            steps = np.linspace(start, end, int(np.hypot(*(end - start)) * FINE * 8) + 2)
            columns, rows = np.floor(steps * FINE).astype(int).T
            is_inside = (columns >= 0) & (rows >= 0) & (columns < touched.shape[1]) & (rows < touched.shape[0])
            touched[rows[is_inside], columns[is_inside]] = True
    return touched


def by_patch(values):
    """Average cells by patch, row by row."""
    edge = EXTENT * FINE
    return values.reshape(SIZE[1] // EXTENT, edge, SIZE[0] // EXTENT, edge).mean(axis=(1, 3)).ravel()


@pytest.mark.parametrize("part", range(10))
def test_shares_and_labels_equal_those_of_a_raster(part):
    y, x = (np.indices((SIZE[1] * FINE, SIZE[0] * FINE)) + 0.5) / FINE
    left, top = np.meshgrid(
        np.arange(0, SIZE[0], EXTENT, dtype=np.int32), np.arange(0, SIZE[1], EXTENT, dtype=np.int32)
    )
    grid = Grid(left.ravel(), top.ravel(), np.full(left.size, EXTENT, np.int32))
    num_partly = 0
    for case in range(cases(4, full=30)):
        rng = np.random.default_rng([part, case])
        rings, inside, regions = [], {}, {}
        for name in rng.permutation(list(GROUPS))[: rng.integers(2, 6)]:
            drawn = [ring(rng) for _ in range(rng.integers(2, 5))]
            valid = [one for one in drawn if shapely.Polygon(one).is_valid]
            if valid:
                rings += valid
                inside[name] = np.any([crossings(one, x, y) % 2 > 0 for one in valid], axis=0)
                regions[name] = shapely.union_all([shapely.Polygon(one) for one in valid])
        nothing = np.zeros(x.shape, bool)
        taken = inside.get("exclude", nothing) | inside.get("ignored", nothing)
        normal = inside.get("normal", nothing) & ~taken
        carcinoma = inside.get("carcinoma", nothing) & ~taken & ~normal
        adenoma = inside.get("adenoma", nothing) & ~taken & ~normal & ~carcinoma
        expected = np.column_stack([by_patch(one) for one in (normal, adenoma, carcinoma)])
        error = by_patch(cells_touched(rings))[:, None]

        annotation = Annotation(regions)
        found = read_regions(annotation, values=GROUPS, num_classes=NUM_CLASSES)
        share_NC, is_unclear_N = found.cover(grid, num_classes=NUM_CLASSES, slide_size=SIZE)
        assert (np.abs(share_NC - expected) <= error + 1e-9).all()
        ignored_N = by_patch(inside.get("ignored", nothing))
        assert is_unclear_N[ignored_N > error[:, 0]].all()
        assert not is_unclear_N[(ignored_N == 0) & (error[:, 0] == 0)].any()
        num_partly += ((share_NC[:, 1:] > 0.01) & (share_NC[:, 1:] < 0.99)).sum()
        if not found.has_target:
            continue

        rule = LabelRule(positive_at=rng.uniform(0.3, 0.9), negative_below=rng.uniform(0.05, 0.3))
        label_N = label_patches(
            grid, annotation, slide_label=1, num_classes=NUM_CLASSES, annotation_complete=True, groups=GROUPS,
            rule=rule, slide_id="s", slide_size=SIZE,
        ).labels.label  # fmt: skip
        target_N = expected[:, 1:].sum(axis=1)
        is_clear = error[:, 0] < np.minimum(abs(target_N - rule.positive_at), abs(target_N - rule.negative_below))
        by_rule = np.where(target_N >= rule.positive_at, 1, np.where(target_N < rule.negative_below, 0, -1))
        by_rule[(by_rule == 0) & (is_unclear_N)] = -1
        np.testing.assert_array_equal(np.minimum(label_N, 1)[is_clear], by_rule[is_clear])
    assert num_partly > 2 * cases(4, full=30)  # else the raster would be compared with zeros
