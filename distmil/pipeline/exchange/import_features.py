"""The job that imports features of other tools."""

from typing import Any

from distmil.encoders.embedder import embeddings_folder
from distmil.features.spec import features_spec
from distmil.pipeline.exchange.imports import import_slides, patches_of
from distmil.pipeline.job import Job, check_bad_fraction, open_cohort, status_counts
from distmil.tiling.shards import patches_folder


def run(job: Job) -> dict[str, Any]:
    """Import the features of a manifest's slides that other tools made."""
    cohort = open_cohort(job, needs_labels=False, needs_splits=False)
    patches, embeddings = import_slides(job, cohort.slides)
    records = patches | embeddings
    check_bad_fraction(job, records)
    job.outcomes.add(patches)  # their doubts
    spec = features_spec(job.config.features)
    return {
        "patches": job.store.path(patches_folder(job.config.tiling)),
        "embeddings": job.store.path(embeddings_folder(job.config, spec)),
        "encoder": spec.name,
        "dimension": spec.dimension,
        "layouts": sorted({record.info["layout"] for record in embeddings.values()}),
        "num_patches": patches_of(embeddings),
        "slides": status_counts(records),
    }
