"""TIFF maps read by OpenSlide and tifffile, against pixels that are computed patch by patch."""

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from defusedxml import ElementTree
from matplotlib import colormaps

from distmil.exporting.frame import Frame, frame_of
from distmil.exporting.maps import choose_downsample, map_of, step_of
from distmil.exporting.slide_export import SlideExport
from tests.support.scale import cases
from tests.support.scored import ScoredCase, random_case


def export_of(case: ScoredCase, **more) -> SlideExport:
    return SlideExport("s", case.patches, frame_of(case.size, case.bounds, origin="auto"), case.mpp, 0.5, **more)


def expected_map(case: ScoredCase, frame: Frame, name: str, downsample: int) -> np.ndarray:
    """Average scores pixel by pixel, one patch after the other."""
    shape = (-(-frame.height // downsample), -(-frame.width // downsample))
    total, count = np.zeros(shape), np.zeros(shape)
    for row in case.table.to_pylist():
        x, y, edge = row["x"] - frame.x, row["y"] - frame.y, row["extent_px"]
        if x >= shape[1] * downsample or y >= shape[0] * downsample or x + edge <= 0 or y + edge <= 0:
            continue
        left, top = (max(0, round(start / downsample)) for start in (x, y))
        left, top = min(left, shape[1] - 1), min(top, shape[0] - 1)
        right = max(left + 1, round((x + edge) / downsample))
        bottom = max(top + 1, round((y + edge) / downsample))
        total[top:bottom, left:right] += row[name]
        count[top:bottom, left:right] += 1
    with np.errstate(invalid="ignore"):
        return total / count


def coloured(values: np.ndarray, colours: str) -> np.ndarray:
    rgb = np.rint(np.asarray(colormaps[colours](np.rint(np.nan_to_num(values) * 255).astype(int)))[..., :3] * 255)
    rgb[np.isnan(values)] = 255
    return rgb


def half(values: np.ndarray) -> np.ndarray:
    """Average blocks of two by two, those at the end smaller, over what has a value."""
    result = np.full((-(-values.shape[0] // 2), -(-values.shape[1] // 2)), np.nan)
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            block = values[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            if not np.isnan(block).all():
                result[row, column] = np.nanmean(block)
    return result


@pytest.mark.parametrize("seed", range(cases(100, full=1000)))
def test_colour_maps_have_levels_resolution_and_pixels(seed: int, tmp_path: Path) -> None:
    extent, columns = ((60, 90), 9) if seed % 4 else ((5, 24), 14)
    case = random_case(seed, extent=extent, columns=columns)
    downsample, colours = [1, 2, 3, None][seed % 4], ["jet", "viridis"][seed % 2]
    export = export_of(case, downsample=downsample, colours=colours)
    name = ["attention", "fused"][seed % 3 == 0]
    path = tmp_path / "m.tif"
    path.write_bytes(export.colour_map(name))
    level = expected_map(case, export.frame, name, downsample or 1)
    with tifffile.TiffFile(path) as file, openslide.OpenSlide(path) as slide:
        assert openslide.OpenSlide.detect_format(path) == "generic-tiff"
        assert not file.is_ome
        levels = file.series[0].levels
        assert len(levels) == slide.level_count == len(file.pages)
        assert max(slide.level_dimensions[-1]) <= 256 < max(slide.level_dimensions[0]) or slide.level_count == 1
        mpp = case.mpp * (downsample or 1)
        for axis in "xy":
            assert float(slide.properties[f"openslide.mpp-{axis}"]) == pytest.approx(mpp, rel=1e-4)
        for number, page in enumerate(levels):
            pixels = page.asarray()
            read = np.asarray(slide.read_region((0, 0), number, slide.level_dimensions[number]))[..., :3]
            np.testing.assert_array_equal(read, pixels)
            wanted = coloured(level, colours)
            is_far = np.abs(pixels.astype(int) - wanted).max(axis=-1) > (5 if number else 4)  # a step of the colours
            assert is_far.mean() <= 1e-3
            np.testing.assert_array_equal((pixels == 255).all(-1), np.isnan(level))
            x, y = (page.pages[0].tags[f"{axis}Resolution"].value for axis in "XY")
            assert 1e4 / (x[0] / x[1]) == pytest.approx(mpp * levels[0].shape[1] / pixels.shape[1], rel=1e-4)
            assert 1e4 / (y[0] / y[1]) == pytest.approx(mpp * levels[0].shape[0] / pixels.shape[0], rel=1e-4)
            assert page.pages[0].tags["ResolutionUnit"].value == 3
            assert page.pages[0].subfiletype == int(number > 0)
            level = half(level)


@pytest.mark.parametrize("seed", range(cases(60, full=1000)))
def test_the_map_at_a_patch_is_the_tables_value(seed: int) -> None:
    """At the middle of every patch that overlaps no other."""
    case = random_case(seed, extent=(60, 90), columns=9)
    if case.stride < case.extent_px:
        case = random_case(seed, extent=(60, 61), columns=9, is_whole=True)
    frame = frame_of(case.size, None, origin="slide")
    grid = map_of(case.patches, "probability", frame, downsample=4)
    if case.stride < case.extent_px:
        return
    for row in case.table.to_pylist():
        x, y = ((row[name] + case.extent_px / 2) / 4 for name in ("x", "y"))
        if x < grid.shape[1] and y < grid.shape[0]:
            assert grid[int(y), int(x)] == pytest.approx(row["probability"], abs=1e-6)


@pytest.mark.parametrize("seed", range(cases(100, full=2000)))
def test_value_maps_hold_the_tables_numbers_a_pixel_a_patch(seed: int, tmp_path: Path) -> None:
    case = random_case(seed, extent=(40, 300), columns=int(10 + seed % 60))
    export = export_of(case, names=["probability", "fused"])
    frame, step = export.frame, step_of(case.patches)
    assert step == pytest.approx(case.stride, abs=1) or step == case.extent_px
    (content,) = export.ome().values()
    (tmp_path / "v.ome.tif").write_bytes(content)
    with tifffile.TiffFile(tmp_path / "v.ome.tif") as file:
        assert file.is_ome
        assert (file.series[0].axes, file.series[0].dtype) == ("CYX", np.float32)
        values = file.asarray()
        pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
    assert pixels is not None
    assert [channel.get("Name") for channel in pixels.findall("{*}Channel")] == ["probability", "fused"]
    for axis in "XY":
        assert float(pixels.get(f"PhysicalSize{axis}", 0)) == pytest.approx(case.mpp * step)
        assert pixels.get(f"PhysicalSize{axis}Unit") == "µm"
    seen = np.zeros(values.shape[1:], bool)
    rows = case.table.to_pylist()
    first = {name: min(row[name] for row in rows) for name in "xy"}
    start = {name: int(np.floor((first[name] - getattr(frame, name)) / step + 0.5)) for name in "xy"}
    for row in rows:
        x, y = (start[name] + round(row[name] / case.stride) - round(first[name] / case.stride) for name in "xy")
        for name, pixel in (("x", x), ("y", y)):
            assert abs(getattr(frame, name) + pixel * step - row[name]) <= step / 2 + 2
        if 0 <= x < values.shape[2] and 0 <= y < values.shape[1]:
            assert not seen[y, x], "two patches in one pixel"
            seen[y, x] = True
            assert [values[i, y, x] for i in (0, 1)] == [np.float32(row["probability"]), np.float32(row["fused"])]
    np.testing.assert_array_equal(~np.isnan(values[0]), seen)


def test_patches_of_no_common_grid_share_pixels() -> None:
    case = random_case(4, num_classes=2, is_whole=True)
    x = np.random.default_rng(0).integers(0, case.size[0], case.table.num_rows).astype(np.int32)
    table = case.table.set_column(1, "x", [x])
    patches = ScoredCase(case.size, None, 1, case.stride, case.extent_px, case.classes, table).patches
    assert step_of(patches) == case.extent_px


def test_the_same_content_gives_the_same_bytes_and_names_no_machine() -> None:
    case = random_case(6)
    first, second = export_of(case), export_of(case)
    assert first.tiff() == second.tiff()
    assert first.ome() == second.ome()
    for data in (*first.tiff().values(), *first.ome().values()):
        assert b"tifffile" not in data
    assert b"downsample 1, of level-0 px" in next(iter(first.tiff().values()))


def test_a_slide_without_resolution_has_maps_without_one(tmp_path: Path) -> None:
    case = random_case(8)
    frame = frame_of(case.size, None, origin="slide")
    export = SlideExport("s", case.patches, frame, None, 0.5)
    (tmp_path / "m.tif").write_bytes(export.colour_map("fused"))
    with openslide.OpenSlide(tmp_path / "m.tif") as slide:
        assert "openslide.mpp-x" not in slide.properties
    with tifffile.TiffFile(tmp_path / "m.tif") as file:
        assert file.pages[0].tags["ResolutionUnit"].value == 1  # no unit
    (content,) = export.ome().values()
    assert b"PhysicalSize" not in content


def test_a_reduction_is_chosen_by_the_longer_edge() -> None:
    assert [choose_downsample(Frame(0, 0, 700, edge)) for edge in (300, 4096, 4097, 8193, 100_000)] == [1, 1, 2, 4, 32]
