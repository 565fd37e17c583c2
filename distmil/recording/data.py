"""The slides of a job as MLflow's data set: a name, a digest, and counts."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from distmil.cohort import Cohort, Slide
from distmil.config.root import Config
from distmil.tracking.dataset import RunData

UNNAMED = "cohort"


def data_of(cohort: Cohort, config: Config) -> RunData:
    """Name and count the slides of a manifest, without a path, a slide's id or a patient.

    The manifest's own name is not taken: like a folder's or a slide's, it may be a person's.
    """
    made = f"synthetic-{config.cohort.synthetic}" if config.cohort.manifest is None else UNNAMED
    return RunData(config.tracking.dataset or made, cohort.fingerprint, profile_of(cohort.slides, cohort.classes))


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
