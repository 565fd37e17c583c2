import pytest

from distmil.exporting.frame import Frame, frame_of

SIZE = (900, 500)


@pytest.mark.parametrize(
    ("bounds", "origin", "expected"),
    [
        (None, "auto", Frame(0, 0, 900, 500)),
        (None, "bounds", Frame(0, 0, 900, 500)),
        ((30, 20, 700, 400), "auto", Frame(30, 20, 700, 400)),
        ((30, 20, 700, 400), "slide", Frame(0, 0, 900, 500)),
        ((30, 0, 700, 500), "auto", Frame(0, 0, 900, 500)),  # QuPath crops where both edges are smaller
        ((0, 20, 900, 400), "auto", Frame(0, 0, 900, 500)),
        ((30, 0, 700, 500), "bounds", Frame(30, 0, 700, 500)),
    ],
)
def test_the_frame_is_what_qupath_shows(bounds, origin, expected) -> None:
    assert frame_of(SIZE, bounds, origin=origin) == expected


def test_a_started_pixel_counts() -> None:
    frame = Frame(5, 6, 100, 31)
    assert [frame.map_size(px) for px in (1, 10, 30, 33.5, 1000)] == [(100, 31), (10, 4), (4, 2), (3, 1), (1, 1)]
