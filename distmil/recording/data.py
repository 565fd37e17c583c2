"""The slides of a job as MLflow's data set: the manifest's name, a digest, and counts."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from distmil.cohort import Cohort, Slide
from distmil.config.data import CohortConfig
from distmil.tracking.dataset import RunData

TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
UNNAMED = "slides"


def data_of(cohort: Cohort, config: CohortConfig) -> RunData:
    """Name and count the slides of a manifest, without a path, a slide's id or a patient."""
    return RunData(_name(config), cohort.fingerprint, profile_of(cohort.slides, cohort.classes))


def profile_of(slides: Sequence[Slide], classes: Sequence[str]) -> dict[str, Any]:
    """Count slides by split and class, patients, and annotated slides."""
    counts = Counter((slide.split or "all", _label(slide, classes)) for slide in slides)
    splits: dict[str, dict[str, int]] = {}
    for (split, label), count in sorted(counts.items()):
        splits.setdefault(split, {})[label] = count
    return {
        "num_rows": len(slides),
        "patients": len({slide.patient_id for slide in slides}),
        "annotated": sum(slide.annotation_path is not None for slide in slides),
        "splits": splits,
    }


def _label(slide: Slide, classes: Sequence[str]) -> str:
    return "no label" if slide.label is None else classes[slide.label]


def _name(config: CohortConfig) -> str:
    """Name the manifest's file without its folder. A slide or a folder has no name here, for it may be a person's."""
    if config.manifest is None:
        return f"synthetic-{config.synthetic}"
    path = PurePosixPath(config.manifest.replace("\\", "/"))
    return path.stem if path.suffix.lower() in TABLES else UNNAMED
