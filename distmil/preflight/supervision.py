"""Whether there is enough to learn from: labels, splits, and for a pre-training an encoder; before any tiling."""

from collections import Counter
from importlib.util import find_spec

from distmil.cohort import Cohort
from distmil.config.root import Config
from distmil.errors import ConfigError, ManifestError

PRETRAINING_PACKAGE = "lightly"


def check_supervision(cohort: Cohort, job: str, *, folds: int = 0) -> list[str]:
    """Refuse a manifest that nothing can be learned from, and note what a training will lack.

    Args:
        cohort: The manifest.
        job: ``train`` or ``tune``.
        folds: Of the search or the training, which then validates on folds of train in place of val.

    Returns:
        Notes.

    Raises:
        ManifestError: If the train split has labelled slides of fewer than two classes, or nothing is there to compare
            trials on.
    """
    counts = Counter(slide.label for slide in cohort.of_split("train") if slide.label is not None)
    if len(counts) < 2:
        found = ", ".join(f"{count} {cohort.classes[label]}" for label, count in sorted(counts.items()))
        others = Counter(slide.split for slide in cohort.slides if slide.split != "train")
        elsewhere = ", ".join(f"{count} in {split}" for split, count in sorted(others.items(), key=str))
        raise ManifestError(
            f"training needs train {cohort.noun}s of at least two classes; the manifest has {found or 'none'} in train"
            + (f" ({elsewhere})" if elsewhere else "")
            + f"; add {cohort.noun}s of {_missing(cohort, set(counts))}, or correct the columns label and split"
        )
    has_val = any(slide.label is not None for slide in cohort.of_split("val"))
    if job == "tune" and not folds and not has_val:
        raise ManifestError(
            f"search.folds = 0: no {cohort.noun} with a label is in val to compare trials on; set search.folds=5"
        )
    if job == "train" and not folds and not has_val:
        return [
            f"note: no {cohort.noun} with a label is in val: nothing is measured while the network trains, its "
            f"thresholds stay at 0.5, and no epoch is chosen; give some {cohort.noun}s the split val, or set "
            "cohort.val_fraction where there is no split; or set training.folds=5"
        ]
    return []


def check_pretraining(config: Config, cohort: Cohort) -> None:
    """Refuse what cannot be pre-trained.

    Raises:
        ConfigError: If no encoder, or more than one, has weights; the patches hold no pixels; or a package is missing.
        ManifestError: If no slide is in train.
    """
    with_weights = [row.name for row in config.encoder.rows if row.has_weights]
    if not with_weights:
        raise ConfigError(
            f"encoder.name = {config.encoder.name!r}: it has no weights that pretrain could train; set "
            "encoder.name=efficientnet_lite0, or texture+efficientnet_lite0 to have both side by side"
        )
    if len(with_weights) > 1:
        raise ConfigError(
            f"encoder.name = {config.encoder.name!r}: pretrain trains one encoder with weights, not "
            f"{' and '.join(with_weights)}; name one of them"
        )
    if config.tiling.store == "coords":
        raise ConfigError(
            "tiling.store = 'coords': every step of pretrain reads patches of many slides, so they must be stored; "
            "use image"
        )
    if find_spec(PRETRAINING_PACKAGE) is None:
        raise ConfigError(
            f"pretrain needs the package {PRETRAINING_PACKAGE}, which is not installed here: "
            "pip install 'distmil[pretrain]', on every node"
        )
    if not cohort.of_split("train"):
        raise ManifestError(
            f"pretrain learns from the {cohort.noun}s in train, and the manifest has none there; correct the column "
            "split"
        )


def check_evidence(cohort: Cohort, *, folds: int = 0) -> None:
    """Refuse the read-out ``regions`` where val has nothing to fit its evidence on. Raises: ManifestError.

    Args:
        cohort: The manifest.
        folds: ``training.folds``; with folds, train takes the place of val.
    """
    split = "train" if folds else "val"
    found = {bool(slide.label) for slide in cohort.of_split(split) if slide.label is not None and not slide.is_pseudo}
    if len(found) < 2:
        held = f"only {cohort.noun}s of one kind" if found else f"no {cohort.noun} with a label"
        raise ManifestError(
            f"prediction.slide_score = regions: its evidence is fitted on {split}, which has {held}; give {split} "
            "normal and abnormal ones, or choose bag, max or topk_mean"
        )


def _missing(cohort: Cohort, found: set[int]) -> str:
    names = [name for label, name in enumerate(cohort.classes) if label not in found]
    return names[0] if len(names) == 1 else " or ".join(names[:3])
