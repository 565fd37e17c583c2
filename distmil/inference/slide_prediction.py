"""The prediction of one slide for a notebook: scores, maps, and files for other programs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
from PIL import Image

from distmil.cohort import Slide
from distmil.cohort.kinds import noun_of
from distmil.errors import ConfigError
from distmil.exporting.door import open_export, write_geojson
from distmil.exporting.frame import Origin
from distmil.exporting.regions import Region
from distmil.exporting.slide_export import SlideExport
from distmil.slides.image import overview
from distmil.slides.reader import open_slide
from distmil.storage.local_files import write_outside
from distmil.storage.schemas import to_parquet
from distmil.visualization.colours import Colours
from distmil.visualization.heatmap import encode_png
from distmil.visualization.slide_maps import MAPS, SHEET, Reading, SlideMaps

MAP_PX = 1024


@dataclass(frozen=True, repr=False)
class SlidePrediction:
    """What a bundle says of one slide: its class, the read-outs, the scores of every patch, and maps of them."""

    slide: Slide
    row: Mapping[str, Any]
    """The slide's line in the job's ``slides.parquet``, every read-out among its values."""
    patches: pa.Table
    """One row per patch: slide_id, x, y (level-0 pixels of the top-left corner), extent_px (level-0 edge), attention,
    probability, topk_probability, fused (each within 0 and 1), predicted (a class name); with more than two classes,
    the probability of each. ``to_pandas()`` makes a data frame of it."""
    reading: Reading
    """How the scores are read: the read-out that counts, thresholds, classes."""
    mpp: float | None = None
    """Um per level-0 pixel."""
    doubts: tuple[str, ...] = ()
    """What a person should know of the slide: its pixels, resolution, tissue, and likeness to the training slides."""
    size: tuple[int, int] = (0, 0)
    """Width and height in level-0 pixels."""
    bounds: tuple[int, int, int, int] | None = None
    """The scanned area (x, y, width, height), None where the file states none."""

    @property
    def slide_id(self) -> str:
        """Name the slide."""
        return self.slide.slide_id

    @property
    def slide_score(self) -> str:
        """Name the read-out that counts: ``bag``, ``max``, ``topk_mean`` or ``regions``."""
        return self.reading.slide_score

    @property
    def threshold(self) -> float:
        """Give the probability from which the slide counts as abnormal."""
        return self.reading.threshold

    @property
    def predicted(self) -> str:
        """Name the predicted class."""
        return str(self.row["predicted"])

    @property
    def probability(self) -> float:
        """Give the read-out that counts: the probability that the slide is abnormal, within 0 and 1."""
        return float(self.row["probability"])

    @property
    def bag(self) -> float:
        """Give the probability of the pooled slide bag, within 0 and 1."""
        return float(self.row["bag"])

    @property
    def max(self) -> float:
        """Give the highest fused score of a patch, within 0 and 1."""
        return float(self.row["max"])

    @property
    def topk_mean(self) -> float:
        """Give the mean of the K highest fused scores, within 0 and 1; K is the bundle's ``bags.top_k``."""
        return float(self.row["topk_mean"])

    def __repr__(self) -> str:
        return (
            f"SlidePrediction({self.slide_id}: {self.predicted}, {self.slide_score} {self.probability:.3f}, "
            f"{self.patches.num_rows} patches)"
        )

    def map(self, name: str = "fused", *, max_px: int = MAP_PX, colours: Colours = "jet") -> Image.Image:
        """Draw a map of the patches' scores over the slide; where a score is 0, the tissue shows untouched.

        Args:
            name: ``attention``, ``probability`` or ``fused`` (attention x probability); ``sheet``: the slide and all
                three.
            max_px: Longer edge of the slide's picture in pixels.
            colours: ``jet``, blue 0 to red 1, or ``viridis``, blue 0 to yellow 1, for colour-blind eyes too.

        Returns:
            RGB image with a title, a colour bar and a legend; Jupyter shows it.

        Raises:
            ConfigError: If the map or the colours do not exist, or ``max_px`` is not positive.
            SlideError: If the slide's file cannot be read any more.
        """
        if name not in (*MAPS, SHEET):
            raise ConfigError(f"name = {name!r}: expected {', '.join((*MAPS, SHEET))}")
        if colours not in get_args(Colours):
            raise ConfigError(f"colours = {colours!r}: expected {' or '.join(get_args(Colours))}")
        if max_px < 1:
            raise ConfigError(f"max_px = {max_px}: expected at least 1 pixel")
        if (max_px, colours) not in self._maps:
            with open_slide(self.slide.path) as image:
                thumbnail, scale = overview(image, max_px=max_px)
            self._maps[max_px, colours] = SlideMaps(
                self.slide_id, self.patches, self.reading, thumbnail, scale=scale, mpp=self.mpp, colours=colours,
                noun=noun_of([self.slide.path]),
            )  # fmt: skip
        return self._maps[max_px, colours].draw(name)

    def save(self, folder: str | Path) -> None:
        """Write the patch table, the slide's scores, the three maps and their sheet into a folder.

        The folder is made where it is absent. The files are ``<slide_id>.parquet``, ``<slide_id>.json`` and
        ``<slide_id>_<map>.png``; those of an earlier call are replaced.

        Raises:
            SlideError: If the slide's file cannot be read any more.
            OSError: If the folder cannot be written.
        """
        place = Path(folder).expanduser()
        maps = {name: encode_png(self.map(name)) for name in (*MAPS, SHEET)}
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{self.slide_id}.parquet").write_bytes(to_parquet(self.patches))
        (place / f"{self.slide_id}.json").write_text(json.dumps(dict(self.row), indent=1) + "\n")
        for name, data in maps.items():
            (place / f"{self.slide_id}_{name}.png").write_bytes(data)

    def regions(
        self, *, threshold: float | None = None, min_area_mm2: float = 0.0, target: str | None = None
    ) -> list[Region]:
        """Join the abnormal patches to regions, the highest probability on top; see ``Region``.

        Args:
            threshold: Probability from which a patch is abnormal; default: the bundle's patch threshold.
            min_area_mm2: Smaller regions are left out.
            target: Class whose probability counts; default: any that is not normal.

        Raises:
            ConfigError: If an argument is out of range.
            SlideError: If a minimal area is given, and nobody knows the slide's um per pixel.
        """
        return self._export(threshold, min_area_mm2=min_area_mm2, target=target).regions

    def to_geojson(
        self,
        path: str | Path,
        *,
        threshold: float | None = None,
        min_area_mm2: float = 0.0,
        target: str | None = None,
        origin: Origin = "auto",
        with_patches: bool = False,
    ) -> Path:
        """Write the regions for QuPath, or every patch with its scores for QuPath's measurement maps.

        Args:
            path: The file; a name that ends in ``.gz`` is packed.
            threshold: As of ``regions``.
            min_area_mm2: As of ``regions``.
            target: As of ``regions``.
            origin: Where (0, 0) is: ``slide``, ``bounds`` (the scanned area), or ``auto``, as QuPath shows the slide.
            with_patches: Write the patches instead of the regions.

        Raises:
            ConfigError: If an argument is out of range.
            OSError: If the file cannot be written.
        """
        export = self._export(threshold, min_area_mm2=min_area_mm2, target=target, origin=origin)
        return write_geojson(path, export, with_patches=with_patches)

    def to_tiff(
        self,
        path: str | Path,
        name: str = "fused",
        *,
        target: str | None = None,
        origin: Origin = "auto",
        downsample: int | None = None,
        colours: Colours = "jet",
    ) -> Path:
        """Write a score's colour map as a pyramid that OpenSlide, QuPath and ASAP open.

        Args:
            path: The file.
            name: ``attention``, ``probability``, ``fused``, ``agreement`` or ``topk_probability``.
            target: As of ``regions``.
            origin: As of ``to_geojson``.
            downsample: Level-0 pixels per pixel of the map; default: so that its longer edge has at most 4096.
            colours: ``jet``, blue 0 to red 1, or ``viridis``, blue 0 to yellow 1.

        Raises:
            ConfigError: If an argument is out of range.
            OSError: If the file cannot be written.
        """
        export = self._export(None, target=target, origin=origin, colours=colours, downsample=downsample)
        return write_outside(Path(path).expanduser(), export.colour_map(name))

    def _export(self, threshold: float | None, *, target: str | None, **settings: Any) -> SlideExport:
        reading = self.reading
        return open_export(
            self.slide_id, self.patches, size=self.size, bounds=self.bounds, mpp=self.mpp, abnormal=reading.abnormal,
            threshold=reading.patch_threshold if threshold is None else threshold, target=target, **settings,
        )  # fmt: skip

    @cached_property
    def _maps(self) -> dict[tuple[int, Colours], SlideMaps]:
        """What draws the maps, by the picture's longer edge and colours."""
        return {}
