"""What is drawn in the viewer: read as labels read annotations, and saved beside the manifest."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from distmil.cohort.annotated import check_annotatable
from distmil.config.root import Config
from distmil.errors import AnnotationError, ConfigError, ManifestError
from distmil.exporting.frame import Frame, frame_of
from distmil.labels.slide_outlines import SlideOutlines, groups_of
from distmil.pipeline.export.slide import Source
from distmil.storage.store import Store
from distmil.viewing.drawing import Drawing, check_file, doubts_of, drawing_of, from_page, to_file
from distmil.viewing.drawn_files import DrawnFiles, drawn_folder
from distmil.viewing.slide_view import Saved


@dataclass(frozen=True)
class Desk:
    """Where the slides of a manifest are drawn on."""

    files: DrawnFiles
    config: Config
    """With the bundle's settings."""
    store: Store
    classes: Sequence[str]
    note: Callable[[str], None]
    """Tells the terminal."""

    @classmethod
    def of(cls, config: Config, store: Store, classes: Sequence[str], note: Callable[[str], None]) -> Self | None:
        """Open the desk; None for a cohort without a manifest."""
        if config.cohort.manifest is None:
            return None
        manifest = Path(config.cohort.manifest).expanduser().absolute()
        given = config.view.drawn
        folder = drawn_folder(manifest) if given is None else Path(given).expanduser().absolute()
        return cls(DrawnFiles(folder, manifest, config.cohort), config, store, classes, note)

    def drawing(self, source: Source) -> Drawing:
        """Read what people drew on a slide: the newest version, else the manifest's annotation.

        Raises:
            AnnotationError: If it cannot be read or used.
            OSError: If the folder of drawn outlines cannot be read.
        """
        slide = source.slide
        version = self.files.newest().get(slide.slide_id, 0)
        is_complete = slide.annotation_complete
        if version:
            drawn = self.files.drawn(slide.slide_id, version)
            slide, is_complete = replace(slide, annotation_path=drawn.path), drawn.is_complete
        try:
            found = SlideOutlines(slide, self.config, self.store, source.tiled).read()
        except OSError as error:
            raise AnnotationError(f"its annotation cannot be read ({error.strerror})") from error
        made = drawing_of(found.annotation if found else None, groups=groups_of(self.config), classes=self.classes)
        return replace(made, is_complete=is_complete, version=version, refusal=made.refusal or self._refusal())

    def save(self, source: Source, data: bytes, *, over: int) -> Saved:
        """Save what the page sends as the next version.

        Raises:
            AnnotationError: If the outlines are refused, or those that they take the place of cannot be read.
            StaleDrawing: If another version is the newest.
            OSError: If a file cannot be written.
        """
        if refusal := self.drawing(source).refusal:
            raise AnnotationError(refusal)
        slide = source.slide
        drawing = replace(from_page(data, classes=self.classes), version=over + 1)
        file = to_file(drawing, slide.slide_id, self._frame(source), classes=self.classes)
        read = check_file(file)
        try:
            self.files.save(slide.slide_id, drawing.version, file)
        except (ConfigError, ManifestError) as error:
            raise AnnotationError(f"saved, but no manifest names it: {_pathless(error, self.files)}") from error
        self.note(f"{slide.slide_id}: outlines saved, version {drawing.version}; train with {self.key}")
        label = "" if slide.label is None else self.classes[slide.label]
        manifest = self.files.drawn_manifest
        doubts = doubts_of(drawing, read, label=label, classes=self.classes)
        return Saved(drawing.version, f"{manifest.parent.name}/{manifest.name}", doubts)

    @property
    def key(self) -> str:
        """Return the setting by which a training uses what was drawn."""
        return shlex.quote(f"cohort.manifest={self.files.drawn_manifest}")

    def _refusal(self) -> str:
        """Say why nothing can be drawn; "" where it can."""
        try:
            check_annotatable(self.config.cohort)
        except ConfigError as error:
            return str(error)
        return ""

    @staticmethod
    def _frame(source: Source) -> Frame:
        info = source.tiled.info
        return frame_of((info["width_px"], info["height_px"]), info.get("bounds"), origin="auto")


def _pathless(error: Exception, files: DrawnFiles) -> str:
    """Word an error for the page, which shows no folder."""
    return str(error).replace(f"{files.manifest.parent}/", "").replace(f"{files.folder}/", "")
