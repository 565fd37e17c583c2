"""The three maps of a slide, attention, probability and fused, over its overview, and a sheet of all."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from PIL import Image

from distmil.annotations.outlines import Annotation
from distmil.cohort import Slide
from distmil.cohort.kinds import noun_of
from distmil.errors import SlideError
from distmil.slides.image import overview
from distmil.slides.reader import open_slide
from distmil.visualization.colours import Colours
from distmil.visualization.heatmap import Frame, Key, Panel, encode_png, render
from distmil.visualization.overlay import MapBase, paint
from distmil.visualization.score_grid import score_grid

MAPS = ("attention", "probability", "fused")


SHEET = "sheet"
"""The slide and its three maps in one picture."""


@dataclass(frozen=True)
class Reading:
    """How a bundle's scores of a slide are read, in words and lines of its maps."""

    probability: float
    """Of the read-out that counts."""
    slide_score: str
    threshold: float
    """Of that read-out."""
    predicted: str
    """Name of the slide's class."""
    abnormal: str
    """What a high score stands for: the name of the second class of two; else "not" and the first."""
    patch_threshold: float
    label: str | None = None

    def words(self) -> str:
        """Describe the prediction for the line under a map's title."""
        shown = f"{self.probability:.2f}"
        shown = {"0.00": "below 0.01", "1.00": "above 0.99"}.get(shown, shown)  # rounded, it would read as certainty
        text = f"probability of {self.abnormal} {shown} ({self.slide_score}), predicted {self.predicted}"
        return f"{text} (from {self.threshold:.2f})" + (f", labelled {self.label}" if self.label else "")


@dataclass(frozen=True)
class Drawn:
    """The maps of a slide as PNG by name, and what a person who looks at them should know."""

    images: Mapping[str, bytes]
    doubts: Sequence[str]


def draw_maps(
    slide: Slide,
    patches: pa.Table,
    reading: Reading,
    *,
    outlines: Callable[[], Annotation | None],
    size: tuple[int, int],
    mpp: float | None,
    max_px: int,
    reader: str,
    colours: Colours = "jet",
    names: Sequence[str] = (*MAPS, SHEET),
) -> Drawn:
    """Draw maps of a slide.

    Args:
        slide: The slide.
        patches: Its patch predictions.
        reading: How they are read.
        outlines: Reads its annotation, None if it has none; may raise SlideError and OSError.
        size: Slide (width, height) in level-0 pixels.
        mpp: Um per level-0 pixel, None where it is not known.
        max_px: Longer edge of the overview.
        reader: ``tiling.reader``.
        colours: ``prediction.colours``.
        names: The maps: scores of the patches, or the sheet of ``MAPS``.
    """
    doubts: list[str] = []
    thumbnail, scale = _thumbnail(slide, size=size, max_px=max_px, reader=reader, doubts=doubts)
    rings = [point_N2 / scale for point_N2 in _drawable(outlines, doubts)]
    maps = SlideMaps(
        slide.slide_id, patches, reading, thumbnail, scale=scale, mpp=mpp, outlines=rings, colours=colours,
        noun=noun_of([slide.path]),
    )  # fmt: skip
    return Drawn({name: encode_png(maps.draw(name)) for name in names}, doubts)


@dataclass(frozen=True)
class SlideMaps:
    """Draws the maps of a slide."""

    slide_id: str
    patches: pa.Table
    """Patch predictions: x, y, extent_px in level-0 pixels, and scores within 0 and 1, ``MAPS`` among them."""
    reading: Reading
    thumbnail: NDArray[np.uint8]
    """The slide's overview, RGB, H x W x 3."""
    scale: float
    """Level-0 pixels per pixel of it."""
    mpp: float | None = None
    """Um per level-0 pixel."""
    outlines: Sequence[NDArray[np.float64]] = ()
    """Rings in pixels of the thumbnail, each n x 2 (x, y)."""
    colours: Colours = "jet"
    noun: str = "slide"
    """What the slide is called: slide or image."""

    def draw(self, name: str) -> Image.Image:
        """Draw the map of a score, or the sheet of ``MAPS``."""
        if name == SHEET:
            pictures = [Panel(self._picture(score), self._label(score)) for score in MAPS]
            panels = [Panel(paint(self._base, None), self.noun), *pictures]
        else:
            panels = [Panel(self._picture(name))]
        title = self.slide_id if name == SHEET else f"{self.slide_id}: {self._label(name)}"
        return render(panels, Frame(title, self.reading.words(), self._legend(), self.colours))

    def grid(self, name: str) -> NDArray[np.float32]:
        """Spread a score over the thumbnail, H x W, NaN where no patch lies."""
        width, height = self.thumbnail.shape[1], self.thumbnail.shape[0]
        return score_grid(
            *(self.patches[column].to_numpy() for column in ("x", "y", "extent_px", name)),
            slide_size=(round(width * self.scale), round(height * self.scale)),
            map_size=(width, height),
        )

    def _picture(self, name: str) -> Image.Image:
        if name not in self._pictures:
            self._pictures[name] = paint(self._base, self.grid(name), colours=self.colours)
        return self._pictures[name]

    @cached_property
    def _pictures(self) -> dict[str, Image.Image]:
        """What was painted already, by score."""
        return {}

    @cached_property
    def _base(self) -> MapBase:
        probability = self.grid("probability")
        return MapBase(
            self.thumbnail,
            scored=~np.isnan(probability),
            predicted=np.nan_to_num(probability, nan=-1) >= self.reading.patch_threshold,
            outlines=self.outlines,
            um_per_px=self.mpp and self.mpp * self.scale,
        )

    def _label(self, name: str) -> str:
        of = {
            "probability": f" of {self.reading.abnormal}",
            "topk_probability": f" of {self.reading.abnormal}",
            "fused": ", attention x probability",
            "agreement": " of the ranks of attention and probability",
        }
        return name + of.get(name, "")

    def _legend(self) -> list[Key]:
        """List the lines that the maps show."""
        predicted = f"patches predicted {self.reading.abnormal} (probability from {self.reading.patch_threshold:.2f})"
        keys = [Key("annotated", "annotated")] if self.outlines else []
        if self._base.predicted.any():
            keys.append(Key("predicted", predicted))
        elsewhere = "; elsewhere no tissue was found, or it was left out" if self.noun == "slide" else ""
        return [*keys, Key("scored", f"scored inside the grey line{elsewhere}")]


def _thumbnail(
    slide: Slide, *, size: tuple[int, int], max_px: int, reader: str, doubts: list[str]
) -> tuple[NDArray[np.uint8], float]:
    """Read the slide's overview and its reduction; a white one where there is no file; a doubt where it fails."""
    try:
        if slide.path:
            with open_slide(slide.path, reader=reader) as image:
                return overview(image, max_px=max_px)
    except SlideError as error:
        doubts.append(f"its maps are drawn on white: {error}")
    scale = max(1.0, max(size) / max_px)
    return np.full((math.ceil(size[1] / scale), math.ceil(size[0] / scale), 3), 255, np.uint8), scale


def _drawable(outlines: Callable[[], Annotation | None], doubts: list[str]) -> list[NDArray[np.float64]]:
    """Read the outlines; none, and a doubt, where they cannot be read."""
    try:
        return rings_of(outlines())
    except (SlideError, OSError) as error:
        reason = (error.strerror or type(error).__name__) if isinstance(error, OSError) else error
        doubts.append(f"its outlines are not drawn in its maps: {reason}")
        return []


def rings_of(annotation: Annotation | None) -> list[NDArray[np.float64]]:
    """List the rings of an annotation's outlines in level-0 pixels, N x 2 each."""
    if annotation is None:
        return []
    polygons = [part for region in annotation.regions.values() for part in shapely.get_parts(region)]
    return [np.asarray(ring.coords) for part in polygons for ring in (part.exterior, *part.interiors)]
