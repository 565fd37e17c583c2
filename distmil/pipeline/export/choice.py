"""What is exported: a bundle's predictions in the store, the slides of them, and the folder that takes the files."""

from concurrent.futures import ThreadPoolExecutor

from distmil.cohort import Cohort, Slide
from distmil.errors import ConfigError
from distmil.inference.bundle import Bundle
from distmil.inference.tables import predictions_folder
from distmil.pipeline.export.slide import Place
from distmil.pipeline.job import Job
from distmil.storage.records import Record
from distmil.storage.roots import resolve_root
from distmil.storage.store import Committed, Store

MAX_NAMED = 10
READ_AT_ONCE = 16


def choose_run(job: Job, bundle: Bundle) -> str:
    """Choose the predictions: ``prediction.run``, else the only ones of the bundle.

    Raises:
        ConfigError: If there are none, or several, or they are of another bundle.
    """
    given = job.config.prediction.run
    digests = {name: _bundle_of(job.store, name) for name in job.store.folders("predictions")}
    own = sorted(name for name, digest in digests.items() if digest == bundle.digest)
    named = f"{', '.join(own[:MAX_NAMED])}{f' and {len(own) - MAX_NAMED} more' * (len(own) > MAX_NAMED)}"
    if given is None and len(own) == 1:
        return own[0]
    if given is None and own:
        raise ConfigError(f"prediction.run: the store has several predictions of the bundle {bundle.run}; set it to "
                          f"one of {named}")  # fmt: skip
    there = f"those of the bundle: {named}" if own else "there are none of the bundle; run predict or evaluate first"
    if given is None:
        raise ConfigError(f"prediction.model: the store has no predictions of the bundle {bundle.run} as it is now; "
                          "run predict or evaluate first")  # fmt: skip
    if given not in digests:
        raise ConfigError(f"prediction.run = {given!r}: there is no {job.store.path(predictions_folder(given))}; "
                          f"{there}")  # fmt: skip
    if given not in own:
        raise ConfigError(f"prediction.run = {given!r}: these predictions are not of the bundle {bundle.run} as it is "
                          f"now; {there}")  # fmt: skip
    return given


def _bundle_of(store: Store, name: str) -> str | None:
    """Read the digest of the bundle that predictions are of; None where they do not say it."""
    record = store.read_record(f"{predictions_folder(name)}/question.json")
    return None if record is None else record.key.get("bundle")


def choose_slides(job: Job, cohort: Cohort, run: str) -> list[tuple[Slide, Record]]:
    """List the slides with the records of their predictions: those of ``export.slides``, else all that are predicted.

    Raises:
        ConfigError: If a wanted slide is not in the manifest or not predicted, or none is.
    """
    wanted, noun = job.config.export.slides, job.outcomes.noun
    by_id = {slide.slide_id: slide for slide in cohort.slides}
    names = list(by_id) if wanted is None else list(dict.fromkeys(wanted))
    _check(f"not in the manifest, which has {len(by_id)} {noun}s", [name for name in names if name not in by_id])

    def read(slide_id: str) -> Record | None:
        return Committed(job.store, predictions_folder(run), slide_id, f"records/{slide_id}.json").read()

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        found = dict(zip(names, pool.map(read, names), strict=True))
    missing = [name for name, record in found.items() if record is None]
    if wanted is not None:
        _check(f"not among the predictions {run}; run predict on them first", missing)
    chosen = [(by_id[name], record) for name, record in found.items() if record is not None]
    if not chosen:
        raise ConfigError(f"prediction.run = {run!r}: none of its {noun}s is in the manifest; give the manifest that "
                          "was predicted")  # fmt: skip
    if missing:
        job.console.note(f"{len(missing)} {noun}s of the manifest are not among the predictions {run}, and are left "
                         "out")  # fmt: skip
    return chosen


def _check(what: str, wrong: list[str]) -> None:
    if wrong:
        more = f" and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        raise ConfigError(f"export.slides: {', '.join(wrong[:MAX_NAMED])}{more}: {what}")


def place_of(job: Job, run: str) -> Place:
    """Open the folder that takes the files. Raises: ConfigError, StorageError if it cannot be used."""
    if job.config.export.out is None:
        return Place(job.store, f"{predictions_folder(run)}/export")
    store = Store(resolve_root(job.config.export.out, key="export.out"))
    store.check(access=job.config.storage.access)
    return Place(store, run)
