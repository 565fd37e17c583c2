"""What training and prediction stand on: patches, embeddings and labels of the slides that can be used."""

from collections.abc import Sequence
from dataclasses import dataclass

from distmil.bags.bag import BagEntry, Shards
from distmil.cohort import Slide
from distmil.encoders.embedder import embeddings_folder
from distmil.encoders.registry import EncoderSpec
from distmil.labels.tables import labels_folder
from distmil.pipeline.embed import embed, embed_views
from distmil.pipeline.exchange.imports import import_slides
from distmil.pipeline.job import Job, check_bad_fraction, status_counts
from distmil.pipeline.label import label
from distmil.pipeline.streaming.engine import with_engine
from distmil.pipeline.streaming.stream import tile_ahead
from distmil.pipeline.tile import tile
from distmil.storage.records import Record
from distmil.tiling.shards import patches_folder


@dataclass(frozen=True)
class Prepared:
    """Usable slides as bag entries, in the manifest's order, and the records of all."""

    entries: list[BagEntry]
    patches: dict[str, Record]
    labels: dict[str, Record]
    statuses: dict[str, int]


def prepare(
    job: Job, slides: Sequence[Slide], spec: EncoderSpec, *, with_labels: bool, learns: bool = False
) -> Prepared:
    """Tile, embed and label what is missing; features of other tools are imported in place of the first two.

    Args:
        job: Configuration, store and console.
        slides: The slides wanted.
        spec: The encoder.
        with_labels: Make label tables too.
        learns: Training follows: give the patches themselves instead of embeddings to a trainable encoder, else the
            views of the training slides too.

    Raises:
        TooManyBadSlides: If too few slides can be used.
        BadAnnotations: If annotations cannot be used and ``labels.on_bad_annotation`` is ``fail``.
        DefectError: If training follows and an unexpected exception cost a slide; else the job's end says so.
        StorageError: If the store cannot be written.
    """
    is_imported = job.config.tiling.strategy == "features"
    from_images = learns and job.config.encoder.trainable
    may_end = with_labels and job.config.labels.on_bad_annotation == "fail"  # before anything is embedded
    if is_imported:
        patches, embedded = import_slides(job, slides)
    elif from_images or may_end:
        patches, embedded = tile(job, slides).records, {}
    else:
        tiled, embedded = tile_ahead(job, slides, spec)
        patches = tiled.records
    labels = label(job, slides, patches) if with_labels else {}  # quick, and may end the job
    if from_images:
        embedded = {i: record for i, record in patches.items() if record.ok}
    elif not is_imported:
        spec = with_engine(job, slides, patches, spec)
        embedded = embed(job, slides, patches, spec, known=embedded)
    is_viewed = learns and not (is_imported or from_images)
    learning = {slide.slide_id: patches[slide.slide_id] for slide in slides if learns and slide.split == "train"}
    views = embed_views(job, slides, learning if is_viewed else {}, spec)
    broken = {record.name: record for records in views.values() for record in records if not record.ok}
    final = patches | embedded | broken | {i: record for i, record in labels.items() if not record.ok}
    for records in (patches, labels):  # their doubts
        job.outcomes.add(records)
    if learns:
        job.outcomes.kinds.update({slide.slide_id: _kind(slide, job.config.cohort.classes) for slide in slides})
    check_bad_fraction(job, final)
    if learns:
        job.outcomes.check_defects()
    folder = patches_folder(job.config.tiling) if from_images else embeddings_folder(job.config, spec)
    entries = [
        BagEntry(
            slide_id=slide.slide_id,
            label=slide.label,
            split=slide.split,
            is_pseudo=slide.is_pseudo,
            folder=f"{folder}/{slide.slide_id}",
            parts=tuple(embedded[slide.slide_id].parts),
            labels=f"{labels_folder(job.config)}/{slide.slide_id}.parquet" if slide.slide_id in labels else None,
            views=tuple(
                Shards(f"{embeddings_folder(job.config, spec, view=number)}/{slide.slide_id}", tuple(record.parts))
                for number, record in enumerate(views.get(slide.slide_id, []), start=1)
            ),
            labels_part=labels[slide.slide_id].parts[0] if slide.slide_id in labels else None,
            num_augmented=job.config.encoder.views if from_images and slide.slide_id in learning else 0,
            stain_shift=job.config.encoder.stain_shift if from_images else 0.0,
        )
        for slide in slides
        if final[slide.slide_id].ok
    ]
    return Prepared(entries, patches, labels, status_counts(final))


def _kind(slide: Slide, classes: Sequence[str]) -> str:
    return f"{slide.split or 'train'} {'unlabelled' if slide.label is None else classes[slide.label]}"
