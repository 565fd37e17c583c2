"""Everything that the viewer answers, by its address: the server and the static export give out the same files.

    run.json                                    the run: classes, thresholds, what a score means
    slides.json                                 the list of slides
    slide-<id>/slide.json                       one slide: deep zoom, maps, top patches
    slide-<id>/tiles/<level>/<column>_<row>.jpg
    slide-<id>/maps/<score>.png
    slide-<id>/top/<rank>.jpg
    slide-<id>/regions.geojson
    slide-<id>/outlines.geojson                 what people drew, which the page can save
    beside/...                                  the same of another run, but for what does not depend on it

An id may be "..", which is why it never stands alone between two slashes.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distmil.viewing.slide_list import Listed, first_look
from distmil.viewing.slide_view import SCORES, Saved, SlideView

BESIDE = "beside/"
MAX_OPEN = 8
"""Slides that are kept open."""
_ID = "(?P<slide_id>[A-Za-z0-9._-]{1,128})"
_NUMBER = "[0-9]{1,6}"
_TILE = re.compile(rf"slide-{_ID}/tiles/(?P<level>{_NUMBER})/(?P<column>{_NUMBER})_(?P<row>{_NUMBER})\.jpg")
_MAP = re.compile(rf"slide-{_ID}/maps/(?P<score>[a-z_]+)\.png")
_TOP = re.compile(rf"slide-{_ID}/top/(?P<rank>{_NUMBER})\.jpg")
_FILE = re.compile(rf"slide-{_ID}/(?P<name>slide\.json|regions\.geojson|outlines\.geojson)")
_OUTLINES = re.compile(rf"slide-{_ID}/outlines\.geojson")
_KINDS = {"jpg": "image/jpeg", "png": "image/png", "json": "application/json", "geojson": "application/geo+json"}


@dataclass(frozen=True)
class Answer:
    """A file."""

    data: bytes
    kind: str
    """Its media type."""


@dataclass
class Library:
    """The slides of a run. Threads may share it."""

    run: Mapping[str, Any]
    """What ``run.json`` says."""
    listed: Sequence[Listed]
    make: Callable[[str], SlideView]
    """Makes the view of a listed slide. Raises: SlideError, StorageError."""
    beside: "Library | None" = None
    """Another run on the same slides."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _views: OrderedDict[str, SlideView] = field(default_factory=OrderedDict)

    def answer(self, address: str) -> Answer | None:
        """Make a file; None where there is none.

        Args:
            address: As the module's table has it, without a slash in front.

        Raises:
            SlideError: If the slide cannot be shown.
            StorageError: If its predictions cannot be read.
        """
        data = self._data(address)
        return None if data is None else Answer(data, _KINDS[address.rpartition(".")[2]])

    def save(self, address: str, data: bytes, *, over: int) -> Saved | None:
        """Save what was drawn; None where nothing can be saved.

        Args:
            address: Of a slide's outlines.
            data: What the page sends.
            over: The version that it was drawn over.

        Raises:
            AnnotationError: If the outlines are refused.
            StaleDrawing: If another version is the newest.
            SlideError: If the slide cannot be shown.
            OSError: If a file cannot be written.
        """
        found = _OUTLINES.fullmatch(address)
        view = self.view(found["slide_id"]) if found else None
        return view.save(data, over) if view and view.save else None

    def view(self, slide_id: str) -> SlideView | None:
        """Open a slide, and close the one that was not looked at for longest; None where it is not listed."""
        if all(slide.slide_id != slide_id for slide in self.listed):
            return None
        with self._lock:
            view = self._views.get(slide_id)
            if view is None:
                view = self._views[slide_id] = self.make(slide_id)
            self._views.move_to_end(slide_id)
            while len(self._views) > MAX_OPEN:
                self._views.popitem(last=False)  # its files close when no thread reads them any more
            return view

    def _data(self, address: str) -> bytes | None:
        if self.beside is not None and address.startswith(BESIDE):
            return self.beside._data(address.removeprefix(BESIDE))
        if address == "run.json":
            return _json(self.run)
        if address == "slides.json":
            return _json([slide.to_json() for slide in first_look(self.listed)])
        for pattern, read in ((_TILE, _tile), (_MAP, _map), (_TOP, _top), (_FILE, _file)):
            found = pattern.fullmatch(address)
            view = self.view(found["slide_id"]) if found else None
            if found and view:
                return read(view, found)
        return None


def _json(values: object) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()


def _tile(view: SlideView, found: re.Match[str]) -> bytes | None:
    return view.tiles.tile(int(found["level"]), int(found["column"]), int(found["row"]))


def _map(view: SlideView, found: re.Match[str]) -> bytes | None:
    return view.maps.png(found["score"]) if found["score"] in SCORES else None


def _top(view: SlideView, found: re.Match[str]) -> bytes | None:
    return view.thumbnail(int(found["rank"]))


def _file(view: SlideView, found: re.Match[str]) -> bytes | None:
    if found["name"] == "slide.json":
        return _json(view.describe())
    return view.regions() if found["name"] == "regions.geojson" else view.outlines()
