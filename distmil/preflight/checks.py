"""The checks of seconds before work of hours: labels, run names, slides, annotations and the disk. No torch, no Ray."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from distmil.cohort import Cohort, Slide
from distmil.config.root import Config
from distmil.encoders.catalog.demands import check_demands
from distmil.encoders.catalog.names import width_of
from distmil.errors import BadInput, ConfigError
from distmil.preflight.amounts import bytes_of, estimate_amounts, file_sizes
from distmil.preflight.claims import check_claim
from distmil.preflight.disk import check_disk, free_bytes
from distmil.preflight.looks import Look, choose_tasks, look_at
from distmil.preflight.supervision import check_evidence, check_pretraining, check_supervision
from distmil.preflight.verdict import judge_annotations, judge_slides
from distmil.storage.store import Store

WITH_LABELS = ("train", "tune", "evaluate")
USUAL_WIDTH = 1024
WEIGHT_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin"}


def check_job(config: Config, store: Store, cohort: Cohort, *, job: str) -> list[str]:
    """Check a job's input before anything is imported that takes seconds, or made that takes hours.

    What is tiled or labelled already is not looked at again. A disk that does not answer costs seconds at most.

    Args:
        config: The configuration, with the bundle's tiling and classes where the job has one.
        store: Where the job writes.
        cohort: The manifest.
        job: The job's name.

    Returns:
        Notes for the console.

    Raises:
        BadInput: If the job cannot succeed.
        StorageError: If the store does not answer.
    """
    notes: list[str] = []
    if job == "tune" and config.training.folds:
        raise ConfigError(
            f"training.folds = {config.training.folds}: a search validates on search.folds; leave it out, and set it "
            "when the best setting is trained"
        )
    if job in {"embed", "pretrain", "train", "tune"} and config.features.folder is None:
        check_weights(config)
    if job == "pretrain":
        check_pretraining(config, cohort)
        check_claim(config, cohort.classes, store, job=job)
    if job in {"train", "tune"}:
        notes += check_supervision(cohort, job, folds=(config.search if job == "tune" else config.training).folds)
        check_claim(config, cohort.classes, store, job=job)
    if job == "train" and config.prediction.slide_score == "regions":
        check_evidence(cohort, folds=config.training.folds)
    slides = slides_of(cohort, config, job=job)
    if not slides:
        counts = Counter(slide.split for slide in cohort.slides)
        there = ", ".join(f"{count} in {split}" for split, count in counts.items())
        wanted = config.prediction.split or "val or test"
        raise BadInput(f"the manifest has no {cohort.noun} in {wanted}, it has {there}; set prediction.split")
    if config.tiling.strategy == "features" or config.features.folder is not None:
        return notes
    tasks = choose_tasks(slides, with_annotations=job in WITH_LABELS)
    looks = look_at(tasks, config, store)
    fixed = config.encoder.name if any(row.mpp for row in config.encoder.rows) else None
    notes += judge_slides(_once(looks), config.tiling, noun=cohort.noun, encoder=fixed)
    notes += judge_annotations(looks)
    seen = {look.slide.slide_id for look in looks}
    if unseen := sorted({task.slide.slide_id for task in tasks} - seen):
        notes.append(
            f"note: {len(unseen)} of {len(unseen) + len(seen)} {cohort.noun}s chosen for a look were not read in time"
        )
    return notes + _check_disk(config, store, cohort, slides, looks, job=job)


def check_weights(config: Config) -> None:
    """Refuse encoder weights that are not there, and code that may not run. Raises: ConfigError.

    What the weights are is read with torch.
    """
    for weights in config.encoder.each_weights.values():
        path = Path(weights).expanduser()
        if "://" in weights:
            continue
        if path.suffix.lower() in WEIGHT_SUFFIXES and not path.exists():
            raise ConfigError(f"encoder.weights = {weights!r}: there is no such file")
        if "/" in weights and not path.exists():
            raise ConfigError(f"encoder.weights = {weights!r}: there is no such file or folder")
    for row in config.encoder.rows:
        check_demands(row, allow_remote_code=config.encoder.allow_remote_code)


def needs_of(job: str, config: Config) -> dict[str, bool]:
    """Say what a job needs of its manifest, as ``read_cohort`` takes it: labels, splits."""
    has_labels = job in WITH_LABELS
    return {
        "needs_labels": has_labels,
        "needs_splits": has_labels or job == "pretrain" or (job == "predict" and config.prediction.split is not None),
    }


def slides_of(cohort: Cohort, config: Config, *, job: str) -> list[Slide]:
    """List the slides that a job tiles."""
    split = config.prediction.split
    if job == "pretrain":
        return cohort.of_split("train")
    if job == "tune":
        return cohort.of_split("train", "val", "test")
    if job == "evaluate" or (job == "predict" and split):
        return cohort.held_out(split)
    return list(cohort.slides)


def held_out(cohort: Cohort, config: Config, *, job: str) -> list[Slide]:
    """List the slides that a job predicts."""
    if job == "train":
        return cohort.held_out(config.prediction.split)
    return slides_of(cohort, config, job=job) if job in {"evaluate", "predict"} else []


def dimension_of(config: Config) -> int:
    """Return the width of the encoder's embeddings; a usual one where it is known when the encoder is built alone."""
    return width_of(config.encoder.name) or USUAL_WIDTH


def _check_disk(
    config: Config, store: Store, cohort: Cohort, slides: Sequence[Slide], looks: Sequence[Look], *, job: str
) -> list[str]:
    """Compare what the slides that are left will fill with what is free. Raises: ConfigError."""
    free = free_bytes(store.root)
    once = _once(looks)
    left = round(len(slides) * sum(not look.is_done for look in once) / max(1, len(once)))
    amounts = estimate_amounts(looks, slides, file_sizes(slides)) if free is not None and left else None
    if amounts is None:
        return []
    needed = bytes_of(
        amounts.of(left), config, job=job, dimension=dimension_of(config),
        train_share=len(cohort.of_split("train")) / len(slides),
        held_out=round(len(held_out(cohort, config, job=job)) * left / len(slides)),
    )  # fmt: skip
    return check_disk(needed, free, store.root)


def _once(looks: Sequence[Look]) -> list[Look]:
    """Keep one look a slide: the one that saw more, for a slide may be opened and tried."""
    found: dict[str, Look] = {}
    for look in looks:
        if look.slide.slide_id not in found or look.status != "ok":
            found[look.slide.slide_id] = look
    return list(found.values())
