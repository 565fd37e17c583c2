"""Features of other tools to the store's embeddings, in place of tiling and embedding."""

from collections.abc import Mapping, Sequence

from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.defects import attempt, failure_record
from distmil.errors import SlideError
from distmil.features.finding import FeatureFile, open_folder
from distmil.features.importer import Imported, SlideImporter
from distmil.pipeline.cluster import map_slides
from distmil.pipeline.job import Job
from distmil.storage.records import Record
from distmil.storage.store import Store


def import_slides(job: Job, slides: Sequence[Slide]) -> tuple[dict[str, Record], dict[str, Record]]:
    """Import the features of every slide that is not done.

    Returns:
        By slide id: the record of the grid, that of the slide's failure in its place; and that of the embeddings, of
        the slides that can be used.

    Raises:
        ConfigError: If the folder cannot be used.
        StorageError: If the store cannot be written.
    """
    folder = open_folder(job.config.features)
    patches: dict[str, Record] = {}
    made: dict[str, Record] = {}
    todo: list[tuple[Slide, FeatureFile]] = []
    for slide in slides:
        try:
            file = folder.find(slide)
        except SlideError as error:
            patches[slide.slide_id] = failure_record(slide.slide_id, error)
            continue
        done = SlideImporter(slide, file, job.config, job.store).finished()
        if done is None:
            todo.append((slide, file))
        else:
            _add(done, patches, made)
    if todo:
        noun = f"{job.outcomes.noun}s"
        job.console.note(f"importing features of {len(todo)} {noun} ({len(made)} are done)")
        with job.console.progress("import", len(todo), noun) as advance:
            for (slide, _), found in map_slides(todo, _Importer, config=job.config, store=job.store):
                advance()
                if isinstance(found, Record):
                    patches[slide.slide_id] = found
                else:
                    _add(found, patches, made)
    return patches, made


def _add(found: Imported, patches: dict[str, Record], made: dict[str, Record]) -> None:
    patches[found.patches.name], made[found.patches.name] = found.patches, found.embeddings


class _Importer:
    """Imports one slide after the other; features that cannot be used are the slide's status."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config, self._store = config, store

    def __call__(self, item: tuple[Slide, FeatureFile]) -> Imported | Record:
        """Import one slide, and return its records, or that of its failure."""
        slide, file = item
        importer = SlideImporter(slide, file, self._config, self._store)
        return attempt(importer.make, slide_id=slide.slide_id, hidden=(slide.path, str(file.path)))


def patches_of(records: Mapping[str, Record]) -> int:
    """Count the patches of slides that can be used."""
    return sum(record.rows for record in records.values() if record.ok)
