"""The plan that all trials of a search share, and the records of its trials in the store."""

from collections.abc import Sequence
from dataclasses import dataclass

from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec
from distmil.search.space import Task, TrialRecord, with_values
from distmil.storage.store import Store
from distmil.training.checkpoints import checkpoint_folder
from distmil.training.ownership import Lease


@dataclass(frozen=True)
class SearchPlan:
    """What all trials of a search share. Travels to their processes."""

    run: str
    root: str
    config: Config
    spec: EncoderSpec
    metric: str
    is_gpu: bool
    folds: Sequence[tuple[Sequence[str], Sequence[str]]]
    """Slides to train on and to validate on."""
    held_out: Sequence[str]
    """Slides that no trial of the search sees."""
    seed: int
    claim: str = ""
    """Fingerprint of everything that the search was started with."""
    lease: Lease | None = None
    """The job's right to write the search's records; None where no other job can know the search."""

    @property
    def store(self) -> Store:
        """The store."""
        return Store(self.root)

    @property
    def is_grouped(self) -> bool:
        """Whether a trial is trained by a group of workers."""
        return self.config.training.num_workers > 1

    def trial_config(self, task: Task) -> Config:
        """Build a trial's configuration. Raises: ConfigError."""
        return with_values(self.config, {**task.values, "training.seed": task.seed})

    def record_file(self, task: Task) -> str:
        """Name a trial's record."""
        return f"{search_folder(self.run)}/trials/{task.key}.json"

    def check_lease(self) -> None:
        """Check that the search still belongs to this job. Raises: TrainingError, StorageError."""
        if self.lease is not None:
            self.lease.check(self.store)

    def checkpoint(self, task: Task) -> str:
        """Name the run under which a trial's checkpoints are."""
        return f"{self.run}/{task.key}"

    def group(self, task: Task) -> str:
        """Name the training run that a group of workers makes of a trial."""
        return f"{self.run}-{task.key}"


def search_folder(run: str) -> str:
    """Name the folder of a search."""
    return f"searches/{run}"


def read_trials(plan: SearchPlan) -> dict[str, TrialRecord]:
    """Read the records of all trials of the search and of its comparison, by task."""
    folder = f"{search_folder(plan.run)}/trials"
    keys = [name.removesuffix(".json") for name in plan.store.names(folder) if name.endswith(".json")]
    found = [plan.store.read_checked(f"{folder}/{key}.json", owner=f"{plan.run}/{key}") for key in keys]
    records = [TrialRecord(**values) for values in found if values.get("claim") == plan.claim]
    return {record.task.key: record for record in records}


def read_trial(plan: SearchPlan, task: Task) -> TrialRecord | None:
    """Read a trial's record, None if the trial was never started."""
    try:
        return TrialRecord(**plan.store.read_checked(plan.record_file(task), owner=f"{plan.run}/{task.key}"))
    except FileNotFoundError:
        return None


def write_trial(plan: SearchPlan, record: TrialRecord) -> None:
    """Write a trial's record.

    Raises:
        TrainingError: If the search belongs to another job now.
        StorageError: If the store cannot be written.
    """
    plan.check_lease()
    task = record.task
    plan.store.write_checked(plan.record_file(task), record.to_json(), owner=f"{plan.run}/{task.key}")


def clear_trial(plan: SearchPlan, task: Task) -> None:
    """Delete what only a trial in progress needs: its checkpoints, and Ray's folder of its group."""
    inner = plan.group(task)
    for folder in [checkpoint_folder(inner), f"ray-train/{inner}"] if plan.is_grouped else []:
        plan.store.delete_folder(folder)
    plan.store.delete_folder(checkpoint_folder(plan.checkpoint(task)))
