"""The job that writes embeddings for other tools."""

from pathlib import Path
from typing import Any

import numpy as np

from distmil.bags.bag import BagEntry, open_source
from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.defects import attempt
from distmil.encoders.embedder import embeddings_folder
from distmil.encoders.registry import EncoderSpec
from distmil.features.exporter import encoder_word, export_slide
from distmil.features.slide_table import SlideTable
from distmil.pipeline.cluster import check_gpus, map_slides
from distmil.pipeline.embed import tile_and_embed
from distmil.pipeline.exchange.imports import import_slides, patches_of
from distmil.pipeline.job import Job, check_bad_fraction, open_cohort, open_encoder, status_counts
from distmil.storage.records import Record
from distmil.storage.store import Store
from distmil.tiling.shards import grid_of

_Item = tuple[Slide, Record, Record]
"""A slide, and the records of its patches and its embeddings."""


def run(job: Job) -> dict[str, Any]:
    """Write the embeddings of a manifest's slides for another tool; what is missing is embedded or imported first."""
    cohort = open_cohort(job, needs_labels=False, needs_splits=False)
    layout = job.config.features.export_layout
    spec = open_encoder(job)
    if job.config.tiling.strategy == "features":
        patches, embedded = import_slides(job, cohort.slides)
    else:
        if spec.weights_file is not None:
            check_gpus(job.config)
        patches, embedded, spec = tile_and_embed(job, cohort.slides, spec)
    items = [(slide, patches[slide.slide_id], record) for slide in cohort.slides
             if (record := embedded.get(slide.slide_id)) is not None and record.ok]  # fmt: skip
    records = patches | embedded | _export(job, items, spec, layout)
    job.outcomes.add(patches)  # their doubts
    check_bad_fraction(job, records)
    return {
        "features": str(_folder(job.config)),
        "layout": layout,
        "encoder": encoder_word(spec.name),
        "dimension": spec.dimension,
        "num_patches": patches_of(records),
        "slides": status_counts(records),
    }


def _folder(config: Config) -> Path:
    return Path(str(config.features.export_folder)).expanduser().absolute()


def _export(job: Job, items: list[_Item], spec: EncoderSpec, layout: str) -> dict[str, Record]:
    """Write every slide, and return the records of those that fail."""
    failed = {}
    job.console.note(f"writing features of {len(items)} {job.outcomes.noun}s as {layout} has them")
    with job.console.progress("export", len(items), f"{job.outcomes.noun}s") as advance:
        arguments: dict[str, Any] = {"config": job.config, "store": job.store, "spec": spec, "layout": layout}
        for (slide, *_), record in map_slides(items, _Exporter, **arguments):
            advance()
            if record is not None:
                failed[slide.slide_id] = record
    return failed


class _Exporter:
    """Writes one slide after the other; one that cannot be written is its status."""

    def __init__(self, config: Config, store: Store, spec: EncoderSpec, layout: str) -> None:
        self._config, self._store, self._spec, self._layout = config, store, spec, layout

    def __call__(self, item: _Item) -> Record | None:
        """Write one slide, and return its record if it fails."""
        slide = item[0]
        found = attempt(lambda: self._write(item), slide_id=slide.slide_id, hidden=(slide.path,))
        return found if isinstance(found, Record) else None

    def _write(self, item: _Item) -> Path:
        version = self._config.features.stamp_version
        table = slide_table(item, self._config, self._store, self._spec)
        return export_slide(table, _folder(self._config), layout=self._layout, stamp_version=version)


def slide_table(item: _Item, config: Config, store: Store, spec: EncoderSpec) -> SlideTable:
    """Read what is exported of a slide. Raises: StorageError."""
    slide, patches, record = item
    folder = f"{embeddings_folder(config, spec)}/{slide.slide_id}"
    entry = BagEntry(slide.slide_id, None, None, False, folder, tuple(record.parts), None)
    source, places = open_source(store, entry)
    is_imported, info = config.tiling.strategy == "features", patches.info
    return SlideTable(
        slide_id=slide.slide_id,
        x_N=places["x"].to_numpy(),
        y_N=places["y"].to_numpy(),
        embedding_NE=np.asarray(source.take(slice(None)), np.float16),
        tissue_N=grid_of(store, config.tiling, patches)["tissue_fraction"].to_numpy(),
        extent_px=info["extent_px"],
        patch_px=config.tiling.patch_px,
        size=(info["width_px"], info["height_px"]),
        mpp=info["mpp"],
        encoder=encoder_word(spec.name),
        stride_px=None if is_imported else config.tiling.stride,
    )
