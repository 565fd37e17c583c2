"""Slides and manifests for a notebook."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distmil.cohort import Cohort, read_cohort
from distmil.config.loading import build_config
from distmil.errors import ConfigError, MissingSlide
from distmil.slides.image import SlideImage
from distmil.slides.reader import open_slide as open_image
from distmil.slides.reader import overview

THUMBNAIL_PX = 1024


class OpenSlide:
    """An open slide: its technical properties and its pixels. Label and macro images are never opened."""

    def __init__(self, image: SlideImage) -> None:
        self._image = image

    @property
    def size(self) -> tuple[int, int]:
        """Give width and height in level-0 pixels."""
        return self._image.size

    @property
    def mpp(self) -> float | None:
        """Give the um per level-0 pixel that the file states; None if it states none."""
        return self._image.mpp

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """Give width and height of every level in its own pixels, the finest first."""
        return self._image.level_sizes

    @property
    def vendor(self) -> str:
        """Name the scanner's maker, or the kind of a plain image."""
        return self._image.vendor

    @property
    def doubts(self) -> tuple[str, ...]:
        """List what a person should know of the file's pixels and resolution."""
        return tuple(self._image.doubts)

    def thumbnail(self, px: int = THUMBNAIL_PX) -> Image.Image:
        """Reduce the slide by area averaging to at most ``px`` on its longer edge; Jupyter shows the image.

        Raises:
            ConfigError: If ``px`` is below 1.
            UnreadableSlide: If pixels cannot be decoded.
        """
        if px < 1:
            raise ConfigError(f"px = {px}: expected at least 1 pixel")
        return Image.fromarray(overview(self._image, max_px=px)[0])

    def read(self, x: int, y: int, *, width: int, height: int, level: int = 0) -> NDArray[np.uint8]:
        """Read a region as RGB, height x width x 3; white where the file has nothing.

        Args:
            x: Left edge, level-0 pixels.
            y: Top edge, level-0 pixels.
            width: Pixels of the level.
            height: Pixels of the level.
            level: 0 is the finest.

        Raises:
            ConfigError: If the level does not exist, or the region has no pixel.
            UnreadableSlide: If pixels cannot be decoded.
        """
        if not 0 <= level < len(self.level_sizes):
            raise ConfigError(f"level = {level}: the slide has the levels 0 to {len(self.level_sizes) - 1}")
        if min(width, height) < 1:
            raise ConfigError(f"width = {width}, height = {height}: expected at least 1 pixel each")
        return self._image.read(x, y, level=level, width=width, height=height)

    def close(self) -> None:
        """Close the file."""
        self._image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        mpp = "no um-per-pixel" if self.mpp is None else f"{self.mpp:.4g} um per pixel"
        return f"OpenSlide({self.size[0]} x {self.size[1]} px, {mpp}, {len(self.level_sizes)} levels, {self.vendor})"


def open_slide(path: str | Path) -> OpenSlide:
    """Open a slide: a whole-slide file that OpenSlide knows, or a plain PNG, JPEG, BMP or TIFF image.

    Raises:
        MissingSlide: If the file does not exist.
        UnreadableSlide: If it cannot be opened, or its pixels would be read wrongly.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise MissingSlide(f"there is no slide {str(path)!r}; give the path of a file")
    return OpenSlide(open_image(file))


def read_manifest(
    path: str | Path,
    *,
    classes: Sequence[str] = ("negative", "positive"),
    needs_labels: bool = False,
    columns: Mapping[str, str | None] | None = None,
    class_names: Mapping[str | int, str] | None = None,
) -> Cohort:
    """Read and check a manifest of slides, as the jobs do.

    Args:
        path: CSV or Parquet file with the columns slide_id and slide_path, and others that docs/how_to/slides.md lists;
            without ``needs_labels`` a folder of slides or one slide too.
        classes: Class names in index order; the first is normal.
        needs_labels: Refuse slides without a label.
        columns: distmil's column -> the file's own name for it, such as ``{"patient_id": "Patient ID"}``; None: the
            file has no such column, whatever looks like it.
        class_names: Label as the file has it -> class.

    Returns:
        The cohort: ``slides``, ``classes`` and ``of_split("train")``.

    Raises:
        ManifestError: With every offending row and its line.
        ConfigError: If fewer than two class names are given, or a name twice, or a mapping is wrong.
    """
    given = {"classes": list(classes), "columns": dict(columns or {}), "class_names": dict(class_names or {})}
    config = build_config({"cohort": given}).cohort
    return read_cohort(config, manifest=path, needs_labels=needs_labels, needs_splits=False)
