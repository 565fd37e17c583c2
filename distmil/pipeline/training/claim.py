"""The first steps of training and search: claim the run's name, and show the supervision of the slides."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distmil.bags.bag import Bag, open_labels
from distmil.bags.sampler import StepPlanner
from distmil.cohort import Cohort
from distmil.config.root import Config, fingerprint
from distmil.encoders.registry import EncoderSpec
from distmil.errors import StorageError, TrainingError
from distmil.labels.tables import UNUSABLE
from distmil.models.layout import top_k_size
from distmil.models.losses import LOSSES
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import Prepared
from distmil.preflight.claims import (
    RUN_SECTIONS,
    changes,
    pretraining_settings,
    refuse_changes,
    run_id,
    settings_of,
)
from distmil.storage.records import Record
from distmil.storage.store import Store
from distmil.training.engine import active_config
from distmil.training.run_files import checkpoint_folder, run_file, search_folder

KINDS = ("negative", "annotated", "part annotated", "label only")


def read_record_id(job: Job, run: str) -> str | None:
    """Read the id of a run's MLflow run, None if there is none; a damaged note costs the record's continuity."""
    try:
        found = job.store.read_checked(run_file(run, "mlflow"), owner=run)
    except FileNotFoundError:
        return None
    except StorageError as error:
        if isinstance(error.__cause__, OSError):
            raise
        found = None
    if isinstance(found, str):
        return found
    job.console.note(f"{job.store.path(run_file(run, 'mlflow'))} is damaged: MLflow gets a new run for {run}")
    return None


def write_record_id(store: Store, run: str, run_id: str) -> None:
    """Note the id of a run's MLflow run."""
    store.write_checked(run_file(run, "mlflow"), run_id, owner=run)


def check_classes(prepared: Prepared, cohort: Cohort) -> None:
    """Refuse a train split without slides of two classes. Raises: TrainingError."""
    counts = Counter(entry.label for entry in prepared.entries if entry.split == "train")
    if len(counts) < 2:
        found = ", ".join(f"{count} {cohort.classes[label or 0]}" for label, count in counts.items()) or "none"
        raise TrainingError(f"training needs usable train slides of at least two classes; there are: {found}")


@dataclass(frozen=True)
class Claim:
    """The claim of a training or a search to a name: whatever has that name must have been started alike."""

    job: Job
    spec: EncoderSpec
    cohort: Cohort
    name: str | None
    """None: made from the settings and data."""
    kind: Literal["train", "tune", "pretrain"]
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other settings that the results depend on, dotted."""

    def check(self) -> None:
        """Compare the settings with those of an earlier run of that name, before a slide is tiled.

        Raises:
            ConfigError: If the earlier run had other settings.
            StorageError: If the claim of an earlier run is damaged or gone.
        """
        run = run_id(self.kind, self.name)
        if run and (earlier := self._earlier(run)):
            self._compare(run, changes(self._settings(), earlier["settings"]))

    def take(self, prepared: Prepared) -> str:
        """Claim the name for the settings and the slides, note the slides for the workers, and return the name.

        Raises:
            ConfigError: If an earlier run of that name had other settings or other data.
            StorageError: If the claim of an earlier run is damaged or gone.
        """
        claim = {"settings": self._settings(), "data": _data_fingerprint(prepared, self.cohort)}
        run = run_id(self.kind, self.name) or f"{self.kind}-{fingerprint(claim, length=10)}"
        earlier = self._earlier(run)
        if earlier is not None and earlier != json.loads(json.dumps(claim)):
            changed = changes(self._settings(), earlier["settings"])
            self._compare(run, changed or ["the slides, labels or outlines changed"])
        self.job.store.write_checked(run_file(run, "run"), claim, owner=run)
        entries = [entry.to_json() for entry in prepared.entries]
        self.job.store.write_checked(run_file(run, "cohort"), entries, owner=run)
        return run

    def _settings(self) -> dict[str, Any]:
        """List every setting that the results depend on, dotted."""
        config = self.job.config
        of_kind = pretraining_settings(config) if self.kind == "pretrain" else settings_of(config, self.cohort.classes)
        return {**of_kind, "encoder": self.spec.identity(), **self.more}

    def _earlier(self, run: str) -> Any:
        """Read the settings and the fingerprint of the data that a run was started with, None if there is no such run.

        Without its claim nobody knows what a run's results were made with, and other settings must not go on from them.
        """
        store, name = self.job.store, run_file(run, "run")
        remedy = f"restore it, choose another name, or delete {self._places(run)} to start the run from its beginning"
        try:
            return store.read_checked(name, owner=run)
        except FileNotFoundError:
            if not any(map(store.exists, (run_file(run, "latest"), *self._folders(run)[1:]))):
                return None
            raise StorageError(f"{store.path(name)} is gone, but results of run {run} are there; {remedy}") from None
        except StorageError as error:
            if isinstance(error.__cause__, OSError):
                raise
            raise StorageError(f"{store.path(name)} is damaged; {remedy}") from error

    def _compare(self, run: str, changed: Sequence[str]) -> None:
        """Refuse changes. Raises: ConfigError."""
        key = f"{RUN_SECTIONS[self.kind]}.run"
        refuse_changes(
            changed, key=key, run=self.name or run, places=list(map(self.job.store.path, self._folders(run)))
        )

    def _folders(self, run: str) -> list[str]:
        """List the folders with results of a run."""
        return [checkpoint_folder(run), *([search_folder(run)] if self.kind == "tune" else [])]

    def _places(self, run: str) -> str:
        return " and ".join(map(self.job.store.path, self._folders(run)))


def _data_fingerprint(prepared: Prepared, cohort: Cohort) -> str:
    data = {
        "cohort": cohort.fingerprint,
        "slides": {entry.slide_id: [part.sha256 for _, part in entry.files] for entry in prepared.entries},
        "labels": {slide_id: record.digest for slide_id, record in prepared.labels.items()},
    }
    return fingerprint(data)


def announce(job: Job, prepared: Prepared, cohort: Cohort) -> Config:
    """Show the slides' supervision and the active losses, and return the configuration to train with."""
    classes, form = len(job.config.cohort.classes), job.config.labels.form
    bags = [open_labels(job.store, entry, num_classes=classes, form=form) for entry in prepared.entries]
    complete = {i for i, record in prepared.labels.items() if _is_complete(record)}
    noun = job.outcomes.noun
    columns = (
        *("split", f"{noun}s", *KINDS),
        *("pseudo label", "negative patches", "positive patches", "unknown patches"),
    )
    of_split = {split: [bag for bag in bags if bag.split == split] for split in ("train", "val")}
    rows = [_supervision_row(split, found, complete) for split, found in of_split.items()]
    job.console.table("supervision", columns, rows)
    learning = of_split["train"]
    planner = StepPlanner(learning, job.config.bags, num_classes=classes, seed=job.config.training.seed)
    config, notes = active_config(job.config, planner)
    for note in (*notes, *_short_bags(learning, job.config, noun), *_lost_validation(bags, cohort)):
        job.console.note(f"note: {note}")
    weights = {name: getattr(config.losses, name) for name in LOSSES}
    job.console.note("losses: " + ", ".join(f"{name} x {weight:g}" for name, weight in weights.items() if weight))
    return config


def _short_bags(bags: Sequence[Bag], config: Config, noun: str) -> list[str]:
    """Note in how many bags K is cut to a share of the bag."""
    top_k, share = config.bags.top_k, config.bags.top_k_share
    sizes = [top_k_size(len(bag.label_N), top_k, share=share) for bag in bags]
    cut = [size for size in sizes if size < top_k]
    if not cut or config.model.name != "dual":
        return []
    span = f"{min(cut)}" if min(cut) == max(cut) else f"{min(cut)} to {max(cut)}"
    return [
        f"bags.top_k = {top_k} is cut to {span} on {len(cut)} of {len(bags)} train {noun}s: K is at most "
        f"bags.top_k_share = {share:g} of a bag"
    ]


def _lost_validation(bags: Sequence[Bag], cohort: Cohort) -> list[str]:
    """Note that no slide of val can be used; a manifest without any was noted before the work began."""
    asked = sum(slide.label is not None for slide in cohort.of_split("val"))
    if not asked or any(bag.split == "val" and bag.label is not None for bag in bags):
        return []
    return [
        f"none of the {asked} val {cohort.noun}s can be used: no validation metrics, no best epoch, and thresholds of "
        "0.5; the job's end says why they were dropped"
    ]


def _is_complete(record: Record) -> bool:
    """Tell whether all of a slide's targets are outlined, in an annotation that can be used."""
    return bool(record.key.get("annotation") and record.key.get("annotation_complete")) and UNUSABLE not in record.info


def _supervision_row(split: str, bags: list[Bag], complete: Set[str]) -> tuple[object, ...]:
    """Count a split's slides by kind of supervision, and its patches by label."""
    kinds = Counter(_supervision(bag.label or 0, bag.label_N, is_complete=bag.slide_id in complete) for bag in bags)
    negative, positive, unknown = (
        sum(int((np.sign(bag.label_N) == sign).sum()) for bag in bags) for sign in (0, 1, -1)
    )
    counts = [kinds[kind] for kind in KINDS]
    return (split, len(bags), *counts, sum(bag.is_pseudo for bag in bags), negative, positive, unknown)


def _supervision(label: int, label_N: NDArray[Any], *, is_complete: bool) -> str:
    """Name the kind of supervision that a slide brings.

    Args:
        label: The slide's class.
        label_N: Class of each patch, -1 = unknown, as at the border of a target.
        is_complete: All targets are outlined.
    """
    if label == 0:
        return "negative"
    is_known_N = label_N >= 0
    if not is_known_N.any():
        return "label only"
    return "annotated" if is_complete or is_known_N.all() else "part annotated"
