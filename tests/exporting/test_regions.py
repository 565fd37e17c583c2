"""Regions against a raster of the slide whose parts scipy labels."""

import uuid
from dataclasses import replace

import numpy as np
import pytest
import shapely
from scipy import ndimage

from distmil.errors import NoResolution
from distmil.exporting.frame import Frame, frame_of
from distmil.exporting.regions import find_regions
from tests.support.scale import cases
from tests.support.scored import ScoredCase, random_case


def regions_of(case: ScoredCase, *, threshold: float = 0.5, origin="slide", **more):
    frame = frame_of(case.size, case.bounds, origin=origin)
    return find_regions("s", case.patches, frame, threshold=threshold, mpp=case.mpp, **more)


def painted(case: ScoredCase, frame: Frame, chosen: np.ndarray) -> np.ndarray:
    """Mark every level-0 pixel that a chosen patch covers, patch by patch."""
    mask = np.zeros((case.size[1], case.size[0]), bool)
    rows = case.table.to_pylist()
    for row in (rows[i] for i in np.flatnonzero(chosen)):
        mask[row["y"] : row["y"] + row["extent_px"], row["x"] : row["x"] + row["extent_px"]] = True
    inside = np.zeros_like(mask)
    inside[frame.y : frame.y + frame.height, frame.x : frame.x + frame.width] = True
    return mask & inside


def expected_classes(case: ScoredCase) -> list[str]:
    if len(case.classes) == 2:
        return [case.classes[1]] * case.table.num_rows
    return [
        max(case.classes[1:], key=lambda name, row=row: row[f"probability_{name}"]) for row in case.table.to_pylist()
    ]


@pytest.mark.parametrize("seed", range(cases(100, full=3000)))
def test_regions_are_the_parts_of_the_painted_slide(seed: int) -> None:
    case = random_case(seed, is_whole=True)
    origin = "bounds" if case.bounds and seed % 2 else "slide"
    frame = frame_of(case.size, case.bounds, origin=origin)
    threshold = float(np.random.default_rng(seed).choice(case.table["probability"].to_numpy()))
    found = regions_of(case, threshold=threshold, origin=origin)
    value, kind = case.table["probability"].to_numpy().astype(float), np.array(expected_classes(case))
    num_expected = 0
    for name in case.classes[1:]:
        mask = painted(case, frame, (value >= threshold) & (kind == name))
        label, num = ndimage.label(mask)  # parts that share an edge, not a corner
        num_expected += num
        own = [region for region in found if region.name == name]
        assert len(own) == num
        for region in own:
            assert region.polygon.is_valid
            inside = region.polygon.representative_point()
            part = label == label[int(inside.y), int(inside.x)]
            assert region.polygon.area == part.sum()
            assert region.area_mm2 == pytest.approx(part.sum() * case.mpp**2 / 1e6, rel=1e-9)
            assert len(region.polygon.interiors) == ndimage.label(~np.pad(part, 1))[1] - 1
            y, x = np.nonzero(part)
            assert shapely.contains_xy(region.polygon, x + 0.5, y + 0.5).all()
            check_scores(case, region, part, (value >= threshold) & (kind == name), frame)
    assert len(found) == num_expected
    assert [region.top["probability"] for region in found] == sorted(
        (region.top["probability"] for region in found), reverse=True
    )


def check_scores(case, region, part, chosen, frame) -> None:
    """Compare the region's patches, counted one by one, with what it states."""
    rows = []
    for i, row in enumerate(case.table.to_pylist()):
        x, y = max(row["x"], frame.x), max(row["y"], frame.y)
        is_inside = x < min(row["x"] + row["extent_px"], frame.x + frame.width, case.size[0]) and y < min(
            row["y"] + row["extent_px"], frame.y + frame.height, case.size[1]
        )
        if chosen[i] and is_inside and part[y, x]:
            rows.append(row)
    assert region.num_patches == len(rows)
    for name in ("attention", "probability", "fused", "topk_probability"):
        values = [row[name] for row in rows]
        assert region.mean[name] == pytest.approx(np.mean(values), abs=1e-6)
        assert region.top[name] == max(values)


@pytest.mark.parametrize("seed", range(cases(60, full=2000)))
def test_rounded_corners_leave_no_gap(seed: int) -> None:
    """Where the stride is no whole number, patches are neighbours as on the grid of their indices."""
    case = random_case(seed, is_whole=False, num_classes=2)
    column, row = (np.rint(case.table[name].to_numpy() / case.stride).astype(int) for name in ("x", "y"))
    raster = np.zeros((row.max() + 1, column.max() + 1), bool)
    is_in = case.table["probability"].to_numpy() >= 0.5
    x, y = case.table["x"].to_numpy(), case.table["y"].to_numpy()
    is_in &= (x < case.size[0]) & (y < case.size[1])
    raster[row[is_in], column[is_in]] = True
    overlaps = case.stride < case.extent_px  # rounded, neighbours at a corner may overlap by a pixel
    most = ndimage.label(raster)[1]
    least = ndimage.label(raster, structure=np.ones((3, 3)))[1] if overlaps else most
    found = regions_of(case)
    assert least <= len(found) <= most
    assert sum(region.num_patches for region in found) == is_in.sum()


def test_corners_do_not_join_and_holes_stay() -> None:
    """Seven columns, four rows: a ring around a hole, touched at its corner by a single patch."""
    picture = ["1110000", "1010000", "1110000", "0001000"]
    case = random_case(0, num_classes=2)
    cells = [(x, y) for y, line in enumerate(picture) for x, cell in enumerate(line) if cell == "1"]
    count = len(cells)
    values = {
        "x": [10 * x for x, _ in cells],
        "y": [10 * y for _, y in cells],
        "extent_px": [10] * count,
        **{name: np.full(count, 0.9, np.float32) for name in ("attention", "probability", "fused", "topk_probability")},
    }
    case = replace(case, size=(70, 40), bounds=None, mpp=2.0, table=case.table.schema.empty_table().from_pydict(values))
    found = sorted(regions_of(case), key=lambda region: region.num_patches)
    assert [region.num_patches for region in found] == [1, 8]
    ring = found[1].polygon
    assert (ring.area, len(ring.interiors), shapely.get_num_coordinates(ring)) == (800, 1, 10)
    assert found[1].area_mm2 == pytest.approx(800 * 4 / 1e6)
    assert len(regions_of(case, min_area_mm2=0.001)) == 1
    with pytest.raises(
        NoResolution, match=r"regions below 0\.001 mm2 .* set its mpp in the manifest, or export\.min_ar"
    ):
        regions_of(replace(case, mpp=None), min_area_mm2=0.001)
    assert [region.area_mm2 for region in regions_of(replace(case, mpp=None))] == [None, None]


def test_a_region_keeps_its_id_as_it_grows() -> None:
    case = random_case(3, is_whole=True, num_classes=2)
    every = {region.region_id for threshold in np.linspace(0, 1, 9) for region in regions_of(case, threshold=threshold)}
    assert {str(uuid.UUID(text)) for text in every} == every
    first = {region.region_id: region.polygon for region in regions_of(case, threshold=0.8)}
    again = {region.region_id: region.polygon for region in regions_of(case, threshold=0.8)}
    assert first == again
    low = {region.region_id for region in regions_of(case, threshold=0.79)}
    assert first.keys() & low


def test_nothing_above_the_threshold_is_no_region() -> None:
    case = random_case(1)
    assert regions_of(case, threshold=1.0) == []
