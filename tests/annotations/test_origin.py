"""Where (0, 0) of outlines is: moved by exactly the bounds, or not at all, and said where it is not clear."""

import numpy as np
import pytest
import shapely

from distmil.annotations.origin import Tissue, place
from distmil.annotations.outlines import Annotation
from tests.support.scale import cases

SIZE = (9000, 5000)
BOUNDS = (2500, 1400, 4000, 2200)
SCALE = 20


def annotation(*boxes, writer="qupath"):
    return Annotation({f"g{i}": shapely.box(*box) for i, box in enumerate(boxes)}, writer=writer)


def tissue(*boxes):
    """A mask of level-0 boxes."""
    mask = np.zeros((SIZE[1] // SCALE, SIZE[0] // SCALE), bool)
    for left, top, right, bottom in np.asarray(boxes) // SCALE:
        mask[top:bottom, left:right] = True
    return Tissue(mask, SCALE)


def found(outlines, *, origin="auto", bounds=BOUNDS, seen=None):
    """Return whether outlines were moved by the bounds, and the doubt."""
    placed, doubt = place(outlines, origin=origin, bounds=bounds, slide_size=SIZE, tissue=seen)
    by = (bounds or (0, 0))[:2]
    moved = {name: shapely.affinity.translate(region, *by) for name, region in outlines.regions.items()}
    is_moved = all(region.equals(moved[name]) for name, region in placed.regions.items())
    is_still = all(region.equals(outlines.regions[name]) for name, region in placed.regions.items())
    assert is_moved or is_still
    return ("bounds" if is_moved and not is_still else "slide"), doubt


@pytest.mark.parametrize("seed", range(cases(60, full=2000)))
def test_outlines_on_tissue_are_found_wherever_they_are_counted_from(seed):
    rng = np.random.default_rng(seed)
    width, height = rng.integers(400, 1200, 2)
    truth = rng.choice(["slide", "bounds"])
    left, top = rng.integers(0, [BOUNDS[2] - width, BOUNDS[3] - height]) + BOUNDS[:2]  # on the scanned area
    offset = np.array(BOUNDS[:2]) if truth == "bounds" else np.zeros(2, int)
    turn = np.sort(rng.uniform(0, 2 * np.pi, 30))
    ring = np.stack([left + width / 2 * (1 + np.cos(turn)), top + height / 2 * (1 + np.sin(turn))], axis=1)
    region = shapely.Polygon(ring - offset).buffer(0)
    writer = {"bounds": "qupath", "slide": "asap"}[truth]
    seen = tissue((left, top, left + width, top + height))
    if max(abs(np.array(BOUNDS[:2]) / (width, height))) < 0.5:
        pytest.skip("the two places overlap")
    for name in (writer, ""):
        placed, doubt = place(
            Annotation({"t": region}, writer=name), origin="auto", bounds=BOUNDS, slide_size=SIZE, tissue=seen
        )
        assert shapely.hausdorff_distance(placed.regions["t"], shapely.Polygon(ring).buffer(0)) < 1e-6
        assert doubt == ""
    other = {"qupath": "asap", "asap": "qupath"}[writer]
    placed, doubt = place(
        Annotation({"t": region}, writer=other), origin="auto", bounds=BOUNDS, slide_size=SIZE, tissue=seen
    )
    assert shapely.hausdorff_distance(placed.regions["t"], shapely.Polygon(ring).buffer(0)) < 1e-6
    assert "of their area lies" in doubt
    assert "which decides" in doubt


def test_where_tissue_does_not_tell_the_writer_decides_and_it_is_said():
    everywhere = tissue((0, 0, *SIZE))
    box = (300, 200, 900, 700)
    for writer, expected in (("qupath", "bounds"), ("asap", "slide"), ("", "slide")):
        origin, doubt = found(annotation(box, writer=writer), seen=everywhere)
        assert origin == expected
        assert "100% of their area lies on tissue from (0, 0), 100% from the bounds, which is not clear" in doubt
        assert ("the program that wrote them counts from" in doubt) == bool(writer)
        assert f"set labels.origin to {'slide' if expected == 'bounds' else 'bounds'}" in doubt
    assert "there is no tissue to compare" in found(annotation(box))[1]


def test_outlines_that_would_lie_outside_the_slide_are_decided():
    assert found(annotation((8000, 4200, 8900, 4800), writer="asap")) == ("slide", "")
    origin, doubt = found(annotation((8000, 4200, 8900, 4800), writer="qupath"), seen=tissue((0, 0, *SIZE)))
    assert origin == "slide"
    assert "0% of their area lies outside the slide from (0, 0), 100% from the bounds, which decides" in doubt


@pytest.mark.parametrize("bounds", [(0, 700, 9000, 2000), (700, 0, 2000, 5000)])
def test_qupath_crops_only_where_both_edges_differ(bounds):
    assert found(annotation((300, 200, 900, 700)), bounds=bounds, seen=tissue((0, 0, *SIZE)))[0] == "slide"


def test_what_is_asked_for_is_done_without_a_doubt():
    elsewhere = tissue((0, 0, 100, 100))
    for writer in ("qupath", "asap"):
        outlines = annotation((300, 200, 900, 700), (1000, 900, 1500, 1300), writer=writer)
        assert found(outlines, origin="bounds", seen=elsewhere) == ("bounds", "")
        assert found(outlines, origin="slide", seen=elsewhere) == ("slide", "")


@pytest.mark.parametrize("bounds", [None, (0, 0, 9000, 5000), (0, 0, 500, 500)])
def test_a_slide_that_is_not_cropped_moves_nothing(bounds):
    for origin in ("auto", "slide", "bounds"):
        assert found(annotation((300, 200, 900, 700)), origin=origin, bounds=bounds) == ("slide", "")


@pytest.mark.parametrize(("size", "is_doubted"), [((400, 220), True), ((360, 200), False)])
def test_a_mask_that_may_be_one_of_the_scanned_area_alone_is_doubted(size, is_doubted):
    masked = Annotation({}, mask=np.ones(size[::-1], np.uint8), mask_scale=(20.0, 20.0))
    placed, doubt = place(masked, origin="auto", bounds=BOUNDS, slide_size=SIZE, tissue=None)
    assert placed is masked
    assert ("the proportions of the scanned area (4000 x 2200 px from (2500, 1400))" in doubt) == is_doubted
