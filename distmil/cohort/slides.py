"""A slide as the manifest describes it, all slides of a manifest, and their splits by patient."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from distmil.cohort.kinds import noun_of
from distmil.config.data import CohortConfig
from distmil.config.root import fingerprint

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Slide:
    """One checked row of the manifest. Paths are absolute, ``label`` is a class index or None."""

    slide_id: str
    path: str
    label: int | None = None
    patient_id: str = ""
    split: str | None = None
    mpp: float | None = None
    annotation_path: str | None = None
    annotation_complete: bool = False
    tissue_path: str | None = None
    is_pseudo: bool = False
    site: str | None = None


@dataclass(frozen=True)
class Cohort:
    """The slides of a manifest, in its order, with the class names."""

    slides: Sequence[Slide]
    classes: Sequence[str]
    is_split_drawn: bool = False

    def of_split(self, *splits: str) -> list[Slide]:
        """Return the slides of these splits."""
        return [slide for slide in self.slides if slide.split in splits]

    def held_out(self, split: str | None) -> list[Slide]:
        """Return the slides of ``prediction.split``; None: all of val and test."""
        return self.of_split(split) if split else self.of_split("val", "test")

    @property
    def noun(self) -> str:
        """Name what the files are, in messages: "image" where all are plain images by their endings, else "slide"."""
        return noun_of([slide.path for slide in self.slides])

    @property
    def fingerprint(self) -> str:
        """Return a hash of ids, labels and splits, which identifies the data of a training run."""
        rows = {slide.slide_id: [slide.label, slide.split, slide.is_pseudo] for slide in self.slides}
        return fingerprint({"rows": rows, "classes": list(self.classes)})


def draw_splits(cohort: Cohort, config: CohortConfig) -> Cohort:
    """Draw train, val and test by patient, stratified by the patient's highest label, from ``cohort.split_seed``."""
    patients: dict[str, int] = {}
    for slide in cohort.slides:
        patients[slide.patient_id] = max(patients.get(slide.patient_id, 0), slide.label or 0)
    strata: dict[int, list[str]] = defaultdict(list)
    for patient in sorted(patients):
        strata[patients[patient]].append(patient)
    generator = np.random.default_rng(config.split_seed)
    split_of: dict[str, str] = {}
    for label in sorted(strata):
        order = [strata[label][i] for i in generator.permutation(len(strata[label]))]
        num_val = _share(config.val_fraction, len(order))
        num_test = _share(config.test_fraction, len(order))
        for i, patient in enumerate(order):
            split_of[patient] = "val" if i < num_val else "test" if i < num_val + num_test else "train"
    slides = [replace(slide, split=split_of[slide.patient_id]) for slide in cohort.slides]
    counts = {split: sum(slide.split == split for slide in slides) for split in SPLITS}
    logger.info(
        "the manifest has no split: drew %s by patient, stratified by label (seed %d)", counts, config.split_seed
    )
    return replace(cohort, slides=slides, is_split_drawn=True)


def _share(fraction: float, total: int) -> int:
    """Round a stratum's part of a split; it is at least one patient where there are three to share."""
    return 0 if fraction == 0 else max(round(fraction * total), 1 if total >= 3 else 0)
