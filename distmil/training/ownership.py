"""Which job a run belongs to: the one that took it over last.

Two jobs of one name would overwrite each other's checkpoints. Each job that works on a run therefore writes a token of
its own into the run's folder, and looks before every commit whether the token is still there. The later job goes on
from the last committed epoch; the earlier one stops. This needs neither a clock nor a lock, and a job that is started
again after a kill begins at once.
"""

import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from distmil.errors import TrainingError
from distmil.storage.store import Store


@dataclass(frozen=True)
class Lease:
    """The right of one job to write into a run's folder. Travels to the job's workers."""

    folder: str
    run: str
    token: str

    def check(self, store: Store) -> None:
        """Look whether the run still belongs to this job.

        Raises:
            TrainingError: If another job took the run over, or the run's folder was deleted.
            StorageError: If the store cannot be read.
        """
        try:
            owner = store.read_checked(_owner_file(self.folder), owner=self.run)
        except FileNotFoundError:
            raise TrainingError(
                f"run {self.run}: its folder {store.path(self.folder)} was deleted while this job worked on it; this "
                "job stops, and the same command starts the run again"
            ) from None
        if owner["token"] != self.token:
            raise TrainingError(
                f"run {self.run}: another job took it over (on {owner['host']}, at {owner['started']}); this job "
                "stops, and the other one goes on from the last committed epoch. To train both, give one of them "
                "another name"
            )


def take_over(store: Store, folder: str, *, run: str) -> Lease:
    """Make this job the owner of a run.

    Args:
        store: Where the run is.
        folder: The run's folder.
        run: The run's name.
    """
    lease = Lease(folder, run, uuid.uuid4().hex)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"token": lease.token, "host": socket.gethostname(), "started": started}
    store.write_checked(_owner_file(folder), owner, owner=run)
    return lease


def _owner_file(folder: str) -> str:
    return f"{folder}/owner.json"
