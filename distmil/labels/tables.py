"""Label tables: one committed file per slide, made from its annotation and its grid, never from its pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from distmil.annotations.reader import annotation_checksum
from distmil.annotations.regions import Grid
from distmil.cohort import Slide
from distmil.config.root import Config, fingerprint
from distmil.errors import AnnotationError
from distmil.labels.rules import LabelledPatches, LabelRule, label_patches
from distmil.labels.slide_outlines import ReadOutlines, SlideOutlines, groups_of
from distmil.storage.records import Record
from distmil.storage.schemas import labels_schema, to_parquet
from distmil.storage.store import Committed, Store
from distmil.tiling.shards import grid_of, patches_folder

FORMAT_VERSION = 2


def labels_folder(config: Config) -> str:
    """Return the stage's folder, named by everything that decides its content."""
    values = {
        **config.labels.identity(),
        "groups": groups_of(config),
        "classes": config.cohort.classes,
        "patches": patches_folder(config.tiling),
        "format_version": FORMAT_VERSION,
    }
    return f"labels/{fingerprint(values)}"


@dataclass(frozen=True)
class SlideLabeller:
    """Makes the label table of one tiled slide."""

    slide: Slide
    config: Config
    store: Store
    patches: Record

    @property
    def table_name(self) -> str:
        """Return the name of the table's file."""
        return f"{self.committed.folder}/{self.slide.slide_id}.parquet"

    @property
    def committed(self) -> Committed:
        """Return where the table and its record are."""
        slide_id = self.slide.slide_id
        return Committed(self.store, labels_folder(self.config), slide_id, f"{slide_id}.json")

    def key(self) -> dict[str, Any]:
        """Name all but the configuration that the table depends on. Raises: OSError if the annotation is gone."""
        path = self.slide.annotation_path
        return {
            "patches": self.patches.digest,
            "annotation": annotation_checksum(path) if path else None,
            "annotation_complete": self.slide.annotation_complete,
            "label": self.slide.label,
        }

    def finished(self) -> Record | None:
        """Return the record if the table is there and still true, else None."""
        try:
            return self.committed.finished(self.key())
        except OSError:
            return None

    def label(self, tell_unknown: Callable[[Sequence[str]], object] | None = None) -> Record:
        """Make and commit the table; an annotation that cannot be used is committed as a status.

        Args:
            tell_unknown: Takes the names of groups without a meaning. They are for the console only, for they may name
                people.
        """
        key: dict[str, Any] = {}
        try:
            key = self.key()
            found = SlideOutlines(self.slide, self.config, self.store, self.patches).read()
            if found and tell_unknown:
                tell_unknown(found.unknown)
            made = self.labels(found)
        except AnnotationError as error:
            return self.committed.commit(key, status=error.status, error=str(error))
        except OSError as error:
            return Record(self.slide.slide_id, key, status="missing", error=f"annotation: {error.strerror or error}")
        table = self._table(made)
        data = to_parquet(table, write_statistics=False)
        committed = self.committed
        part = self.store.write_part(committed.folder, f"{self.slide.slide_id}.parquet", data, rows=table.num_rows)
        doubts = [*(found.doubts if found else ()), *made.doubts]
        return committed.commit(key, parts=[part], info=_counts(made) | {"doubts": doubts})

    def labels(self, found: ReadOutlines | None) -> LabelledPatches:
        """Label the slide's patches. Raises: AnnotationError if the annotation contradicts the slide."""
        size = (self.patches.info["width_px"], self.patches.info["height_px"])
        grid = grid_of(self.store, self.config.tiling, self.patches)
        return label_patches(
            Grid(*(grid[name].to_numpy() for name in Grid._fields)),
            found.annotation if found else None,
            slide_label=self.slide.label or 0,
            num_classes=len(self.config.cohort.classes),
            annotation_complete=self.slide.annotation_complete,
            groups=groups_of(self.config),
            rule=LabelRule(self.config.labels.positive_at, self.config.labels.negative_below),
            slide_id=self.slide.slide_id,
            slide_size=size,
        )

    def _table(self, made: LabelledPatches) -> pa.Table:
        """Return the table, unknown as null."""
        grid = grid_of(self.store, self.config.tiling, self.patches)
        schema = labels_schema(len(self.config.cohort.classes))
        labels = made.labels
        columns: list[Any] = [grid[name] for name in ("slide_id", "x", "y", "extent_px")]
        columns.append(pa.array(labels.label, mask=labels.label < 0))
        columns.append(pa.array(labels.target_fraction, mask=np.isnan(labels.target_fraction)))
        if labels.fractions is not None:
            rows = [None if np.isnan(row).any() else row for row in labels.fractions]
            columns.append(pa.array(rows, schema.field("fractions").type))
        return pa.table(columns, schema=schema)


def _counts(made: LabelledPatches) -> dict[str, Any]:
    label = made.labels.label
    return {
        "positive": int((label > 0).sum()),
        "negative": int((label == 0).sum()),
        "unknown": int((label < 0).sum()),
        "repaired": made.num_repaired,
        "dropped": made.num_dropped,
        "unmapped": len(made.unmapped),
        "is_target_missed": made.is_target_missed,
    }
