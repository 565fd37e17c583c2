"""The question that a folder of predictions answers: a bundle and its slides.

No answer lies among those of another question. The question is committed as ``question.json`` before the first answer.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from distmil.cohort import Slide
from distmil.config.root import fingerprint
from distmil.errors import ConfigError
from distmil.inference.tables import delete_derived, predictions_folder
from distmil.storage.records import Record
from distmil.storage.store import Store

_NAME_LENGTH = 100
_ANOTHER = "holds the predictions of another bundle, or of other slides or splits"
_UNKNOWN = "does not say of which bundle and slides it is; an earlier distmil made it"


@dataclass(frozen=True)
class Question:
    """A bundle and the slides that it is asked about."""

    bundle: str
    """Digest of the bundle."""
    slides: str
    """Hash of the slides' ids and splits."""
    num_slides: int


def make_question(bundle: str, slides: Sequence[Slide]) -> Question:
    """Make the question of a bundle's digest and slides."""
    splits = {slide.slide_id: slide.split for slide in slides}
    return Question(bundle, fingerprint(splits, length=64), len(splits))


def default_name(place: str, question: Question) -> str:
    """Name the answers by the bundle's folder or run, as the user gave it, and by the question."""
    folder = place.partition("?")[0].rstrip("/").rpartition("/")[2]
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", folder)[:_NAME_LENGTH].strip("-") or "bundle"
    return f"{base}-{fingerprint(asdict(question), length=8)}"


def check_owner(store: Store, name: str, *, owner: str) -> None:
    """Refuse a folder that a training run could not use for its answers, before the training. Raises: ConfigError."""
    folder = predictions_folder(name)
    record = store.read_record(f"{folder}/question.json")
    if record is not None and record.info.get("owner") == owner:
        return
    if record is not None or (name != owner and store.exists(folder)):
        raise _taken(store, name, _ANOTHER if record else _UNKNOWN)


def claim_question(store: Store, name: str, question: Question, *, owner: str | None = None) -> None:
    """Commit the question that a folder answers, unless it is there already.

    Args:
        store: Where predictions are.
        name: The folder's name.
        question: The question of this job.
        owner: The training run whose held-out slides are predicted: it replaces its own earlier answers.

    Raises:
        ConfigError: If the folder answers another question, or does not say which.
        StorageError: If the store cannot be read or written.
    """
    folder = predictions_folder(name)
    file, values = f"{folder}/question.json", asdict(question)
    record = store.read_record(file)
    if record is not None and record.key == values:
        return
    is_own = owner is not None and (record.info.get("owner") == owner if record else name == owner)
    if record is not None and not is_own:
        raise _taken(store, name, _ANOTHER)
    if record is None and not is_own and store.exists(folder):
        raise _taken(store, name, _UNKNOWN)
    if record is not None:
        store.delete_folder(folder)
    delete_derived(store, name)
    store.write_record(file, Record(name, values, info={"owner": owner}))


def _taken(store: Store, name: str, why: str) -> ConfigError:
    return ConfigError(
        f"prediction.run = {name!r}: {store.path(predictions_folder(name))} {why}; choose another name, or delete that "
        "folder"
    )
