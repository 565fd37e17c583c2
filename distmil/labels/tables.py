"""Label tables: one committed file per slide, made from its annotation and its grid, never from its pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from distmil.annotations.reader import READS, annotation_checksum
from distmil.annotations.regions import Grid
from distmil.cohort import Slide
from distmil.config.root import Config, fingerprint
from distmil.defects import reason_info
from distmil.errors import AnnotationError, BadAnnotations, Reason
from distmil.labels.rules import LabelledPatches, LabelRule, label_patches
from distmil.labels.slide_outlines import ReadOutlines, SlideOutlines, groups_of
from distmil.reasons import grouped
from distmil.storage.records import Record
from distmil.storage.schemas import labels_schema, to_parquet
from distmil.storage.store import Committed, Store
from distmil.tiling.shards import grid_of, patches_folder

FORMAT_VERSION = 2
UNUSABLE = "unusable"
"""Key of a record's info: why the annotation cannot be used, where the slide's label counts in its place."""
_MOST_REASONS = 50


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
            record = self.committed.finished(self.key())
        except OSError:
            return None
        is_true = record is not None and self._fits(record)
        return record if is_true else None

    def _fits(self, record: Record) -> bool:
        """Tell whether a record treats an annotation that cannot be used as ``labels.on_bad_annotation`` wants it."""
        was_bad = record.status == AnnotationError.status or UNUSABLE in record.info
        if was_bad and record.info.get("reads", 1) < READS:
            return False
        wants_label = self.config.labels.on_bad_annotation == "label_only"
        if record.status == AnnotationError.status:
            return not wants_label
        return wants_label or UNUSABLE not in record.info

    def label(self, tell_unknown: Callable[[Sequence[str]], object] | None = None) -> Record:
        """Make and commit the table; an annotation that cannot be used is a status, or leaves the slide's own label.

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
            if self.config.labels.on_bad_annotation != "label_only":
                info = reason_info(Reason(key="labels.on_bad_annotation", value="label_only")) | {"reads": READS}
                return self.committed.commit(key, status=error.status, error=str(error), info=info)
            text = str(error).removeprefix(f"{self.slide.slide_id}: ")
            doubt = f"its annotation cannot be used, and its label alone counts: {text}"
            return self._commit(key, self.labels(None), {UNUSABLE: text, "doubts": [doubt], "reads": READS})
        except OSError as error:
            return Record(self.slide.slide_id, key, status="missing", error=f"annotation: {error.strerror or error}")
        return self._commit(key, made, {"doubts": [*(found.doubts if found else ()), *made.doubts]})

    def _commit(self, key: dict[str, Any], made: LabelledPatches, info: dict[str, Any]) -> Record:
        """Write and commit the table."""
        table, committed = self._table(made), self.committed
        data = to_parquet(table, write_statistics=False)
        part = self.store.write_part(committed.folder, f"{self.slide.slide_id}.parquet", data, rows=table.num_rows)
        return committed.commit(key, parts=[part], info=_counts(made) | info)

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


def bad_annotations(errors: Mapping[str, str], *, noun: str) -> BadAnnotations:
    """Word the error that names every annotation that cannot be used, equal reasons together.

    Args:
        errors: Slide id -> why.
        noun: What a slide is called.
    """
    groups = grouped(sorted(errors.items()))
    lines = [f"  {len(slides)} ({', '.join(slides)}): {text}" for text, slides in groups[:_MOST_REASONS]]
    if left := groups[_MOST_REASONS:]:
        lines.append("  and, for other reasons: " + ", ".join(slide for _, slides in left for slide in slides))
    return BadAnnotations(
        f"annotations of {len(errors)} {noun}s cannot be used (labels.on_bad_annotation=fail): mend them, or set it to "
        f"skip, which leaves the {noun}s out, or to label_only, which keeps their labels:\n" + "\n".join(lines)
    )


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
