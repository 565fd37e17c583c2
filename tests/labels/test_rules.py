"""Patch labels: exact covered shares, three states, and what an annotation may not contradict."""

import json
from typing import get_args

import numpy as np
import pytest
import shapely
from PIL import Image, ImageDraw

from distmil.annotations.coverage import mask_shares, polygon_shares
from distmil.annotations.outlines import Annotation
from distmil.annotations.reader import read_annotation
from distmil.annotations.regions import Grid
from distmil.config.learning import LabelsConfig
from distmil.errors import AnnotationError
from distmil.labels.rules import (
    EXCLUDE,
    IGNORE,
    NOTHING,
    PRESETS,
    LabelRule,
    default_groups,
    label_patches,
    resolve_groups,
)
from tests.support.data import DATA

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")
SLIDE = (70, 40)
TWO = ("negative", "positive")
THREE = ("normal", "adenoma", "carcinoma")
NAN = np.nan


def grid(size=SLIDE, *, extent, stride=None):
    """x, y and extent_px of a gapless grid over a size, row by row."""
    stride = stride or extent
    x, y = np.meshgrid(np.arange(0, size[0], stride, dtype=np.int32), np.arange(0, size[1], stride, dtype=np.int32))
    return Grid(x.ravel(), y.ravel(), np.full(x.size, extent, np.int32))


def label(
    regions, *, size=SLIDE, extent=10, classes=TWO, slide_label=1, complete=True, groups=None, rule=None, **extra
):
    """Label a gapless grid; regions are boxes or geometries by group, an Annotation, or None."""
    if isinstance(regions, dict):
        regions = Annotation({name: shapely.box(*r) if isinstance(r, tuple) else r for name, r in regions.items()})
    return label_patches(
        grid(size, extent=extent),
        regions,
        slide_label=slide_label,
        num_classes=len(classes),
        annotation_complete=complete,
        groups=default_groups(classes) if groups is None else groups,
        rule=rule or LabelRule(),
        slide_id="s1",
        slide_size=extra.get("slide_size", size),
    )


def rows(values, *, size=SLIDE, extent=10):
    """Patch values as an image of the grid, [row, column]."""
    return np.asarray(values).reshape(-(-size[1] // extent), -(-size[0] // extent))


# --- covered shares


def test_shares_are_exact_on_a_wide_slide():
    # x 5 to 30, y 10 to 25: half a patch, two whole ones; then half as high
    shares = rows(label({"Tumor": (5, 10, 30, 25)}).labels.target_fraction)
    expected = np.zeros((4, 7), np.float32)
    expected[1, :3] = 0.5, 1, 1
    expected[2, :3] = 0.25, 0.5, 0.5
    np.testing.assert_array_equal(shares, expected)
    assert shares.dtype == np.float32


def star(rng, *, centre, radius, num):
    """A jagged outline with many vertices, a hole in it and a second part far away."""
    turn = np.sort(rng.uniform(0, 2 * np.pi, num))
    reach = radius * rng.uniform(0.5, 1, num)
    ring = np.column_stack([centre[0] + reach * np.cos(turn), centre[1] + 0.7 * reach * np.sin(turn)])
    return shapely.union(
        shapely.Polygon(ring).buffer(0).difference(shapely.Point(centre).buffer(radius / 5)),
        shapely.box(centre[0] + 2 * radius, 3, centre[0] + 2 * radius + 4, 900),
    )


@pytest.mark.parametrize("seed", range(3))
def test_shares_of_scattered_overlapping_patches_equal_one_by_one_intersections(seed):
    rng = np.random.default_rng(seed)
    region = star(rng, centre=(600, 400), radius=300, num=700)
    x, y = (rng.integers(-50, high, 1500, dtype=np.int32) for high in (1500, 900))
    extent = rng.integers(1, 120, 1500, dtype=np.int32)
    direct = shapely.area(shapely.intersection(region, shapely.box(x, y, x + extent, y + extent)))
    shares = polygon_shares(region, x=x, y=y, extent_px=extent)
    np.testing.assert_allclose(shares * extent.astype(float) ** 2, direct, rtol=1e-9, atol=1e-9)
    assert ((shares > 0) & (shares < 1)).sum() > 200


@pytest.mark.parametrize("num", [0, 1, 33])
def test_any_number_of_patches_even_in_one_place(num):
    place = np.zeros(num, np.int32)
    shares = polygon_shares(shapely.box(0, 0, 3, 5), x=place, y=place, extent_px=place + 10)
    np.testing.assert_array_equal(shares, np.full(num, 0.15))


def test_a_region_that_is_empty_covers_nothing():
    x, y, extent = grid(extent=10)
    for empty in (shapely.Polygon(), shapely.union_all([]), shapely.MultiPolygon()):
        assert not polygon_shares(empty, x=x, y=y, extent_px=extent).any()


@needs_data
@pytest.mark.parametrize("extent", [224, 1000])
@pytest.mark.parametrize("name", ["tumor_001", "tumor_083", "tumor_091", "tumor_104"])
def test_a_gapless_grid_over_real_outlines_adds_up_to_their_area(name, extent):
    size = (220_000, 230_000)  # larger than any slide of the set, whose sizes the files do not tell
    found = read_annotation(DATA / f"camelyon16_annotations/asap_xml/{name}.xml", slide_size=size)
    target = found.regions["Tumor"].difference(found.regions.get("_2", shapely.Polygon()))
    left, top, right, bottom = (int(v) for v in target.bounds)
    x, y = np.meshgrid(
        np.arange(left // extent * extent, right + extent, extent, dtype=np.int32),
        np.arange(top // extent * extent, bottom + extent, extent, dtype=np.int32),
    )
    shares = polygon_shares(target, x=x.ravel(), y=y.ravel(), extent_px=np.full(x.size, extent, np.int32))
    assert shares.sum() * extent**2 == pytest.approx(target.area, rel=1e-9)

    done = label_patches(
        Grid(x.ravel(), y.ravel(), np.full(x.size, extent, np.int32)), found,
        slide_label=1, num_classes=2, annotation_complete=True, groups=default_groups(TWO), rule=LabelRule(),
        slide_id=name, slide_size=size,
    )  # fmt: skip
    np.testing.assert_allclose(done.labels.target_fraction, np.where(shares < 1e-6, 0, shares), rtol=1e-6)
    np.testing.assert_array_equal(done.labels.label, shares >= 1e-6)
    assert (done.num_repaired, done.unmapped) == (found.num_repaired, ())


@needs_data
def test_a_real_giant_that_crosses_itself_adds_up_too():
    outlines = json.loads((DATA / "camelyon16_annotations/json/Tumor_054.json").read_text())["positive"]
    polygons = [shapely.Polygon(o["vertices"]) for o in outlines if len(o["vertices"]) > 2]
    target = shapely.union_all([shapely.make_valid(p, method="structure", keep_collapsed=False) for p in polygons])
    x, y, extent = grid(tuple(int(v) + 1 for v in target.bounds[2:]), extent=500)
    shares = polygon_shares(target, x=x, y=y, extent_px=extent)
    assert (shares * 500.0**2).sum() == pytest.approx(target.area, rel=1e-9)


# --- masks


def test_mask_shares_are_exact_where_edges_coincide_and_weighted_where_not():
    is_marked = np.zeros((4, 7), bool)
    is_marked[1, 2] = True  # level-0 x 20 to 30, y 10 to 20
    x, y = np.array([20, 20, 15, 25, 0, 60, 69], np.int32), np.array([10, 0, 5, 15, 0, 30, 39], np.int32)
    extent = np.array([10, 20, 10, 10, 10, 20, 20], np.int32)
    shares = mask_shares(is_marked, scale=(10.0, 10.0), x=x, y=y, extent_px=extent)
    np.testing.assert_allclose(shares, [1, 0.25, 0.25, 0.25, 0, 0, 0], atol=1e-12)


def test_mask_shares_with_another_scale_per_axis_add_up():
    rng = np.random.default_rng(3)
    is_marked = rng.random((13, 29)) < 0.4
    x, y, extent = grid((77, 49), extent=7)
    shares = mask_shares(is_marked, scale=(77 / 29, 49 / 13), x=x, y=y, extent_px=extent)
    assert shares.sum() * 49 == pytest.approx(is_marked.sum() * (77 / 29) * (49 / 13), rel=1e-12)


def test_a_mask_and_the_outline_it_was_painted_from_give_the_same_labels(tmp_path):
    image = Image.new("L", SLIDE)
    ImageDraw.Draw(image).rectangle((5, 10, 29, 24), fill=255)
    image.save(tmp_path / "mask.png")
    painted = label(read_annotation(tmp_path / "mask.png", slide_size=SLIDE)).labels
    outlined = label({"Tumor": (5, 10, 30, 25)}).labels
    np.testing.assert_array_equal(painted.target_fraction, outlined.target_fraction)
    np.testing.assert_array_equal(painted.label, outlined.label)


def test_a_rasterised_polygon_agrees_with_its_outline():
    rng = np.random.default_rng(1)
    region = star(rng, centre=(130, 90), radius=80, num=40).intersection(shapely.box(0, 0, 350, 190))
    column, row = np.meshgrid(np.arange(350) + 0.5, np.arange(190) + 0.5)
    mask = shapely.contains_xy(region, column, row).astype(np.uint8)
    painted, outlined = (
        label(found, size=(350, 190), extent=38).labels.target_fraction
        for found in (Annotation({}, mask=mask), Annotation({"tumor": region}))
    )
    np.testing.assert_allclose(painted, outlined, atol=0.03)
    assert outlined.max() > 0.9


def test_unmarked_mask_pixels_are_negative_only_where_the_annotation_is_complete():
    mask = np.zeros((4, 7), np.uint8)
    mask[1, 2] = 9
    painted = Annotation({}, mask=mask, mask_scale=(10.0, 10.0))
    assert (rows(label(painted).labels.label) == (mask > 0)).all()
    assert (rows(label(painted, complete=False).labels.label) == np.where(mask > 0, 1, -1)).all()
    with pytest.raises(
        AnnotationError, match=r"s1: the annotation marks a target \('9'\), but the slide is labelled 0"
    ):
        label(painted, slide_label=0)


def test_mask_values_are_classes_where_there_are_several():
    mask = np.zeros((40, 70), np.uint8)
    mask[:10, :5], mask[:10, 5:8] = 2, 1
    done = label(Annotation({}, mask=mask), classes=THREE).labels
    np.testing.assert_allclose(done.fractions[0], [0.2, 0.3, 0.5], rtol=1e-6)
    assert (done.label[0], done.target_fraction[0]) == (2, pytest.approx(0.8))


@pytest.mark.parametrize(("value", "shown"), [(3, "3,"), (255, r"255 \(or more\)")])
def test_a_mask_value_that_is_no_class_is_named(value, shown):
    mask = np.zeros((40, 70), np.uint8)
    mask[2, 3] = value
    with pytest.raises(AnnotationError, match=f"the mask holds the values {shown}.*classes are 0 to 2; paint class"):
        label(Annotation({}, mask=mask), classes=THREE)


# --- three states


def test_a_negative_slide_is_negative_everywhere():
    for annotation in (None, {}, {"exclude": (0, 0, 20, 30)}, {"healthy glands": (0, 0, 20, 30)}):
        done = label(annotation, slide_label=0)
        assert not done.labels.label.any()
        assert not done.labels.target_fraction.any()
    assert done.unmapped == ("healthy glands",)
    np.testing.assert_array_equal(label(None, slide_label=0, classes=THREE).labels.fractions, [[1, 0, 0]] * 28)


@pytest.mark.parametrize("group", ["Tumor", "", "positive"])
def test_a_target_on_a_negative_slide_is_a_contradiction(group):
    message = r"s1: the annotation marks a target \(.+\), but the slide is labelled 0 \(normal\); correct the label"
    with pytest.raises(AnnotationError, match=message):
        label({group: (5, 10, 30, 25)}, slide_label=0)


@pytest.mark.parametrize("classes", [TWO, THREE])
def test_a_positive_slide_without_annotation_is_unknown(classes):
    done = label(None, classes=classes, complete=True).labels
    assert (done.label == -1).all()
    assert np.isnan(done.target_fraction).all()
    assert (done.fractions is None) == (classes == TWO)
    assert done.fractions is None or np.isnan(done.fractions).all()


def test_where_the_annotation_is_incomplete_the_unmarked_is_unknown_never_negative():
    done = label({"Tumor": (5, 10, 30, 25)}, complete=False).labels
    touched = rows(label({"Tumor": (5, 10, 30, 25)}).labels.target_fraction) > 0
    np.testing.assert_array_equal(rows(done.label), np.where(touched, 1, -1))
    np.testing.assert_array_equal(rows(np.isnan(done.target_fraction)), ~touched)
    half = label({"Tumor": (5, 10, 30, 25)}, complete=False, rule=LabelRule(positive_at=0.5)).labels
    assert rows(half.label)[2].tolist() == [-1, 1, 1, -1, -1, -1, -1]  # a quarter: not positive, yet not negative
    assert rows(half.target_fraction)[2, 0] == 0.25


def test_what_is_marked_normal_is_negative_even_where_the_annotation_is_incomplete():
    # normal: x 30 to 55, so two whole patches and half of a third in each of the upper two rows
    done = label({"Tumor": (0, 0, 10, 10), "Normal": (30, 0, 55, 20)}, complete=False).labels
    assert rows(done.label)[0].tolist() == [1, -1, -1, 0, 0, -1, -1]
    assert (rows(done.label)[2:] == -1).all()
    np.testing.assert_array_equal(rows(done.target_fraction)[1], [NAN, NAN, NAN, 0, 0, NAN, NAN])


@pytest.mark.parametrize(("missing", "expected"), [(0.009, 0), (0.011, -1)])
def test_marked_normal_means_all_but_a_thousandth(missing, expected):
    # a strip of 10 px height and `missing` px width is missing: 0.09 % or 0.11 % of the patch
    done = label({"normal": (30 + missing, 0, 55, 20)}, complete=False)
    assert rows(done.labels.label)[0, 3] == expected


def test_what_is_carved_out_of_the_normal_is_not_known_to_be_normal():
    done = label({"normal": (0, 0, 30, 10), "exclude": (10, 0, 20, 5)}, complete=False)
    assert rows(done.labels.label)[0].tolist() == [0, -1, 0, -1, -1, -1, -1]


def test_carve_outs_and_the_normal_are_taken_from_the_target_whatever_their_order():
    regions = {"_2": (0, 0, 10, 5), "Tumor": (0, 0, 40, 10), "Exclusion": (12, 0, 17, 10), "normal": (20, 0, 30, 10)}
    for names in (list(regions), list(regions)[::-1]):
        done = label({name: regions[name] for name in names}).labels
        assert rows(done.target_fraction)[0].tolist() == [0.5, 0.5, 0, 1, 0, 0, 0]
        assert rows(done.label)[0].tolist() == [1, 1, 0, 1, 0, 0, 0]


def test_a_hole_of_an_outline_is_no_target():
    ring = shapely.Polygon([(0, 0), (30, 0), (30, 20), (0, 20)], [[(10, 0), (20, 0), (20, 10), (10, 10)]])
    done = label({"tumor": ring}).labels
    assert rows(done.label)[0, :4].tolist() == [1, 0, 1, 0]
    assert rows(done.label)[1, :4].tolist() == [1, 1, 1, 0]


def test_an_outline_along_the_edge_does_not_mark_the_neighbour():
    exact = label({"Tumor": (10, 10, 20, 20)}).labels
    assert exact.label.sum() == 1
    nudged = label({"Tumor": (10 - 1e-6, 10, 20 + 1e-6, 20)}).labels
    assert nudged.label.sum() == 1
    assert nudged.target_fraction.sum() == 1
    assert label({"Tumor": (10 - 1e-4, 10, 20, 20)}).labels.label.sum() == 2


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (LabelRule(), [0, 1, 1, 1, 1]),
        (LabelRule(positive_at=0.5), [0, 0, 0, 1, 1]),
        (LabelRule(positive_at=0.3), [0, 0, 1, 1, 1]),
        (LabelRule(positive_at=0.5, negative_below=0.3), [0, 0, -1, 1, 1]),
        (LabelRule(positive_at=0.5, negative_below=0.1), [0, -1, -1, 1, 1]),
        (LabelRule(positive_at=1.0, negative_below=0.0), [0, -1, -1, -1, 1]),
        (LabelRule(positive_at=1.0), [0, 0, 0, 0, 1]),
    ],
)
def test_the_rule_has_two_limits_and_a_gap_between_them(rule, expected):
    # covered shares 0, 0.1, 0.3, 0.5, 1 from left to right
    steps = [shapely.box(10 * i, 0, 10 * i + 10, 10 * share) for i, share in enumerate((0, 0.1, 0.3, 0.5, 1)) if share]
    done = label({"tumor": shapely.union_all(steps)}, size=(50, 10), rule=rule).labels
    assert done.label.tolist() == expected
    np.testing.assert_allclose(done.target_fraction, [0, 0.1, 0.3, 0.5, 1], rtol=1e-6)


@pytest.mark.parametrize(
    "limits", [(0.2, 0.3), (0.0, 0.1), (1.5, None), (-0.1, None), (0.5, -0.1), (float("nan"), None)]
)
def test_limits_that_are_no_shares_or_cross_are_refused(limits):
    with pytest.raises(ValueError, match="expected 0 <= negative_below <= positive_at <= 1"):
        LabelRule(*limits)


def test_what_lies_beyond_the_slides_edge_is_no_target():
    # the grid of a padded slide of 64 x 36 reaches to 70 x 40
    done = label({"tumor": (55, 25, 90, 90)}, slide_size=(64, 36)).labels
    np.testing.assert_allclose(rows(done.target_fraction)[2:, 5:], [[0.25, 0.2], [0.3, 0.24]], rtol=1e-6)


# --- several classes


def test_several_classes_share_a_patch_and_the_largest_names_it():
    done = label({"adenoma": (0, 0, 3, 10), "Carcinoma": (3, 0, 8, 10)}, classes=THREE).labels
    np.testing.assert_allclose(done.fractions[0], [0.2, 0.3, 0.5], rtol=1e-6)
    np.testing.assert_allclose(done.fractions.sum(axis=1), 1, rtol=1e-6)
    assert (done.label[0], done.target_fraction[0]) == (2, pytest.approx(0.8))
    assert done.label[1:].tolist() == [0] * 27


def test_of_classes_that_overlap_the_later_wins():
    for order in (("adenoma", "carcinoma"), ("carcinoma", "adenoma")):
        regions = {"adenoma": (0, 0, 10, 10), "carcinoma": (0, 0, 4, 10)}
        done = label({name: regions[name] for name in order}, classes=THREE).labels
        np.testing.assert_allclose(done.fractions[0], [0, 0.6, 0.4], rtol=1e-6, atol=1e-9)


def test_a_target_of_another_class_than_the_slides_is_fine():
    assert label({"adenoma": (0, 0, 10, 10)}, classes=THREE, slide_label=2).labels.label[0] == 1


def test_unknown_patches_have_unknown_rows():
    done = label({"adenoma": (0, 0, 5, 10)}, classes=THREE, complete=False).labels
    assert done.fractions[0].tolist() == [0.5, 0.5, 0]
    assert np.isnan(done.fractions[1:]).all()


# --- groups


def test_presets_say_what_the_groups_of_a_data_set_mean():
    qupath = resolve_groups(TWO, {}, preset="qupath")
    assert (qupath["tumor"], qupath["stroma"], qupath["ignore*"], qupath["region*"]) == (1, 0, IGNORE, NOTHING)
    assert resolve_groups(TWO, {}, preset="camelyon17")["normal"] == EXCLUDE  # by default it marks normal tissue
    assert resolve_groups(TWO, {})["normal"] == 0
    sixteen = resolve_groups(TWO, {"_1": "exclude"}, preset="camelyon16")
    assert (sixteen["_0"], sixteen["_1"], sixteen["_2"]) == (1, EXCLUDE, EXCLUDE)
    several = resolve_groups(("normal", "Tumor", "Stroma"), {}, preset="qupath")
    assert (several["tumor"], several["stroma"], several["ignore*"]) == (1, 2, IGNORE)  # classes mean themselves
    assert "immune cells" not in several
    assert set(PRESETS) == set(get_args(get_args(LabelsConfig.model_fields["preset"].annotation)[0]))


def test_an_ignored_area_is_taken_out_of_targets_and_leaves_its_patches_unknown():
    groups = resolve_groups(TWO, {"pen": "ignore"})
    done = label({"Tumor": (10, 10, 40, 20), "pen": (35, 0, 60, 20)}, groups=groups)
    expected = np.zeros((4, 7))
    expected[0, 3:6] = -1  # touched by the pen mark alone
    expected[1, 1:3] = 1
    expected[1, 3] = 1  # half of it is the target's without the pen mark
    expected[1, 4:6] = -1
    np.testing.assert_array_equal(rows(done.labels.label), expected)
    assert rows(done.labels.target_fraction)[1, 3] == 0.5
    assert (done.unmapped, done.doubts) == ((), ())


def test_outlines_that_mark_nothing_change_nothing():
    groups = resolve_groups(TWO, {"ROI": "nothing"})
    plain, with_roi = (
        label({"Tumor": (10, 10, 40, 20)}),
        label({"Tumor": (10, 10, 40, 20), "ROI": (0, 0, 60, 40)}, groups=groups),
    )
    np.testing.assert_array_equal(plain.labels.label, with_roi.labels.label)
    assert with_roi.unmapped == ()


def test_ignored_values_of_a_mask_leave_their_patches_unknown():
    values = np.zeros((40, 70), np.uint8)
    values[10:20, 10:40], values[10:20, 40:50] = 1, 2
    done = label(Annotation({}, mask=values), groups=resolve_groups(TWO, {"1": "positive", "2": "ignore"}))
    assert rows(done.labels.label)[1].tolist() == [0, 1, 1, 1, -1, 0, 0]


def test_outlines_outside_the_slide_are_counted():
    region = shapely.union_all([shapely.box(10, 10, 20, 20), shapely.box(80, 0, 90, 9), shapely.box(0, -9, 9, -1)])
    assert label({"Tumor": region}).doubts == (
        "annotation: 2 of its outlines lie outside the slide and mark nothing; labels.origin and labels.scale say how "
        "its coordinates are meant",
    )
    assert label({"Tumor": shapely.box(60, 30, 90, 90)}).doubts == ()


def test_default_groups_know_the_classes_and_camelyons_names():
    two = default_groups(TWO)
    assert {name for name, value in two.items() if value == 1} == {
        "positive", "tumor", "tumour", "_0", "_1", "metastases", "metastasis", "lesion", "cancer",
    }  # fmt: skip
    assert {name for name, value in two.items() if value == 0} == {"negative", "normal"}
    assert {name for name, value in two.items() if value == EXCLUDE} == {"_2", "exclusion", "exclude"}
    three = default_groups(THREE)
    assert {name: value for name, value in three.items() if value > 0} == {"adenoma": 1, "carcinoma": 2}
    assert "ignore*" not in two


def test_a_class_may_have_a_name_that_means_something_else_by_default():
    assert default_groups(("background", "Normal", "Tumor"))["normal"] == 1


def test_configured_groups_lie_over_the_defaults():
    groups = resolve_groups(THREE, {"Tumor": "Carcinoma", "normal": "exclude", "None": "adenoma", " X ": "EXCLUDE"})
    assert (groups["tumor"], groups["normal"], groups[""], groups["x"]) == (2, EXCLUDE, 1, EXCLUDE)
    assert (groups["adenoma"], groups["_2"]) == (1, EXCLUDE)
    assert default_groups(THREE)["normal"] == 0


def test_a_configured_group_of_no_class_names_key_and_choices():
    message = "labels.groups.Tumor: 'cancer' is not a class; expected one of normal, adenoma, carcinoma, exclude"
    with pytest.raises(ValueError, match=message):
        resolve_groups(THREE, {"Tumor": "cancer"})


def test_group_names_are_compared_without_case():
    assert label({" TUMOR ": (0, 0, 10, 10)}).labels.label[0] == 1
    assert label({"thing": (0, 0, 10, 10)}, groups={"Thing": 1}).labels.label[0] == 1


def test_patches_that_an_unmapped_group_touches_are_never_negative():
    regions = {"tumor": (0, 0, 15, 10), "ROI": (5, 0, 35, 10), "Ignore*": (40, 0, 41, 10), "normal": (30, 0, 40, 10)}
    done = label(regions)
    assert done.unmapped == ("ROI", "Ignore*")
    assert rows(done.labels.label)[0].tolist() == [1, 1, -1, -1, -1, 0, 0]
    np.testing.assert_array_equal(rows(done.labels.target_fraction)[0], [1, 0.5, NAN, NAN, NAN, 0, 0])
    assert label(regions, groups=default_groups(TWO) | {"roi": None}).unmapped == ("ROI", "Ignore*")


def test_ungrouped_outlines_are_the_target_only_where_there_is_one():
    assert label({"": (0, 0, 10, 10)}).labels.label[0] == 1
    with pytest.raises(
        AnnotationError, match=r"the annotation's only group is not known \(its outlines have no class\);"
    ):
        label({"": (0, 0, 10, 10)}, classes=THREE)


def test_an_outline_without_a_class_around_a_classified_one_marks_nothing():
    regions = {"": (0, 0, 60, 40), "Tumor": (5, 10, 30, 25)}
    alone = label({"Tumor": (5, 10, 30, 25)}).labels
    for complete in (True, False):
        done = label(regions, complete=complete)
        np.testing.assert_array_equal(
            done.labels.label, label({"Tumor": (5, 10, 30, 25)}, complete=complete).labels.label
        )
        assert done.doubts == (
            "annotation: 1 outlines without a class, which lie around or on classified ones, mark nothing; "
            "`labels.groups.none` says what they are",
        )
    assert (alone.label == 0).sum() == 22


def test_outlines_without_a_class_apart_from_classified_ones_are_unknown():
    apart = shapely.union_all([shapely.box(0, 0, 20, 40), shapely.box(50, 0, 60, 10), shapely.box(60, 20, 70, 30)])
    done = label({"None": apart, "Tumor": (5, 10, 30, 25)})
    expected = rows(label({"Tumor": (5, 10, 30, 25)}).labels.label).copy()
    expected[0, 5] = expected[2, 6] = -1
    np.testing.assert_array_equal(rows(done.labels.label), expected)
    assert "patches in 2 outlines without a class are unknown" in done.doubts[1]


@pytest.mark.parametrize(("given", "expected"), [(0, 0), (1, 1), (EXCLUDE, -1)])
def test_groups_may_say_what_outlines_without_a_class_are(given, expected):
    groups = default_groups(TWO) | {"": given}
    done = label({"": (0, 0, 70, 40), "Tumor": (5, 10, 30, 25)}, groups=groups, complete=False)
    assert rows(done.labels.label)[3, 6] == expected
    assert done.doubts == ()


def test_outlines_of_a_file_without_any_class_are_the_target_and_that_is_said():
    done = label({"": (0, 0, 10, 10)})
    assert done.labels.label[0] == 1
    assert done.doubts == ("annotation: none of its outlines has a class, so all of them are taken as the target",)
    assert label({"Tumor": (0, 0, 10, 10)}).doubts == ()


def test_what_was_left_out_and_where_the_class_was_read_are_said():
    regions = {"Tumor": shapely.box(0, 0, 10, 10), "CNRY": shapely.box(30, 0, 40, 10)}
    found = Annotation(regions, dropped={"lines": 1}, class_property="type")
    doubts = label(found).doubts
    assert doubts[0] == "annotation: 1 line was left out (lines and points have no area)"
    assert doubts[1] == "annotation: the class of its outlines was read from the property 'type'"
    assert doubts[2].startswith("annotation: 1 of its groups are not in labels.groups")
    assert "CNRY" not in " ".join(doubts)
    with pytest.raises(
        AnnotationError, match=r"marks no target \(1 line was left out \(lines and points have no area\)\);"
    ):
        label(Annotation({}, dropped={"lines": 1}))


def test_a_negative_slide_names_the_groups_that_contradict_it():
    with pytest.raises(AnnotationError, match=r"marks a target \('Tumor', 'lesion'\), but the slide is labelled 0"):
        label({"Tumor": (0, 0, 9, 9), "lesion": (20, 0, 30, 9), "CNRY": (40, 0, 50, 9)}, slide_label=0)
    with pytest.raises(AnnotationError, match=r"marks a target \(outlines without a class\)"):
        label({"": (0, 0, 9, 9)}, slide_label=0)


def mask_of(*values):
    """A strip of ten pixels of each value, from left to right."""
    mask = np.zeros((40, 70), np.uint8)
    for column, value in enumerate(values):
        mask[:, 10 * column : 10 * column + 10] = value
    return Annotation({}, mask=mask)


@pytest.mark.parametrize("value", [1, 2, 9, 255])
def test_a_single_value_of_a_mask_is_the_target_of_two_classes(value):
    assert rows(label(mask_of(0, value)).labels.label)[0].tolist() == [0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("values", "shown"), [((1, 2), "1, 2"), ((2, 3), "2, 3"), ((1, 255), r"1, 255 \(or more\)"), ((1, 2, 3), "1, 2, 3")]
)
def test_a_mask_of_several_values_is_refused_with_two_classes(values, shown):
    with pytest.raises(
        AnnotationError, match=f"the mask holds the values {shown}, but the classes are 0 to 1.*labels.gr"
    ):
        label(mask_of(*values))


def test_groups_say_what_the_values_of_a_mask_are():
    groups = resolve_groups(TWO, {"2": "positive", "1": "negative", "3": "exclude"})
    done = label(mask_of(1, 2, 3, 0, 2), groups=groups, complete=False).labels
    assert rows(done.label)[0].tolist() == [0, 1, -1, -1, 1, -1, -1]
    only = label(mask_of(1, 1, 3), groups=groups, complete=False).labels
    assert rows(only.label)[0].tolist() == [0, 0, -1, -1, -1, -1, -1]
    background = resolve_groups(TWO, {"0": "negative"})
    assert rows(label(mask_of(0, 1), groups=background, complete=False).labels.label)[0].tolist() == [0, 1] + [0] * 5
    three = resolve_groups(THREE, {"7": "carcinoma"})
    assert rows(label(mask_of(1, 2, 7, 0), groups=three, classes=THREE).labels.label)[0].tolist() == [
        1,
        2,
        2,
        0,
        0,
        0,
        0,
    ]
    with pytest.raises(AnnotationError, match="marks a target \\('2'\\), but the slide is labelled 0"):
        label(mask_of(1, 2), groups=groups, slide_label=0)
    assert not label(mask_of(1, 3), groups=groups, slide_label=0).labels.label.any()


def test_a_class_that_has_a_number_as_its_name_says_nothing_of_masks():
    for classes in (("0", "1"), ("1", "2")):
        done = label(mask_of(0, 1), classes=classes, groups=resolve_groups(classes, {}), complete=False).labels
        assert rows(done.label)[0].tolist() == [-1, 1] + [-1] * 5


@pytest.mark.parametrize("seed", range(30))
def test_values_of_random_masks_mean_what_groups_say(seed):
    rng = np.random.default_rng(seed)
    values = rng.permutation(255)[:6] + 1
    meaning = {str(value): ("negative", "positive", "exclude")[rng.integers(3)] for value in values}
    meaning[str(values[0])] = "positive"
    mask = rng.choice([0, *values], (40, 70)).astype(np.uint8)
    mask[0, 0] = values[0]
    done = label(Annotation({}, mask=mask), groups=resolve_groups(TWO, meaning)).labels
    is_target = np.isin(mask, [int(value) for value, given in meaning.items() if given == "positive"])
    np.testing.assert_allclose(
        rows(done.target_fraction), is_target.reshape(4, 10, 7, 10).mean(axis=(1, 3)), rtol=1e-6, atol=1e-6
    )


def test_an_annotation_whose_groups_are_all_unknown_is_refused():
    message = (
        r"^s1: the annotation's 2 groups are all not known; `labels.groups` maps names to classes \(or to exclude\)"
    )
    with pytest.raises(AnnotationError, match=message):
        label({"UT": (0, 0, 10, 10), "I": (20, 0, 30, 10)}, complete=False)


@pytest.mark.parametrize("regions", [{}, {"normal": (0, 0, 10, 10)}, {"tumor": (0, 0, 5, 5), "_2": (0, 0, 10, 10)}])
def test_a_complete_annotation_of_a_positive_slide_marks_a_target(regions):
    message = "s1: the slide is labelled 1 and annotation_complete is true, but the annotation marks no target"
    why = r" \(what it marks as target is carved out or ignored again\)" if "tumor" in regions else ""
    with pytest.raises(AnnotationError, match=f"{message}{why}; correct"):
        label(regions)
    assert not (label(regions, complete=False).labels.label == 1).any()


# --- place


@pytest.mark.parametrize("box", [(70, 0, 90, 10), (0, 40, 10, 60), (-20, 0, 0, 10), (0, -20, 10, 0)])
def test_outlines_outside_the_slide_are_refused_with_both_extents(box):
    message = (
        f"^s1: the outlines span x {box[0]} to {box[2]}, y {box[1]} to {box[3]}, outside the slide of 70 x 40 px; "
        "expected level-0 pixels"
    )
    with pytest.raises(AnnotationError, match=message):
        label({"tumor": box})


def test_a_target_that_no_patch_holds_is_reported():
    for box, is_missed in (((300, 200, 310, 290), True), ((65, 0, 310, 290), False)):
        found = Annotation({"tumor": shapely.box(*box)}, num_repaired=3, dropped={"lines": 2})
        done = label(found, slide_size=(500, 400))
        assert done.is_target_missed == is_missed
        assert (done.num_repaired, done.num_dropped) == (3, 2)


def test_a_slide_label_that_is_no_class_is_a_programming_error():
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match=f"s1: slide_label {wrong} is none of 2 classes"):
            label(None, slide_label=wrong)


def test_no_patches_give_empty_labels():
    nothing = np.zeros(0, np.int32)
    done = label_patches(
        Grid(nothing, nothing, nothing), Annotation({"adenoma": shapely.box(0, 0, 5, 5)}),
        slide_label=1, num_classes=3, annotation_complete=True,
        groups=default_groups(THREE), rule=LabelRule(), slide_id="s1", slide_size=SLIDE,
    )  # fmt: skip
    assert (done.labels.label.shape, done.labels.fractions.shape, done.is_target_missed) == ((0,), (0, 3), True)


@needs_data
def test_real_cohort_outlines_equal_its_truth():
    """pcam_cohort marks whole 96 px cells, in ASAP XML and in QuPath GeoJSON."""
    truth: dict[str, dict[tuple[int, int], int]] = {}
    for line in (DATA / "pcam_cohort/truth.csv").read_text().splitlines()[1:]:
        slide_id, x, y, _, value = line.split(",")
        truth.setdefault(slide_id, {})[int(x), int(y)] = int(value)
    for path in sorted((DATA / "pcam_cohort/annotations").iterdir()):
        cells = truth[path.stem]
        x, y = np.array(list(cells), np.int32).T
        size = (int(x.max()) + 192, int(y.max()) + 192)
        done = label_patches(
            Grid(x, y, np.full(len(x), 96, np.int32)), read_annotation(path, slide_size=size),
            slide_label=1, num_classes=2, annotation_complete=True, groups=default_groups(TWO),
            rule=LabelRule(), slide_id=path.stem, slide_size=size,
        )  # fmt: skip
        if path.stem.startswith("val"):
            assert done.labels.label.tolist() == list(cells.values())
        assert set(np.unique(done.labels.target_fraction)) <= {0, 1}
