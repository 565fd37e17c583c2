"""Folds of a cohort: no patient on both sides, classes spread evenly."""

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from distmil.bags.bag import Bag
from distmil.cohort import Slide
from distmil.errors import ConfigError


def check_labels(labels: Sequence[int], metric: str, *, where: str) -> None:
    """Refuse slides that a metric of slides cannot compare trials by.

    Args:
        labels: Classes of the slides that are scored.
        metric: What trials are compared by.
        where: The split or fold, for the message.

    Raises:
        ConfigError: If all are of one class: of 0 and others for a ranking, of any two for the loss.
    """
    if metric.startswith("patch"):
        return
    kinds = set(labels) if metric == "loss" else {label > 0 for label in labels}
    if len(kinds) < 2:
        counts = {label: labels.count(label) for label in sorted(set(labels))}
        found = ", ".join(f"{count} of class {label}" for label, count in counts.items()) or "none with a given label"
        raise ConfigError(
            f"search.metric = {metric!r}: {where} has slides of one kind only ({found}), which every trial scores "
            "alike; put negative and positive slides into it, or set search.folds to validate on folds of train"
        )


def check_metric(folds: Sequence[Sequence[Bag]], metric: str) -> None:
    """Refuse folds, or val, that a metric cannot compare trials by. Raises: ConfigError naming it."""
    for i, bags in enumerate(folds):
        where = "val" if len(folds) == 1 else f"fold {i + 1} of {len(folds)}"
        scored = [bag for bag in bags if bag.label is not None and not bag.is_pseudo]
        check_labels([bag.label or 0 for bag in scored], metric, where=where)
        if not metric.startswith("patch"):
            continue
        known = {int(sign) for bag in scored for sign in np.unique(np.sign(bag.label_N))}
        for kind, sign in (("positive", 1), ("negative", 0)):
            if sign not in known:
                raise ConfigError(
                    f"search.metric = {metric!r}: {where} has no {kind} patch label to compare trials by; annotate "
                    "slides of it, set fewer search.folds, or set search.metric=slide_auc"
                )


def patient_folds(
    slides: Sequence[Slide], *, count: int, seed: int, key: str = "search.folds"
) -> list[tuple[list[str], list[str]]]:
    """Split slides into folds by patient: for each fold, the ids to train on and those to validate on.

    A slide without a patient is a patient of its own.

    Args:
        slides: All of them.
        count: Number of folds.
        seed: Of the order of patients.
        key: What the user calls ``count``, for the messages.

    Raises:
        ConfigError: If there are too few patients for a fold to have two classes on both sides.
    """
    labels = np.array([slide.label for slide in slides])
    patients = np.array([slide.patient_id or f"slide {slide.slide_id}" for slide in slides])
    least = min(len(set(patients[labels == label])) for label in set(labels.tolist()))
    if least < count:
        raise ConfigError(f"{key} = {count}: the rarest class has {least} patients in train; use fewer folds")
    ids = [slide.slide_id for slide in slides]
    folds = []
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    for learning, validation in splitter.split(np.zeros(len(ids)), labels, patients):
        if min(len(set(labels[side].tolist())) for side in (learning, validation)) < 2:
            raise ConfigError(f"{key} = {count}: a fold would have slides of one class only; use fewer folds")
        folds.append(([ids[i] for i in learning], [ids[i] for i in validation]))
    return folds
