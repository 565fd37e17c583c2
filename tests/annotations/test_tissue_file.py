"""A person's own tissue mask: the same place at every scale, holes kept, nothing lost for being small."""

import json
import re

import numpy as np
import pytest
import shapely
from PIL import Image

from distmil.annotations.tissue_file import read_tissue
from distmil.errors import AnnotationError

SLIDE = (700, 400)
POINT = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}, "properties": {}}


def polygon(*rings):
    return {"type": "Polygon", "coordinates": [[*map(list, ring), list(ring[0])] for ring in rings]}


def rectangle(left, top, right, bottom):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def feature(geometry, name):
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}


@pytest.fixture
def read(tmp_path):
    def write_and_read(content, *, scale=1.0, slide_size=SLIDE):
        path = tmp_path / "tissue.any"
        if isinstance(content, np.ndarray):
            Image.fromarray(content).save(path, format="png")
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        shape = (int(np.ceil(slide_size[1] / scale)), int(np.ceil(slide_size[0] / scale)))
        return read_tissue(path, slide_size=slide_size, shape=shape, scale=scale)[0]

    return write_and_read


def test_a_rectangle_covers_the_pixels_whose_centres_it_holds(read):
    mask = read(polygon(rectangle(100, 40, 300, 90)), scale=10)
    truth = np.zeros((40, 70), bool)
    truth[4:9, 10:30] = True
    assert (mask == truth).all()
    # 6 px further covers more than half of the next column, 4 px less than half
    assert read(polygon(rectangle(100, 40, 306, 90)), scale=10).sum() == truth.sum() + 5
    assert (read(polygon(rectangle(100, 40, 304, 94)), scale=10) == truth).all()


@pytest.mark.parametrize("scale", [1, 3.3, 8])
def test_any_outline_is_filled_as_geometry_has_it(read, scale):
    generator = np.random.default_rng(3)
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = generator.uniform(60, 190, 40)
    star = np.stack([350 + radius * np.cos(turn), 200 + radius * np.sin(turn)], axis=1)
    hole = np.stack([350 + 40 * np.cos(turn), 200 + 30 * np.sin(turn)], axis=1)
    mask = read(polygon(star.tolist(), hole.tolist()), scale=scale)
    row, column = np.indices(mask.shape)
    inside = shapely.contains_xy(shapely.Polygon(star, [hole]), (column + 0.5) * scale, (row + 0.5) * scale)
    assert 0.1 < mask.mean() < 0.5
    assert (mask == inside).all()


def test_every_group_is_tissue_and_holes_are_not(read):
    collection = {
        "type": "FeatureCollection",
        "features": [
            feature(polygon(rectangle(50, 50, 250, 250), rectangle(100, 100, 200, 150)), "Tissue"),
            feature(polygon(rectangle(200, 200, 600, 300)), "Tumor"),  # overlaps the other
        ],
    }
    mask = read(collection, scale=5)
    truth = np.zeros((80, 140), bool)
    truth[10:50, 10:50] = True
    truth[20:30, 20:40] = False
    truth[40:60, 40:120] = True
    assert (mask == truth).all()


@pytest.mark.parametrize("name", ["Ignore*", "ignore", "Exclude", "_2", "Hole", "background", "Glass"])
def test_areas_to_be_ignored_are_cut_out(read, name):
    features = [
        feature(polygon(rectangle(100, 100, 200, 150)), name),
        feature(polygon(rectangle(50, 50, 250, 250)), "Tissue"),
        feature(polygon(rectangle(150, 120, 600, 300)), "normal"),
    ]
    mask = read({"type": "FeatureCollection", "features": features}, scale=10)
    truth = np.zeros((40, 70), bool)
    truth[5:25, 5:25] = True
    truth[12:30, 15:60] = True
    truth[10:15, 10:20] = False
    assert (mask == truth).all()


def test_a_file_of_ignored_areas_alone_is_refused(read):
    with pytest.raises(AnnotationError, match="marks no tissue, all of its areas are to be ignored"):
        read([feature(polygon(rectangle(100, 100, 200, 150)), "Ignore*")], scale=10)


def test_what_is_left_out_of_a_tissue_file_is_said(tmp_path):
    path = tmp_path / "tissue.json"
    path.write_text(json.dumps([POINT, feature(polygon(rectangle(100, 100, 200, 150)), "Tissue")]))
    _, doubts = read_tissue(path, slide_size=SLIDE, shape=(40, 70), scale=10)
    assert doubts == ("tissue file: 1 point was left out (lines and points have no area)",)


def test_outlines_of_a_cropped_slide_are_moved_to_their_tissue(tmp_path):
    path = tmp_path / "tissue.json"
    path.write_text(json.dumps([feature(polygon(rectangle(0, 0, 200, 100)), "Tissue")]))
    picture = np.full((40, 70, 3), 245, np.uint8)
    picture[10:20, 30:50] = 180, 90, 150
    picture[12:18:2, 31:49:3] = 90, 40, 120
    mask, doubts = read_tissue(
        path, slide_size=SLIDE, shape=(40, 70), scale=10, bounds=(300, 100, 350, 250), picture=picture
    )
    assert mask[10:20, 30:50].all()
    assert mask.sum() == 200
    assert doubts == ()


def test_asap_outlines_are_read_too(read):
    corners = enumerate(rectangle(70, 40, 210, 80))
    points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in corners)
    annotation = f'<Annotation Type="Polygon" PartOfGroup="None"><Coordinates>{points}</Coordinates></Annotation>'
    mask = read(f"<ASAP_Annotations><Annotations>{annotation}</Annotations></ASAP_Annotations>", scale=10)
    assert mask[4:8, 7:21].all()
    assert mask.sum() == 4 * 14


@pytest.mark.parametrize("box", [(203, 101, 206, 103), (401, 11, 402.5, 390), (11, 301, 690, 302), (-300, 203, 3, 206)])
def test_an_outline_between_the_centres_does_not_vanish(read, box):
    mask = read([feature(polygon(rectangle(*box)), "Tissue"), feature(polygon(rectangle(0, 0, 80, 40)), "T")], scale=10)
    mask[:4, :8] = False
    row, column = np.nonzero(mask)
    assert len(row) >= 1
    assert ((column * 10 < box[2]) & (column * 10 + 10 > box[0]) & (row * 10 < box[3]) & (row * 10 + 10 > box[1])).all()


def test_outlines_past_the_edge_are_cut(read):
    mask = read(polygon(rectangle(-500, 300, 100, 9e8)), scale=10)
    assert mask[30:, :10].all()
    assert mask.sum() == 10 * 10


@pytest.mark.parametrize("reduced", [1, 2, 7, 20])
@pytest.mark.parametrize("scale", [4, 6.3, 10])
def test_a_mask_image_of_any_size_marks_the_same_place(read, reduced, scale):
    image = np.zeros((400 // reduced, 700 // reduced), np.uint8)
    image[100 // reduced : 300 // reduced, 140 // reduced : 560 // reduced] = 3
    mask = read(image, scale=scale)
    edges = [140 // reduced * reduced, 560 // reduced * reduced, 100 // reduced * reduced, 300 // reduced * reduced]
    row, column = np.nonzero(mask)
    found = [column.min() * scale, (column.max() + 1) * scale, row.min() * scale, (row.max() + 1) * scale]
    assert np.abs(np.subtract(found, edges)).max() <= scale
    assert mask.sum() == (np.ptp(row) + 1) * (np.ptp(column) + 1)


def test_half_of_a_pixel_has_to_be_marked_in_a_mask_image(read):
    image = np.zeros((400, 700), np.uint8)
    image[100:200, 100:206] = 255
    image[200:204, 100:200] = 1
    mask = read(image, scale=10)
    assert mask[10:20, 10:21].all()
    assert mask.sum() == 10 * 11


def test_a_mask_image_of_small_marks_does_not_vanish(read):
    image = np.zeros((400, 700), np.uint8)
    image[203:205, 501:503] = 1
    image[399, 699] = 1
    assert set(zip(*np.nonzero(read(image, scale=10)), strict=True)) == {(20, 50), (39, 69)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (polygon(rectangle(900, 40, 1000, 90)), "span x 900 to 1000, y 40 to 90, outside the slide of 700 x 400 px"),
        ([POINT], "it holds no area (1 point was left out"),
        (np.zeros((400, 700), np.uint8), "every value of it is 0"),
    ],
)
def test_a_file_without_tissue_is_refused(read, content, message):
    with pytest.raises(AnnotationError, match=re.escape(message)) as caught:
        read(content, scale=8)
    assert str(caught.value).startswith("the tissue file marks no tissue")


def test_a_mask_of_another_slide_is_refused(read):
    with pytest.raises(AnnotationError, match="different proportions"):
        read(np.ones((70, 40), np.uint8), scale=8)
