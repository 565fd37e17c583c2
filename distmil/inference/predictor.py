"""The predictions of one slide: a committed table of patch scores, and committed maps, each made again by itself."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from distmil.annotations.outlines import Annotation
from distmil.bags.bag import BagEntry, open_source
from distmil.cohort import Slide
from distmil.config.jobs import PredictionConfig
from distmil.config.root import Config
from distmil.errors import ConfigError, SlideError
from distmil.inference.bundle import Bundle
from distmil.inference.scoring import BagScores, Embed, score_bag
from distmil.inference.tables import patch_table, predictions_folder, read_patch_table, slide_row
from distmil.inference.thresholds import calibrated
from distmil.labels.slide_outlines import SlideOutlines
from distmil.models.regions import Places
from distmil.storage.records import Record
from distmil.storage.schemas import to_parquet
from distmil.storage.store import Committed, Store
from distmil.visualization.slide_maps import MAPS, SHEET, Reading, draw_maps

FORMAT_VERSION = 4
MAPS_VERSION = 2

Inputs = tuple[BagEntry, Slide, Record, str | None]
"""Of one slide: its bag, the slide, the record of its patches, and the version of its annotation."""


@dataclass(frozen=True)
class Finished:
    """The committed records of a slide that are whole and made of its inputs; None where one must be made."""

    scores: Record | None
    maps: Record | None
    is_damaged: bool = False
    """A committed file was gone or damaged."""


@dataclass(frozen=True)
class SlidePredictor:
    """Makes the predictions of one slide.

    ``annotation`` is the version of its outlines, ``patches`` the record of its tiling, ``bundle`` the digest.
    """

    entry: BagEntry
    slide: Slide
    patches: Record
    annotation: str | None
    bundle: str
    config: Config
    store: Store
    run: str

    @property
    def folder(self) -> str:
        """Return the folder that the names of all parts begin in."""
        return predictions_folder(self.run)

    @property
    def label(self) -> str | None:
        """Return the name of the slide's class."""
        return None if self.entry.label is None else self.config.cohort.classes[self.entry.label]

    @property
    def inputs(self) -> Inputs:
        """Return the fields that differ from slide to slide, in their order."""
        return self.entry, self.slide, self.patches, self.annotation

    def scores_key(self) -> dict[str, Any]:
        """Return everything that the scores depend on; thresholds, classes and top_k are in the bundle's digest."""
        return {
            "bundle": self.bundle,
            "parts": [part.sha256 for part in self.entry.parts],
            "slide_score": self.config.prediction.slide_score,
            "format_version": FORMAT_VERSION,
            **({"calibrated": True} if self.config.prediction.calibrated else {}),
        }

    def maps_key(self, scores: Record) -> dict[str, Any]:
        """Return everything that the maps depend on."""
        return {
            "scores": [dict(scores.key), scores.digest],
            "patches": self.patches.digest,
            "annotation": self.annotation,
            "outlines": self.config.labels.identity(),
            "label": self.label,
            "map_px": self.config.prediction.map_px,
            "colours": self.config.prediction.colours,
            "reader": self.config.tiling.reader,
            "format_version": MAPS_VERSION,
        }

    def find(self) -> Finished:
        """Find the finished records, every file compared with its checksum. Raises: StorageError."""
        scores, is_damaged = self._whole(self._scores, self.scores_key())
        if scores is None or not self.config.prediction.maps:
            return Finished(scores, None, is_damaged)
        maps, is_map_damaged = self._whole(self._maps, self.maps_key(scores))
        if maps is not None and maps.info["doubts"]:  # what could not be read may have come back
            maps = None
        return Finished(scores, maps, is_map_damaged)

    def is_done(self, found: Finished) -> bool:
        """Return whether nothing is left to make."""
        return found.scores is not None and (found.maps is not None or not self.config.prediction.maps)

    def score(self, bundle: Bundle, embed: Embed) -> Record:
        """Score the slide and commit its patch table; the row of the slide is the record's info.

        Raises:
            SlideError: If a score is not finite.
            StorageError: If a shard is damaged, or the store cannot be written.
        """
        source, places = open_source(self.store, self.entry)
        bags = bundle.config.bags
        scores = score_bag(bundle.heads, source, embed, top_k=bags.top_k, top_k_share=bags.top_k_share, with_shift=True)
        check_finite(scores)
        scores = scores.with_regions(Places.of(places), bundle.evidence)
        record_of_maps = self._maps.record_name
        if self.store.exists(record_of_maps):  # no maps of other scores lie beside the new ones
            for name in (record_of_maps, *(f"{self.folder}/maps/{file}" for file in map_files(self.slide.slide_id))):
                self.store.delete(name)
        slide_score = self.config.prediction.slide_score
        row = slide_row(
            scores,
            slide_id=self.slide.slide_id,
            label=None,  # it may change without the scores
            classes=bundle.classes,
            slide_score=slide_score,
            threshold=bundle.slide_thresholds[slide_score],
            temperature=temperature_of(bundle, self.config.prediction),
        )
        table = patch_table(scores, places, classes=bundle.classes, threshold=bundle.patch_threshold)
        name = f"patches/{self.slide.slide_id}.parquet"
        part = self.store.write_part(self.folder, name, to_parquet(table), rows=table.num_rows)
        return self._scores.commit(
            self.scores_key(),
            parts=[part],
            info={**row, "shift": scores.shift if math.isfinite(scores.shift) else None},
        )

    def draw(self, scores: Record, bundle: Bundle) -> Record:
        """Draw and commit the maps of committed scores. Raises: StorageError."""
        settings, row = self.config.prediction, scores.info
        drawn = draw_maps(
            self.slide,
            read_patch_table(self.store, self.run, scores.parts[0], ("x", "y", "extent_px", *MAPS)),
            reading_of(
                bundle,
                row,
                slide_score=settings.slide_score,
                label=self.label,
                temperature=temperature_of(bundle, settings),
            ),
            outlines=self._outlines,
            size=(self.patches.info["width_px"], self.patches.info["height_px"]),
            mpp=self.patches.info["mpp"],
            max_px=settings.map_px,
            reader=self.config.tiling.reader,
            colours=settings.colours,
        )
        parts = [
            self.store.write_part(self.folder, f"maps/{file}", drawn.images[name], rows=1)
            for file, name in map_files(self.slide.slide_id).items()
        ]
        return self._maps.commit(self.maps_key(scores), parts=parts, info={"doubts": list(drawn.doubts)})

    def _outlines(self) -> Annotation | None:
        found = SlideOutlines(self.slide, self.config, self.store, self.patches).read()
        return found.annotation if found else None

    @property
    def _scores(self) -> Committed:
        return Committed(self.store, self.folder, self.slide.slide_id, f"records/{self.slide.slide_id}.json")

    @property
    def _maps(self) -> Committed:
        return Committed(self.store, self.folder, self.slide.slide_id, f"records/maps/{self.slide.slide_id}.json")

    def _whole(self, committed: Committed, key: Mapping[str, Any]) -> tuple[Record | None, bool]:
        """Read a record of that key whose parts are whole, else None; True beside it if parts are gone or damaged."""
        record = committed.finished(key)
        if record is None or committed.is_whole(record):
            return record, False
        return None, True


def map_files(slide_id: str) -> dict[str, str]:
    """Return the file names of a slide's maps, each with the name of what it shows."""
    return {f"{slide_id}_{name}.png": name for name in (*MAPS, SHEET)}


def check_calibrated(settings: PredictionConfig, bundle: Bundle) -> None:
    """Refuse a bundle without the temperature that is asked for. Raises: ConfigError."""
    if settings.calibrated and settings.slide_score not in bundle.temperatures:
        has = ", ".join(bundle.temperatures) or "none"
        raise ConfigError(
            f"prediction.calibrated = true: the bundle {bundle.run} has no temperature of {settings.slide_score} (it "
            f"has {has}): its validation slides were too few or told apart without a mistake, or an earlier distmil "
            "made it; leave prediction.calibrated out"
        )


def temperature_of(bundle: Bundle, settings: PredictionConfig) -> float | None:
    """Look up the temperature of the read-out that counts; None where it is not asked for, or the bundle has none."""
    return bundle.temperatures.get(settings.slide_score) if settings.calibrated else None


def shown_threshold(bundle: Bundle, slide_score: str, *, temperature: float | None) -> float:
    """Scale the threshold of a read-out as its probability is scaled; None leaves it as it is."""
    threshold = bundle.slide_thresholds[slide_score]
    return threshold if temperature is None else calibrated(threshold, temperature)


def reading_of(
    bundle: Bundle,
    row: Mapping[str, Any],
    *,
    slide_score: str,
    label: str | None = None,
    temperature: float | None = None,
) -> Reading:
    """Put together how a slide's row of predictions is read.

    Args:
        bundle: What made it.
        row: As ``slide_row`` makes it.
        slide_score: The read-out that counts.
        label: Name of the slide's known class.
        temperature: By which the row's probability was calibrated; None where it was not.
    """
    return Reading(
        probability=row["probability"],
        slide_score=slide_score,
        threshold=shown_threshold(bundle, slide_score, temperature=temperature),
        predicted=row["predicted"],
        abnormal=bundle.classes[1] if len(bundle.classes) == 2 else f"not {bundle.classes[0]}",
        patch_threshold=bundle.patch_threshold,
        label=label,
    )


def keep_slides(store: Store, run: str, slide_ids: Collection[str]) -> None:
    """Delete the predictions of other slides from a run's folder, such as of slides that have failed since."""
    folder = predictions_folder(run)
    store.keep_only(f"{folder}/patches", {f"{slide_id}.parquet" for slide_id in slide_ids})
    store.keep_only(f"{folder}/maps", {file for slide_id in slide_ids for file in map_files(slide_id)})
    for records in ("records", "records/maps"):
        store.keep_only(f"{folder}/{records}", {f"{slide_id}.json" for slide_id in slide_ids})


def check_finite(scores: BagScores) -> None:
    """Refuse scores that are not all finite. Raises: SlideError."""
    if not scores.is_finite:
        raise SlideError("the slide's scores are not finite; delete its folder of embeddings and run again")
