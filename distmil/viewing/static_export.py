"""The viewer as plain files, for any file server: what the server would answer, written down."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from distmil.viewing.library import BESIDE, Library
from distmil.viewing.page_files import PAGE, page_file
from distmil.viewing.slide_view import SCORES, SlideView


def write_page(library: Library, folder: Path, *, only: Collection[str]) -> None:
    """Write the page and the list of slides.

    Args:
        library: The slides.
        folder: The export's folder.
        only: Ids of the slides that are listed.

    Raises:
        OSError: If the folder cannot be written.
    """
    for name in PAGE:
        _write(folder / name, page_file(name))
    for part, prefix in ((library, ""), (library.beside, BESIDE)):
        if part is None:
            continue
        kept = replace(part, listed=[slide for slide in part.listed if slide.slide_id in only], beside=None)
        for name in ("run.json", "slides.json"):
            answer = kept.answer(name)
            assert answer is not None
            _write(folder / prefix / name, answer.data)


def write_slide(library: Library, slide_id: str, folder: Path, *, max_px: int | None) -> int:
    """Write everything of a slide, and return the number of its tiles.

    Args:
        library: It lists the slide.
        slide_id: Of the slide.
        folder: The export's folder.
        max_px: Longest edge of the finest level that is written; None: all levels.

    Raises:
        SlideError: If the slide cannot be shown.
        OSError: If the folder cannot be written.
    """
    view = library.view(slide_id)
    assert view is not None, f"{slide_id} is not listed"
    tiles = list(_tiles(view, max_px=max_px))
    names = ["regions.geojson", "outlines.geojson", *(f"maps/{score}.png" for score in SCORES)]
    names += [f"top/{rank}.jpg" for rank in range(len(view.top()))]
    _write_files(library, slide_id, [*tiles, *names], folder)
    if library.beside and any(slide.slide_id == slide_id for slide in library.beside.listed):
        names = ["regions.geojson", *(f"maps/{score}.png" for score in SCORES)]
        _write_files(library.beside, slide_id, names, folder / BESIDE)
    return len(tiles)


def _write_files(library: Library, slide_id: str, names: Iterable[str], folder: Path) -> None:
    """Write files of a slide, the description last: a slide that has it is whole."""
    for name in (*names, "slide.json"):
        answer = library.answer(f"slide-{slide_id}/{name}")
        assert answer is not None, name
        _write(folder / f"slide-{slide_id}" / name, answer.data)


def finest_level(view: SlideView, *, max_px: int | None) -> int:
    """Find the finest level whose longer edge is at most ``max_px``; the coarsest where none is."""
    zoom = view.tiles.zoom
    levels = [i for i in range(zoom.num_levels) if max_px is None or max(zoom.level_size(i)) <= max_px]
    return max(levels, default=0)


def _tiles(view: SlideView, *, max_px: int | None) -> Iterator[str]:
    for level in range(finest_level(view, max_px=max_px) + 1):
        columns, rows = view.tiles.zoom.num_tiles(level)
        yield from (f"tiles/{level}/{i}_{j}.jpg" for i in range(columns) for j in range(rows))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
