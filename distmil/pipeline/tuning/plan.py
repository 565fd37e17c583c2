"""The plan that all trials of a search share, and the records of its trials in the store."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec
from distmil.search.space import with_values
from distmil.search.trial import Trial
from distmil.storage.store import Store
from distmil.training.ownership import Lease
from distmil.training.run_files import checkpoint_folder, search_folder


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
    def has_workers(self) -> bool:
        """Whether a trial is trained by several workers."""
        return self.config.training.num_workers > 1

    def trial_config(self, trial: Trial) -> Config:
        """Build a trial's configuration. Raises: ConfigError."""
        return with_values(self.config, {**trial.values, "training.seed": trial.seed})

    def record_file(self, key: str) -> str:
        """Name a trial's record."""
        return f"{search_folder(self.run)}/trials/{key}.json"

    def check_lease(self) -> None:
        """Check that the search still belongs to this job. Raises: TrainingError, StorageError."""
        if self.lease is not None:
            self.lease.check(self.store)

    def checkpoint(self, trial: Trial) -> str:
        """Name the run under which a trial's checkpoints are."""
        return f"{self.run}/{trial.key}"

    def inner_run(self, trial: Trial) -> str:
        """Name the training run that several workers make of a trial."""
        return f"{self.run}-{trial.key}"


def read_trials(plan: SearchPlan) -> dict[str, Trial]:
    """Read the records of all trials of the search and of its comparison, by key."""
    names = plan.store.names(f"{search_folder(plan.run)}/trials")
    trials = [_read(plan, name.removesuffix(".json")) for name in names if name.endswith(".json")]
    return {trial.key: trial for trial in trials if trial.claim == plan.claim}


def read_trial(plan: SearchPlan, trial: Trial) -> Trial | None:
    """Read a trial's record, None if the trial was never started."""
    try:
        return _read(plan, trial.key)
    except FileNotFoundError:
        return None


def _read(plan: SearchPlan, key: str) -> Trial:
    return Trial(**plan.store.read_checked(plan.record_file(key), owner=f"{plan.run}/{key}"))


def write_trial(plan: SearchPlan, trial: Trial) -> None:
    """Write a trial's record.

    Raises:
        TrainingError: If the search belongs to another job now.
        StorageError: If the store cannot be written.
    """
    plan.check_lease()
    plan.store.write_checked(plan.record_file(trial.key), asdict(trial), owner=f"{plan.run}/{trial.key}")


def clear_trial(plan: SearchPlan, trial: Trial) -> None:
    """Delete what only a trial in progress needs: its checkpoints, and Ray's folder of its workers."""
    inner = plan.inner_run(trial)
    for folder in [checkpoint_folder(inner), f"ray-train/{inner}"] if plan.has_workers else []:
        plan.store.delete_folder(folder)
    plan.store.delete_folder(checkpoint_folder(plan.checkpoint(trial)))
