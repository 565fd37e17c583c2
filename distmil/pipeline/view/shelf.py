"""The viewer's slides out of the store: the predictions that `export` would take, read when they are looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmil.cohort import Cohort, Slide
from distmil.config.root import Config
from distmil.config.shown import ExportConfig
from distmil.errors import BadInput, StorageError
from distmil.inference.bundle import Bundle, load_bundle, with_bundle
from distmil.inference.tables import predictions_folder
from distmil.pipeline.export.choice import choose_run, choose_slides
from distmil.pipeline.export.slide import Place, SlideFiles, Source
from distmil.pipeline.export.source import check_target, make_source, threshold_of
from distmil.pipeline.job import Job, bundle_place, open_cohort
from distmil.pipeline.view.drawn import Desk
from distmil.storage.records import Part, Record
from distmil.tiling.overview import decode_overview
from distmil.tiling.shards import patches_folder
from distmil.viewing.drawing import EXCLUDE, Drawing
from distmil.viewing.library import Library
from distmil.viewing.slide_list import Listed
from distmil.viewing.slide_view import SCORES, SlideView
from distmil.viewing.tiles import SlideTiles
from distmil.visualization.colours import COLOURS, colour


@dataclass(frozen=True)
class Shelf:
    """The slides of a run with the records of their predictions."""

    job: Job
    """With the bundle's settings, and the scores of the viewer in place of those of `export`."""
    bundle: Bundle
    cohort: Cohort
    run: str
    """Name of the predictions."""
    chosen: Mapping[str, tuple[Slide, Record]]
    desk: Desk | None = None
    """Where outlines are drawn; None: nothing can be drawn."""
    is_open: bool = False
    """The page may save outlines."""
    beside: "Shelf | None" = None
    """Another run on the same slides."""

    @property
    def config(self) -> Config:
        """Return the configuration with the bundle's settings."""
        return self.job.config

    def library(self) -> Library:
        """Make what the viewer answers from."""
        listed = [self._listed(*item) for item in self.chosen.values()]
        return Library(self._run(), listed, self._view, self.beside.library() if self.beside else None)

    def _run(self) -> dict[str, Any]:
        steps = np.linspace(0, 1, 256, dtype=np.float32)
        return {
            "name": self.run,
            "noun": self.job.outcomes.noun,
            "classes": list(self.bundle.classes),
            "threshold": threshold_of(self.config, self.bundle),
            "scores": list(SCORES),
            "colours": {name: colour(steps, colours=name).tolist() for name in COLOURS},
            "beside": self.beside.run if self.beside else None,
            "draw": self._pens() if self.is_open else None,
            "max_px": self.config.view.export_px if self.config.view.export else None,
        }

    def _pens(self) -> list[str]:
        """List what an outline may be: the classes, targets first, and what is carved out."""
        normal, *targets = self.bundle.classes
        return [*targets, normal, EXCLUDE]

    def _listed(self, slide: Slide, record: Record) -> Listed:
        label = "" if slide.label is None or slide.is_pseudo else self.cohort.classes[slide.label]
        extra: dict[str, str] = {
            name: str(getattr(slide, name)) for name in self.config.view.show if getattr(slide, name)
        }
        return Listed(
            slide.slide_id,
            record.info["probability"],
            self.bundle.slide_thresholds[record.key["slide_score"]],
            record.info["predicted"],
            label,
            record.info["num_patches"],
            extra,
        )

    def _view(self, slide_id: str) -> SlideView:
        """Read a slide's predictions. Raises: SlideError, StorageError."""
        slide, record = self.chosen[slide_id]
        source = make_source(self.job, self.bundle, self.cohort, slide, record, with_pictures=False)
        place = Place(self.job.store, f"{predictions_folder(self.run)}/view")  # nothing is written there
        files = SlideFiles(source, self.config, self.job.store, self.run, place)
        reader, desk = self.config.tiling.reader, self.desk
        return SlideView(
            files.content,
            lambda: SlideTiles(slide.path, reader=reader, picture=lambda: self._picture(source)),
            (lambda: desk.drawing(source)) if desk else Drawing,
            source.reading.words(),
            num_top=self.config.view.num_top,
            save=(lambda data, over: desk.save(source, data, over=over)) if desk and self.is_open else None,
        )

    def _picture(self, source: Source) -> NDArray[np.uint8] | None:
        """Read the small picture that is kept beside a slide's patches, None where there is none or it is damaged."""
        info, place = source.tiled.info, f"{patches_folder(self.config.tiling)}/{source.slide.slide_id}"
        try:
            parts = [self.job.store.read_part(place, Part(**part)) for part in info.get("pictures", [])]
            return decode_overview(*parts)[0] if parts else None
        except StorageError:
            return None


def open_shelf(job: Job, *, is_open: bool = False) -> Shelf:
    """Find the predictions that are shown.

    Args:
        job: The job.
        is_open: The page may save outlines, where the cohort has a manifest.

    Raises:
        ConfigError: If there is nothing to show.
        BundleError: If there is no such bundle.
        ManifestError: If the manifest cannot be used.
        StorageError: If the store does not answer.
    """
    bundle = load_bundle(bundle_place(job), job.store)
    inner = replace(job, config=_as_export(with_bundle(job.config, bundle)))
    cohort = open_cohort(inner, needs_labels=False, needs_splits=False)
    check_target(inner.config, bundle)
    name = choose_run(job, bundle)
    chosen = {slide.slide_id: (slide, record) for slide, record in choose_slides(job, cohort, name)}
    desk = Desk.of(inner.config, job.store, bundle.classes, job.console.note)
    is_open = is_open and desk is not None
    return Shelf(inner, bundle, cohort, name, chosen, desk, is_open=is_open, beside=_open_beside(job))


def _open_beside(job: Job) -> Shelf | None:
    """Find the predictions beside, None where none are asked for. Raises: BadInput, StorageError."""
    config, view = job.config, job.config.view
    if view.beside_model is None and view.beside_run is None:
        return None
    asked = {"model": view.beside_model or config.prediction.model, "run": view.beside_run}
    update = {
        "prediction": config.prediction.model_copy(update=asked),
        "view": view.model_copy(update={"beside_model": None, "beside_run": None}),
    }
    try:
        return open_shelf(replace(job, config=config.model_copy(update=update)))
    except BadInput as error:
        words = str(error).replace("prediction.model", "view.beside_model")
        raise type(error)(words.replace("prediction.run", "view.beside_run")) from error


def _as_export(config: Config) -> Config:
    """Ask for the scores of the viewer on the whole slide, with the regions that `export` is asked for."""
    given = config.export
    wanted = ExportConfig(
        formats=["geojson"], scores=["fused", "probability", "attention", "agreement"], origin="slide",
        threshold=given.threshold, target=given.target, min_area_mm2=given.min_area_mm2, slides=given.slides,
    )  # fmt: skip
    return config.model_copy(update={"export": wanted})
