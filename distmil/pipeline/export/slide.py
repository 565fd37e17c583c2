"""The exported files of one slide: a commit a format, made again where anything that it depends on has changed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, get_args

from distmil.annotations.outlines import Annotation
from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.config.shown import Format, Score
from distmil.errors import SlideError
from distmil.exporting.frame import frame_of
from distmil.exporting.geojson import PACKED, SUFFIX
from distmil.exporting.scores import ScoredPatches, scored_patches
from distmil.exporting.slide_export import Files, SlideExport, file_word
from distmil.inference.tables import predictions_folder, read_patch_table
from distmil.labels.slide_outlines import SlideOutlines
from distmil.storage.records import Record
from distmil.storage.schemas import patch_predictions_schema
from distmil.storage.store import Committed, Store
from distmil.tiling.shards import grid_of
from distmil.visualization.slide_maps import Reading, draw_maps

FORMAT_VERSION = 1
SCORES = get_args(Score)
WITH_REGIONS = ("geojson", "csv", "parquet")
_ENDINGS = {
    "png": [f"{file_word(name)}.png" for name in SCORES],
    "tiff": [f"{file_word(name)}.tif" for name in SCORES],
    "ome": ["scores.ome.tif"],
    "geojson": [f"{name}{suffix}" for name in ("regions", "patches") for suffix in (SUFFIX, PACKED)],
    "csv": ["regions.csv", "patches.csv"],
    "parquet": ["regions.parquet", "patches.parquet"],
}
"""Of every file that a format may have."""


@dataclass(frozen=True)
class Source:
    """What is exported of one slide: small enough to be sent to a worker."""

    slide: Slide
    tiled: Record
    """Of its tiling: size, resolution, scanned area."""
    scores: Record
    """Of its predictions."""
    reading: Reading
    """How they are read; its patch threshold is that of the regions."""
    annotation: str | None
    """Version of its outlines, None without any, or where no picture shows them."""


@dataclass(frozen=True)
class Place:
    """Where the files go, a folder a format."""

    store: Store
    folder: str

    def committed(self, slide_id: str, kind: Format) -> Committed:
        """Return where a slide's files of a format and their record are."""
        return Committed(self.store, self.folder, slide_id, f"{self.records(kind)}/{slide_id}.json")

    @staticmethod
    def records(kind: Format) -> str:
        """Return the folder of a format's records, which is apart from the files that people see."""
        return f"records/{kind}"

    def discard(self, slide_id: str, kind: Format, *, but: Sequence[str] = ()) -> None:
        """Delete what a slide may have of a format: its record first, and no file that distmil has not written."""
        committed = self.committed(slide_id, kind)
        self.store.delete(committed.record_name)
        for ending in _ENDINGS[kind]:
            if (name := f"{slide_id}_{ending}") not in but:
                self.store.delete(f"{self.folder}/{kind}/{name}")


def settings_of(config: Config, kind: Format, *, bundle: str, threshold: float) -> dict[str, Any]:
    """Name everything that a format's files depend on and that is the same for all slides.

    Args:
        config: The configuration.
        kind: The format.
        bundle: Digest of the bundle, which covers its classes and thresholds.
        threshold: Of the regions.
    """
    wanted = config.export
    values: dict[str, Any] = {
        "bundle": bundle,
        "scores": list(dict.fromkeys(wanted.scores)),
        "target": wanted.target,
        "format_version": FORMAT_VERSION,
    }
    if kind != "png":
        values["origin"] = wanted.origin
    if kind in {"tiff", "png"}:
        values["colours"] = config.prediction.colours
    if kind == "tiff":
        values["downsample"] = wanted.downsample
    if kind == "png":
        values |= {"map_px": config.prediction.map_px, "reader": config.tiling.reader,
                   "outlines": config.labels.identity(), "threshold": threshold}  # fmt: skip
    if kind in WITH_REGIONS:
        values |= {"threshold": threshold, "min_area_mm2": wanted.min_area_mm2}
    return values


@dataclass(frozen=True)
class SlideFiles:
    """Finds and makes the files of one slide."""

    source: Source
    config: Config
    """With the bundle's settings."""
    store: Store
    """Holds the predictions."""
    run: str
    place: Place

    def key(self, kind: Format) -> dict[str, Any]:
        """Return everything that the files of a format depend on."""
        source, info = self.source, self.source.tiled.info
        slide: dict[str, Any] = {
            "predictions": [dict(source.scores.key), source.scores.digest],
            "size": [info["width_px"], info["height_px"]],
            "mpp": info["mpp"],
            "bounds": info.get("bounds"),
        }
        if kind == "png":
            slide |= {"annotation": source.annotation, "tiled": source.tiled.digest, "reading": asdict(source.reading)}
        bundle, threshold = source.scores.key["bundle"], source.reading.patch_threshold
        return {"settings": settings_of(self.config, kind, bundle=bundle, threshold=threshold), "slide": slide}

    def finished(self, kind: Format) -> Record | None:
        """Find the record of a format whose files are whole and made of these inputs. Raises: StorageError."""
        committed = self.place.committed(self.source.slide.slide_id, kind)
        record = committed.finished(self.key(kind))
        if record is None or record.info["doubts"]:  # what could not be read may have come back
            return None
        return record if committed.is_whole(record) else None

    def make(self, kind: Format) -> Record:
        """Write and commit the files of a format.

        Raises:
            SlideError: If the predictions are damaged, or not of the slide's tiling.
            StorageError: If the store cannot be written.
        """
        slide_id, committed = self.source.slide.slide_id, self.place.committed(self.source.slide.slide_id, kind)
        doubts: list[str] = []
        files = self._pictures(doubts) if kind == "png" else getattr(self.content, kind)()
        self.place.discard(slide_id, kind, but=list(files))
        parts = [
            self.place.store.write_part(committed.folder, f"{kind}/{name}", data, rows=len(self._patches))
            for name, data in files.items()
        ]
        info: dict[str, Any] = {"doubts": doubts}
        if kind in WITH_REGIONS:
            areas = [region.area_mm2 for region in self.content.regions if region.area_mm2 is not None]
            info |= {"num_regions": len(self.content.regions), "area_mm2": sum(areas) if self.content.mpp else None}
        return committed.commit(self.key(kind), parts=parts, info=info)

    @cached_property
    def content(self) -> SlideExport:
        """Gather what the files hold. Raises: SlideError, StorageError."""
        wanted, info = self.config.export, self.source.tiled.info
        return SlideExport(
            self.source.slide.slide_id,
            self._patches,
            frame_of(self._size, info.get("bounds"), origin=wanted.origin),
            info["mpp"],
            self.source.reading.patch_threshold,
            names=list(dict.fromkeys(wanted.scores)),
            min_area_mm2=wanted.min_area_mm2,
            colours=self.config.prediction.colours,
            downsample=wanted.downsample,
        )

    @cached_property
    def _patches(self) -> ScoredPatches:
        """Read the table of predictions. Raises: SlideError."""
        predictions = Committed(self.store, predictions_folder(self.run), self.source.slide.slide_id)
        if not predictions.is_whole(self.source.scores):
            raise SlideError("its table of predictions is gone or damaged; run the job that predicted it again")
        columns = patch_predictions_schema(self.config.cohort.classes).names
        table = read_patch_table(self.store, self.run, self.source.scores.parts[0], columns)
        grid = grid_of(self.store, self.config.tiling, self.source.tiled)
        if not all(table[name].equals(grid[name]) for name in ("x", "y", "extent_px")):
            raise SlideError("its predictions are of other patches than its tiling has; run predict again")
        return scored_patches(table, abnormal=self.source.reading.abnormal, target=self.config.export.target)

    @property
    def _size(self) -> tuple[int, int]:
        info = self.source.tiled.info
        return info["width_px"], info["height_px"]

    def _pictures(self, doubts: list[str]) -> Files:
        slide, names = self.source.slide, list(dict.fromkeys(self.config.export.scores))
        reading = replace(self.source.reading, abnormal=self.config.export.target or self.source.reading.abnormal)
        drawn = draw_maps(
            slide,
            self._patches.to_table(slide.slide_id, list(self._patches.scores)),
            reading,
            outlines=self.outlines,
            size=self._size,
            mpp=self.source.tiled.info["mpp"],
            max_px=self.config.prediction.map_px,
            reader=self.config.tiling.reader,
            colours=self.config.prediction.colours,
            names=names,
        )
        doubts += drawn.doubts
        return {f"{slide.slide_id}_{file_word(name)}.png": data for name, data in drawn.images.items()}

    def outlines(self) -> Annotation | None:
        """Read what people drew, None without any. Raises: SlideError, OSError, StorageError."""
        found = SlideOutlines(self.source.slide, self.config, self.store, self.source.tiled).read()
        return found.annotation if found else None
