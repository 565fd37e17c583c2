"""The typed configuration of what leaves a prediction, and of the viewer."""

from typing import Literal

from pydantic import Field

from distmil.config.section import Section

Format = Literal["png", "tiff", "ome", "geojson", "csv", "parquet"]
Score = Literal["attention", "probability", "fused", "agreement", "topk_probability"]
Shown = Literal["split", "site", "patient_id"]


class ExportConfig(Section):
    """What `export` writes of finished predictions, for QuPath, ASAP and other programs."""

    formats: list[Format] = Field(default=["png", "tiff", "ome", "geojson", "csv"], min_length=1)
    """png: maps over the slide; tiff: colour maps as pyramids; ome: the scores as float32 channels of an OME-TIFF;
    geojson: regions and patches for QuPath; csv, parquet: tables of patches and regions."""
    scores: list[Score] = Field(default=["attention", "probability", "fused", "agreement"], min_length=1)
    """Scores that are written. agreement: how near to each other a patch's ranks by attention and by probability are
    among the patches of its slide, 1 = equal."""
    slides: list[str] | None = Field(default=None, min_length=1)
    """Ids of the slides; null: all of the manifest that are predicted."""
    out: str | None = None
    """Folder, or its s3:// or gs:// URI, in which a folder of the prediction's name is made; null: `export/` beside the
    predictions."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Probability from which a patch belongs to a region; null: the bundle's patch threshold."""
    target: str | None = None
    """Class whose probability counts, of a bundle with more than two; null: any that is not normal, where a region has
    the likeliest of them."""
    min_area_mm2: float = Field(default=0.0, ge=0, le=1e6)
    """Smaller regions are left out."""
    downsample: int | None = Field(default=None, ge=1, le=4096)
    """Level-0 pixels per pixel of a tiff; null: the smallest power of two by which its longer edge has at most 4096."""
    origin: Literal["auto", "slide", "bounds"] = "auto"
    """Where (0, 0) of geojson, tiff and ome is. slide: the slide's corner, as in ASAP; bounds: the corner of the
    scanned area (OpenSlide's bounds); auto: as QuPath shows the slide."""


class ViewConfig(Section):
    """How `view` shows finished predictions in a browser. Regions are those of `export` (`export.threshold`)."""

    port: int = Field(default=8765, ge=0, le=65535)
    """Port of the page; 0: any that is free."""
    host: str = "127.0.0.1"
    """Address to listen at. Nobody has to log in: at another address than this machine's own, everyone who reaches it
    sees the slides."""
    show: list[Shown] = Field(default=[])
    """Columns of the manifest that the list of slides shows too. patient_id names people; paths are never shown."""
    num_top: int = Field(default=24, ge=1, le=200)
    """Top patches of a slide."""
    beside_model: str | None = None
    """Another bundle, by its folder or its run, whose predictions are shown beside the first; null: the bundle of
    `prediction.model`, where `view.beside_run` is set."""
    beside_run: str | None = None
    """Name of the predictions beside; null: the only ones of `view.beside_model`."""
    drawn: str | None = None
    """Folder for the outlines that are drawn in the page, and for the manifest that names them; null: beside the
    manifest, with its name and `_drawn`. They are drawn only where `view.host` is this machine."""
    export: str | None = None
    """Folder that takes the viewer as plain files, for any file server; null: it is served here."""
    export_px: int | None = Field(default=8192, ge=256)
    """Longer edge of the finest picture of a slide in `view.export`; null: all that the slide has."""
