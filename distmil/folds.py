"""Folds of a cohort: no patient on both sides, classes spread evenly."""

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from distmil.cohort import Slide
from distmil.errors import ConfigError


def patient_folds(slides: Sequence[Slide], *, count: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """Return the slide ids to train on and to judge on, for each fold.

    A slide without a patient is a patient of its own.

    Raises:
        ConfigError: If there are too few patients for a fold to have two classes on both sides.
    """
    labels = np.array([slide.label for slide in slides])
    patients = np.array([slide.patient_id or f"slide {slide.slide_id}" for slide in slides])
    least = min(len(set(patients[labels == label])) for label in set(labels.tolist()))
    if least < count:
        raise ConfigError(f"search.folds = {count}: the rarest class has {least} patients in train; use fewer folds")
    ids = [slide.slide_id for slide in slides]
    folds = []
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    for learning, judging in splitter.split(np.zeros(len(ids)), labels, patients):
        if min(len(set(labels[side].tolist())) for side in (learning, judging)) < 2:
            raise ConfigError(f"search.folds = {count}: a fold would have slides of one class only; use fewer folds")
        folds.append(([ids[i] for i in learning], [ids[i] for i in judging]))
    return folds
